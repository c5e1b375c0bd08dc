"""Static, dynamic and float layers in one model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import qtool
from qtool.engine import reference
from qtool.errors import QuantizationError, RecipeError
from qtool.ir import Graph
from qtool.ops.builder import Builder
from qtool.ops.check import check_types
from qtool.quantize.prepare import PrepareOptions, prepare
from qtool.recipe.load import load_recipe
from qtool.recipe.presets import get_preset
from qtool.recipe.qconfigs import plain_qconfig
from qtool.recipe.schema import Backend, Mode, Rule

STATIC, DYNAMIC = get_preset("fbgemm"), get_preset("dynamic")


def chain(seed: int = 0) -> Graph:
    """Four linear layers a, b, c, d with a relu behind b."""
    rng = np.random.default_rng(seed)
    b = Builder("chain")
    x = b.input("x", ("N", 8))
    for name in "abcd":
        with b.scope(name):
            weight = b.param("weight", rng.normal(size=(8, 8)).astype(np.float32))
            bias = b.param("bias", rng.normal(size=8).astype(np.float32))
            x = b.node("linear", [x, weight, bias])
        if name == "b":
            x = b.node("relu", [x], "relu")
    return b.finish([x])


def batches(count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(5, 8)).astype(np.float32)} for _ in range(count)]


def ops(graph: Graph) -> dict[str, str]:
    return {node.name: node.op for node in graph.nodes if node.op not in ("quantize", "dequantize")}


@pytest.mark.parametrize("backend", list(Backend))
def test_dynamic_layer_between_static_ones(backend):
    rules = {"": STATIC, "c": DYNAMIC}
    result = qtool.quantize(chain(), rules, batches(), PrepareOptions(backend=backend))
    graph = result.graph
    check_types(graph)
    assert ops(graph) == {"a": "linear", "b": "linear", "c": "linear_dynamic", "d": "linear"}
    layer = graph.producers["c"]
    assert graph.producers[layer.inputs[0]].op == "dequantize"
    assert layer.attrs["reduce_range"] is (backend is not Backend.QNNPACK)
    assert graph.values["c"].qparams is None
    assert [node.op for node in graph.consumers["c"]] == ["quantize"]
    assert result.calibrated.prepared.dynamic == {"c"}


def test_each_part_computes_what_it_would_alone():
    """The dynamic layer gets the static layer's numbers, and the static one behind it the dynamic layer's."""
    graph = qtool.quantize(chain(), {"": STATIC, "c": DYNAMIC}, batches()).graph
    feeds = batches()[0]
    layer = graph.producers["c"]
    wanted = [layer.inputs[0], "c", "c.q"]
    read, made, quantized = reference.run(graph, feeds, wanted).values()
    alone = replace(graph, nodes=(layer,), inputs=(layer.inputs[0],), outputs=("c",))
    np.testing.assert_array_equal(reference.run(alone, {layer.inputs[0]: read})["c"], made)
    np.testing.assert_array_equal(graph.values["c.q"].qparams.quantize(made), quantized)


@pytest.mark.parametrize("rules", [{"": STATIC, "a": DYNAMIC, "b": None}, {"": DYNAMIC, "b": STATIC, "d": STATIC}])
def test_debug_graph_and_engines_give_the_same_bits(rules):
    results = [qtool.quantize(chain(), rules, batches(), debug=debug).graph for debug in (False, True)]
    assert "linear_dynamic" in ops(results[0]).values()
    for feeds in batches():
        outputs = [qtool.Session(graph).run(feeds) for graph in results]
        outputs += [qtool.Session(graph, engine="reference").run(feeds) for graph in results]
        for output in outputs[1:]:
            np.testing.assert_array_equal(output["d"], outputs[0]["d"])
        real = qtool.Session(chain()).run(feeds)["d"]
        assert np.linalg.norm(outputs[0]["d"] - real) < 0.05 * np.linalg.norm(real)


def test_float_layer_stays_as_it_is():
    graph = qtool.quantize(chain(), {"": DYNAMIC, "b": None, "d": STATIC}, batches()).graph
    assert ops(graph) == {"a": "linear_dynamic", "b": "linear", "c": "linear_dynamic", "d": "linear"}
    assert {name for name, value in graph.values.items() if value.dtype.value == "float32" and "weight" in name} == {
        "b.weight"
    }


def test_only_values_around_static_layers_are_observed():
    rules = [Rule("", DYNAMIC), Rule("b", STATIC)]
    assert prepare(chain(), rules).observed == ("a", "relu")
    assert prepare(chain(), [Rule("", DYNAMIC)]).observed == ()


def test_no_data_is_needed_where_all_is_dynamic():
    result = qtool.quantize(chain(), {"": DYNAMIC})
    assert (result.calibrated.samples, set(ops(result.graph).values())) == (0, {"linear_dynamic"})
    with pytest.raises(QuantizationError, match="no calibration data"):
        qtool.quantize(chain(), {"": DYNAMIC, "a": STATIC})


def test_mode_of_a_qconfig_overrides_that_of_the_model():
    static = replace(STATIC, mode=Mode.STATIC)
    graph = qtool.quantize(chain(), {"": DYNAMIC, "a": static}, batches(), PrepareOptions(Mode.DYNAMIC)).graph
    assert [ops(graph)[name] for name in "ab"] == ["linear", "linear_dynamic"]


def test_row_wise_gives_each_row_a_scale_of_its_own():
    activation = replace(DYNAMIC.activation, options={"row_wise": True})
    graph = qtool.quantize(chain(), {"": replace(DYNAMIC, activation=activation)}).graph
    assert all(node.attrs["row_wise"] for node in graph.nodes)
    x = batches()[0]["x"]
    x[1:] *= 100
    alone = qtool.Session(graph).run({"x": x[:1]})["d"]
    np.testing.assert_array_equal(qtool.Session(graph).run({"x": x})["d"][:1], alone)
    whole = qtool.Session(qtool.quantize(chain(), {"": DYNAMIC}).graph).run({"x": x})["d"][:1]
    assert (whole != alone).any()


RECIPE = "model: a.npz\noutput: b.npz\n"


def load(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + text)
    return load_recipe(path)


def test_recipe_mixes_modes(tmp_path):
    data = "calibration: {data: c.npz}\n"
    recipe = load(tmp_path, data + 'qconfig_dict: {"": fbgemm, b: {mode: dynamic}, c: dynamic, d: null}\n')
    found = {rule.key: rule.qconfig for rule in recipe.rules}
    assert (recipe.mode, found[""].mode, found["d"]) == (Mode.STATIC, None, None)
    assert found["b"] == found["c"] == DYNAMIC


def test_static_rule_in_a_dynamic_recipe_takes_the_static_defaults(tmp_path):
    text = "mode: dynamic\nbackend: qnnpack\ncalibration: {data: c.npz}\nqconfig_dict: {b: {mode: static}}\n"
    (rule,) = load(tmp_path, text).rules
    assert rule.qconfig == replace(get_preset("qnnpack"), mode=Mode.STATIC)


def test_static_rule_needs_data_and_dynamic_ones_none(tmp_path):
    with pytest.raises(RecipeError, match="calibration is missing: mode static"):
        load(tmp_path, 'mode: dynamic\nqconfig_dict: {"": dynamic, b: {mode: static}}\n')
    assert load(tmp_path, "qconfig_dict: {b: dynamic}\n").calibration is None


@pytest.mark.parametrize("mode", ["qat", "dynamc", "true"])
def test_other_modes_are_refused(tmp_path, mode):
    with pytest.raises(RecipeError, match=r"qconfig_dict\.b\.mode"):
        load(tmp_path, f"qconfig_dict: {{b: {{mode: {mode}}}}}\n")


def test_row_wise_in_a_recipe(tmp_path):
    (rule,) = load(tmp_path, "mode: dynamic\nqconfig_dict: {b: {activation: {row_wise: true}}}\n").rules
    assert rule.qconfig.activation.options == {"row_wise": True}
    assert plain_qconfig(rule.qconfig)["activation"]["row_wise"] is True
    assert plain_qconfig(rule.qconfig)["mode"] == "dynamic"
    with pytest.raises(RecipeError, match="takes no option 'row_wise'"):
        load(tmp_path, "calibration: {data: c.npz}\nqconfig_dict: {b: {activation: {row_wise: true}}}\n")
