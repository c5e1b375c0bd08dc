"""Puts quantize and dequantize around everything that was decided: Calibrated -> Graph (int8, or QDQ for debugging)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qtool.engine.overflow import check_accumulators
from qtool.ir import Array, Graph, Json, Node, QParams, Value, remake, with_bodies
from qtool.ops.registry import dynamic_twin
from qtool.passes import lower_qdq, quantized_name
from qtool.quantize.bias_correction import correct_biases
from qtool.quantize.calibrate import Calibrated
from qtool.quantize.prepare import Prepared, quantized_weights
from qtool.quantize.qparams import clip_to_limits
from qtool.quantize.tables import packed_embedding
from qtool.recipe.schema import Backend

DYNAMIC_REDUCE_RANGE = (Backend.FBGEMM, Backend.X86, Backend.ONEDNN)
"""Backends on which torch's dynamic linear uses 7 of the 8 activation bits; QNNPACK ignores the flag."""


def convert(calibrated: Calibrated, *, debug: bool = False, meta: Mapping[str, Json] | None = None) -> Graph:
    """The quantized graph. ``debug`` keeps float weights and explicit quantize and dequantize nodes around float
    operators; both give the same outputs, bit for bit, since the int8 graph is made from the other one.

    A dynamic layer reads and gives floats, wherever it stands: a static layer's output is dequantized for it, and its
    own is quantized where a static layer reads it. Inputs and outputs of the graph, and of bodies of control flow, stay
    float32 and keep their names. Raises QuantizationError, naming the layer, where an int32 accumulator could overflow.
    """
    prepared = calibrated.prepared
    explicit = _explicit(calibrated)
    recorded = {**prepared.graph.meta, **(meta or {}), "debug": debug, "fusion": prepared.fusion.to_json()}
    explicit = replace(explicit, meta=recorded)
    lowered = lower_qdq(explicit)
    check_accumulators(lowered)
    return explicit if debug else lowered


def _with_corrected_biases(calibrated: Calibrated) -> Calibrated:
    graph = correct_biases(calibrated.prepared, calibrated.weights, calibrated.means)
    return replace(calibrated, prepared=replace(calibrated.prepared, graph=graph))


def _with_clipped_weights(calibrated: Calibrated) -> Calibrated:
    """Weights within the limits of their qconfig, which may be narrower than the storage type's."""
    prepared = calibrated.prepared
    arrays = dict(prepared.graph.initializers)
    for node in prepared.graph.nodes:
        for position in quantized_weights(prepared, node):
            name, config = node.inputs[position], prepared.qconfigs[node.name].weight
            arrays[name] = clip_to_limits(arrays[name], calibrated.weights[name], config)
    return replace(calibrated, prepared=replace(prepared, graph=replace(prepared.graph, initializers=arrays)))


@dataclass(frozen=True)
class _Names:
    """What the values of the float graph are called in the explicit one."""

    raw: Mapping[str, str]
    """A quantized node's own float output, before it is quantized."""
    read: Mapping[str, str]
    """What a node inside the quantized part reads."""


def _explicit(calibrated: Calibrated) -> Graph:
    """The graph with quantize and dequantize nodes, and its bodies with theirs; a body without any stays as it is."""
    if not calibrated.prepared.quantized:
        return calibrated.prepared.graph
    calibrated = _with_clipped_weights(_with_corrected_biases(calibrated))
    prepared = calibrated.prepared
    names = _name_values(prepared, calibrated.activations)
    values: list[Value] = []
    nodes: list[Node] = []
    for name in prepared.graph.inputs:
        _add_pair(prepared.graph, name, names, calibrated.activations, (nodes, values))
    weights, tables = _Weights(calibrated), dict[str, Array]()
    for node in prepared.graph.nodes:
        nodes.extend(weights.explicit(node))
        renamed = _rename(prepared, node, names, weights)
        bits = prepared.qconfigs[node.name].embedding_bits if node.name in prepared.dynamic else None
        if node.op == "embedding" and bits is not None:
            renamed, arrays, constants = packed_embedding(renamed, prepared.graph.initializers[node.inputs[1]], bits)
            tables.update(arrays)
            values.extend(constants)
        elif node.name in prepared.dynamic:
            renamed = _dynamic(prepared, renamed)
        nodes.append(renamed)
        for out in node.outputs:
            if out in names.raw:
                values.append(replace(prepared.graph.values[out], name=names.raw[out]))
            _add_pair(prepared.graph, out, names, calibrated.activations, (nodes, values))
    made = remake(prepared.graph, nodes, values=[*values, *weights.values], initializers=tables)
    made = with_bodies(made, lambda _, path: _explicit(calibrated.bodies[path]))
    return replace(made, backend=prepared.options.backend.value)


