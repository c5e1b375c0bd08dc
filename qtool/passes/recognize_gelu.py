"""GELU written out: x * Phi(x) by erf, or its approximation by tanh (Hendrycks and Gimpel, 2016)."""

from __future__ import annotations

import math

from qtool.ir import Graph, Node
from qtool.passes.pattern import Num, Op, Pattern, Replacement, Var, any_of, op, rewrite, same_shape

X, HALF, ONE = Var("x"), Num(0.5), Num(1.0)


def _halved(inner: Pattern) -> list[Pattern]:
    """0.5 * x * (1 + inner) in the groupings that exporters write."""
    sum_ = op("add", inner, ONE)
    return [
        op("mul", op("mul", X, HALF), sum_),
        op("mul", op("mul", X, sum_), HALF),
        op("mul", X, op("mul", sum_, HALF)),
        op("div", op("mul", X, sum_), Num(2.0)),
        op("mul", op("div", X, Num(2.0)), sum_),
    ]


def _cubes() -> list[Op]:
    return [
        op("pow", X, Num(3.0)),
        op("mul", op("mul", X, X), X),
    ]


def _tanh_arguments() -> list[Pattern]:
    factor, small = Num(math.sqrt(2 / math.pi)), Num(0.044715)
    sums = [op("add", X, op("mul", cube, small)) for cube in _cubes()]
    nested = op("mul", X, op("add", op("mul", op("mul", X, X), small), ONE))
    square = op("mul", X, op("add", op("mul", op("pow", X, Num(2.0)), small), ONE))
    return [op("mul", inner, factor) for inner in (*sums, nested, square)]


ERF = [
    pattern
    for inner in (op("div", X, Num(math.sqrt(2))), op("mul", X, Num(1 / math.sqrt(2))))
    for pattern in _halved(op("erf", inner))
]
TANH = [pattern for inner in _tanh_arguments() for pattern in _halved(op("tanh", inner))]


def recognize_gelu(graph: Graph) -> Graph:
    """``0.5 * x * (1 + erf(x / sqrt(2)))`` becomes ``gelu(x)``; the form with tanh too."""
    return rewrite(graph, _find)


def _find(graph: Graph, node: Node) -> Replacement | None:
    if node.op not in ("mul", "div"):
        return None
    for approximate, patterns in (("none", ERF), ("tanh", TANH)):
        found = any_of(patterns, graph, node.outputs[0])
        if found is not None and same_shape(graph, str(found["x"]), node.outputs[0]):
            return Replacement("gelu", (str(found["x"]),), {"approximate": approximate})
    return None
