"""The Numeric Suite: each view against its definition, and what its advice is worth."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cli_cases import RECIPE, arrays, mlp, qtool_here, trained, workspace

import qtool
from qtool.analysis.advice import LayerError, advise
from qtool.analysis.compare import Pair, compare, compare_weights
from qtool.analysis.shadow import shadow_graph
from qtool.engine import reference
from qtool.errors import ModelError
from qtool.ir import DType, Graph, QParams
from qtool.ops import Builder
from qtool.passes import float_names
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_preset
from qtool.recipe.qconfigs import plain_qconfig
from qtool.recipe.schema import Backend, Mode

BATCHES = [{"x": arrays()["calib_x"][start : start + 16]} for start in (0, 16)]


@cache
def quantized(backend: str = "fbgemm", *, debug: bool = False) -> Graph:
    qconfig = qtool.get_default_qconfig(backend)
    options = PrepareOptions(backend=Backend(backend))
    return qtool.quantize(trained(), {"": qconfig}, BATCHES, options, debug=debug).graph


@pytest.fixture(scope="module", params=["fbgemm", "qnnpack"])
def pair(request) -> Pair:
    return Pair.of(trained(), quantized(request.param))


def sqnr(real: np.ndarray, noisy: np.ndarray) -> float:
    """20 log10(|real| / |real - noisy|), PyTorch's compute_error."""
    a, b = real.astype(np.float64), noisy.astype(np.float64)
    noise = np.linalg.norm(a - b)
    return math.inf if noise == 0 else float(20 * np.log10(np.linalg.norm(a) / noise))


def by_layer(rows: tuple[LayerError, ...]) -> dict[str, LayerError]:
    return {row.layer: row for row in rows}


def dequantized(graph: Graph, name: str, stored: np.ndarray) -> np.ndarray:
    qparams = graph.values[name].qparams
    return stored if qparams is None else qparams.dequantize(stored)


# ---------------------------------------------------------------------------------------------------------------- views


def test_weights_are_compared_with_what_is_stored(pair):
    rows = by_layer(compare_weights(pair))
    assert set(rows) == {"conv1", "block.conv2", "dw", "fc"}
    for node in pair.quantized.nodes:
        if node.name not in rows:
            continue
        name = node.inputs[1]
        real = pair.fused.initializers[float_names(pair.quantized)[name]]
        stored = dequantized(pair.quantized, name, pair.quantized.initializers[name])
        row = rows[node.name]
        assert row.sqnr_db == pytest.approx(sqnr(real, stored))
        assert row.max_error == pytest.approx(float(np.abs(real - stored).max()))
        assert row.max_error <= 0.5001 * float(pair.quantized.values[name].qparams.scale.max())
        assert row.sqnr_db > 30
        assert 0.999 < row.cosine <= 1


def test_outputs_are_the_errors_of_both_models_on_the_same_data(pair):
    graph = replace(pair.quantized, meta={"fusion": quantized().meta["fusion"]})
    found = compare(trained(), graph, BATCHES)
    x = {"x": arrays()["calib_x"]}
    rows = by_layer(found.outputs)
    twins = {out: node for node in graph.nodes if node.op != "dequantize" for out in node.outputs}
    real = reference.run(pair.fused, x, [name.removesuffix(".q") for name in twins])
    stored = reference.run(graph, x, list(twins))
    for name, node in twins.items():
        layer = "x" if node.op == "quantize" else node.name
        expected = sqnr(real[name.removesuffix(".q")], dequantized(graph, name, stored[name]))
        assert rows[layer].sqnr_db == pytest.approx(expected, abs=0.05), layer  # the native float sums differ a little
    assert found.samples == 32
    assert found.outputs == tuple(sorted(found.outputs, key=lambda row: row.sqnr_db))
    (model,) = found.model
    assert model.layer == "fc"
    assert model.sqnr_db == pytest.approx(rows["fc"].sqnr_db)
    assert found.agreement == 1.0


