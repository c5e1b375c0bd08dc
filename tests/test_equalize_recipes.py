"""Recipes that equalize: mended models, compare, training, checkpoints, and where it does not fit."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from cli_cases import mlp
from recipe_cases import SMALL, refusal
from rich.console import Console

import qtool
from qtool.analysis.advice import advise
from qtool.analysis.compare import compare
from qtool.cli.render import report as rendered
from qtool.ir import Graph, npz
from qtool.passes.equalize import META, counts_of, equalize
from qtool.passes.equalize_chains import find_chains, layer_table, reach_of
from qtool.pipeline import quantize_recipe
from qtool.quantize.prepare import PrepareOptions
from qtool.quantize.qat.checkpoint import settings_of
from qtool.quantize.qat.run import build_model
from qtool.recipe.load import load_recipe
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import Backend, Mode
from qtool.report.text import report_json
from qtool.report.types import Equalized, Report

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


def ruined() -> Graph:
    """digits_mobilenet with channels made small before depthwise layers, whose weights make up for it: the same
    function, and no one weight scale for these layers."""
    graph = npz.load(SAMPLES / "digits_mobilenet.npz")
    arrays = {name: array.copy() for name, array in graph.initializers.items()}
    for chain in find_chains(graph):
        if layer_table(graph, chain.consumer).shape[0] > 1:
            small = np.flatnonzero(~reach_of(graph, chain).fixed)[:2]
            for name in chain.scaled:
                arrays[name][small] /= 1024
            arrays[chain.consumer.inputs[1]][small] *= 1024
    return replace(graph, initializers=arrays)


RECIPE = f"""\
model: float.npz
output: quant.npz
backend: qnnpack
equalize: true
qconfig_dict: {{"": {{preset: qnnpack, single_rounding: true}}}}
calibration: {{data: {SAMPLES / "digits.npz"}, split: calib, batch_size: 32, batches: 4}}
evaluation: {{data: {SAMPLES / "digits.npz"}, split: test, batch_size: 100, metric: top1}}
"""
TRAIN = f"""
train: {{data: {SAMPLES / "digits.npz"}, split: train, batch_size: 64, batches: 4, epochs: 1, rate: 0.001}}
"""


@contextmanager
def quiet(label: str, total: int | None = None):
    yield lambda *_: None


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current one, with float.npz in it."""
    monkeypatch.chdir(tmp_path)
    npz.save(ruined(), tmp_path / "float.npz")
    return tmp_path


def shown(report: Report) -> str:
    """What the command prints."""
    console = Console(width=160)
    with console.capture() as capture:
        console.print(rendered(report))
    return capture.get()


def test_a_ruined_model_is_mended_end_to_end(folder, write) -> None:
    path = write(RECIPE)
    with_it = quantize_recipe(load_recipe(path), quiet)
    graph = npz.load(folder / "quant.npz")
    without = quantize_recipe(load_recipe(path, ["equalize=false"]), quiet)
    assert with_it.accuracy.float == without.accuracy.float > 0.95
    assert with_it.accuracy.drop < 0.02
    assert without.accuracy.drop > 2 * with_it.accuracy.drop + 0.02
    assert without.equalized is None
    assert with_it.equalized == Equalized(*counts_of(graph))
    assert with_it.equalized.channels >= 6
    assert f"{with_it.equalized.channels} channels of {with_it.equalized.layers} layers rescaled" in shown(with_it)
    assert json.loads(report_json(with_it))["equalized"] == asdict(with_it.equalized)
    assert min(layer.sqnr_db for layer in with_it.layers if layer.sqnr_db is not None) > 20


def test_it_is_advised_where_one_scale_does_not_fit_and_mends_that(folder, write) -> None:
    path = write(RECIPE)
    before = quantize_recipe(load_recipe(path, ["equalize=false"]), quiet)
    (item,) = (item for item in before.advice if item.recipe)
    assert item.recipe == {"equalize": True}
    assert item.qconfig_dict == {}
    depthwise = {node.name for node in ruined().nodes if node.op == "conv2d" and node.attrs["groups"] > 1}
    assert depthwise.intersection(item.layers)
    assert set(item.layers) <= {
        layer.name for chain in find_chains(ruined()) for layer in (chain.producer, chain.consumer)
    }
    assert "  equalize: true\n" in shown(before)
    assert {"equalize": True} in [each["recipe"] for each in json.loads(report_json(before))["advice"]]
    overrides = [f"{key}={json.dumps(value)}" for key, value in item.recipe.items()]
    after = quantize_recipe(load_recipe(path, ["equalize=false", *overrides]), quiet)
    assert after.accuracy.quant > before.accuracy.quant + 0.05
    advice = compare(ruined(), npz.load(folder / "quant.npz")).advice
    assert not any(each.recipe for each in advice)


