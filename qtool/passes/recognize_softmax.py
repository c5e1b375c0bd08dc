"""Softmax written out, with and without the maximum taken off first."""

from __future__ import annotations

from qtool.ir import Graph, Node
from qtool.passes.pattern import Op, Pattern, Replacement, Var, match, op, rewrite, same_shape

X = Var("x")


def _axis(graph: Graph, node: Node) -> int | None:
    """The one axis that a reduction goes over and keeps; None for others."""
    axes = node.attrs.get("dim", node.attrs.get("axes"))
    keeps = node.attrs.get("keepdim", node.attrs.get("keepdims", node.op.startswith("reduce_")))
    if keeps is not True or not isinstance(axes, tuple) or len(axes) != 1 or not isinstance(axes[0], int):
        return None
    return int(axes[0]) % max(len(graph.values[node.inputs[0]].shape), 1)


def _reduces_one(graph: Graph, node: Node) -> bool:
    return _axis(graph, node) is not None


def _softmax(argument: Pattern) -> Op:
    return op("div", op("exp", argument), op("sum reduce_sum", op("exp", argument), when=_reduces_one))


SHIFTED = _softmax(op("sub", X, op("reduce_max", X, when=_reduces_one)))
PLAIN = _softmax(X)


def recognize_softmax(graph: Graph) -> Graph:
    """``exp(x - max(x)) / sum(exp(x - max(x)))`` becomes ``softmax(x)``."""
    return rewrite(graph, _find)


def _find(graph: Graph, node: Node) -> Replacement | None:
    if node.op != "div":
        return None
    found = match(graph, node.outputs[0], SHIFTED)
    axes = [_axis(graph, graph.producers[node.inputs[1]])] if node.inputs[1] in graph.producers else []
    if found is not None:
        # The maximum may be any number, but it must be one for all that is summed up.
        shift = graph.producers[graph.producers[node.inputs[0]].inputs[0]]
        axes.append(_axis(graph, graph.producers[shift.inputs[1]]))
    else:
        found = match(graph, node.outputs[0], PLAIN)
    if found is None or len(set(axes)) != 1 or not same_shape(graph, str(found["x"]), node.outputs[0]):
        return None
    return Replacement("softmax", (str(found["x"]),), {"dim": axes[0]})