def test_shadows_are_float_layers_on_the_quantized_input(pair):
    shadows = shadow_graph(pair.fused, pair.quantized)
    x = {"x": arrays()["calib_x"][:8]}
    seen = reference.run(shadows.graph, x)
    plain = reference.run(pair.quantized, x, list(shadows.twins))
    for name in shadows.twins:
        np.testing.assert_array_equal(seen[name], plain[name])  # the quantized model is not disturbed
    out = next(node.outputs[0] for node in pair.quantized.nodes if node.name == "block.conv2")
    source = next(node.inputs[0] for node in pair.quantized.nodes if node.name == "block.conv2")
    feed = dequantized(pair.quantized, source, reference.run(pair.quantized, x, [source])[source])
    float_node = next(node for node in pair.fused.nodes if node.name == "block.conv2")
    b = Builder("one")
    held = [b.param(f"p{i}", pair.fused.initializers[name]) for i, name in enumerate(float_node.inputs[1:])]
    y = b.node("conv2d", [b.input("x", ("N", *feed.shape[1:])), *held], **float_node.attrs)
    expected = reference.run(b.finish([y]), {"x": feed})[y]
    np.testing.assert_array_equal(seen[shadows.twins[out]], expected)


def test_debug_and_int8_graphs_compare_alike():
    first, second = (compare(trained(), quantized(debug=debug), BATCHES) for debug in (False, True))
    assert first == second


def test_without_data_there_are_weights_only():
    found = compare(trained(), quantized())
    assert found.weights
    assert (found.outputs, found.shadow, found.model, found.samples, found.agreement) == ((), (), (), 0, None)


def test_progress_counts_samples():
    seen: list[int] = []
    compare(trained(), quantized(), iter(BATCHES), progress=seen.append)
    assert seen == [16, 32]


def test_dynamic_layers_have_shadows():
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((8, 12)).astype(np.float32)}]
    options = PrepareOptions(Mode.DYNAMIC)
    graph = qtool.quantize(mlp(), {"": qtool.get_default_dynamic_qconfig()}, (), options).graph
    found = compare(mlp(), graph, batches)
    assert {row.layer for row in found.shadow} == {row.layer for row in found.weights} == {"fc1", "fc2"}
    assert all(25 < row.sqnr_db < 80 and row.rounding_db is None for row in found.shadow)
    assert by_layer(found.shadow)["fc1"].sqnr_db == by_layer(found.outputs)["fc1"].sqnr_db  # both read the input itself


def test_layers_left_in_float_are_exact_as_long_as_their_input_is():
    qconfig = qtool.get_default_qconfig("fbgemm")
    graph = qtool.quantize(trained(), {"": qconfig, "conv1": None}, BATCHES).graph
    found = compare(trained(), graph, BATCHES)
    assert by_layer(found.outputs)["conv1"].sqnr_db > 100
    assert "conv1" not in by_layer(found.weights)
    assert by_layer(found.outputs)["block.conv2"].sqnr_db < 60


# ------------------------------------------------------------------------------------------------------------ isolation


def damaged(graph: Graph, weight: str) -> Graph:
    """The graph with a fifth of one weight's integers set to zero."""
    array = graph.initializers[weight].copy()
    array.flat[::5] = 0
    return replace(graph, initializers={**graph.initializers, weight: array})


@pytest.mark.parametrize("layer", ["conv1", "block.conv2", "dw", "fc"])
def test_a_damaged_layer_is_the_worst_and_its_shadow_names_it_alone(layer):
    good = quantized()
    before, after = (compare(trained(), graph, BATCHES) for graph in (good, damaged(good, f"{layer}.weight.q")))
    assert after.weights[0].layer == after.shadow[0].layer == layer
    assert after.shadow[0].sqnr_db < by_layer(before.shadow)[layer].sqnr_db - 5
    for row in after.weights[1:]:
        assert row == by_layer(before.weights)[row.layer]
    others = [row for row in after.shadow if row.layer != layer]
    assert min(row.sqnr_db for row in others) > min(row.sqnr_db for row in before.shadow) - 6
    order = [row for node in good.nodes for row in after.outputs if row.layer == node.name]
    reached = False
    for row in order:  # outputs: nothing changes before it, and what follows carries the error on
        reached = reached or row.layer == layer
        if not reached:
            assert row == by_layer(before.outputs)[row.layer]
    assert by_layer(after.outputs)["fc"].sqnr_db < by_layer(before.outputs)["fc"].sqnr_db
    assert after.advice
    assert layer in after.advice[0].layers


def rescaled(graph: Graph, name: str, factor: float) -> Graph:
    """The graph with another scale for one activation, as a bad observer would choose."""
    value = graph.values[name]
    scale = float(value.qparams.scale[0]) * factor
    qparams = QParams.per_tensor(scale, int(value.qparams.zero_point[0]), DType.UINT8)
    return replace(graph, values={**graph.values, name: replace(value, qparams=qparams)})