@pytest.mark.parametrize(("mode", "advised"), [(Mode.STATIC, [("fc1",)]), (Mode.DYNAMIC, [])])
def test_it_is_advised_where_a_recipe_can_have_it(mode, advised) -> None:
    factors = np.where(np.arange(24) % 4, 1, 1024).astype(np.float32)
    arrays = {name: array.copy() for name, array in mlp().initializers.items()}
    arrays["fc1.weight"] *= factors[:, None]  # most of its channels are lost beside the others
    arrays["fc1.bias"] *= factors
    arrays["fc2.weight"] /= factors
    graph = replace(mlp(), initializers=arrays)
    batches = [{"x": np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)}]
    qconfig = get_preset("qnnpack" if mode is Mode.STATIC else "dynamic")
    made = qtool.quantize(graph, {"": qconfig}, batches, PrepareOptions(mode, Backend.QNNPACK)).graph
    found = compare(graph, made)
    assert found.weights[0].layer == "fc1"
    assert found.weights[0].channels_db < 10
    assert [item.layers for item in found.advice if item.recipe] == advised
    already = replace(made, meta={**made.meta, META: {}})
    assert [item.layers for item in advise(made, found.weights, (), (), graph) if item.recipe] == advised
    assert not any(item.recipe for item in advise(already, found.weights, (), (), graph))


def test_compare_equalizes_the_float_model_too(folder, write) -> None:
    quantize_recipe(load_recipe(write(RECIPE)), quiet)
    quantized, graph = npz.load(folder / "quant.npz"), ruined()
    batches = [{"x": np.load(SAMPLES / "digits.npz")["test_x"][:32]}]
    found = compare(graph, quantized, batches)
    assert found.agreement > 0.9
    assert min(row.sqnr_db for row in (*found.outputs, *found.shadow)) > 8
    assert compare(equalize(graph), quantized, batches) == found
    assert min(row.sqnr_db for row in found.weights) > 20
    forgetting = replace(quantized, meta={key: value for key, value in quantized.meta.items() if key != META})
    assert compare(graph, forgetting).weights[0].sqnr_db < 10


def test_training_starts_from_the_equalized_graph(folder, write) -> None:
    recipe = load_recipe(
        write(
            RECIPE.replace("equalize: true", "mode: qat\nequalize: true").replace(
                "{preset: qnnpack, single_rounding: true}", "qnnpack_qat"
            )
            + TRAIN
        )
    )
    model = build_model(ruined(), recipe)
    made = equalize(ruined())
    for name, array in model.source.float_graph.initializers.items():
        np.testing.assert_array_equal(array, made.initializers[name])
    report = quantize_recipe(recipe, quiet)
    assert report.equalized == Equalized(*counts_of(made))
    assert report.accuracy.drop < 0.05
    assert compare(ruined(), npz.load(folder / "quant.npz")).weights


def test_a_checkpoint_is_of_one_way_of_equalizing(write) -> None:
    text = RECIPE.replace("equalize: true", "mode: qat") + TRAIN
    plain, equalized = (load_recipe(write(text + more)) for more in ("", "equalize: true\n"))
    assert settings_of(plain, ruined()) != settings_of(equalized, ruined())


def test_recipes_say_where_it_does_not_fit(write) -> None:
    assert not load_recipe(write(SMALL)).equalize
    assert load_recipe(write(SMALL + "equalize: true\n")).equalize
    path = write("model: a.npz\noutput: b.npz\nmode: dynamic\nequalize: true\n")
    expected = "equalize: got mode dynamic, expected static or qat; leave it out"
    assert refusal(path) == f"{path}:4: {expected}"
    path = write("model: a.npz\noutput: b.npz\nequalize: true\nmode: float\ntrain: {data: d.npz}\n")
    assert refusal(path) == f"{path}:3: {expected.replace('dynamic', 'float')}"
    assert "equalize: got 1, expected" in refusal(write(SMALL + "equalize: 1\n"))
