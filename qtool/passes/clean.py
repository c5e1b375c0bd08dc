"""Clean-ups that change no number: identities, nodes nobody reads, nodes of constants only."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.ir import Array, Graph, Node, constant, remake, rewire
from qtool.ops import attrs_of, get

NO_OPS = ("identity", "dropout")
LARGEST_FOLD = 1 << 24
"""Elements of the largest constant that folding may make: unrolling a huge broadcast would only grow the file."""


def drop_identities(graph: Graph) -> Graph:
    """Removes operators that give back their input (dropout does nothing in inference).

    ``y = identity(x); z = relu(y)`` becomes ``z = relu(x)``. One that makes a graph output out of a graph input, or of
    a value that is an output itself, stays, because outputs keep their names.
    """
    renamed: dict[str, str] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        if node.op in NO_OPS and node.outputs[0] not in graph.outputs:
            renamed[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    return remake(graph, rewire(kept, renamed)) if renamed else graph


def fold_constants(graph: Graph) -> Graph:
    """Evaluates nodes of which all inputs are initializers, with the operator's reference."""
    known: dict[str, Array] = dict(graph.initializers)
    folded: dict[str, Array] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        results = _evaluate(graph, node, known)
        if results is None:
            kept.append(node)
        else:
            known.update(results)
            folded.update(results)
    if not folded:
        return graph
    values = [constant(name, array) for name, array in folded.items()]
    return remake(graph, kept, values=values, initializers=folded)


def _evaluate(graph: Graph, node: Node, known: Mapping[str, Array]) -> dict[str, Array] | None:
    """The outputs of a node of constants; None where it cannot or should not be folded."""
    touched = [graph.values[name] for name in (*node.inputs, *node.outputs) if name]
    if node.graphs or any(value.qparams for value in touched) or any(out in graph.outputs for out in node.outputs):
        return None
    if not all(name in known for name in node.inputs if name):
        return None
    results = get(node.op).reference(attrs_of(node), *(known[name] if name else None for name in node.inputs))
    if any(array.size > LARGEST_FOLD for array in results):
        return None
    return dict(zip(node.outputs, results, strict=True))
