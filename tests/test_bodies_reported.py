"""Layers in bodies of control flow are found by rules, listed in reports, compared, and exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from body_cases import FBGEMM, GRAPHS, MODES, branch, feeds_of, if_graph, int8_layers, layer, loop_graph, quantized
from click.testing import CliRunner

from qtool.analysis.compare import Pair, compare, compare_weights
from qtool.cli import cli
from qtool.engine.session import Session
from qtool.errors import ModelError, RecipeError
from qtool.ir import Graph, all_nodes, bodies_by_path
from qtool.ir.npz import load, save
from qtool.ops import Builder
from qtool.passes import Fusion, fuse
from qtool.quantize.api import quantize
from qtool.quantize.prepare import PrepareOptions, prepare
from qtool.recipe.match import resolve
from qtool.recipe.schema import Mode, Rule, Stubs

THEN, ELSE = "choice.then_branch", "choice.else_branch"


def left_in_float(*keys: str, graph: Graph | None = None) -> set[str]:
    """The layers that rules with these keys leave in float, where all others are quantized."""
    matches = resolve([Rule("", FBGEMM), *(Rule(key, None) for key in keys)], all_nodes(graph or if_graph()))
    return {name for name, rule in matches.deciding.items() if rule is not None and rule.qconfig is None}


RULES = {
    "head": {"head"},
    "fc1": {f"{ELSE}.fc1"},
    "shared": {f"{THEN}.shared", f"{ELSE}.shared"},
    f"{ELSE}.shared": {f"{ELSE}.shared"},
    THEN: {f"{THEN}.{name}" for name in ("unsqueeze", "conv", "mean", "shared", "relu")},
    "type:conv1d": {f"{THEN}.conv"},
    "re:fc[0-9]": {f"{ELSE}.fc1", f"{ELSE}.fc2"},
    "re:choice.else_branch.fc": {f"{ELSE}.fc1", f"{ELSE}.fc2"},
}


@pytest.mark.parametrize("key", RULES)
def test_rules_find_layers_in_bodies(key: str):
    assert left_in_float(key) == RULES[key]


def test_a_node_of_control_flow_stands_for_its_bodies():
    names = {located.name for located in all_nodes(if_graph())}
    assert left_in_float("choice") == {name for name in names if name.split(".")[0] == "choice"}


def test_the_longest_path_wins_whichever_way_it_is_spelt():
    for inner, outer in (("fc1", "choice"), ("fc1", ELSE), (f"{ELSE}.fc1", "fc1"), (ELSE, "choice")):
        rules = [Rule(outer, None), Rule(inner, FBGEMM)]
        assert resolve(rules, all_nodes(if_graph())).of(f"{ELSE}.fc1") == FBGEMM, (inner, outer)


def test_a_layer_in_a_body_in_a_body():
    graph = loop_graph(inner=True)
    path = "turns.body.choice.else_branch"
    for key in ("turns", "turns.body.choice", "turns.body.choice.else_branch.fc1", "fc1", "choice"):
        assert f"{path}.fc1" in left_in_float(key, graph=graph), key
    assert "turns.body.fc" not in left_in_float("turns.body.choice", graph=graph)


def test_a_rule_that_matches_nothing_in_any_body_is_an_error():
    with pytest.raises(
        RecipeError, match=r"'choice.else_branch.fc3' matches nothing.*did you mean 'choice.else_branch.fc"
    ):
        left_in_float(f"{ELSE}.fc3")


def test_prepared_has_its_bodies():
    prepared = prepare(if_graph(), [Rule("", FBGEMM), Rule(f"{THEN}.shared", None)], PrepareOptions())
    assert {"head", "tail", f"{THEN}.conv", f"{ELSE}.fc1", f"{ELSE}.shared"} <= set(prepared.quantized)
    assert {fallback.node: fallback.reason for fallback in prepared.all_fallbacks}[f"{THEN}.shared"] == (
        "the rule 'choice.then_branch.shared' leaves it in float"
    )
    assert all(group.values[0] in body.graph.values for body in prepared.bodies.values() for group in body.groups)


def test_lists_of_modules_to_fuse_may_be_in_bodies():
    b = Builder("body")
    with b.scope("fc"):
        y = layer(b, "one", b.input("x", ("N", 8)))
    with b.scope("act"):
        y = b.node("relu", [y])
    body = b.finish([b.node("relu", [y])])
    b = Builder("lists")
    inputs = [b.input("cond", ()), b.input("x", ("N", 8))]
    inputs[0] = b.node("less", [inputs[0], b.param("zero", np.array(0, np.float32))])
    graph = b.finish(b.nodes("if", inputs, 1, "choice", graphs={"then_branch": body, "else_branch": branch_like()}))
    fused = bodies_by_path(fuse(graph, Fusion((("fc.one", "act"),))))[THEN]
    assert [node.op for node in fused.nodes] == ["linear", "relu"]
    with pytest.raises(RecipeError, match=r"no module is called 'fc\.two'"):
        fuse(graph, Fusion((("fc.two", "nothing"),)))


def branch_like() -> Graph:
    b = Builder("other")
    return b.finish([b.node("relu", [b.input("x", ("N", 8))])])


def test_no_body_is_between_stubs():
    options = PrepareOptions(Mode.STATIC, stubs=Stubs(("x",), ("head",)))
    prepared = prepare(if_graph(), [Rule("", FBGEMM)], options)
    assert prepared.quantized == ("head",)
    reasons = {fallback.node: fallback.reason for fallback in prepared.all_fallbacks}
    assert reasons[f"{ELSE}.fc1"] == "outside of the stubs"


# ----------------------------------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize("kind", GRAPHS)
def test_layers_in_bodies_are_compared(kind: str):
    graph = GRAPHS[kind]()
    made = quantized(graph, "qnnpack").graph
    found = compare(graph, made, [feeds_of(graph, seed) for seed in range(2)])
    weighted = {row.layer: row for row in found.weights}
    assert all(25 < row.sqnr_db < 60 for row in found.weights)
    inside = {name for name in int8_layers(made) if "." in name}
    shadowed = {row.layer: row for row in found.shadow}
    assert inside <= shadowed.keys()
    assert weighted.keys() <= shadowed.keys()
    assert all(row.sqnr_db > 15 for row in found.shadow)
    assert set(found.bodies) == {name.rpartition(".")[0] for name in inside}


def test_the_shadow_of_a_layer_in_a_body_is_that_of_the_layer_alone():
    """A range that is much too narrow is found, and the rule that is advised finds the layer in the body."""
    graph = loop_graph()
    rules = {"": MODES["qnnpack"][0]}
    calibration = [feeds_of(graph, seed, trips=1) for seed in range(2)]
    small = [{**feeds, "x": feeds["x"] * np.float32(0.01)} for feeds in calibration]
    made = quantize(graph, rules, small, MODES["qnnpack"][1]).graph
    found = compare(graph, made, [feeds_of(graph, 5, trips=2)])
    rows = {row.layer: row for row in found.shadow}
    clipped = {name for name, row in rows.items() if (row.clipped or 0) > 0.3}
    assert "turns.body.h" in clipped
    keys = {key for advice in found.advice for key in advice.qconfig_dict}
    assert any(key.startswith("turns.body.") for key in keys)
    resolve([Rule(key, FBGEMM) for key in keys if key], all_nodes(graph))


def test_a_model_with_other_bodies_is_told_apart():
    made = quantized(if_graph()).graph
    b = Builder("body")
    x, w = b.input("x", ("N", 8)), b.input("w", (8, 8))
    other = b.finish([b.node("relu", [b.node("linear", [layer(b, "fc9", x), w], "shared")])])
    graph = if_graph()
    swapped = [
        replace(node, graphs={**node.graphs, "else_branch": other}) if node.graphs else node for node in graph.nodes
    ]
    with pytest.raises(ModelError, match=r"was not made from this float model: in choice\.else_branch: its inputs"):
        Pair.of(replace(graph, nodes=tuple(swapped)), made)
    assert compare_weights(Pair.of(graph, made))


# --------------------------------------------------------------------------------------------------------- the commands


def by_sign() -> Graph:
    """``if_graph`` with the condition made of the input, so that data of one input reach both branches."""
    b = Builder("sign")
    x = b.input("x", ("N", 8))
    cond = b.node("less", [b.node("sum", [x]), b.param("zero", np.array(0, np.float32))], "negative")
    w = b.param("w", np.eye(8, dtype=np.float32))
    bodies = {"then_branch": branch("then", True), "else_branch": branch("else", False)}
    (y,) = b.nodes("if", [cond, layer(b, "head", x), w], 1, "choice", graphs=bodies)
    return b.finish([layer(b, "tail", y)])


RECIPE = """\
model: float.npz
output: quant.npz
mode: static
qconfig_dict: {"": fbgemm, choice.else_branch.fc2: null}
calibration: {data: data.npz, split: calib, batch_size: 4}
evaluation: {data: data.npz, split: test, batch_size: 4, metric: sqnr}
latency: {seconds: 0.01, warmup: 1}
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(by_sign(), "float.npz")
    rng = np.random.default_rng(1)
    signs = np.repeat([1.0, -1.0], 16).reshape(-1, 1)
    data = {split: (rng.standard_normal((32, 8)) + signs).astype(np.float32) for split in ("calib_x", "test_x")}
    np.savez("data.npz", **data)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(*args: str) -> str:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_report_has_the_layers_in_bodies(workspace):
    checked = json.loads(run("recipe", "check", "recipe.yaml", "--json"))
    assert f"{THEN}.conv" in checked["quantized"]
    report = json.loads(run("quantize", "-r", "recipe.yaml", "--json"))
    layers = {row["name"]: row for row in report["layers"]}
    assert set(checked["quantized"]) == {name for name, row in layers.items() if row["precision"] == "int8"}
    assert "choice" not in layers
    conv = layers[f"{THEN}.conv"]
    assert conv["weight_bytes"] == 12
    assert conv["sqnr_db"] > 20
    assert conv["low"] < conv["high"]
    assert {row["name"] for row in report["fallbacks"]} >= {f"{ELSE}.fc2", f"{THEN}.mean"} - set(checked["quantized"])
    assert not any("never run" in warning for warning in report["warnings"])
    assert report["accuracy"]["quant"] > 15
    assert int8_layers(load("quant.npz")) >= {f"{THEN}.conv", f"{ELSE}.fc1"}


