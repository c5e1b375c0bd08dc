"""Which nodes run in native code, in which order of parts, and in which layout values are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtool.engine.lowering import Layout, Source, layout_wanted, why_unsupported
from qtool.ir import Node

CONTROL = "which body runs, and how often, is decided in Python"


@dataclass(frozen=True)
class Stage:
    """Nodes that run together, all in native code or all on the reference."""

    native: bool
    nodes: tuple[Node, ...]


def fallbacks(source: Source, nodes: Sequence[Node]) -> dict[str, str]:
    """The nodes that native code cannot run -> why."""
    return {node.name: reason for node in nodes if (reason := _why_not(source, node))}


def _why_not(source: Source, node: Node) -> str:
    if node.graphs:
        return CONTROL
    if any(name and name not in source.shapes for name in (*node.inputs, *node.outputs)):
        return "its shapes depend on the data"
    return why_unsupported(source, node)


def stages(nodes: Sequence[Node], on_reference: Mapping[str, str]) -> list[Stage]:
    """As few stages as the data flow allows: a node joins the first stage of its kind that its inputs are ready for."""
    level_of: dict[str, int] = {}
    levels: dict[int, list[Node]] = {}
    for node in nodes:
        kind = int(node.name in on_reference)  # native levels are even, those of the reference odd
        level = kind
        for name in node.inputs:
            if name in level_of:
                before = level_of[name]
                level = max(level, before if before % 2 == kind else before + 1)
        levels.setdefault(level, []).append(node)
        level_of.update(dict.fromkeys(node.outputs, level))
    return [Stage(level % 2 == 0, tuple(levels[level])) for level in sorted(levels)]


def layouts_wanted(nodes: Sequence[Node], on_reference: Mapping[str, str]) -> dict[str, Layout]:
    """The layout in which the readers of each value want it: channels-last as soon as one of them does."""
    wants: dict[str, Layout] = {}
    for node in reversed(nodes):
        if node.name in on_reference:
            continue
        output = Layout.LAST if any(wants.get(out) is Layout.LAST for out in node.outputs) else Layout.PLAIN
        if layout_wanted(node, output) is Layout.LAST:
            wants.update(dict.fromkeys(filter(None, node.inputs), Layout.LAST))
    return wants
