"""Constants that a body of control flow reads become its own, so that its layers have constant weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qtool.ir import Graph, Node, Value, constant, remake
from qtool.ops.control import captured_count


def capture_constants(graph: Graph) -> Graph:
    """``if(cond, x, w) {linear(x, w)}`` with a constant ``w`` becomes ``if(cond, x) {linear(x, w)}``: ``w`` moves in.

    Each body that reads the constant has it then, so a file holds it as many times. A body that takes inputs of other
    sizes too, which has a symbol where the constant has a number, keeps its input.
    """
    nodes = [_captured(graph, node) if node.graphs else node for node in graph.nodes]
    changed = any(new is not old for new, old in zip(nodes, graph.nodes, strict=True))
    return remake(graph, nodes) if changed else graph


def _captured(graph: Graph, node: Node) -> Node:
    count = captured_count(node)
    last = range(-count, 0)  # the same places in the node and in each of its bodies
    taken = {at: node.inputs[at] for at in last if _is_constant(graph, node, at)}
    if not taken:
        return node
    bodies = {
        name: _with_constants(graph, body, {body.inputs[at]: outer for at, outer in taken.items()})
        for name, body in node.graphs.items()
    }
    inputs = (*node.inputs[: len(node.inputs) - count], *(node.inputs[at] for at in last if at not in taken))
    return replace(node, inputs=inputs, graphs=bodies)


def _is_constant(graph: Graph, node: Node, at: int) -> bool:
    outer = node.inputs[at]
    shapes = (body.values[body.inputs[at]].shape for body in node.graphs.values())
    return outer in graph.initializers and all(shape == graph.values[outer].shape for shape in shapes)


def _with_constants(graph: Graph, body: Graph, taken: Mapping[str, str]) -> Graph:
    """The body with inputs (inner -> outer name) turned into initializers, as far as anything reads them."""
    body = replace(body, inputs=tuple(name for name in body.inputs if name not in taken))
    arrays = {inner: graph.initializers[outer] for inner, outer in taken.items()}
    values: list[Value] = [
        constant(inner, arrays[inner], graph.values[outer].qparams) for inner, outer in taken.items()
    ]
    return remake(body, body.nodes, values=values, initializers=arrays)