def test_a_branch_that_the_data_do_not_reach_is_in_the_report(workspace):
    data = np.load("data.npz")
    np.savez("data.npz", calib_x=data["calib_x"][:16] + 2, test_x=data["test_x"])
    report = json.loads(run("quantize", "-r", "recipe.yaml", "--json"))
    assert any(text.startswith("if 'choice': its body 'then_branch' was never run") for text in report["warnings"])
    reasons = {row["name"]: row["reason"] for row in report["fallbacks"]}
    assert reasons[f"{THEN}.conv"] == "its body was never run in calibration"


def test_inspect_bench_and_compare_look_into_bodies(workspace):
    run("quantize", "-r", "recipe.yaml")
    for model, precision in (("float.npz", "int8"), ("quant.npz", "int8")):
        rows = {row["name"]: row for row in json.loads(run("inspect", model, "--json"))["layers"]}
        assert rows[f"{ELSE}.fc1"]["precision"] == precision
        assert rows[f"{ELSE}.fc1"]["macs"] == 64
        assert rows["choice"]["precision"] == "control flow"
    timed = json.loads(run("bench", "float.npz", "quant.npz", "--seconds", "0.01", "--per-op", "--json"))
    for row in timed["models"][0]["rows"]:
        names = {name for one in row["operators"] for name in one["layer"].split(" + ")}
        assert any(name.startswith("choice.") for name in names)
        assert "choice" not in row["fallbacks"]
    text = run("compare", "float.npz", "quant.npz", "--data", "data.npz", "--split", "test", "--top", "0")
    assert "layers in bodies of control flow have no rows in outputs" in text
    assert f"{THEN}.conv" in text


# -------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("mode", ["fbgemm", "qnnpack", "accurate", "dynamic"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_quantized_bodies_go_to_onnx_and_back(kind: str, mode: str, tmp_path):
    pytest.importorskip("onnx")
    from qtool.exporters.onnx import export_onnx
    from qtool.pipeline import load_model

    made = quantized(GRAPHS[kind](), mode).graph
    export_onnx(made, tmp_path / "int8.onnx")
    again = load_model(tmp_path / "int8.onnx")
    assert again.backend == (made.backend if mode != "dynamic" else "")
    feeds = feeds_of(made, 7)
    first, second = Session(made).run(feeds), Session(again).run(feeds)
    for name in first:
        np.testing.assert_allclose(second[name], first[name], rtol=0, atol=1e-6 if mode == "dynamic" else 0)
