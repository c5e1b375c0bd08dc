"""Losses of training: values by hand, derivatives by differences, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from qtool.errors import DataError
from qtool.quantize.qat.losses import cross_entropy, distillation, loss_of, mse
from qtool.recipe.training import Distance, Loss, LossConfig

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32)
CLASSES = RNG.integers(0, 4, 6)
TOKENS = RNG.normal(size=(2, 3, 5)).astype(np.float32)
TOKEN_CLASSES = np.array([[1, -100, 4], [-100, 0, 0]])

LOSSES = {
    "cross entropy": (LOGITS, lambda y: cross_entropy(y, CLASSES)),
    "smoothed": (LOGITS, lambda y: cross_entropy(y, CLASSES, 0.2)),
    "tokens": (TOKENS, lambda y: cross_entropy(y, TOKEN_CLASSES, 0.1)),
    "mse": (LOGITS, lambda y: mse(y, LOGITS[::-1])),
    "distillation": (LOGITS, lambda y: distillation(y, LOGITS[::-1], 3.0)),
    "distillation of tokens": (TOKENS, lambda y: distillation(y, TOKENS[::-1], 0.5)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_derivative_is_the_slope(name) -> None:
    outputs, loss = LOSSES[name]
    value, grad = loss(outputs.astype(np.float64))
    assert isinstance(value, float)
    assert (grad.dtype, grad.shape) == (np.float32, outputs.shape)
    width = 1e-5
    for place in np.ndindex(outputs.shape):
        step = np.zeros(outputs.shape)
        step[place] = width
        slope = (loss(outputs + step)[0] - loss(outputs - step)[0]) / (2 * width)
        assert slope == pytest.approx(grad[place], abs=1e-7)


def test_cross_entropy_by_hand() -> None:
    outputs = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32))
    loss, grad = cross_entropy(outputs, np.array([0, 2]))
    assert loss == pytest.approx(-(np.log(0.5) + np.log(0.6)) / 2)
    np.testing.assert_allclose(grad, [[-0.25, 0.125, 0.125], [0.1, 0.1, -0.2]], rtol=1e-6)
    smoothed, _ = cross_entropy(outputs, np.array([0, 2]), 1.0)
    assert smoothed == pytest.approx(-float(outputs.mean()))


def test_tokens_that_are_not_scored_count_for_nothing() -> None:
    loss, grad = cross_entropy(TOKENS, TOKEN_CLASSES)
    scored = TOKEN_CLASSES != -100
    expected, rows = cross_entropy(TOKENS[scored], TOKEN_CLASSES[scored])
    assert loss == pytest.approx(expected)
    assert np.array_equal(grad[scored], rows)
    assert not grad[~scored].any()
    loss, grad = cross_entropy(TOKENS, np.full((2, 3), -100))
    assert loss == 0
    assert not grad.any()


def test_large_logits_neither_overflow_nor_vanish() -> None:
    loss, grad = cross_entropy(np.array([[1e30, -1e30, 0]], np.float32), np.array([1]))
    assert loss == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_array_equal(grad, [[1, -1, 0]])
    loss, grad = distillation(np.array([[500.0, -500.0]], np.float32), np.array([[-500.0, 500.0]], np.float32))
    assert loss == pytest.approx(1000)
    np.testing.assert_allclose(grad, [[1, -1]])


def test_a_model_that_is_its_teacher_has_no_loss() -> None:
    for loss, grad in (distillation(LOGITS, LOGITS, 2.0), mse(LOGITS, LOGITS)):
        assert loss == 0
        assert not grad.any()


def test_the_recipe_chooses() -> None:
    teacher, targets = LOGITS[::-1], LOGITS + 1
    for config, labels, expected in (
        (LossConfig(label_smoothing=0.1), CLASSES, cross_entropy(LOGITS, CLASSES, 0.1)),
        (LossConfig(Loss.MSE), targets, mse(LOGITS, targets)),
        (LossConfig(Loss.DISTILLATION, temperature=2.0), None, distillation(LOGITS, teacher, 2.0)),
        (LossConfig(Loss.DISTILLATION, distance=Distance.MSE), CLASSES, mse(LOGITS, teacher)),
    ):
        loss, grad = loss_of(config, LOGITS, labels, teacher)
        assert loss == expected[0]
        assert np.array_equal(grad, expected[1])


@pytest.mark.parametrize(
    ("config", "labels", "message"),
    [
        (LossConfig(), None, "the loss cross_entropy needs labels, and the training data have none"),
        (LossConfig(Loss.MSE), None, "the loss mse needs labels"),
        (LossConfig(), LOGITS, r"got labels of float32 of shape \(6, 4\); expected class numbers of shape \(6,\)"),
        (LossConfig(), CLASSES[:3], r"got labels of int64 of shape \(3,\); expected class numbers of shape \(6,\)"),
        (LossConfig(), CLASSES + 1, r"got label 4; expected 0\.\.3, or -100"),
        (LossConfig(), CLASSES - 5, r"got label -\d; expected 0\.\.3, or -100"),
        (LossConfig(Loss.MSE), CLASSES, r"got targets of int64 of shape \(6,\); expected floats of shape \(6, 4\)"),
        (LossConfig(Loss.MSE), LOGITS[:, :3], r"got targets of float32 of shape \(6, 3\); expected floats"),
    ],
)
def test_labels_that_do_not_fit_are_refused(config, labels, message) -> None:
    with pytest.raises(DataError, match=message):
        loss_of(config, LOGITS, labels, None)
