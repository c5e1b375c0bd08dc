"""The bodies of control flow: where the nodes within them are, and rewriting of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from qtool.ir.graph import Graph, Node


def body_path(node: str, body: str) -> str:
    """What a body is called within its graph, such as ``choice.then_branch``; names of its nodes begin with it."""
    return f"{node}.{body}"


@dataclass(frozen=True)
class Located:
    """A node, and the bodies that it is in; ``holder`` is the node of control flow around it."""

    node: Node
    holder: Located | None = None
    body: str = ""

    @property
    def op(self) -> str:
        return self.node.op

    @property
    def path(self) -> str:
        """That of the body that holds the node; "" for one of the outermost graph."""
        return body_path(self.holder.name, self.body) if self.holder else ""

    @property
    def name(self) -> str:
        """Unique among the nodes of all bodies: ``choice.then_branch.fc``."""
        return body_path(self.path, self.node.name) if self.holder else self.node.name

    @property
    def scope(self) -> str:
        """As the node has it, without the path of its body."""
        return self.node.scope


def all_nodes(graph: Graph, holder: Located | None = None, body: str = "") -> Iterator[Located]:
    """The nodes of a graph, each followed by those of its bodies."""
    for node in graph.nodes:
        located = Located(node, holder, body)
        yield located
        for name, inner in node.graphs.items():
            yield from all_nodes(inner, located, name)


def bodies_by_path(graph: Graph) -> dict[str, Graph]:
    """The bodies of the graph's nodes, without those within them."""
    return {body_path(node.name, name): body for node in graph.nodes for name, body in node.graphs.items()}


def all_bodies(graph: Graph) -> dict[str, Graph]:
    """The bodies of the graph's nodes, and those within them."""
    found: dict[str, Graph] = {}
    for path, body in bodies_by_path(graph).items():
        found[path] = body
        found.update({body_path(path, inner): one for inner, one in all_bodies(body).items()})
    return found


def with_bodies(graph: Graph, rewrite: Callable[[Graph, str], Graph]) -> Graph:
    """The graph with each body rewritten; ``rewrite`` gets the body and its path, and sees to the bodies within."""

    def rewritten(node: Node) -> Node:
        bodies = {name: rewrite(body, body_path(node.name, name)) for name, body in node.graphs.items()}
        same = all(bodies[name] is body for name, body in node.graphs.items())
        return node if same else replace(node, graphs=bodies)

    nodes = tuple(map(rewritten, graph.nodes))
    return (
        graph if all(new is old for new, old in zip(nodes, graph.nodes, strict=True)) else replace(graph, nodes=nodes)
    )
