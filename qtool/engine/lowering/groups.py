"""Which operators run in one native operator: a host, and what its epilogue takes over from the nodes behind it.

    conv -> relu6                 bounds of the result
    conv -> hardswish             (int8) a table
    conv -> add(., y) -> relu     a residual, added as the two nodes would: for int8, to the rounded result of the conv
    add -> relu                   bounds of the result
    sigmoid -> hardswish          (int8) one table
    matmul -> mul -> add(., mask) -> permute    (two activations, float) a factor, a mask, another order of the axes

Everything here keeps the bits of the nodes run one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtool.engine.lowering.layout import Sizes, dims_of
from qtool.engine.lowering.segment import Source
from qtool.engine.lowering.table import byte_table
from qtool.engine.tables import Table
from qtool.ir import Node
from qtool.ops import attrs_of

JOIN = " + "
"""Between the names of nodes that run as one, in a profile."""
ACCUMULATING = ("conv1d", "conv2d", "linear")
HOSTS = (*ACCUMULATING, "add", "sub", "mul", "div", "matmul")
BOUNDS = ("relu", "relu6", "hardtanh", "clamp")
INFINITY = float("inf")
Interval = tuple[float, float]
BYTES: Interval = (0, 255)
REALS: Interval = (-INFINITY, INFINITY)


@dataclass(frozen=True)
class Group:
    """A host and the nodes it takes over, in execution order.

    The result of the host is bounded by ``bounds`` (bytes for int8), then ``add`` adds the value ``residual``, then
    ``add_bounds`` and the table ``lut`` follow. A host that is itself a table of bytes is in ``lut``. A product of two
    activations is multiplied by ``factor`` before the add, and behind it its axes are put in the order ``dims``.
    """

    nodes: tuple[Node, ...]
    bounds: Interval
    add: Node | None = None
    residual: str = ""
    add_bounds: Interval = REALS
    lut: Table | None = None
    factor: float = 1.0
    dims: Sizes | None = None

    @property
    def host(self) -> Node:
        return self.nodes[0]

    @property
    def output(self) -> str:
        return self.nodes[-1].outputs[0]

    @property
    def reads(self) -> set[str]:
        """The values that its nodes read, those among them that it makes itself."""
        return {name for node in self.nodes for name in node.inputs if name}

    @property
    def makes(self) -> set[str]:
        """The values that its nodes make."""
        return {name for node in self.nodes for name in node.outputs}

    @property
    def name(self) -> str:
        """What the profile calls it."""
        return JOIN.join(node.name for node in self.nodes)


def alone(source: Source, node: Node) -> Group:
    """The node by itself."""
    bounds = BYTES if source.qparams(node.outputs[0]) else REALS
    return Group((node,), bounds, add_bounds=bounds, lut=byte_table(source, node))


def make_groups(source: Source, nodes: Sequence[Node], needed: Collection[str]) -> list[Group]:
    """The groups of a segment, each at the place of its last node; ``needed`` are the values read outside of it."""
    inside = {node.name: position for position, node in enumerate(nodes)}
    taken: set[str] = set()
    groups = []
    for node in nodes:
        if node.name not in taken:
            group = alone(source, node)
            if node.op in HOSTS or group.lut is not None:
                group = _grown(source, group, inside.keys() - taken, needed)
            taken.update(member.name for member in group.nodes)
            groups.append(group)
    return sorted(groups, key=lambda group: inside[group.nodes[-1].name])


def _grown(source: Source, group: Group, free: Collection[str], needed: Collection[str]) -> Group:
    """The group with all that follows and can be taken over, of the nodes that are ``free``."""
    while True:
        follower = source.graph.sole_consumer(group.output)
        if follower is None or follower.name not in free or group.output in needed:
            return group
        grown = _taken_over(source, group, follower)
        if grown is None:
            return group
        group = grown


def _taken_over(source: Source, group: Group, node: Node) -> Group | None:
    """The group with one more node; None where it has to stay a node of its own."""
    quantized = source.qparams(node.outputs[0]) is not None
    if quantized != (source.qparams(group.output) is not None) or _has_hardswish(group):
        return None
    if group.host.op == "matmul":
        return _with_product_end(source, group, node)
    if node.op in BOUNDS and not quantized:
        return _bounded(group, node, _real_bounds(node))
    table = byte_table(source, node) if quantized else None
    if table is not None:
        return _with_table(group, node, table)
    return _with_residual(source, group, node) if node.op == "add" else None


def _with_product_end(source: Source, group: Group, node: Node) -> Group | None:
    """A factor, then a mask, then an order of the axes behind a float product of two activations."""
    if source.qparams(group.output) is not None or group.host.inputs[1] in source.constants or group.dims is not None:
        return None
    shape = source.shapes[group.output]
    nodes = (*group.nodes, node)
    if node.op in ("permute", "transpose"):
        dims = dims_of(node, len(shape))
        flat = any(len(source.shapes[name]) < 2 for name in group.host.inputs)
        return None if flat or dims[-1] != len(shape) - 1 else replace(group, nodes=nodes, dims=dims)
    others = [name for name in node.inputs if name != group.output]
    if node.op not in ("mul", "div", "add") or len(others) != 1 or source.shapes[node.outputs[0]] != shape:
        return None
    if node.op == "add":
        other = source.shapes[others[0]]
        fits = bool(other) and other[-1] == shape[-1] and attrs_of(node).activation == "none"
        fits = fits and source.value(others[0]).qparams is None and group.add is None
        return replace(group, nodes=nodes, add=node, residual=others[0]) if fits else None
    number = source.constants.get(others[0])
    if number is None or number.size != 1 or group.add is not None or node.inputs[0] != group.output:
        return None
    with np.errstate(all="ignore"):
        factor = group.factor * (1 / float(number.item()) if node.op == "div" else float(number.item()))
    return replace(group, nodes=nodes, factor=factor) if 1e-30 < abs(factor) < 1e30 else None


def _has_hardswish(group: Group) -> bool:
    return group.host.attrs.get("activation") == "hardswish"


def _real_bounds(node: Node) -> Interval:
    attrs = attrs_of(node)
    return {"relu": (0.0, INFINITY), "relu6": (0.0, 6.0)}.get(node.op) or (attrs.low, attrs.high)


def _bounded(group: Group, node: Node, bounds: Interval) -> Group | None:
    nodes = (*group.nodes, node)
    if group.add is None:
        return replace(group, nodes=nodes, bounds=both(group.bounds, bounds))
    return replace(group, nodes=nodes, add_bounds=both(group.add_bounds, bounds))


def both(first: Interval, then: Interval) -> Interval:
    """One clamp for two: the ends of the first, clamped by the second."""
    low, high = (min(max(end, then[0]), then[1]) for end in first)
    return low, high


def _with_table(group: Group, node: Node, table: Table) -> Group | None:
    """Bounds where the table is nothing else; a table where the host can have one, behind all that came before."""
    bounds = (int(table[0]), int(table[-1]))
    if group.lut is None and np.array_equal(table, np.clip(np.arange(256), *bounds)):
        return _bounded(group, node, bounds)
    if group.host.op not in ACCUMULATING and group.lut is None:
        return None
    lut = table if group.lut is None else table[group.lut]
    return replace(group, nodes=(*group.nodes, node), lut=lut)


def _with_residual(source: Source, group: Group, node: Node) -> Group | None:
    """The sum of the host's result and another value of the same shape."""
    others = [name for name in node.inputs if name != group.output]
    shapes = {source.shapes[name] for name in (*node.inputs, *node.outputs)}
    free = group.host.op in ACCUMULATING and group.add is None and group.lut is None and not any(group.host.inputs[3:])
    if not free or len(others) != 1 or len(shapes) != 1 or others[0] in source.constants:
        return None
    quantized = source.qparams(group.output) is not None
    if (source.qparams(others[0]) is not None) != quantized:
        return None
    # in float the sum is bounded once, at the end
    if not quantized and (group.bounds != REALS or group.host.attrs.get("activation", "none") != "none"):
        return None
    return replace(group, nodes=(*group.nodes, node), add=node, residual=others[0])
