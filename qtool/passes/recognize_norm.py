"""Layer normalization written out (Ba, Kiros and Hinton, 2016)."""

from __future__ import annotations

from qtool.ir import Graph, Node
from qtool.passes.pattern import Num, Op, Pattern, Replacement, Var, any_of, match, op, rewrite, same_shape

X = Var("x")


def _over_last(graph: Graph, node: Node) -> bool:
    """Whether a mean goes over the last axis and keeps it."""
    rank = len(graph.values[node.inputs[0]].shape)
    axes = node.attrs.get("dim", node.attrs.get("axes"))
    keeps = node.attrs.get("keepdim", node.attrs.get("keepdims", node.op == "reduce_mean"))
    return keeps is True and isinstance(axes, tuple) and rank > 0 and axes in ((-1,), (rank - 1,))


def _mean(inner: Pattern) -> Op:
    return op("mean reduce_mean", inner, when=_over_last)


CENTRED = op("sub", X, _mean(X))
VARIANCES = [
    _mean(op("pow", CENTRED, Num(2.0))),
    _mean(op("mul", CENTRED, CENTRED)),
]
DEVIATIONS = [op("sqrt", op("add", variance, Num(name="eps"))) for variance in VARIANCES]
NORMALIZED: list[Pattern] = [
    *(op("div", CENTRED, deviation) for deviation in DEVIATIONS),
    *(op("mul", CENTRED, op("reciprocal", deviation)) for deviation in DEVIATIONS),
    *(op("mul", CENTRED, op("pow", op("add", v, Num(name="eps")), Num(-0.5))) for v in VARIANCES),
    *(op("mul", CENTRED, op("div", Num(1.0), deviation)) for deviation in DEVIATIONS),
]


def recognize_layer_norm(graph: Graph) -> Graph:
    """``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)`` becomes ``layer_norm(x)``; a factor and a summand of the
    last axis's size behind it become its weight and bias."""
    graph = rewrite(graph, _find)
    return rewrite(rewrite(graph, _find_weight), _find_bias)


def _find(graph: Graph, node: Node) -> Replacement | None:
    found = any_of(NORMALIZED, graph, node.outputs[0]) if node.op in ("div", "mul") else None
    if found is None or not same_shape(graph, str(found["x"]), node.outputs[0]):
        return None
    size = graph.values[str(found["x"])].shape[-1]
    eps = float(found["eps"])
    if not isinstance(size, int) or eps < 0:
        return None
    return Replacement("layer_norm", (str(found["x"]),), {"normalized_shape": (size,), "eps": eps})


def _norm_and_constant(graph: Graph, node: Node, inputs: int) -> tuple[Node, str] | None:
    """The layer_norm with so many inputs that only this node reads, and the constant it is combined with."""
    found = match(graph, node.outputs[0], op(node.op, Var("norm"), Var("other")))
    if found is None:
        return None
    for norm, other in ((found["norm"], found["other"]), (found["other"], found["norm"])):
        layer = graph.producers.get(str(norm))
        if layer is None or layer.op != "layer_norm" or len(layer.inputs) != inputs:
            continue
        shape = layer.attrs["normalized_shape"]
        fits = other in graph.initializers and graph.values[str(other)].shape == shape
        if fits and graph.sole_consumer(str(norm)) is node and same_shape(graph, str(norm), node.outputs[0]):
            return layer, str(other)
    return None


def _find_weight(graph: Graph, node: Node) -> Replacement | None:
    found = _norm_and_constant(graph, node, 1) if node.op == "mul" else None
    return None if found is None else Replacement("layer_norm", (*found[0].inputs, found[1]), found[0].attrs)


def _find_bias(graph: Graph, node: Node) -> Replacement | None:
    found = _norm_and_constant(graph, node, 2) if node.op == "add" else None
    return None if found is None else Replacement("layer_norm", (*found[0].inputs, found[1]), found[0].attrs)
