"""Hardsigmoid, hardswish and silu written out (Howard et al., 2019; Elfwing et al., 2017)."""

from __future__ import annotations

from qtool.ir import Graph, Node
from qtool.passes.pattern import Num, Op, Pattern, Replacement, Var, any_of, op, rewrite, same_shape

X = Var("x")


def _is_relu6(_: Graph, node: Node) -> bool:
    low, high = node.attrs.get("low", -1.0), node.attrs.get("high", 1.0)
    return node.op == "relu6" or (low, high) == (0.0, 6.0)


def _is_unit(_: Graph, node: Node) -> bool:
    return (node.attrs.get("low", -1.0), node.attrs.get("high", 1.0)) == (0.0, 1.0)


def _relu6(inner: Pattern) -> Op:
    return op("relu6 clamp hardtanh", inner, when=_is_relu6)


SHIFTED = _relu6(op("add", X, Num(3.0)))
SIXTH = Num(1 / 6)
HARDSIGMOID = [
    op("div", SHIFTED, Num(6.0)),
    op("mul", SHIFTED, SIXTH),
    op("clamp hardtanh", op("add", op("mul", X, SIXTH), Num(0.5)), when=_is_unit),
    op("clamp hardtanh", op("add", op("div", X, Num(6.0)), Num(0.5)), when=_is_unit),
]
HARDSWISH = [
    op("mul", X, op("hardsigmoid", X)),
    op("div", op("mul", X, SHIFTED), Num(6.0)),
    op("mul", op("mul", X, SHIFTED), SIXTH),
    op("mul", op("mul", X, SIXTH), SHIFTED),
    op("mul", op("div", X, Num(6.0)), SHIFTED),
    *(op("mul", X, sigmoid) for sigmoid in HARDSIGMOID),
]
SILU = [op("mul", X, op("sigmoid", X))]


def recognize_swish(graph: Graph) -> Graph:
    """``x * relu6(x + 3) / 6`` becomes ``hardswish(x)``, without the factor x ``hardsigmoid(x)``, and
    ``x * sigmoid(x)`` becomes ``silu(x)``."""
    return rewrite(graph, _find)


def _find(graph: Graph, node: Node) -> Replacement | None:
    if node.op not in ("mul", "div", "clamp", "hardtanh"):
        return None
    for name, patterns in (("hardswish", HARDSWISH), ("silu", SILU), ("hardsigmoid", HARDSIGMOID)):
        found = any_of(patterns, graph, node.outputs[0])
        if found is not None and same_shape(graph, str(found["x"]), node.outputs[0]):
            return Replacement(name, (str(found["x"]),), {})
    return None
