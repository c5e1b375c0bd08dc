"""Products with a constant matrix are linear layers, which can be quantized and run on their kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qtool.ir import Array, DType, Graph, Node, Value, remake
from qtool.ir.graph import constant


def linear_matmul(graph: Graph) -> Graph:
    """``matmul(x, w)`` with a constant float32 matrix ``w`` becomes ``linear(x, w')``; ``w'`` is called ``w.t``."""
    found = [node for node in graph.nodes if _is_linear(graph, node)]
    if not found:
        return graph
    arrays: dict[str, Array] = {}
    values: list[Value] = []
    for name in dict.fromkeys(node.inputs[1] for node in found):
        arrays[_turned(name)] = np.ascontiguousarray(graph.initializers[name].T)
        values.append(constant(_turned(name), arrays[_turned(name)]))
    chosen = {node.name for node in found}
    nodes = [
        replace(node, op="linear", inputs=(node.inputs[0], _turned(node.inputs[1]))) if node.name in chosen else node
        for node in graph.nodes
    ]
    return remake(graph, nodes, values=values, initializers=arrays)


def _turned(name: str) -> str:
    return f"{name}.t"


def _is_linear(graph: Graph, node: Node) -> bool:
    if node.op != "matmul" or node.inputs[1] not in graph.initializers or node.inputs[0] in graph.initializers:
        return False
    x, weight = (graph.values[name] for name in node.inputs)
    plain = x.qparams is None and weight.qparams is None and weight.dtype is DType.FLOAT32
    return plain and len(weight.shape) == 2 and _turned(weight.name) not in graph.values