def test_a_range_too_narrow_shows_as_cut_off_and_one_too_wide_as_rounding():
    good = quantized()
    name = next(node.outputs[0] for node in good.nodes if node.name == "conv1")
    narrow = compare(trained(), rescaled(good, name, 0.2), BATCHES)
    row = by_layer(narrow.shadow)["conv1"]
    assert row.clipped > 0.01
    assert row.rounding_db == pytest.approx(row.sqnr_db, abs=0.5)
    advice = next(item for item in narrow.advice if "conv1" in item.layers)
    assert "cut off" in advice.text
    assert advice.qconfig_dict["conv1"] == {"activation": {"observer": "min_max"}}
    wide = compare(trained(), rescaled(good, name, 25.0), BATCHES)
    row = by_layer(wide.shadow)["conv1"]
    assert row.clipped == 0
    assert row.rounding_db == pytest.approx(row.sqnr_db, abs=1)
    advice = next(item for item in wide.advice if "conv1" in item.layers)
    assert advice.qconfig_dict["conv1"]["activation"]["observer"] == "mse"


# --------------------------------------------------------------------------------------------------------------- advice


def uneven() -> Graph:
    """The model with some channels of one layer three thousand times larger than the others."""
    factor = np.where(np.arange(16) % 4, 1.0, 3000.0).astype(np.float32)
    held = trained().initializers
    larger = {name: held[name] * factor for name in ("bn1.weight", "bn1.bias")}
    return replace(trained(), initializers={**held, **larger})


def test_the_advice_for_coarse_weights_mends_them(tmp_path):
    recipe = RECIPE.replace("fbgemm", "qnnpack")
    workspace(tmp_path, recipe, uneven())
    assert qtool_here("quantize", "-r", "recipe.yaml", cwd=tmp_path).code == 0
    before = qtool_here("compare", "float.npz", "quant.npz", "--json", cwd=tmp_path).json
    advice = next(item for item in before["advice"] if "one scale for all channels" in item["text"])
    assert "conv1" in advice["layers"]
    assert not any(item["recipe"] for item in before["advice"])  # the residual keeps channels from being rescaled
    rules = {"": "qnnpack", **advice["qconfig_dict"]}
    text = qtool_here("compare", "float.npz", "quant.npz", cwd=tmp_path).out
    assert "conv1: {weight: {observer: per_channel_min_max, scheme: per_channel_symmetric}}" in text
    workspace(tmp_path, recipe + f"qconfig_dict: {json.dumps(rules)}\n", uneven())
    assert qtool_here("quantize", "-r", "recipe.yaml", cwd=tmp_path).code == 0
    after = qtool_here("compare", "float.npz", "quant.npz", "--json", cwd=tmp_path).json
    rows = [{row["layer"]: row for row in plain["weights"]} for plain in (before, after)]
    for layer in advice["layers"]:
        assert rows[0][layer]["sqnr_db"] > 35  # as a whole it looks well
        assert rows[0][layer]["channels_db"] < 10
        assert rows[1][layer]["channels_db"] > 35
    assert not any("one scale for all channels" in item["text"] for item in after["advice"])


def test_advice_names_a_module_that_a_recipe_can_name():
    """The input itself is no module: the rule is for its first reader, whose observer it has."""
    good = quantized()
    found = compare(trained(), rescaled(good, "x.q", 30.0), BATCHES)
    advice = next(item for item in found.advice if "x" in item.layers)
    assert set(advice.qconfig_dict) <= {node.name for node in trained().nodes}
    assert "conv1" in advice.qconfig_dict


def test_advice_knows_another_checkpoint():
    other = {
        name: np.random.default_rng(5).permutation(array.ravel()).reshape(array.shape)
        for name, array in trained().initializers.items()
    }
    found = compare(replace(trained(), initializers=other), quantized(), BATCHES)
    assert len(found.advice) == 1
    assert "another checkpoint" in found.advice[0].text


def test_errors_that_only_add_up_call_for_accuracy():
    graph = quantized()
    rows = [
        LayerError(node.name, node.op, db, 0.1, 0.99) for node, db in zip(graph.nodes[1:3], (12.0, 30.0), strict=True)
    ]
    fine = [replace(row, sqnr_db=40.0, rounding_db=40.0, clipped=0.0) for row in rows]
    (advice,) = advise(graph, fine, rows, fine)
    assert advice.qconfig_dict == {"": "accurate"}
    assert advise(graph, fine, fine, fine) == ()


