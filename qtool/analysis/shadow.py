"""A quantized graph with a float twin beside each of its layers, reading the same input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qtool.ir import Array, Graph, Node, Value, remake
from qtool.passes import float_names


@dataclass(frozen=True)
class Shadowed:
    """``twins`` maps each quantized value to the value that its layer would have given in float; both are outputs."""

    graph: Graph
    twins: Mapping[str, str]


def shadow_graph(fused: Graph, quantized: Graph) -> Shadowed:
    """Adds to the quantized graph, for each quantized node, dequantize nodes and the float node of the fused graph."""
    reals = float_names(quantized)
    nodes: list[Node] = []
    values: dict[str, Value] = {}
    arrays: dict[str, Array] = {}
    twins: dict[str, str] = {}
    for node in quantized.nodes:
        nodes.append(node)
        if node.op == "quantize" or not quantized.values[node.outputs[0]].qparams:
            continue
        twin = fused.producers.get(reals.get(node.outputs[0], ""))
        if twin is None:
            continue
        inputs = []
        for quant_input, float_input in zip(node.inputs, twin.inputs, strict=True):
            if float_input in fused.initializers:
                arrays[f"{float_input}.float"] = fused.initializers[float_input]
                values[f"{float_input}.float"] = replace(fused.values[float_input], name=f"{float_input}.float")
                inputs.append(f"{float_input}.float")
            elif quant_input and quantized.values[quant_input].qparams:
                inputs.append(_copy(quantized, quant_input, nodes, values))
            else:
                inputs.append(quant_input)
        outputs = tuple(f"{name}.shadow" for name in node.outputs)
        nodes.append(replace(twin, name=f"{node.name}.shadow", inputs=tuple(inputs), outputs=outputs))
        for out, name, real in zip(node.outputs, outputs, twin.outputs, strict=True):
            values[name] = replace(fused.values[real], name=name)
            twins[out] = name
    activations = [name for name in reals if name in quantized.producers]
    outputs = tuple(dict.fromkeys([*activations, *twins.values()]))
    return Shadowed(remake(quantized, nodes, values=values.values(), initializers=arrays, outputs=outputs), twins)


def _copy(graph: Graph, name: str, nodes: list[Node], values: dict[str, Value]) -> str:
    """The dequantized copy of a value, made once."""
    copy = f"{name}.seen"
    if copy not in values:
        values[copy] = Value(copy, graph.values[name].type.dtype, graph.values[name].shape)
        nodes.append(Node("dequantize", copy, (name,), (copy,)))
    return copy
