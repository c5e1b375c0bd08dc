"""Eager style: quantization only between the quant and the dequant points that the recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from qtool.errors import RecipeError
from qtool.ir import Graph, Node
from qtool.quantize.groups import activation_inputs
from qtool.recipe.schema import Stubs


def region_of(graph: Graph, stubs: Stubs) -> frozenset[str]:
    """Names of the nodes between the quant and the dequant points.

    A point is a graph input, a value, or a module path, which stands for the module's output. As with PyTorch's
    QuantStub and DeQuantStub, a quantized value must not meet a float one inside, nor leave through a graph output
    that is no dequant point: RecipeError says where it does.
    """
    begins = {_resolve(graph, name, "quant") for name in stubs.quant}
    ends = {_resolve(graph, name, "dequant") for name in stubs.dequant}
    quantized = set(begins)
    region: list[Node] = []
    for node in graph.nodes:
        if quantized.difference(ends).intersection(node.inputs):
            region.append(node)
            quantized.update(node.outputs)
    _check(graph, region, quantized, ends)
    return frozenset(node.name for node in region)


def _resolve(graph: Graph, name: str, kind: str) -> str:
    """The value that a stub's name stands for."""
    if name in graph.values and name not in graph.initializers:
        return name
    inside = [node for node in graph.nodes if node.scope == name or node.scope.startswith(f"{name}.")]
    if inside:
        return inside[-1].outputs[-1]
    known = sorted({*graph.inputs, *(node.scope for node in graph.nodes if node.scope)})
    near = get_close_matches(name, known, 1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; graph inputs are {', '.join(graph.inputs)}"
    raise RecipeError(f"stubs.{kind}: no input, value or module is called '{name}'{hint}")


def _check(graph: Graph, region: Sequence[Node], quantized: set[str], ends: set[str]) -> None:
    inner = quantized.difference(ends)
    for node in region:
        floats = [name for name in activation_inputs(graph, node) if name not in inner]
        if floats:
            raise RecipeError(
                f"stubs: '{node.scope or node.name}' reads '{floats[0]}', which is float there, together with a"
                " quantized value; add a quant point for it, or a dequant point before"
            )
    for name in graph.outputs:
        if name in inner:
            raise RecipeError(f"stubs: the graph output '{name}' would leave quantized; add it to stubs.dequant")
