"""Transfer learning: the last layer of a float model is replaced by one with other outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qtool.errors import ModelError, RecipeError
from qtool.ir import Array, Graph, Node, TensorType, Value, constant, remake
from qtool.ir.rewrite import drop_dead
from qtool.ops import attrs_of, infer_node
from qtool.quantize.qat.streams import Use, uniform
from qtool.recipe.match import select
from qtool.recipe.training import Head, Pattern

_LINEAR, _POINTWISE = "linear", ("conv1d", "conv2d", "conv3d")
_EXPECTED = "a linear layer or a 1x1 convolution of one group, with a constant weight"


def replace_head(graph: Graph, head: Head, seed: int) -> Graph:
    """The graph with a new last layer of ``head.classes`` outputs and the shapes that follow; without a bias, where the
    old layer has none. Nodes that no output comes from are left out.

    Without ``head.layer`` it is the last layer that can be replaced, in execution order. Weight and bias are drawn by
    ``draw_layer``, from numbers of ``seed``.

    Raises RecipeError where ``head.layer`` names no such layer, and ModelError where the model has none, is quantized,
    or needs the number of outputs that it had.
    """
    if graph.is_quantized:
        raise ModelError(f"the model is quantized (backend {graph.backend}); a new head needs the float model")
    graph = drop_dead(graph)
    node = _chosen(graph, head)
    arrays = _drawn(graph, node, head.classes, seed)
    inputs = tuple(_renamed(graph, node, name) if name in arrays else name for name in node.inputs)
    renamed = dict(zip(node.inputs, inputs, strict=True))
    new = {renamed[name]: array for name, array in arrays.items()}
    values = {name: constant(name, array) for name, array in new.items()}
    nodes = [replace(each, inputs=inputs) if each is node else each for each in graph.nodes]
    values |= _retyped(graph, nodes, values, head)
    made = remake(graph, nodes, values=values.values(), initializers=new)
    _check_outputs(made, node, head)
    return made


def _chosen(graph: Graph, head: Head) -> Node:
    """The layer that the head replaces."""
    if head.layer is None:
        found = [node for node in graph.nodes if _fits(graph, node)]
        if not found:
            raise ModelError(f"head: the model has no layer that could be replaced; expected {_EXPECTED}")
        return found[-1]
    names = select([Pattern(head.layer, head.where)], graph.nodes, "head.layer")
    there = [node for node in graph.nodes if node.name in names]
    found = [node for node in there if _fits(graph, node)]
    if len(found) != 1:
        got = f"{len(found)} of them" if found else ", ".join(dict.fromkeys(node.op for node in there))
        place = f"{head.where}: " if head.where else ""
        raise RecipeError(f"{place}head.layer: got {got} at {head.layer!r}, expected {_EXPECTED}")
    return found[0]


def _fits(graph: Graph, node: Node) -> bool:
    if node.op != _LINEAR and node.op not in _POINTWISE:
        return False
    constants = [name for name in node.inputs[1:] if name]
    if any(name not in graph.initializers for name in constants) or len(node.inputs) > 3:
        return False
    kernel = graph.initializers[node.inputs[1]].shape[2:]
    return math.prod(kernel) == 1 and (node.op == _LINEAR or attrs_of(node).groups == 1)


def _drawn(graph: Graph, node: Node, classes: int, seed: int) -> dict[str, Array]:
    """The new weight and bias, by the names of the old ones."""
    weight, *bias = (name for name in node.inputs[1:] if name)
    old = graph.initializers[weight]
    drawn = draw_layer((classes, *old.shape[1:]), seed)
    return {name: array.astype(old.dtype) for name, array in zip((weight, *bias), drawn, strict=False)}


def draw_layer(shape: tuple[int, ...], seed: int, *place: int) -> tuple[Array, Array]:
    """Weight of that shape (out, inputs, ...) and bias (out,), in float64, as PyTorch's ``nn.Linear`` and ``nn.Conv2d``
    draw theirs: uniformly within 1/sqrt(inputs). ``place`` tells the layers of one model apart.
    """
    classes, inputs = shape[0], math.prod(shape[1:])
    bound = 1 / math.sqrt(inputs)
    drawn = (2 * uniform(seed, Use.HEAD, *place, count=classes * (inputs + 1)) - 1) * bound
    return drawn[classes:].reshape(shape), drawn[:classes]


def _renamed(graph: Graph, node: Node, name: str) -> str:
    """The name of a constant that has changed: another one where other layers read the old one."""
    if graph.consumers[name] == (node,) and name not in graph.outputs:
        return name
    new = f"{name}.head"
    while new in graph.values:
        new += "_"
    return new


def _retyped(graph: Graph, nodes: Iterable[Node], known: Mapping[str, Value], head: Head) -> dict[str, Value]:
    """The values whose shapes change, from the constants in ``known`` on."""
    changed = dict(known)
    for node in nodes:
        if not changed.keys() & set(node.inputs):
            continue
        try:
            types = infer_node(node, [_type_of(graph, changed, name) for name in node.inputs])
        except ModelError as error:
            raise ModelError(
                f"head: {head.classes} outputs do not fit what follows them in the model: {error}"
            ) from error
        for name, found in zip(node.outputs, types, strict=True):
            value = graph.values[name]
            if (value.dtype, value.shape) != (found.dtype, found.shape):
                changed[name] = Value(name, found.dtype, found.shape)
    return {name: value for name, value in changed.items() if name not in known}


def _type_of(graph: Graph, changed: Mapping[str, Value], name: str) -> TensorType | None:
    if not name:
        return None
    return changed[name].type if name in changed else graph.type_of(name)


def _check_outputs(graph: Graph, node: Node, head: Head) -> None:
    """ModelError where no output has the new number of classes: a reshape may have taken them for something else."""
    if not any(head.classes in graph.values[name].shape[1:] for name in graph.outputs):
        shapes = ", ".join(str(graph.values[name].shape) for name in graph.outputs)
        raise ModelError(
            f"head: with {head.classes} outputs of {node.op} '{node.name}' the model's are of shape {shapes}; "
            f"expected {head.classes} of something: name the last layer with 'head.layer'"
        )
