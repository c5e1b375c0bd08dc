"""Optimizers and learning rates, by numbers worked out by hand; tests/peers compares them with PyTorch."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from qtool.errors import ModelError
from qtool.quantize.qat.optimizers import make_optimizer
from qtool.quantize.qat.schedules import Rates
from qtool.recipe.training import Optimizer, OptimizerConfig, Schedule, ScheduleConfig


def parameters():
    return {"w": np.array([[1.0, -2.0]], np.float32), "b": np.array([0.5], np.float32)}


def gradients(scale=1.0):
    return {"w": np.array([[0.5, 1.0]], np.float32) * scale, "b": np.array([-1.0], np.float32) * scale}


def run(config, steps=3, undecayed=()):
    ours, optimizer = parameters(), make_optimizer(config, undecayed)
    for step in range(steps):
        optimizer.step(ours, gradients(step + 1), 0.1)
    return ours


def test_plain_descent() -> None:
    ours = run(OptimizerConfig(momentum=0.0, weight_decay=0.0), steps=1)
    np.testing.assert_allclose(ours["w"], [[0.95, -2.1]], rtol=1e-6)
    np.testing.assert_allclose(ours["b"], [0.6], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_adds_up(nesterov) -> None:
    ours = run(OptimizerConfig(momentum=0.5, nesterov=nesterov, weight_decay=0.0), steps=2)
    first, second = 1.0, 0.5 * 1.0 + 2.0  # the velocities of a gradient of 1, then 2
    moved = first + second if not nesterov else (1 + 0.5 * first) + (2 + 0.5 * second)
    np.testing.assert_allclose(ours["w"][0, 1], -2 - 0.1 * moved, rtol=1e-6)


def test_decay_goes_into_the_gradient_and_in_adamw_off_the_parameter() -> None:
    ours = run(OptimizerConfig(momentum=0.0, weight_decay=0.25), steps=1)
    np.testing.assert_allclose(ours["w"], [[1 - 0.1 * 0.75, -2 - 0.1 * 0.5]], rtol=1e-6)
    ours = run(OptimizerConfig(Optimizer.ADAMW, weight_decay=0.25), steps=1)
    np.testing.assert_allclose(ours["w"], [[0.975 - 0.1, -1.95 - 0.1]], rtol=1e-6)  # a first step is of 1 x rate


@pytest.mark.parametrize("name", list(Optimizer))
def test_biases_and_named_parameters_may_keep_from_decaying(name) -> None:
    none = run(OptimizerConfig(name, weight_decay=0.0))
    all_of_them = run(OptimizerConfig(name, weight_decay=0.25))
    no_norms = run(OptimizerConfig(name, weight_decay=0.25, decay_norms=False))
    named = run(OptimizerConfig(name, weight_decay=0.25), undecayed=("w",))
    for key in ("w", "b"):
        assert not np.array_equal(none[key], all_of_them[key])
    assert np.array_equal(no_norms["b"], none["b"])
    assert np.array_equal(no_norms["w"], all_of_them["w"])
    assert np.array_equal(named["w"], none["w"])
    assert np.array_equal(named["b"], all_of_them["b"])


CONFIGS = [
    OptimizerConfig(),
    OptimizerConfig(nesterov=True),
    OptimizerConfig(momentum=0.0),
    OptimizerConfig(Optimizer.ADAM),
    OptimizerConfig(Optimizer.ADAMW, betas=(0.3, 0.9)),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_state_that_is_restored_goes_on_as_if_it_had_never_stopped(config) -> None:
    straight = run(config, steps=5)
    ours, optimizer = parameters(), make_optimizer(config)
    for step in range(2):
        optimizer.step(ours, gradients(step + 1), 0.1)
    state = {key: array.copy() for key, array in optimizer.state().items()}
    again = make_optimizer(config)
    again.restore(state, ours)
    optimizer.step({key: array.copy() for key, array in ours.items()}, gradients(9), 0.1)  # must not reach the other
    for step in range(2, 5):
        again.step(ours, gradients(step + 1), 0.1)
    for key, array in ours.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, straight[key])


def test_gradients_are_left_alone_and_parameters_without_one_too() -> None:
    ours, grads = parameters(), {"w": gradients()["w"]}
    optimizer = make_optimizer(OptimizerConfig())
    for _ in range(2):
        optimizer.step(ours, grads, 0.1)
    assert np.array_equal(grads["w"], gradients()["w"])
    assert np.array_equal(ours["b"], parameters()["b"])
    assert list(optimizer.state()) == ["momentum/w"]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_single_number_is_trained_as_a_vector_of_it_is(config) -> None:
    number, vector = {"s": np.array(2.0, np.float32)}, {"s": np.array([2.0], np.float32)}
    for ours in (number, vector):
        optimizer = make_optimizer(config)
        for step in range(3):
            optimizer.step(ours, {"s": np.full_like(ours["s"], step - 0.5)}, 0.1)
    assert number["s"] == vector["s"][0]


@pytest.mark.parametrize(
    ("config", "state", "message"),
    [
        (CONFIGS[0], {"momentum/x": np.zeros(1, np.float32)}, "has 'momentum/x', and no parameter for it"),
        (CONFIGS[0], {"mean/w": np.zeros((1, 2), np.float32)}, "has 'mean/w', and no parameter for it"),
        (CONFIGS[0], {"momentum/w": np.zeros(2, np.float32)}, r"as float32 of shape \(2,\); expected float32 of shape"),
        (CONFIGS[0], {"momentum/w": np.zeros((1, 2))}, "as float64 of shape"),
        (CONFIGS[3], {"mean/w": np.zeros((1, 2), np.float32)}, "averages of some parameters only"),
        (CONFIGS[3], {"steps/w": np.zeros(2, np.int64)}, r"expected int64 of shape \(1,\)"),
    ],
)
def test_a_state_of_other_parameters_is_refused(config, state, message) -> None:
    with pytest.raises(ModelError, match=message):
        make_optimizer(config).restore(state, parameters())


# Rates


def rates(name, epochs=4, steps=5, **changes):
    found = Rates(ScheduleConfig(name, **changes), 0.8, epochs, steps)
    return [found.at(step) for step in range(epochs * steps)]


def test_a_constant_rate() -> None:
    assert rates(Schedule.CONSTANT) == [0.8] * 20


def test_a_rate_in_steps() -> None:
    found = rates(Schedule.STEP, step_epochs=2, gamma=0.25)
    assert found == pytest.approx([0.8] * 10 + [0.2] * 10)


def test_a_cosine_falls_from_the_base_to_nearly_nothing() -> None:
    found = rates(Schedule.COSINE)
    assert found[0] == 0.8
    assert found[10] == pytest.approx(0.4)
    assert all(after < before for before, after in pairwise(found))
    assert found[-1] == pytest.approx(0.4 * (1 - math.cos(math.pi / 20)))


def test_a_warm_up_is_linear_and_counts_shares_of_epochs() -> None:
    found = rates(Schedule.CONSTANT, warmup_epochs=0.6)
    assert found == pytest.approx([0.2, 0.4, 0.6] + [0.8] * 17)
    found = rates(Schedule.COSINE, warmup_epochs=2)
    assert found[:11] == pytest.approx([0.8 * k / 11 for k in range(1, 11)] + [0.8])
    assert found[15] == pytest.approx(0.4)
    assert rates(Schedule.COSINE, warmup_epochs=4)[-1] == pytest.approx(0.8 * 20 / 21)
