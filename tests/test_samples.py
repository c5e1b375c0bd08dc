"""The committed sample models: sound, as accurate as their README says, fit for the recipes in configs/, and what the
script beside them makes."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from qtool.engine import reference
from qtool.ir import npz
from qtool.ir.verify import verify
from qtool.ops import check_types
from qtool.pipeline import train_recipe
from qtool.quantize.data import open_data
from qtool.quantize.prepare import PrepareOptions, prepare
from qtool.recipe.load import load_recipe
from qtool.recipe.schema import DataConfig, Mode

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_models"
MODELS = ("digits_resnet", "digits_mobilenet", "digits_mlp")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SPLITS = {"train": 941, "calib": 256, "test": 600}


def load(name):
    return npz.load(SAMPLES / f"{name}.npz")


def accuracy(graph):
    right = total = 0
    for feeds, labels in open_data(DataConfig(SAMPLES / "digits.npz", "test", 200), graph).batches():
        logits = reference.run(graph, feeds)[graph.outputs[0]]
        right += int((logits.argmax(1) == labels).sum())
        total += len(labels)
    return right / total, total


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_as_accurate_as_its_readme_says(name):
    graph = load(name)
    verify(graph)
    check_types(graph)
    measured, images = accuracy(graph)
    assert images >= 500
    assert measured >= 0.97
    row = next(line for line in (SAMPLES / "README.md").read_text().splitlines() if f"`{name}.npz`" in line)
    said = re.findall(r"[\d.,]+(?= %|(?= MB)|(?= \|))", row)
    parameters = sum(array.size for key, array in graph.initializers.items() if ".running_" not in key)
    assert f"{parameters:,}" in said
    assert f"{(SAMPLES / f'{name}.npz').stat().st_size / 1e6:.2f}" in said
    assert abs(float(said[-1]) / 100 - measured) < 0.002  # one image, for another CPU's rounding


@pytest.fixture
def build(monkeypatch):
    """The function of sample_models/graphs.py, which is in no package."""
    monkeypatch.syspath_prepend(SAMPLES)
    yield importlib.import_module("graphs").build
    sys.modules.pop("graphs")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_what_its_script_builds_and_its_recipe_trains(name, build):
    made, committed = build(name), load(name)
    assert made.nodes == committed.nodes
    assert made.values == committed.values
    recipe = load_recipe(SAMPLES / f"{name}.train.yaml")
    for key in ("model", "train", "evaluation"):
        assert committed.meta["recipe"][key] == recipe.resolved[key]


def test_a_model_learns_by_its_recipe(build, tmp_path):
    npz.save(build("digits_mlp"), tmp_path / "untrained.npz")
    changes = {"model": "untrained.npz", "output": "trained.npz", "train.checkpoint": "ckpt.npz"}
    overrides = [f"{key}={tmp_path / name}" for key, name in changes.items()]
    recipe = load_recipe(SAMPLES / "digits_mlp.train.yaml", (*overrides, "train.epochs=6", "train.warmup_epochs=1"))
    report = train_recipe(recipe, lambda *_: nullcontext(lambda *_: None))
    assert len(report.epochs) == 6
    assert accuracy(npz.load(recipe.output))[0] > 0.9


def test_files_are_small():
    for path in SAMPLES.glob("*.npz"):
        assert path.stat().st_size < 2e6


def test_what_each_model_has_to_exercise():
    resnet, mobilenet, mlp = map(load, MODELS)
    ops = [node.op for node in resnet.nodes]
    assert ops.count("add") == 3
    assert ops.count("cat") == 1
    assert ops.count("batch_norm") == ops.count("conv2d") == 11
    shortcut = next(node for node in resnet.nodes if node.scope == "layer2.0.downsample.0")
    assert shortcut.attrs["stride"] == (2, 2)
    assert resnet.initializers["layer2.0.downsample.0.weight"].shape[2:] == (1, 1)
    convs = [node for node in mobilenet.nodes if node.op == "conv2d"]
    assert sum(node.attrs["groups"] > 1 for node in convs) == 7
    assert [node.op for node in mobilenet.nodes].count("add") == 4
    assert "relu6" in {node.op for node in mobilenet.nodes}
    assert [node.op for node in mlp.nodes] == ["flatten", "linear", "relu", "linear", "relu", "linear"]


def test_no_image_is_in_two_splits():
    with np.load(SAMPLES / "digits.npz") as data:
        assert sorted(data.files) == sorted(f"{split}_{part}" for split in SPLITS for part in "xy")
        images = []
        for split, count in SPLITS.items():
            x, y = data[f"{split}_x"], data[f"{split}_y"]
            assert x.shape == (count, 1, 16, 16)
            assert x.dtype == np.float32
            assert y.shape == (count,)
            assert set(np.unique(y)) == set(range(10))
            images.append(x.reshape(count, -1))
        everything = np.concatenate(images)
    assert len(np.unique(everything, axis=0)) == len(everything) == 1797
    assert abs(everything.mean()) < 0.01
    assert 0.8 < everything.std() < 1  # enlarging by interpolation smooths a little


def test_there_is_a_recipe_for_every_way():
    expected = {"static", "static_qnnpack", "dynamic", "debug", "mixed", "eager", "accurate"}
    assert {path.stem for path in CONFIGS} >= expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_loads_and_quantizes_its_model(path):
    recipe = load_recipe(path)
    graph = npz.load(recipe.model)
    options = PrepareOptions(recipe.mode, recipe.backend, recipe.fuse, recipe.stubs)
    prepared = prepare(graph, recipe.rules, options)
    for data in filter(None, (recipe.calibration, recipe.evaluation, recipe.train and recipe.train.data)):
        assert len(open_data(data, graph)) > 0
    linear = [node.name for node in prepared.graph.nodes if node.op in ("conv2d", "linear")]
    left = {fallback.node for fallback in prepared.fallbacks}.intersection(linear)
    assert left == ({"layer2.0.conv2"} if path.stem == "mixed" else set())
    if recipe.mode is Mode.STATIC:
        assert not [node.op for node in prepared.graph.nodes if node.op in ("batch_norm", "relu")]


def test_the_eager_recipe_fuses_what_auto_fuses():
    prepared = []
    for name in ("static", "eager"):
        recipe = load_recipe(ROOT / "configs" / f"{name}.yaml")
        options = PrepareOptions(recipe.mode, recipe.backend, recipe.fuse, recipe.stubs)
        prepared.append(prepare(npz.load(recipe.model), recipe.rules, options))
    auto, eager = prepared
    assert {node.name: (node.op, dict(node.attrs)) for node in auto.graph.nodes} == {
        node.name: (node.op, dict(node.attrs)) for node in eager.graph.nodes
    }
    assert set(auto.qconfigs) == set(eager.qconfigs)
