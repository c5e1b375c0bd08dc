"""Which rule of qconfig_dict is for which node."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.errors import RecipeError
from qtool.ir import Node
from qtool.recipe.match import resolve
from qtool.recipe.presets import PRESETS, get_default_qconfig
from qtool.recipe.schema import Rule

GLOBAL, SUB, FC = (PRESETS[name].qconfig for name in ("fbgemm", "qnnpack", "default"))


@dataclass(frozen=True)
class Module:
    op: str
    name: str
    scope: str


NODES = (
    Module("conv2d", "conv1", "conv1"),
    Module("conv2d", "sub.conv", "sub.conv"),
    Module("linear", "sub.fc", "sub.fc"),
    Module("relu", "sub.act", "sub.act"),
    Module("add", "sub.add", "sub"),
    Module("conv2d", "submarine.conv", "submarine.conv"),
    Module("linear", "fc", "fc"),
    Module("flatten", "flatten", ""),
)


def chosen(rules: list[Rule]) -> dict[str, object]:
    matches = resolve(rules, NODES)
    return {node.name: matches.of(node.name) for node in NODES}


def test_the_tutorial_of_pytorch() -> None:
    """A child falls back to its parent, and null leaves it in float."""
    rules = [Rule("", GLOBAL), Rule("sub", SUB), Rule("sub.fc", FC), Rule("sub.conv", None)]
    assert chosen(rules) == {
        "conv1": GLOBAL,
        "sub.conv": None,
        "sub.fc": FC,
        "sub.act": SUB,
        "sub.add": SUB,
        "submarine.conv": GLOBAL,
        "fc": GLOBAL,
        "flatten": GLOBAL,
    }


def test_order_in_the_recipe_does_not_matter_but_among_regular_expressions() -> None:
    rules = [Rule("sub.fc", FC), Rule("type:linear", None), Rule("re:sub.*", SUB), Rule("", GLOBAL)]
    expected = {
        "conv1": GLOBAL,
        "sub.conv": SUB,
        "sub.fc": FC,
        "sub.act": SUB,
        "sub.add": SUB,
        "submarine.conv": SUB,
        "fc": None,
        "flatten": GLOBAL,
    }
    assert chosen(rules) == chosen(rules[::-1]) == expected
    first, second = Rule("re:sub", SUB), Rule("re:sub[.]", FC)
    assert chosen([first, second])["sub.fc"] == SUB
    assert chosen([second, first])["sub.fc"] == FC


def test_without_a_rule_a_node_stays_in_float() -> None:
    matches = resolve([Rule("sub", SUB), Rule("sub.conv", None)], NODES)
    assert matches.of("conv1") is None
    assert matches.reason("conv1") == "no rule of qconfig_dict matches it"
    assert matches.reason("sub.conv") == "the rule 'sub.conv' leaves it in float"
    assert matches.reason("sub.fc") == ""


def test_a_path_matches_whole_parts_and_single_nodes() -> None:
    found = chosen([Rule("sub", SUB), Rule("sub.add", FC), Rule("flatten", GLOBAL)])
    assert found["submarine.conv"] is None
    assert found["sub.add"] == FC
    assert found["flatten"] == GLOBAL


def test_a_regular_expression_matches_from_the_start() -> None:
    assert chosen([Rule("re:fc", FC)])["fc"] == FC
    assert chosen([Rule("re:fc", FC)])["sub.fc"] is None
    assert chosen([Rule(r"re:.*\.fc", FC)])["sub.fc"] == FC


def test_the_table_tells_what_each_rule_came_to() -> None:
    rules = [Rule("", GLOBAL, "r.yaml:3"), Rule("type:conv2d", FC), Rule("sub", SUB)]
    rows = {row.key: row for row in resolve(rules, NODES).table}
    assert {key: (row.count, row.reach) for key, row in rows.items()} == {
        "": (2, 8),
        "type:conv2d": (2, 3),
        "sub": (4, 4),
    }
    assert rows[""].modules == ("fc", "flatten")
    assert rows[""].where == "r.yaml:3"
    assert rows["sub"].modules == ("sub.conv", "sub.fc", "sub.act", "sub")


def test_the_nodes_of_a_graph_can_be_matched() -> None:
    node = Node("conv2d", "a.b", ("x", "w"), ("a.b",), {}, "a.b")
    assert resolve([Rule("a", GLOBAL)], [node]).of("a.b") == GLOBAL == get_default_qconfig("fbgemm")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sub.cnv", "r.yaml:7: the rule 'sub.cnv' matches nothing in the model; did you mean 'sub.conv'?"),
        ("SUB", "r.yaml:7: the rule 'SUB' matches nothing in the model; did you mean 'sub'?"),
        ("layer9.zzz.qqq", "matches nothing in the model; expected one of: conv1, sub, sub.conv"),
        ("type:Linear", "which has no operator 'Linear'; did you mean 'linear'?"),
        ("type:gelu", "which has no operator 'gelu'"),
        ("re:fc2", "must match from the start of a module path such as 'conv1'"),
        ("re:(", "r.yaml:7: 're:(' is not a regular expression"),
    ],
)
def test_a_rule_that_matches_nothing(key: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        resolve([Rule("", GLOBAL, "r.yaml:6"), Rule(key, SUB, "r.yaml:7")], NODES)
    assert message in str(error.value)


def test_no_rules_and_no_nodes() -> None:
    assert resolve([], NODES).of("fc") is None
    with pytest.raises(RecipeError, match="matches nothing"):
        resolve([Rule("", GLOBAL)], [])


paths = st.lists(st.sampled_from("abc"), max_size=4).map(".".join)


@given(st.lists(paths, min_size=1, max_size=12, unique=True), st.lists(paths, max_size=8, unique=True))
def test_the_longest_parent_wins(scopes, keys) -> None:
    nodes = [Module("conv2d", f"node{k}", scope) for k, scope in enumerate(scopes)]
    used = [key for key in keys if any(f"{node.scope}.".startswith(f"{key}." if key else "") for node in nodes)]
    rules = [Rule(key, GLOBAL, f"here:{k}") for k, key in enumerate(used)]
    matches = resolve(rules, nodes)
    for node in nodes:
        parts = node.scope.split(".") if node.scope else []
        parents = [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
        expected = next((parent for parent in parents if parent in used), None)
        rule = matches.deciding[node.name]
        assert (rule.key if rule else None) == expected
    assert sum(row.count for row in matches.table) == sum(rule is not None for rule in matches.deciding.values())
