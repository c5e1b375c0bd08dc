"""Which rule of ``qconfig_dict`` is for which node."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from qtool.errors import RecipeError
from qtool.ir import Located
from qtool.ops import all_ops
from qtool.recipe.items import Item
from qtool.recipe.schema import QConfig, Rule
from qtool.recipe.suggest import did_you_mean
from qtool.recipe.training import Pattern

TYPE, REGEX = "type:", "re:"
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d")


class Matchable(Protocol):
    """What a rule is matched on; a graph's node has it."""

    @property
    def op(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...


@dataclass(frozen=True)
class RuleMatch:
    """What became of one rule: ``count`` nodes follow it, of the ``reach`` that it matches; the rest follow a more
    specific one. ``modules`` are the modules of those that follow it.
    """

    rule: Rule
    count: int
    reach: int
    modules: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.rule.key

    @property
    def where(self) -> str:
        return self.rule.where


@dataclass(frozen=True)
class Matches:
    """The rule that decides on each node (None where no rule matches), and a row for each rule."""

    deciding: Mapping[str, Rule | None]
    table: tuple[RuleMatch, ...]

    def of(self, node: str) -> QConfig | None:
        """The node's qconfig; None leaves it in float."""
        rule = self.deciding[node]
        return rule.qconfig if rule else None

    def within(self, path: str) -> Matches:
        """Those of the nodes of a body, by the names that they have there."""
        start = f"{path}."
        inner = {name.removeprefix(start): rule for name, rule in self.deciding.items() if name.startswith(start)}
        return Matches(MappingProxyType(inner), self.table)

    def reason(self, node: str) -> str:
        """Why a node stays in float, "" where it does not."""
        rule = self.deciding[node]
        if rule is None:
            return "no rule of qconfig_dict matches it"
        return "" if rule.qconfig else f"the rule {rule.key!r} leaves it in float"


def resolve(rules: Sequence[Rule], nodes: Iterable[Matchable]) -> Matches:
    """Finds the most specific rule of each node: "" < "type:" < "re:" < the longest module path.

    A module path matches the module, the nodes inside it and a node of that very name, so that a child falls back to
    its parent. A regular expression has to match from the start of the module path (``re.match``; a node outside of all
    modules goes by its name), and the first one in the recipe wins; both as in PyTorch's QConfigMapping. RecipeError
    for a rule that matches no node, with its place and the nearest name there is.

    A node in a body of control flow goes by its own module path and name, by those with the path of the body before
    them (``choice.then_branch.fc``), and it is inside of the node of control flow, as in a module.

    Where a qconfig has another weight for transposed convolutions, these have a rule and a row of their own.
    """
    listed = list(nodes)
    tests = [(rule, _test(rule.key, rule.where)) for rule in rules]
    deciding: dict[str, Rule | None] = {}
    reach = {rule.key: 0 for rule in rules}
    for node in listed:
        matching = [(rank, rule) for rule, test in tests if (rank := test(node)) is not None]
        for _, rule in matching:
            reach[rule.key] += 1
        best = max(matching, key=lambda pair: pair[0], default=None)  # the first of equals
        deciding[node.name] = best[1] if best else None
    for rule in rules:
        if not reach[rule.key]:
            raise RecipeError(_unmatched(rule.key, rule.where, f"the rule {rule.key!r}", listed))
    derived = _split_off_transposed(deciding, listed)
    rows = [*((rule, reach[rule.key]) for rule in rules), *derived]
    table = tuple(_row(rule, count, deciding, listed) for rule, count in rows)
    return Matches(MappingProxyType(deciding), table)


def select(patterns: Sequence[Pattern], nodes: Iterable[Matchable], what: str = "train.layers") -> frozenset[str]:
    """The names of the nodes that any of the patterns matches, in the way of ``resolve``; all, where there is none.

    RecipeError for a pattern that matches no node, with its place, the recipe's key (``what``) and the nearest name.
    """
    listed = list(nodes)
    if not patterns:
        return frozenset(node.name for node in listed)
    found: set[str] = set()
    for pattern in patterns:
        test = _test(pattern.key, pattern.where)
        names = {node.name for node in listed if test(node) is not None}
        if not names:
            raise RecipeError(_unmatched(pattern.key, pattern.where, f"{what}: {pattern.key!r}", listed))
        found |= names
    return frozenset(found)


def rule_name(key: str) -> str:
    """An entry of ``qconfig_dict`` as messages name it."""
    return f"qconfig_dict.{key}" if key else 'qconfig_dict.""'


def check_key(key: str, item: Item, name: str) -> None:
    """RecipeError, with the place of ``item``, for a key that can match nothing: no operator, no regular expression."""
    if key.startswith(REGEX):
        compiled(key, item.where)
    elif key.startswith(TYPE) and key[len(TYPE) :] not in all_ops():
        item.fail(f"{name}: unknown operator{did_you_mean(key[len(TYPE) :], all_ops())}")


def _split_off_transposed(deciding: dict[str, Rule | None], nodes: Iterable[Matchable]) -> Iterable[tuple[Rule, int]]:
    """Gives transposed convolutions a rule of their own where their qconfig has another weight for them; the rules so
    made, with the number of nodes."""
    made: dict[tuple[str, str], Rule] = {}
    for node in nodes:
        rule = deciding[node.name]
        qconfig = rule.qconfig if rule else None
        if rule and qconfig and qconfig.transposed_weight and node.op in TRANSPOSED:
            own = replace(qconfig, weight=qconfig.transposed_weight, transposed_weight=None)
            key = f"{rule.key} {TYPE}{node.op}".strip()
            deciding[node.name] = made.setdefault((rule.key, node.op), Rule(key, own, rule.where))
    return [(rule, sum(found is rule for found in deciding.values())) for rule in made.values()]


Rank = tuple[int, int, int]
"""How specific a rule is for a node: its kind, the length of the whole module path that it stands for, and how much of
that it spells out."""


def _test(key: str, where: str) -> Callable[[Matchable], Rank | None]:
    """A function that gives the rank of a rule with that key for a node, None where it does not match it."""
    if not key:
        return lambda node: (0, 0, 0)  # noqa: ARG005 - it is for everything
    if key.startswith(TYPE):
        return lambda node: (1, 0, 0) if node.op == key[len(TYPE) :] else None
    if key.startswith(REGEX):
        pattern = compiled(key, where)
        return lambda node: (2, 0, 0) if any(map(pattern.match, _spellings(node))) else None
    return lambda node: _path_rank(key, node)


def _spellings(node: Matchable) -> Iterator[str]:
    """What a regular expression is held against: the module path, or the name; in a body also with the body's path."""
    own = node.node.name if isinstance(node, Located) else node.name
    yield node.scope or own
    if isinstance(node, Located) and node.path:
        yield f"{node.path}.{node.scope or own}"


def _path_rank(key: str, node: Matchable) -> Rank | None:
    lengths = [length for level in _levels(node) for length in _lengths(key, *level)]
    return (3, max(lengths), len(key)) if lengths else None


def _levels(node: Matchable) -> Iterator[tuple[str, str, str]]:
    """(path of the body, name, module path) of a node and of each node of control flow that it is in."""
    if not isinstance(node, Located):
        yield "", node.name, node.scope
        return
    at: Located | None = node
    while at is not None:
        yield at.path, at.node.name, at.scope
        at = at.holder


def _lengths(key: str, path: str, name: str, scope: str) -> Iterator[int]:
    """The length of the whole path that a key stands for, where it is one of this node."""
    start = f"{path}." if path else ""
    if key in (scope, name) or scope.startswith(f"{key}."):
        yield len(start) + len(key)
    if start and (key == f"{start}{name}" or f"{start}{scope}.".startswith(f"{key}.")):
        yield len(key)


def compiled(key: str, where: str = "") -> re.Pattern[str]:
    """The regular expression of a "re:" key; RecipeError where it is none."""
    try:
        return re.compile(key[len(REGEX) :])
    except re.error as error:
        raise RecipeError(f"{_place(where)}{key!r} is not a regular expression: {error}") from None


def _row(rule: Rule, reach: int, deciding: Mapping[str, Rule | None], nodes: Sequence[Matchable]) -> RuleMatch:
    own = [node for node in nodes if deciding[node.name] is rule]
    return RuleMatch(rule, len(own), reach, tuple(dict.fromkeys(node.scope or node.name for node in own)))


def _unmatched(key: str, where: str, what: str, nodes: Sequence[Matchable]) -> str:
    start = f"{_place(where)}{what} matches nothing in the model"
    if key.startswith(TYPE):
        ops = sorted({node.op for node in nodes})
        return f"{start}, which has no operator {key[len(TYPE) :]!r}{did_you_mean(key[len(TYPE) :], ops)}"
    if key.startswith(REGEX):
        return f"{start}; a regular expression must match from the start of a module path such as {_example(nodes)!r}"
    return f"{start}{did_you_mean(key, _modules(nodes))}"


def _modules(nodes: Sequence[Matchable]) -> list[str]:
    """Every module path there is, parents too, and the names of nodes that are not those of a module."""
    paths: dict[str, None] = {}
    for node in nodes:
        parts = node.scope.split(".") if node.scope else []
        paths.update(dict.fromkeys(".".join(parts[: k + 1]) for k in range(len(parts))))
        paths[node.name] = None
    return list(paths)


def _example(nodes: Sequence[Matchable]) -> str:
    return next((node.scope or node.name for node in nodes), "")


def _place(where: str) -> str:
    return f"{where}: " if where else ""
