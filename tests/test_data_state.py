"""State that a model hands on from step to step, constants, and metrics against the float model."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from data_samples import model

import qtool
from qtool.analysis.compare import compare
from qtool.analysis.evaluate import measure_accuracy
from qtool.analysis.inference import run_dataset
from qtool.cli import cli
from qtool.errors import DataError, RecipeError
from qtool.ir import DType, Graph
from qtool.ir.npz import load, save
from qtool.ops import Builder
from qtool.pipeline import quantize_recipe
from qtool.quantize.calibrate import calibrate
from qtool.quantize.data import Dataset, open_data
from qtool.quantize.prepare import prepare
from qtool.recipe.load import load_recipe
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import DataConfig, Rule

SIZE = 6
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((2, SIZE, SIZE)).astype(np.float32) / 2
X = RNG.standard_normal((20, SIZE)).astype(np.float32)
CARRY = {"new": "old"}


def recurrent() -> Graph:
    """new = tanh(A x + gain * old), y = B new."""
    b = Builder("recurrent")
    x, old, gain = b.input("x", ("N", SIZE)), b.input("old", ("M", SIZE)), b.input("gain", ())
    fed = b.node("linear", [x, b.param("a", WEIGHT[0])], "fed")
    new = b.node("tanh", [b.node("add", [fed, b.node("mul", [old, gain])], name="sum")], name="new")
    return b.finish([b.node("linear", [new, b.param("b", WEIGHT[1])], "y"), new])


def by_hand(parts: list[np.ndarray], gain: float = 0.5) -> np.ndarray:
    made = []
    for part in parts:
        old = np.zeros(SIZE)
        for x in part:
            old = np.tanh(WEIGHT[0] @ x + gain * old)
            made.append(WEIGHT[1] @ old)
    return np.array(made)


def dataset(folder: Path, graph: Graph | None = None, **config: object) -> Dataset:
    """Two files, of 13 and 7 steps."""
    if not (folder / "d").exists():
        (folder / "d").mkdir()
        np.save(folder / "d" / "1.npy", X[:13])
        np.save(folder / "d" / "2.npy", X[13:])
    settings = {"batch_size": 1, "carry": CARRY, "constants": {"gain": 0.5}, **config}
    return open_data(DataConfig(folder / "d", **settings), graph or recurrent())


def test_state_is_carried_and_begins_anew_with_each_file(tmp_path):
    outputs = run_dataset(qtool.Session(recurrent()), dataset(tmp_path))
    np.testing.assert_allclose(outputs["y"], by_hand([X[:13], X[13:]]), rtol=1e-4, atol=1e-5)
    assert outputs["new"].shape == (1, SIZE), "of the state, only the last is kept"


def test_batches_of_a_stream(tmp_path):
    data = dataset(tmp_path)
    batches = list(data.feeds())
    assert len(batches) == len(data) == 20
    assert [n for n, batch in enumerate(batches) if "old" in batch] == [0, 13]
    assert not batches[13]["old"].any()
    assert {float(batch["gain"]) for batch in batches} == {0.5}
    assert list(batches[0]) == ["x", "gain", "old"], "what was read comes first"


def test_a_batch_is_of_one_file_only(tmp_path):
    """Streams side by side: sample k follows sample k - 2."""
    data = dataset(tmp_path, batch_size=4, batches=5)
    assert [len(batch["x"]) for batch in data.feeds()] == [4, 4, 4, 1, 4, 3]
    assert len(data) == 6
    even = dataset(tmp_path, batch_size=2, batches=6)
    outputs = run_dataset(qtool.Session(recurrent()), even)["y"]
    np.testing.assert_allclose(outputs[::2], by_hand([X[:12:2]]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs[1::2], by_hand([X[1:12:2]]), rtol=1e-4, atol=1e-5)


def test_a_part_of_the_samples(tmp_path):
    """State begins at the first of them, and at the file that begins among them."""
    data = dataset(tmp_path, samples=(10, 18))
    assert data.starts == (0, 3)
    outputs = run_dataset(qtool.Session(recurrent()), data)["y"]
    np.testing.assert_allclose(outputs, by_hand([X[10:13], X[13:18]]), rtol=1e-4, atol=1e-5)
    assert dataset(tmp_path, samples=(13, None)).starts == dataset(tmp_path, samples=(0, 13)).starts == (0,)
    with pytest.raises(DataError, match="'carry' needs the samples in their order; leave 'shuffle' out"):
        dataset(tmp_path, shuffle=0)


def test_the_hash_is_of_what_was_read(tmp_path):
    assert dataset(tmp_path).fingerprint() == dataset(tmp_path, batch_size=4).fingerprint()
    assert dataset(tmp_path).fingerprint() != dataset(tmp_path, batches=19).fingerprint()


def test_calibration_sees_the_state(tmp_path):
    qconfig = get_preset("default")
    calibrated = calibrate(prepare(recurrent(), [Rule("", qconfig)]), dataset(tmp_path).feeds())
    sums, old = [], np.zeros(SIZE)
    for step, x in enumerate(X):
        old = np.zeros(SIZE) if step == 13 else old
        sums.append(WEIGHT[0] @ x + 0.5 * old)
        old = np.tanh(sums[-1])
    seen = calibrated.ranges["sum"]
    assert calibrated.samples == 20
    assert (seen.low, seen.high) == pytest.approx((np.min(sums), np.max(sums)), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- a whole recipe

RECIPE = """\
model: float.npz
output: quant.npz
mode: {mode}
evaluation: {{data: d, carry: {{new: old}}, constants: {{gain: 0.5}}, metric: {metric}}}
"""


@contextmanager
def quiet(label: str, total: int | None = None):
    yield lambda done: None  # noqa: ARG005 (nobody looks)


def quantized(folder: Path, mode: str = "dynamic", metric: str = "sqnr", more: str = ""):
    dataset(folder)
    save(recurrent(), folder / "float.npz")
    text = RECIPE.format(mode=mode, metric=metric) + more
    if mode == "static":
        text += "calibration: {data: d, carry: {new: old}, constants: {gain: 0.5}}\n"
    (folder / "recipe.yaml").write_text(text)
    return quantize_recipe(load_recipe(folder / "recipe.yaml"), quiet)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_each_model_carries_its_own_state(mode, tmp_path):
    report = quantized(tmp_path, mode, more="gates: {min_metric: 20, max_metric: 25}\nlatency: {seconds: 0.001}\n")
    accuracy = report.accuracy
    assert accuracy.against == "float outputs"
    assert (accuracy.unit, accuracy.n, list(accuracy.outputs)) == ("dB", 20, ["y"])
    sessions = [qtool.Session(graph) for graph in (recurrent(), load(report.output))]
    real, quant = (run_dataset(session, dataset(tmp_path))["y"].astype(np.float64) for session in sessions)
    expected = 10 * np.log10((real**2).sum() / ((quant - real) ** 2).sum())
    assert accuracy.quant == pytest.approx(expected)
    assert 20 < accuracy.quant < 60
    gates = {gate.name: (gate.limit, gate.value, gate.passed) for gate in report.gates}
    assert gates["min_metric"] == (20, accuracy.quant, True)
    assert gates["max_metric"] == (25, accuracy.quant, accuracy.quant <= 25)


def test_the_largest_error_of_any_step(tmp_path):
    report = quantized(tmp_path, metric="max_error")
    sessions = [qtool.Session(graph) for graph in (recurrent(), load(report.output))]
    real, quant = (run_dataset(session, dataset(tmp_path))["y"] for session in sessions)
    assert report.accuracy.quant == pytest.approx(float(np.abs(quant - real).max()))
    assert report.accuracy.float == 0.0


def test_the_worst_of_several_outputs_counts(tmp_path):
    graph = load(quantized(tmp_path).output)
    sessions = [qtool.Session(recurrent()), qtool.Session(graph)]
    for metric, pick in (("sqnr", min), ("mse", max)):
        _, found = measure_accuracy(sessions, dataset(tmp_path, outputs=("y", "new")), metric)
        assert list(found.outputs) == ["y", "new"]
        assert found.value == pick(found.outputs.values())
        (alone,) = measure_accuracy(sessions, dataset(tmp_path), metric)[1:]
        assert alone.outputs == {"y": found.outputs["y"]}


def test_compare_carries_the_state_of_both(tmp_path):
    quant = load(quantized(tmp_path, "static").output)
    found = compare(recurrent(), quant, dataset(tmp_path).feeds())
    sessions = [qtool.Session(graph) for graph in (recurrent(), quant)]
    real, stored = (run_dataset(session, dataset(tmp_path))["y"] for session in sessions)
    assert {row.layer: row.max_error for row in found.model}["y"] == pytest.approx(np.abs(real - stored).max(), 1e-5)


# ------------------------------------------------------------------------------------------- commands and their recipe


def called(*words: str) -> dict:
    result = CliRunner().invoke(cli, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_commands_take_the_data_of_a_recipe(tmp_path, monkeypatch):
    report = quantized(tmp_path, metric="max_error")
    monkeypatch.chdir(tmp_path)
    models = ("float.npz", "quant.npz")
    found = called("eval", *models, "--recipe", "recipe.yaml")
    assert (found["metric"], found["n"]) == ("max_error", 20)
    assert found["models"][1]["value"] == report.accuracy.quant
    assert list(found["models"][1]["outputs"]) == ["y"]
    assert called("eval", *models, "-r", "recipe.yaml", "--metric", "sqnr", "--batches", "7")["n"] == 7
    assert called("eval", *models, "-r", "recipe.yaml", "--data", "d/1.npy")["n"] == 13

    called("run", "quant.npz", "--recipe", "recipe.yaml", "-o", "out.npz")
    expected = run_dataset(qtool.Session(load(report.output)), dataset(tmp_path))
    with np.load("out.npz") as written:
        assert np.array_equal(written["y"], expected["y"])
    assert called("run", "quant.npz", "d/2.npy", "-r", "recipe.yaml")["outputs"][0]["shape"] == [7, SIZE]

    assert called("compare", *models, "--recipe", "recipe.yaml")["samples"] == 20
    assert called("compare", *models, "-r", "recipe.yaml", "--batch-size", "2", "--batches", "3")["samples"] == 6


def test_compare_finds_the_data_that_the_file_records(tmp_path, monkeypatch):
    quantized(tmp_path, "static")
    monkeypatch.chdir(tmp_path)
    found = called("compare", "float.npz", "quant.npz")
    assert found["data"].endswith("d, the calibration data")
    assert found["samples"] == 20


def test_a_recipe_without_data(tmp_path, monkeypatch):
    quantized(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.yaml").write_text("model: float.npz\noutput: q.npz\nmode: dynamic\n")
    result = CliRunner().invoke(cli, ["eval", "float.npz", "--recipe", "none.yaml"])
    assert isinstance(result.exception, RecipeError)
    assert "neither an evaluation nor a calibration block" in str(result.exception)


# --------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("match", "config"),
    [
        ("carry: the model has no output 'nwe'; its outputs are 'y', 'new'", {"carry": {"nwe": "old"}}),
        ("carry: the model has no input 'odl'", {"carry": {"new": "odl"}}),
        ("carry: the input 'old' is set twice", {"carry": {"new": "old", "y": "old"}}),
        ("carry: the input 'gain' is set twice", {"carry": {"new": "gain"}}),
        ("constants: the model has no input 'gian'", {"constants": {"gian": 1}}),
        ("outputs: the model has no output 'z'", {"outputs": ("z",)}),
    ],
)
def test_names_that_are_wrong(match, config, tmp_path):
    with pytest.raises(DataError, match=match):
        dataset(tmp_path, **config)


@pytest.mark.parametrize(
    ("dtype", "number", "fits"),
    [
        (DType.INT64, 16000, True),
        (DType.INT64, 0.5, False),
        (DType.UINT8, 256, False),
        (DType.BOOL, True, True),
        (DType.BOOL, 2, False),
        (DType.FLOAT16, 1e5, False),
        (DType.FLOAT32, 0.1, True),
    ],
)
def test_constants_fit_their_input(dtype, number, fits, tmp_path):
    b = Builder("m")
    x, c = b.input("x", ("N", SIZE)), b.input("c", (), dtype)
    graph = b.finish([b.node("relu", [x], name="y"), b.node("identity", [c], name="same")])
    config = {"carry": {}, "constants": {"c": number}}
    if not fits:
        with pytest.raises(DataError, match=f"constants: {number} does not fit the input 'c', which is {dtype.value}"):
            dataset(tmp_path, graph, **config)
        return
    feeds = next(iter(dataset(tmp_path, graph, **config).feeds()))
    assert feeds["c"].dtype == dtype.numpy
    assert feeds["c"] == dtype.numpy.type(number)


def test_states_that_do_not_follow_one_another(tmp_path):
    graph = model({"x": ("N", SIZE), "h": ("N", 5)}, output=("N", 10))
    with pytest.raises(DataError, match=r"'out' is float32 of shape \(N, 10\); expected float32 of shape \(N, 5\)"):
        dataset(tmp_path, graph, carry={"out": "h"}, constants={})


def test_gates_of_metrics_need_an_evaluation(tmp_path):
    (tmp_path / "r.yaml").write_text("model: a.npz\noutput: b.npz\nmode: dynamic\ngates: {min_metric: 3}\n")
    with pytest.raises(RecipeError, match=r"gates.min_metric needs an evaluation block"):
        load_recipe(tmp_path / "r.yaml")
