"""Finds small expressions in a graph, such as ``0.5 * x * (1 + erf(x / 1.414))``, that stand for one operator.

A pattern is built of ``Op`` (an operator on patterns), ``Var`` (any value, the same wherever it is named) and ``Num``
(a constant of one element). Operands of ``add`` and ``mul`` match in either order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from qtool.ir import Array, Attr, Graph, Node, constant, remake

COMMUTATIVE = ("add", "mul")
TOLERANCE = 1e-3
"""Relative: exporters write constants such as sqrt(2) with four digits and more."""


@dataclass(frozen=True)
class Var:
    """Any value; bound to its name."""

    name: str


@dataclass(frozen=True)
class Num:
    """A constant of one element: this ``value``, or, with ``value`` None, any, bound to ``name``."""

    value: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Op:
    """A node of one of these operators; ``when`` says more of the node."""

    ops: str
    """Names, separated by blanks."""
    args: tuple[Pattern, ...]
    when: Callable[[Graph, Node], bool] | None = None


Pattern = Var | Num | Op
Found = Mapping[str, str | float]
"""What the variables of a pattern are: value names, and the numbers of ``Num``."""


def op(ops: str, *args: Pattern, when: Callable[[Graph, Node], bool] | None = None) -> Op:
    return Op(ops, args, when)


def match(graph: Graph, name: str, pattern: Pattern) -> Found | None:
    """What the variables stand for where the value is made by the pattern; None where it is not."""
    return next(_matches(graph, name, pattern, {}), None)


def _matches(graph: Graph, name: str, pattern: Pattern, found: Found) -> Iterator[Found]:
    if isinstance(pattern, Var):
        if found.get(pattern.name, name) == name:
            yield {**found, pattern.name: name}
    elif isinstance(pattern, Num):
        number = scalar(graph, name)
        if number is not None and _fits(pattern, number):
            yield {**found, pattern.name: number} if pattern.name else found
    else:
        node = graph.producers.get(name)
        if node is None or node.op not in pattern.ops.split() or graph.values[name].qparams is not None:
            return
        if _plain(node) and len(node.inputs) == len(pattern.args) and (not pattern.when or pattern.when(graph, node)):
            orders = permutations(node.inputs) if node.op in COMMUTATIVE else (node.inputs,)
            for order in orders:
                yield from _all(graph, order, pattern.args, found)


def _all(graph: Graph, names: Sequence[str], patterns: Sequence[Pattern], found: Found) -> Iterator[Found]:
    if not names:
        yield found
        return
    for partial in _matches(graph, names[0], patterns[0], found):
        yield from _all(graph, names[1:], patterns[1:], partial)


def _plain(node: Node) -> bool:
    """Whether no activation was fused into the node."""
    return node.attrs.get("activation", "none") == "none"


def _fits(pattern: Num, number: float) -> bool:
    return pattern.value is None or abs(number - pattern.value) <= TOLERANCE * abs(pattern.value)


def scalar(graph: Graph, name: str) -> float | None:
    """The number of a constant that has one element."""
    array = graph.initializers.get(name)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(()))


@dataclass(frozen=True)
class Replacement:
    """The operator an expression stands for."""

    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Attr]


Rewrite = Callable[[Graph, Node], "Replacement | None"]


def rewrite(graph: Graph, find: Rewrite) -> Graph:
    """Each node for which ``find`` gives a replacement becomes that; ``drop_dead`` then takes what nobody reads."""
    changed = False
    nodes: list[Node] = []
    for node in graph.nodes:
        found = find(graph, node) if len(node.outputs) == 1 else None
        if found is not None:
            node = replace(node, op=found.op, inputs=found.inputs, attrs=dict(found.attrs))  # noqa: PLW2901
            changed = True
        nodes.append(node)
    return remake(graph, nodes) if changed else graph


def any_of(patterns: Sequence[Pattern], graph: Graph, name: str) -> Found | None:
    """The first of several patterns that matches."""
    return next((found for pattern in patterns if (found := match(graph, name, pattern)) is not None), None)


def same_shape(graph: Graph, a: str, b: str) -> bool:
    return graph.values[a].type == graph.values[b].type


def with_constants(graph: Graph, nodes: Sequence[Node], arrays: Mapping[str, Array]) -> Graph:
    """The graph with other nodes and new initializers."""
    return remake(graph, nodes, values=[constant(n, np.asarray(a)) for n, a in arrays.items()], initializers=arrays)