def _name_values(prepared: Prepared, activations: Mapping[str, QParams]) -> _Names:
    """A dequantized copy of ``v`` is ``v.dq``, but where ``v`` is a graph output the copy is ``v``: outputs keep their
    names, and the raw result is ``v.raw``."""
    made = {out for node in prepared.graph.nodes if node.name in prepared.static for out in node.outputs}
    raw = {name: f"{name}.raw" for name in prepared.graph.outputs if name in made}
    read = {name: name if name in raw else f"{name}.dq" for name in activations}
    return _Names(raw, read)


def _add_pair(
    graph: Graph,
    name: str,
    names: _Names,
    activations: Mapping[str, QParams],
    into: tuple[list[Node], list[Value]],
) -> None:
    """quantize and dequantize behind a value that is quantized."""
    if name not in activations:
        return
    nodes, values = into
    value, quantized, copy = graph.values[name], quantized_name(name), names.read[name]
    producer = graph.producers.get(name)
    scope = producer.scope if producer else ""
    qparams = activations[name]
    nodes.append(Node("quantize", quantized, (names.raw.get(name, name),), (quantized,), scope=scope))
    nodes.append(Node("dequantize", f"{name}.dq", (quantized,), (copy,), scope=scope))
    values.append(Value(quantized, qparams.dtype, value.shape, qparams))
    values.append(replace(value, name=copy))


def _rename(prepared: Prepared, node: Node, names: _Names, weights: _Weights) -> Node:
    """The node reading dequantized copies: all of them where it is static, only those of values that a static node made
    where it works on floats."""
    static, weighted = node.name in prepared.static, weights.positions(node)
    renamed = []
    for position, name in enumerate(node.inputs):
        producer = prepared.graph.producers.get(name)
        made_quantized = producer is not None and producer.name in prepared.static
        if position in weighted:
            renamed.append(weights.read(node, name))
        elif name in names.read and (static or made_quantized):
            renamed.append(names.read[name])
        else:
            renamed.append(name)
    outputs = tuple(names.raw.get(out, out) for out in node.outputs)
    return replace(node, inputs=tuple(renamed), outputs=outputs)


class _Weights:
    """quantize and, for static layers, dequantize nodes in front of the layers that use quantized weights."""

    def __init__(self, calibrated: Calibrated) -> None:
        self._prepared = calibrated.prepared
        self._qparams = calibrated.weights
        self._made: set[str] = set()
        self.values: list[Value] = []

    def positions(self, node: Node) -> tuple[int, ...]:
        """The inputs of a node that are quantized weights."""
        return quantized_weights(self._prepared, node)

    def read(self, node: Node, weight: str) -> str:
        """What a node reads in the place of a weight: integers where it is dynamic."""
        return quantized_name(weight) if node.name in self._prepared.dynamic else f"{weight}.dq"

    def explicit(self, node: Node) -> Iterator[Node]:
        for name in dict.fromkeys(node.inputs[position] for position in self.positions(node)):
            value, quantized, copy = self._prepared.graph.values[name], quantized_name(name), self.read(node, name)
            qparams = self._qparams[name]
            if self._add(Value(quantized, qparams.dtype, value.shape, qparams)):
                yield Node("quantize", quantized, (name,), (quantized,), scope=node.scope)
            if self._add(replace(value, name=copy)):
                yield Node("dequantize", copy, (quantized,), (copy,), scope=node.scope)

    def _add(self, value: Value) -> bool:
        """Whether the value is new."""
        new = value.name not in self._made
        if new:
            self._made.add(value.name)
            self.values.append(value)
        return new


def _dynamic(prepared: Prepared, node: Node) -> Node:
    """The operator that quantizes its activations at run time, over integer weights."""
    activation = prepared.qconfigs[node.name].activation
    attrs = {**node.attrs, "reduce_range": prepared.options.backend in DYNAMIC_REDUCE_RANGE}
    if activation.options.get("row_wise"):
        attrs["row_wise"] = True
    twin = dynamic_twin(node.op)
    assert twin is not None
    return replace(node, op=twin.name, inputs=node.inputs[: len(twin.inputs)], attrs=attrs)
