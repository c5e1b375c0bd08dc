"""Turns a graph with quantize and dequantize nodes around float operators into the int8 graph it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qtool.ir import Array, Graph, Node, Value, remake, with_bodies
from qtool.ir.rewrite import drop_dead
from qtool.ops.check import keeps_parameters
from qtool.ops.registry import OpSpec, QuantRule, get


def lower_qdq(graph: Graph) -> Graph:
    """``quantize(conv(dequantize(x.q), dequantize(w.q)))`` becomes ``conv(x.q, w.q)`` in int8.

    A node is lowered when every activation it reads is dequantized, its weight is a quantized constant, and each of its
    outputs is read by one quantize and nothing else. All others run in float as they stand.
    Quantized constants are stored as integers. Bodies of control flow are lowered alike.
    """
    graph = with_bodies(graph, lambda body, _: lower_qdq(body) if body.is_quantized else body)
    graph = _quantize_constants(graph)
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        quantizes = _lowered_outputs(graph, node)
        if quantizes is None:
            nodes.append(node)
        else:
            inputs = tuple(_quantized(graph, name) or name for name in node.inputs)
            nodes.append(replace(node, inputs=inputs, outputs=tuple(q.outputs[0] for q in quantizes)))
            renamed.update({q.name: "" for q in quantizes})
    return drop_dead(remake(graph, (node for node in nodes if node.name not in renamed)))


def _quantize_constants(graph: Graph) -> Graph:
    """``quantize(constant)`` becomes a constant of integers."""
    arrays: dict[str, Array] = {}
    values: list[Value] = []
    kept: list[Node] = []
    for node in graph.nodes:
        source = graph.initializers.get(node.inputs[0]) if node.op == "quantize" else None
        value = graph.values[node.outputs[0]]
        if source is None or value.qparams is None or value.name in graph.outputs:
            kept.append(node)
        else:
            arrays[value.name] = np.ascontiguousarray(value.qparams.quantize(source))
            values.append(value)
    return remake(graph, kept, values=values, initializers=arrays) if arrays else graph


def _lowered_outputs(graph: Graph, node: Node) -> list[Node] | None:
    """The quantize nodes behind a node that can run in int8; None where it cannot."""
    spec = get(node.op)
    if spec.rule is None or node.op in ("quantize", "dequantize"):
        return None
    if any(graph.values[name].qparams for name in node.outputs) or not _inputs_fit(graph, node, spec):
        return None
    readers = [graph.sole_consumer(name) for name in node.outputs]
    quantizes = [reader for reader in readers if reader is not None and reader.op == "quantize"]
    if len(quantizes) != len(node.outputs):
        return None
    return None if keeps_parameters(node.op) and not _parameters_stay(graph, node, quantizes) else quantizes


def _parameters_stay(graph: Graph, node: Node, quantizes: list[Node]) -> bool:
    """Whether integers that are only moved mean the same behind the node as before it."""
    source = graph.values[_quantized(graph, node.inputs[0]) or node.inputs[0]].qparams
    return all(graph.values[quantize.outputs[0]].qparams == source for quantize in quantizes)


def _inputs_fit(graph: Graph, node: Node, spec: OpSpec) -> bool:
    activations = 0
    for position, name in enumerate(node.inputs):
        if not name or position == spec.bias:
            continue
        source = _quantized(graph, name)
        if position == spec.weight and spec.rule is QuantRule.ACCUMULATE:
            if source is None or source not in graph.initializers:
                return False
        elif source is not None:
            activations += 1
        elif name not in graph.initializers:
            return False
    return activations > 0


def _quantized(graph: Graph, name: str) -> str | None:
    """The quantized value that this one is the dequantized copy of."""
    producer = graph.producers.get(name)
    return producer.inputs[0] if producer is not None and producer.op == "dequantize" else None


def quantized_name(name: str) -> str:
    """Name of the quantized twin of a float value."""
    return f"{name}.q"


def float_names(graph: Graph) -> Mapping[str, str]:
    """Quantized value -> the float value it is the twin of, by the naming rule of ``quantized_name``."""
    return {name: name[:-2] for name, value in graph.values.items() if value.qparams and name.endswith(".q")}
