"""What operators cost by their shapes: multiplications, and bytes that have to be moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qtool.ir import Graph, Node

Sizes = tuple[int, ...]
Shapes = Mapping[str, Sizes]

CONVOLUTIONS = ("conv1d", "conv2d")
LINEARS = ("linear", "linear_dynamic")
RECURRENT = ("lstm", "gru", "rnn", "lstm_dynamic", "gru_dynamic", "rnn_dynamic")
TABLES = ("embedding", "embedding_rows")


@dataclass(frozen=True)
class Cost:
    """``macs`` multiply-accumulate operations; ``bytes`` read and written, each value once, as it is stored."""

    macs: int
    bytes: int


def macs_of(node: Node, shapes: Shapes) -> int:
    """Products that are summed by a convolution, linear, matmul or recurrent layer; 0 for every other operator, and
    where shapes depend on the data."""
    if any(name and name not in shapes for name in (*node.inputs, *node.outputs)):
        return 0
    result = math.prod(shapes[node.outputs[0]])
    if node.op in CONVOLUTIONS:  # weight (outputs, inputs of a group, kernel...)
        return result * math.prod(shapes[node.inputs[1]][1:])
    if node.op in LINEARS:  # weight (outputs, inputs)
        return result * shapes[node.inputs[1]][1]
    if node.op == "matmul":
        return result * shapes[node.inputs[0]][-1]
    if node.op in RECURRENT:  # weights (directions, gates * hidden, inputs) and (directions, gates * hidden, hidden)
        steps = math.prod(shapes[node.inputs[0]][:2])  # every step of every sample
        return steps * sum(math.prod(shapes[name]) for name in node.inputs[1:3])
    return 0


def cost_of(graph: Graph, nodes: Iterable[Node], shapes: Shapes) -> Cost:
    """The cost of nodes that run together: what one of them makes for another is neither read nor written."""
    listed = list(nodes)
    made = {out for node in listed for out in node.outputs}
    read = {name for node in listed for name in node.inputs if name} - made
    inside = {node.name for node in listed}
    written = {
        name
        for name in made
        if name in graph.outputs or any(reader.name not in inside for reader in graph.consumers[name])
    }
    moved = sum(_bytes(graph, name, shapes) for name in (read | written) - _tables(listed))
    rows = sum(_looked_up(graph, node, shapes) for node in listed if node.op in TABLES)
    return Cost(sum(macs_of(node, shapes) for node in listed), moved + rows)


def _bytes(graph: Graph, name: str, shapes: Shapes) -> int:
    return math.prod(shapes[name]) * graph.values[name].dtype.numpy.itemsize if name in shapes else 0


def _tables(nodes: Iterable[Node]) -> set[str]:
    """What is looked up in, and not read as a whole."""
    return {name for node in nodes if node.op in TABLES for name in node.inputs[1:]}


def _looked_up(graph: Graph, node: Node, shapes: Shapes) -> int:
    """Bytes of the rows that a look-up reads: one for each id."""
    ids = math.prod(shapes[node.inputs[0]]) if node.inputs[0] in shapes else 0
    tables = [name for name in node.inputs[1:] if name in shapes]
    return sum(ids * _bytes(graph, name, shapes) // max(1, shapes[name][0]) for name in tables)
