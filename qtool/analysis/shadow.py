"""A quantized graph with a float twin beside each of its layers, reading the same input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qtool.ir import Array, Graph, Node, Value, remake
from qtool.ops import get
from qtool.passes import float_names

FLOAT, SEEN, SHADOW = "~float", "~seen", "~shadow"
"""Ends of the names of float weights, dequantized copies and twins."""


@dataclass(frozen=True)
class Shadowed:
    """``twins`` maps the output of each quantized layer to what the layer would have given in float.

    For a layer with int8 output that is a quantized value, for a dynamic one a float value, and for a ``quantize`` node
    the twin is the value it quantizes. All of them are outputs of ``graph``.
    """

    graph: Graph
    twins: Mapping[str, str]


def shadow_graph(fused: Graph, quantized: Graph) -> Shadowed:
    """Adds to the quantized graph, behind each quantized node, dequantize nodes and the float node of the fused graph.

    The two graphs correspond as in ``qtool.analysis.compare.Pair``.
    """
    made = _Twins(fused, quantized)
    for node in quantized.nodes:
        made.add(node)
    outputs = tuple(dict.fromkeys([*quantized.outputs, *made.twins, *made.twins.values()]))
    graph = remake(quantized, made.nodes, values=made.values.values(), initializers=made.arrays, outputs=outputs)
    return Shadowed(graph, made.twins)


def layer_twin(fused: Graph, quantized: Graph, node: Node) -> Node | None:
    """The float node that a quantized node stands for; None for one that is not quantized."""
    if node.op in ("quantize", "dequantize"):
        return None
    out = node.outputs[0]
    if not get(node.op).dynamic_of and quantized.values[out].qparams is None:
        return None
    return fused.producers.get(float_names(quantized).get(out, out))


class _Twins:
    def __init__(self, fused: Graph, quantized: Graph) -> None:
        self._fused, self._quantized = fused, quantized
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.arrays: dict[str, Array] = {}
        self.twins: dict[str, str] = {}

    def add(self, node: Node) -> None:
        self.nodes.append(node)
        if node.op == "quantize":
            self.twins[node.outputs[0]] = node.inputs[0]
            return
        twin = layer_twin(self._fused, self._quantized, node)
        if twin is None:
            return
        sources = zip(node.inputs, twin.inputs, strict=False)  # a dynamic linear has no place for a residual
        inputs = tuple(self._input(stored, real) for stored, real in sources)
        outputs = tuple(f"{name}{SHADOW}" for name in node.outputs)
        self.nodes.append(replace(twin, name=f"{node.name}{SHADOW}", inputs=inputs, outputs=outputs))
        for out, name, real in zip(node.outputs, outputs, twin.outputs, strict=True):
            self.values[name] = replace(self._fused.values[real], name=name)
            self.twins[out] = name

    def _input(self, stored: str, real: str) -> str:
        """What the twin reads: the float weight itself, or what the quantized layer sees as real numbers."""
        if real in self._fused.initializers:
            name = f"{real}{FLOAT}"
            self.arrays[name] = self._fused.initializers[real]
            self.values[name] = replace(self._fused.values[real], name=name)
            return name
        if stored and self._quantized.values[stored].qparams is not None:
            return self._copy(stored)
        return stored

    def _copy(self, stored: str) -> str:
        """The dequantized copy of a value, made once."""
        name = f"{stored}{SEEN}"
        if name not in self.values:
            value = self._quantized.values[stored]
            self.values[name] = Value(name, value.type.dtype, value.shape)
            self.nodes.append(Node("dequantize", name, (stored,), (name,)))
        return name
