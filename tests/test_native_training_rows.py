"""Batch norm and sums of channels on every row, against float64, within the bounds of float32.

Sums of r rows are taken in pieces in float32, so their error is at most gamma(r + 2) times the sum of the absolute
values (Higham, lemma 3.1); what follows from the sums is held against the formula with the sums that were returned.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernels import isas, kernel_rows, run_kernel
from training_cases import UNIT, chain_error

from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.native.training import Training

ROWS = kernel_rows("tnorm")
EPS = np.float32(1e-5)
SHAPES = [
    (1, 1),
    (1, 17),
    (2, 3),
    (9, 16),
    (300, 1),
    (257, 31),
    (64, 256),
    (5, 257),
    (1025, 16),
    (3, 20000),
    (40000, 3),
]


def _args(shape: tuple[int, int], eps: float = EPS) -> abi.TnormArgs:
    return abi.make(abi.TnormArgs, rows=shape[0], channels=shape[1], eps=eps)


def _draw(shape: tuple[int, ...], seed: int, middle: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) + middle).astype(np.float32)


def _within(got: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    worst = (abs(got - expected) - bound).max(initial=-1)
    assert worst <= 0, f"{worst} over the bound"


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(row, shape):
    (rows, channels), x = shape, _draw(shape, 1, middle=3.0)
    weight, bias = _draw((channels,), 2), _draw((channels,), 3)
    like = np.empty(x.size + 3 * channels, np.float32)
    got = run_kernel(row, Kind.TNORM, _args(shape), [x, np.concatenate((weight, bias))], like, threads=2)
    y, (mean, variance, inv_std) = got[: x.size].reshape(shape), got[x.size :].reshape(3, channels)

    exact = x.astype(np.float64)
    mean_bound = chain_error(rows + 2) * abs(exact).mean(axis=0)
    _within(mean, exact.mean(axis=0), mean_bound)
    # A mean that is off by e adds e^2 to the variance of a piece, and 2 e times the distance between the pieces.
    true = exact.var(axis=0)
    bound = chain_error(rows + 6) * true + 4 * np.sqrt(true) * mean_bound + 5 * mean_bound**2 + 1e-37
    _within(variance, true, bound)
    expected = 1 / np.sqrt(variance.astype(np.float64) + EPS)
    _within(inv_std, expected, 4 * UNIT * expected)
    scale = weight * inv_std.astype(np.float64)
    size = abs(exact * scale) + abs(mean * scale) + abs(bias)
    _within(y, (exact - mean) * scale + bias, 8 * UNIT * size)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_grad(row, shape):
    (rows, channels), x, dy = shape, _draw(shape, 1, middle=3.0), _draw(shape, 2)
    mean, inv_std, weight = x.mean(axis=0), 1 / (x.std(axis=0) + np.float32(0.1)), _draw((channels,), 3)
    like = np.empty(x.size + 2 * channels, np.float32)
    factors = np.concatenate((mean, inv_std, weight))
    got = run_kernel(row, Kind.TNORM_GRAD, _args(shape), [x, dy, factors], like, threads=2)
    dx, (by_weight, by_bias) = got[: x.size].reshape(shape), got[x.size :].reshape(2, channels)

    dy64, unit = dy.astype(np.float64), (x.astype(np.float64) - mean) * inv_std
    error = chain_error(rows + 4)
    _within(by_bias, dy64.sum(axis=0), error * abs(dy64).sum(axis=0))
    _within(by_weight, (dy64 * unit).sum(axis=0), error * abs(dy64 * unit).sum(axis=0))
    terms = (dy64, -by_bias.astype(np.float64) / rows, -unit * by_weight / rows)
    factor = weight * inv_std.astype(np.float64)
    _within(dx, factor * sum(terms), 10 * UNIT * abs(factor) * sum(map(abs, terms)))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 5)])
def test_channel_sums(row, shape):
    like = np.empty(shape[1], np.float32)
    whole = np.random.default_rng(1).integers(-50, 50, shape).astype(np.float32)
    np.testing.assert_array_equal(run_kernel(row, Kind.TSUMS, _args(shape), [whole], like), whole.sum(axis=0))
    x = _draw(shape, 2)
    got = run_kernel(row, Kind.TSUMS, _args(shape), [x], like, threads=2)
    _within(got, x.sum(axis=0, dtype=np.float64), chain_error(shape[0] + 2) * abs(x).sum(axis=0, dtype=np.float64))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 5)])
def test_affine(row, shape):
    x, scale, shift = _draw(shape, 1), _draw(shape[1:], 2), _draw(shape[1:], 3)
    got = run_kernel(row, Kind.TAFFINE, _args(shape), [x, np.concatenate((scale, shift))], np.empty_like(x), threads=2)
    np.testing.assert_array_equal(got, x * scale + shift)


@pytest.mark.parametrize("isa", isas())
def test_a_large_mean_does_not_swallow_the_variance(isa):
    x = _draw((5000, 7), 1) + np.float32(1000)
    _, mean, variance, _ = Training(2, isa).batch_norm(x, np.ones(7, np.float32), np.zeros(7, np.float32), EPS)
    np.testing.assert_allclose(mean, x.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(axis=0, dtype=np.float64), rtol=1e-3)


@pytest.mark.parametrize("isa", isas())
def test_threads_change_no_bit(isa):
    x, dy, ones = _draw((9000, 19), 1), _draw((9000, 19), 2), np.ones(19, np.float32)
    found = []
    for threads in (1, 2, 3):
        training = Training(threads, isa)
        y, mean, variance, inv_std = training.batch_norm(x, ones, ones, EPS)
        grads = training.batch_norm_grad(x, dy, mean, inv_std, ones)
        found.append((y, mean, variance, inv_std, *grads, training.channel_sums(x), training.affine(x, ones, ones)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_nan_reaches_the_statistics(need_native):
    x, ones = _draw((50, 3), 1), np.ones(3, np.float32)
    x[7, 1] = np.nan
    y, mean, variance, _ = Training().batch_norm(x, ones, ones, EPS)
    for array in (mean, variance, y[0]):
        np.testing.assert_array_equal(np.isnan(array), [False, True, False])


def test_bad_arrays_are_refused(need_native):
    training, x, ones = Training(), np.zeros((4, 3), np.float32), np.ones(3, np.float32)
    bad = [
        (lambda: training.batch_norm(x[None], ones, ones, 1e-5), "batch_norm x: .* of rank 2"),
        (lambda: training.batch_norm(x, ones[:2], ones, 1e-5), r"batch_norm weight: .* of shape \(3,\)"),
        (lambda: training.batch_norm(x[:0], ones, ones, 1e-5), "got no numbers"),
        (lambda: training.batch_norm(x, ones, ones, -1.0), "eps"),
        (lambda: training.batch_norm_grad(x, x[:2], ones, ones, ones), "batch_norm_grad dy"),
        (lambda: training.batch_norm_grad(x, x, ones, ones.astype(np.float64), ones), "inv_std: got a float64"),
        (lambda: training.channel_sums(x.T), "strided"),
        (lambda: training.affine(x, ones, ones[:1]), "affine shift"),
    ]
    for call, message in bad:
        with pytest.raises(EngineError, match=message):
            call()


def test_hostile_sizes_are_refused(need_native):
    for shape in ((-1, 3), (5, 0), (5, -2), (2**62, 2**30)):
        for kind in (Kind.TNORM, Kind.TNORM_GRAD, Kind.TSUMS, Kind.TAFFINE):
            with pytest.raises(EngineError):
                Plan(
                    [Op(kind, (0, 0, 0)[: {"TNORM_GRAD": 3, "TSUMS": 1}.get(kind.name, 2)], 1, _args(shape))],
                    [Buffer(64)] * 2,
                    0,
                )