def clamped() -> Graph:
    """The model with its depthwise layer two hundred times larger: nearly all of it is cut off at 6 behind."""
    held = trained().initializers
    larger = {**held, "dw.weight": held["dw.weight"] * 200}
    return replace(trained(), initializers=larger)


def test_a_range_observed_before_a_clamp_is_called_by_its_name():
    def worst(**changes: bool) -> tuple[float, tuple]:
        qconfig = replace(qtool.get_default_qconfig("fbgemm"), **changes)
        graph = qtool.quantize(clamped(), {"": qconfig}, BATCHES).graph
        found = compare(clamped(), graph, BATCHES)
        return found.model[0].sqnr_db, found.advice

    before, advice = worst()
    item = next(item for item in advice if item.layers == ("dw",))
    assert "clamp" in item.text
    assert item.qconfig_dict == {"dw": {"single_rounding": True}}
    after, advice = worst(single_rounding=True)
    assert after > before + 6
    assert not any("clamp" in item.text for item in advice)


def test_a_value_that_is_only_moved_is_mended_where_it_was_made():
    good = quantized()
    flatten = next(node for node in good.nodes if node.name == "flatten")
    row = LayerError("flatten", "flatten", 5.0, 1.0, 0.5, 5.0, 0.0)
    (advice,) = advise(good, [], [], [row])
    assert good.values[flatten.outputs[0]].qparams == good.values["dw.q"].qparams
    assert list(advice.qconfig_dict) == ["dw"]


def test_the_preset_accurate_is_not_proposed_twice():
    recorded = {"recipe": {"qconfig_dict": {"": plain_qconfig(get_preset("accurate"))}}}
    graph = replace(quantized(), meta=recorded)
    (advice,) = advise(graph, [], [LayerError("dw", "conv2d", 5.0, 1.0, 0.5)], [])
    assert advice.qconfig_dict == {"dw": None}


def test_many_bad_layers_get_one_rule():
    graph = quantized()
    bad = [LayerError(f"layer{i}", "conv2d", 5.0, 1.0, 0.5, 5.0, 0.0) for i in range(20)]
    (advice,) = advise(graph, [], [], bad)
    assert len(advice.layers) == 20
    assert list(advice.qconfig_dict) == [""]


# ---------------------------------------------------------------------------------------------------------- what is off


def test_models_that_are_no_pair_are_refused():
    int8 = quantized()
    with pytest.raises(ModelError, match="in this order"):
        Pair.of(int8, trained())
    with pytest.raises(ModelError, match="in this order"):
        Pair.of(trained(), trained())
    with pytest.raises(ModelError, match="was not made from this float model"):
        Pair.of(mlp(), int8)
    with pytest.raises(ModelError, match="does not record how its layers were fused"):
        Pair.of(trained(), replace(int8, meta={}))


def test_the_first_difference_is_named():
    int8, graph = quantized(), trained()
    other = replace(graph, nodes=tuple(replace(n, op="tanh") if n.name == "relu6" else n for n in graph.nodes))
    with pytest.raises(ModelError, match="'relu6' is tanh there, and relu6 here"):
        Pair.of(other, int8)
    with pytest.raises(ModelError, match="other names"):
        Pair.of(graph.with_outputs(("flatten",)), int8)
    b = Builder("cli")
    y = b.input("x", ("N", 3, 8, 8))
    with b.scope("fc"):
        y = b.node("linear", [b.node("flatten", [y]), b.param("weight", np.ones((4, 192), np.float32))])
    with pytest.raises(ModelError, match="was not made from this float model"):
        Pair.of(b.finish([y]), int8)


def test_an_overflow_in_a_model_counts_as_the_worst():
    weight = np.full_like(trained().initializers["dw.weight"], 3e38)
    huge = replace(trained(), initializers={**trained().initializers, "dw.weight": weight})
    found = compare(huge, quantized(), BATCHES[:1])
    bad = [math.isnan(row.sqnr_db) for row in found.outputs]
    assert any(bad)
    assert bad == sorted(bad, reverse=True)


def test_the_json_holds_every_row():
    plain = compare(trained(), quantized(), BATCHES).to_json()
    assert next(iter(plain)) == "schema"
    assert {"layer", "op", "sqnr_db", "max_error", "cosine"} <= set(plain["shadow"][0])
    assert [len(plain[view]) for view in ("weights", "outputs", "shadow", "model")] == [4, 9, 9, 1]
