"""Eager style: fuses exactly the module lists the recipe names, as torch.ao.quantization.fuse_modules does."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

from qtool.errors import RecipeError
from qtool.ir import Graph, Node, all_nodes
from qtool.passes.fold_bn import can_fold, fold_batch_norm
from qtool.passes.fuse_activation import can_host, fuse_relu

CONVS = ("conv1d", "conv2d")
FUSABLE = (
    *((conv, *rest) for conv in CONVS for rest in (("batch_norm",), ("batch_norm", "relu"), ("relu",))),
    ("linear", "relu"),
    ("linear", "batch_norm"),
    ("linear", "batch_norm", "relu"),
    ("add", "relu"),
)


def fuse_lists(graph: Graph, lists: Sequence[Sequence[str]]) -> Graph:
    """Fuses each list of module names, such as ``[conv1, bn1, relu]``; RecipeError says why one cannot be."""
    chains = [_find_chain(graph, names) for names in lists]
    for chain in chains:
        _check(graph, chain)
    _check_distinct(chains)
    norms = frozenset(node.name for chain in chains for node in chain if node.op == "batch_norm")
    relus = {node.name for chain in chains for node in chain if node.op == "relu"}
    return fuse_relu(fold_batch_norm(graph, norms), relus)


def lists_within(graph: Graph, lists: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The lists that name a module of the graph or of a body in it."""
    known = {name for node in all_nodes(graph) for name in (node.scope, node.node.name)}
    return tuple(tuple(names) for names in lists if not known.isdisjoint(names))


def own_lists(graph: Graph, lists: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The lists that are for the graph itself, not for one of its bodies; also those that are for neither."""
    own = {name for node in graph.nodes for name in (node.scope, node.name)}
    bodies = [body for node in graph.nodes for body in node.graphs.values()]
    inside = {names for body in bodies for names in lists_within(body, lists)}
    return [names for names in lists if tuple(names) not in inside or not own.isdisjoint(names)]


def _find_chain(graph: Graph, names: Sequence[str]) -> list[Node]:
    """The nodes of the named modules, each the reader of the one before (a module may be called at several places).

    A node that is a function, not a module, goes by its own name.
    """
    if len(names) < 2:
        raise RecipeError(f"fuse: {list(names)} names {len(names)} module; expected at least two, such as [conv1, bn1]")
    known = sorted({name for node in graph.nodes for name in (node.scope, node.name) if name})
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise RecipeError(f"fuse: no module is called '{name}' in {list(names)}{hint}")
    starts = [node for node in graph.nodes if names[0] in (node.scope, node.name)]
    chain = [starts[0]]
    for name in names[1:]:
        readers = graph.consumers[chain[-1].outputs[0]]
        found = [node for node in readers if name in (node.scope, node.name)]
        if not found:
            got = ", ".join(f"'{_label(node)}'" for node in readers) or "nothing"
            raise RecipeError(f"fuse: '{name}' does not read '{_label(chain[-1])}' in {list(names)}: {got} does")
        chain.append(found[0])
    return chain


def _label(node: Node) -> str:
    return node.scope or node.name


def _check(graph: Graph, chain: Sequence[Node]) -> None:
    names, ops = [_label(node) for node in chain], tuple(node.op for node in chain)
    if ops not in FUSABLE:
        allowed = "; ".join(" + ".join(combination) for combination in FUSABLE)
        raise RecipeError(f"fuse: {names} is {' + '.join(ops)}, which cannot be fused; what can: {allowed}")
    for node, reader in pairwise(chain):
        if graph.sole_consumer(node.outputs[0]) is not reader:
            raise RecipeError(f"fuse: {names} cannot be fused: the output of '{_label(node)}' is read elsewhere too")
    if ops[1] == "batch_norm" and not can_fold(graph, chain[0], chain[1]):
        raise RecipeError(f"fuse: {names} cannot be fused: weights or statistics are not constants")
    if ops[1] == "relu" and not can_host(graph, chain[0], chain[1]):
        raise RecipeError(f"fuse: {names} cannot be fused: '{names[0]}' has an activation already")


def _check_distinct(chains: Sequence[Sequence[Node]]) -> None:
    seen: dict[str, list[str]] = {}
    for chain in chains:
        for node in chain:
            names = [_label(member) for member in chain]
            if node.name in seen:
                raise RecipeError(f"fuse: '{_label(node)}' is in two lists, {seen[node.name]} and {names}")
            seen[node.name] = names
