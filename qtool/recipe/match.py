"""Which rule of ``qconfig_dict`` is for which node."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from qtool.errors import RecipeError
from qtool.recipe.schema import QConfig, Rule
from qtool.recipe.suggest import did_you_mean

TYPE, REGEX = "type:", "re:"


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
    """
    listed = list(nodes)
    tests = [(rule, _test(rule)) for rule in rules]
    deciding: dict[str, Rule | None] = {}
    reach = {rule.key: 0 for rule in rules}
    for node in listed:
        matching = [rule for rule, matches in tests if matches(node)]
        for rule in matching:
            reach[rule.key] += 1
        deciding[node.name] = max(matching, key=_rank, default=None)  # the first of equals
    for rule in rules:
        if not reach[rule.key]:
            raise RecipeError(_unmatched(rule, listed))
    table = tuple(_row(rule, reach[rule.key], deciding, listed) for rule in rules)
    return Matches(MappingProxyType(deciding), table)


def _rank(rule: Rule) -> tuple[int, int]:
    if rule.key.startswith(REGEX):
        return 2, 0
    if rule.key.startswith(TYPE):
        return 1, 0
    return (3, len(rule.key)) if rule.key else (0, 0)


def _test(rule: Rule) -> Callable[[Matchable], bool]:
    key = rule.key
    if not key:
        return lambda node: True  # noqa: ARG005 - it is for everything
    if key.startswith(TYPE):
        return lambda node: node.op == key[len(TYPE) :]
    if key.startswith(REGEX):
        pattern = compiled(key, rule.where)
        return lambda node: pattern.match(node.scope or node.name) is not None
    return lambda node: key in (node.scope, node.name) or node.scope.startswith(f"{key}.")


def compiled(key: str, where: str = "") -> re.Pattern[str]:
    """The regular expression of a "re:" key; RecipeError where it is none."""
    try:
        return re.compile(key[len(REGEX) :])
    except re.error as error:
        raise RecipeError(f"{_place(where)}{key!r} is not a regular expression: {error}") from None


def _row(rule: Rule, reach: int, deciding: Mapping[str, Rule | None], nodes: Sequence[Matchable]) -> RuleMatch:
    own = [node for node in nodes if deciding[node.name] is rule]
    return RuleMatch(rule, len(own), reach, tuple(dict.fromkeys(node.scope or node.name for node in own)))


def _unmatched(rule: Rule, nodes: Sequence[Matchable]) -> str:
    start = f"{_place(rule.where)}the rule {rule.key!r} matches nothing in the model"
    if rule.key.startswith(TYPE):
        ops = sorted({node.op for node in nodes})
        return f"{start}, which has no operator {rule.key[len(TYPE) :]!r}{did_you_mean(rule.key[len(TYPE) :], ops)}"
    if rule.key.startswith(REGEX):
        return f"{start}; a regular expression must match from the start of a module path such as {_example(nodes)!r}"
    return f"{start}{did_you_mean(rule.key, _modules(nodes))}"


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
