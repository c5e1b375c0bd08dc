"""Changes to a graph that need to know nothing of its operators."""

from __future__ import annotations

from qtool.ir.graph import Graph, Node, remake


def drop_dead(graph: Graph) -> Graph:
    """Removes nodes whose outputs nobody reads."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return remake(graph, reversed(kept))
