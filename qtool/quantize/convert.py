"""Puts quantize and dequantize around everything that was decided: Calibrated -> Graph (int8, or QDQ for debugging)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qtool.engine.overflow import check_accumulators
from qtool.ir import Graph, Json, Node, QParams, Value, remake
from qtool.ops import QuantRule, get
from qtool.passes import lower_qdq, quantized_name
from qtool.quantize.calibrate import Calibrated
from qtool.quantize.groups import activation_inputs
from qtool.quantize.prepare import Prepared
from qtool.recipe.schema import Backend, Mode

DYNAMIC_REDUCE_RANGE = (Backend.FBGEMM, Backend.X86, Backend.ONEDNN)
"""Backends on which torch's dynamic linear uses 7 of the 8 activation bits; QNNPACK ignores the flag."""


def convert(calibrated: Calibrated, *, debug: bool = False, meta: Mapping[str, Json] | None = None) -> Graph:
    """The quantized graph. ``debug`` keeps float weights and explicit quantize and dequantize nodes around float
    operators; both give the same outputs, bit for bit, since the int8 graph is made from the other one.

    Graph inputs and outputs stay float32 and keep their names. Raises QuantizationError, naming the layer, where an
    int32 accumulator could overflow.
    """
    prepared = calibrated.prepared
    explicit = _dynamic(calibrated) if prepared.options.mode is Mode.DYNAMIC else _static(calibrated)
    recorded = {**prepared.graph.meta, **(meta or {}), "debug": debug, "fusion": prepared.fusion.to_json()}
    explicit = replace(explicit, backend=prepared.options.backend.value, meta=recorded)
    lowered = lower_qdq(explicit)
    check_accumulators(lowered)
    return explicit if debug else lowered


@dataclass(frozen=True)
class _Names:
    """What the values of the float graph are called in the explicit one."""

    raw: Mapping[str, str]
    """A quantized node's own float output, before it is quantized."""
    read: Mapping[str, str]
    """What a node inside the quantized part reads."""


def _static(calibrated: Calibrated) -> Graph:
    prepared = calibrated.prepared
    names = _name_values(prepared, calibrated.activations)
    values: list[Value] = []
    nodes: list[Node] = []
    for name in prepared.graph.inputs:
        _add_pair(prepared.graph, name, names, calibrated.activations, (nodes, values))
    weights = _Weights(calibrated)
    for node in prepared.graph.nodes:
        nodes.extend(weights.explicit(node))
        nodes.append(_rename(prepared, node, names, weights))
        for out in node.outputs:
            if out in names.raw:
                values.append(replace(prepared.graph.values[out], name=names.raw[out]))
            _add_pair(prepared.graph, out, names, calibrated.activations, (nodes, values))
    return remake(prepared.graph, nodes, values=[*values, *weights.values])


def _name_values(prepared: Prepared, activations: Mapping[str, QParams]) -> _Names:
    """A dequantized copy of ``v`` is ``v.dq``, but where ``v`` is a graph output the copy is ``v``: outputs keep their
    names, and the raw result is ``v.raw``."""
    made = {out for node in prepared.graph.nodes if node.name in prepared.qconfigs for out in node.outputs}
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
    """The node reading dequantized copies: all of them where it is quantized, only those of values that a quantized
    node made where it stays in float."""
    quantized = node.name in prepared.qconfigs
    renamed = []
    for position, name in enumerate(node.inputs):
        producer = prepared.graph.producers.get(name)
        made_quantized = producer is not None and producer.name in prepared.qconfigs
        if quantized and position == get(node.op).weight and name in weights.copies:
            renamed.append(weights.copies[name])
        elif name in names.read and (quantized or made_quantized):
            renamed.append(names.read[name])
        else:
            renamed.append(name)
    outputs = tuple(names.raw.get(out, out) for out in node.outputs)
    return replace(node, inputs=tuple(renamed), outputs=outputs)


class _Weights:
    """quantize (and, for a static graph, dequantize) nodes in front of the layers that use quantized weights."""

    def __init__(self, calibrated: Calibrated, *, dequantize: bool = True) -> None:
        self._graph = calibrated.prepared.graph
        self._qconfigs = calibrated.prepared.qconfigs
        self._qparams = calibrated.weights
        self._dequantize = dequantize
        self.copies: dict[str, str] = {}
        self.values: list[Value] = []

    def explicit(self, node: Node) -> Iterator[Node]:
        spec = get(node.op)
        if node.name not in self._qconfigs or spec.weight is None or spec.rule is not QuantRule.ACCUMULATE:
            return
        name = node.inputs[spec.weight]
        if name in self.copies:
            return
        qparams, value, quantized = self._qparams[name], self._graph.values[name], quantized_name(name)
        self.values.append(Value(quantized, qparams.dtype, value.shape, qparams))
        yield Node("quantize", quantized, (name,), (quantized,), scope=node.scope)
        self.copies[name] = quantized
        if self._dequantize:
            self.copies[name] = f"{name}.dq"
            self.values.append(replace(value, name=f"{name}.dq"))
            yield Node("dequantize", f"{name}.dq", (quantized,), (f"{name}.dq",), scope=node.scope)


def _dynamic(calibrated: Calibrated) -> Graph:
    """linear becomes linear_dynamic over an int8 weight; everything else stays as it is."""
    prepared = calibrated.prepared
    weights = _Weights(calibrated, dequantize=False)
    reduce_range = prepared.options.backend in DYNAMIC_REDUCE_RANGE
    nodes: list[Node] = []
    for node in prepared.graph.nodes:
        if node.name not in prepared.qconfigs:
            nodes.append(node)
            continue
        nodes.extend(weights.explicit(node))
        inputs = (activation_inputs(prepared.graph, node)[0], weights.copies[node.inputs[1]], *node.inputs[2:3])
        attrs = {**node.attrs, "reduce_range": reduce_range}
        nodes.append(replace(node, op="linear_dynamic", inputs=inputs, attrs=attrs))
    return remake(prepared.graph, nodes, values=weights.values)
