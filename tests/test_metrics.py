"""Metrics against direct formulas, however the samples are cut into batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.analysis.metrics import METRICS, MetricResult, PeakSignalToNoise, make_metric
from qtool.errors import DataError, RecipeError

VALUE_METRICS = [name for name, spec in METRICS.items() if not spec.labels]


def measure(name: str, outputs: np.ndarray, targets: np.ndarray, cuts: Sequence[int] = ()) -> MetricResult:
    metric = make_metric(name)
    edges = [0, *sorted(cuts), len(outputs)]
    for begin, end in itertools.pairwise(edges):
        if begin < end:
            metric.add(outputs[begin:end], targets[begin:end])
    return metric.result()


def noisy(seed: int, shape: tuple[int, ...] = (12, 3, 4)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.standard_normal(shape, np.float32)
    return target + rng.standard_normal(shape, np.float32) * np.float32(0.1), target


def test_top1_is_argmax():
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((500, 7), np.float32), rng.integers(0, 7, 500)
    result = measure("top1", scores, labels)
    assert result.value == np.mean(scores.argmax(1) == labels)
    assert result == MetricResult("top1", result.value, 500, "", True)


def test_top5_is_the_five_highest():
    rng = np.random.default_rng(1)
    scores, labels = rng.standard_normal((500, 20), np.float32), rng.integers(0, 20, 500)
    best = np.argsort(-scores, axis=1)[:, :5]
    assert measure("top5", scores, labels).value == np.mean((best == labels[:, None]).any(1))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_ties_are_broken_as_argmax_breaks_them(seed, classes):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 3, (40, classes)).astype(np.float32), rng.integers(0, classes, 40)
    assert measure("top1", scores, labels).value == np.mean(scores.argmax(1) == labels)


def test_nan_scores_are_wrong():
    scores = np.array([[np.nan, 1.0], [np.nan, 1.0], [0.0, 1.0]], np.float32)
    assert measure("top1", scores, np.array([0, 1, 1])).value == 1 / 3


def test_labels_of_sequences():
    scores = np.eye(4, dtype=np.float32)[np.array([[0, 1, 2], [3, 3, 3]])]
    result = measure("top1", scores, np.array([[0, 1, 0], [3, 3, 3]], np.uint8))
    assert result.value == pytest.approx(5 / 6)
    assert result.n == 2


def test_mse_and_psnr():
    outputs, targets = noisy(2)
    each = np.mean((outputs.astype(np.float64) - targets) ** 2, axis=(1, 2))
    assert measure("mse", outputs, targets).value == pytest.approx(each.mean(), rel=1e-12)
    assert measure("psnr", outputs, targets).value == pytest.approx(np.mean(-10 * np.log10(each)), rel=1e-12)


def test_psnr_of_another_peak():
    outputs, targets = noisy(3)
    bright = PeakSignalToNoise(255.0)
    bright.add(outputs, targets)
    gained = bright.value - measure("psnr", outputs, targets).value
    assert gained == pytest.approx(20 * math.log10(255), rel=1e-12)


def test_cosine_and_sqnr():
    outputs, targets = (array.astype(np.float64) for array in noisy(4))
    dot = np.sum(outputs * targets) / np.linalg.norm(outputs) / np.linalg.norm(targets)
    assert measure("cosine", outputs, targets).value == pytest.approx(dot, rel=1e-12)
    db = 20 * math.log10(np.linalg.norm(targets) / np.linalg.norm(targets - outputs))
    assert measure("sqnr", outputs, targets).value == pytest.approx(db, rel=1e-12)


@given(st.lists(st.integers(0, 12), max_size=5), st.sampled_from(VALUE_METRICS))
def test_batches_may_be_cut_anywhere(cuts, name):
    outputs, targets = noisy(5)
    assert measure(name, outputs, targets, cuts).value == pytest.approx(
        measure(name, outputs, targets).value, rel=1e-10
    )


@given(st.lists(st.integers(0, 60), max_size=5), st.sampled_from(["top1", "top5"]))
def test_labels_may_be_cut_anywhere(cuts, name):
    rng = np.random.default_rng(6)
    scores, labels = rng.standard_normal((60, 9), np.float32), rng.integers(0, 9, 60)
    assert measure(name, scores, labels, cuts) == measure(name, scores, labels)


def test_equal_outputs():
    _, x = noisy(7)
    found = {name: measure(name, x, x).value for name in VALUE_METRICS}
    assert found == {"mse": 0.0, "psnr": math.inf, "cosine": pytest.approx(1.0), "sqnr": math.inf, "max_error": 0.0}


def test_small_differences_of_large_numbers_are_not_lost():
    target = np.full((4, 1000), 1e6, np.float32)
    assert measure("mse", target + np.float32(1), target).value == 1.0


def test_infinite_outputs_show_in_the_result():
    target = np.array([[1.0, 2.0]], np.float32)
    assert measure("mse", np.array([[np.inf, 2.0]], np.float32), target).value == math.inf
    assert measure("psnr", np.array([[np.inf, 2.0]], np.float32), target).value == -math.inf
    assert math.isnan(measure("mse", np.array([[np.nan, 2.0]], np.float32), target).value)


def test_results_are_frozen():
    result = measure("mse", *noisy(8))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.value = 0.0


def test_results_can_be_read_on_the_way():
    metric = make_metric("top1")
    metric.add(np.array([[1.0, 0.0]]), np.array([0]))
    assert metric.result().value == 1.0
    metric.add(np.array([[1.0, 0.0]]), np.array([1]))
    assert metric.result() == MetricResult("top1", 0.5, 2, "", True)


def test_every_metric_says_what_it_is():
    languages = ["perplexity", "bits_per_character", "bits_per_word"]
    assert list(METRICS) == ["top1", "top5", "mse", "psnr", "cosine", "sqnr", "max_error", *languages]
    assert [spec.name for spec in METRICS.values() if not spec.higher_is_better] == ["mse", "max_error", *languages]
    assert all(spec.text for spec in METRICS.values())


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "match"),
    [
        ("top1", (4, 3), np.zeros(5, np.int64), r"labels of shape \(5,\) for outputs of shape \(4, 3\)"),
        ("top1", (4, 3), np.zeros((4, 1), np.int64), "labels of shape"),
        ("top1", (4,), np.zeros((), np.int64), "labels of shape"),
        ("top1", (4, 3), np.zeros(4, np.float32), "the labels are float32"),
        ("top1", (4, 3), np.array([0, 1, 2, 3]), "labels run from 0 to 3; expected 0..2"),
        ("top1", (4, 3), np.array([0, -1, 2, 0]), "labels run from -1 to 2"),
        ("top5", (4, 3), np.zeros(4, np.int64), "needs at least 5 classes"),
        ("mse", (4, 3), np.zeros((4, 1), np.float32), "targets of shape"),
        ("sqnr", (), np.zeros((), np.float32), "targets of shape"),
    ],
)
def test_what_does_not_fit_is_refused(name, outputs, targets, match):
    with pytest.raises(DataError, match=match):
        make_metric(name).add(np.zeros(outputs, np.float32), targets)


def test_nothing_measured():
    with pytest.raises(DataError, match="top1 of no samples"):
        make_metric("top1").result()


def test_an_unknown_metric():
    with pytest.raises(RecipeError, match="'top2' is not known; expected one of top1, top5, mse"):
        make_metric("top2")


# ---- language, and functions of the user's -----------------------------------------------------------------------


def test_perplexity_of_a_guess_is_the_number_of_classes():
    scores, tokens = np.zeros((4, 5, 8), np.float32), np.arange(20).reshape(4, 5) % 8
    assert measure("perplexity", scores, tokens, [1]).value == pytest.approx(8)
    assert measure("bits_per_character", scores, tokens, [2, 3]).value == pytest.approx(3)
    assert measure("bits_per_word", scores, tokens).unit == "bits"


def test_cross_entropy_is_minus_the_mean_logarithm_of_the_probability():
    rng = np.random.default_rng(3)
    scores, tokens = rng.normal(0, 300, (6, 7, 9)).astype(np.float32), rng.integers(0, 9, (6, 7))
    tokens[:, :2] = -100
    exact = scores.astype(np.longdouble)
    logs = (
        exact
        - np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - exact.max(-1, keepdims=True)
    )
    picked = [logs[i, j, tokens[i, j]] for i in range(6) for j in range(2, 7)]
    expected = float(-np.mean(picked)) / np.log(2)
    assert measure("bits_per_character", scores, tokens, [1, 4]).value == pytest.approx(expected, rel=1e-12)


def test_tokens_beyond_the_classes_are_refused():
    with pytest.raises(DataError, match="labels run from 0 to 3"):
        make_metric("perplexity").add(np.zeros((1, 2, 3), np.float32), np.array([[0, 3]]))
    with pytest.raises(DataError, match="labels run from -1 to 0"):
        make_metric("perplexity").add(np.zeros((1, 2, 3), np.float32), np.array([[0, -1]]))


OWN = """
def share_above(outputs, labels):
    return (outputs[:, 0] > labels).mean()

def loss(outputs, labels):
    return float(len(labels))

loss.higher_is_better = False
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_metrics_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_metrics_of_test"
    sys.modules.pop("own_metrics_of_test", None)


def test_a_function_of_ones_own(own):
    outputs, labels = np.array([[3.0], [1.0], [2.0], [0.0]]), np.array([1, 1, 1, 1])
    result = measure(f"{own}:share_above", outputs, labels, [1])
    assert result == MetricResult(f"{own}:share_above", 0.5, 4, "", True)
    result = measure(f"{own}:loss", outputs, labels, [1])
    assert (result.value, result.higher_is_better) == (2.5, False)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_such_module_here:f", "No module named"),
        ("math:no_such", "no attribute 'no_such'"),
        ("math:pi", "is float, expected a function"),
        (":f", "metric ':f'"),
    ],
)
def test_functions_that_are_none(name, match):
    with pytest.raises(RecipeError, match=match):
        make_metric(name)


def test_a_function_gets_as_many_labels_as_outputs(own):
    with pytest.raises(DataError, match="labels of shape"):
        make_metric(f"{own}:loss").add(np.zeros((3, 1)), np.zeros(2))
