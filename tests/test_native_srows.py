"""Every row of softmax and layer norm against float64, within the bounds that their roundings allow."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("srows")
SIZES = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 768, 1000]
UNIT = 2.0**-24
SMALLEST = 2.0**-149


def _softmax(row: native.KernelRow, x: np.ndarray, threads: int = 1) -> np.ndarray:
    args = abi.make(abi.RowsArgs, rows=len(x), n=x.shape[1])
    return run_kernel(row, Kind.SSOFTMAX, args, [x], np.empty_like(x), threads=threads)


def _layer_norm(row, x, scale, shift, eps=1e-5, threads=1):
    args = abi.make(abi.RowsArgs, rows=len(x), n=x.shape[1], eps=eps, scale=scale, shift=shift)
    return run_kernel(row, Kind.SLAYERNORM, args, [x], np.empty_like(x), threads=threads)


def _check_softmax(row: native.KernelRow, x: np.ndarray) -> None:
    """The difference to the maximum is rounded (and exp wrong by as much, as is, on average, their sum), exp has 4 half
    units, the sum of doubles nothing to speak of, its rounding and the product one each. Subnormals have whole ones."""
    wide = x.astype(np.float64)
    distance = wide - wide.max(axis=1, keepdims=True)
    powers = np.exp(distance)
    expected = powers / powers.sum(axis=1, keepdims=True)
    average = (expected * np.abs(distance)).sum(axis=1, keepdims=True)
    worst = (np.abs(distance) + average + 12) * UNIT
    got = _softmax(row, x)
    over = np.abs(got - expected) - worst * expected - 2 * SMALLEST
    assert over.max(initial=-1) <= 0, x.shape
    np.testing.assert_allclose(got.sum(axis=1, dtype=np.float64), 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_softmax(row):
    rng = np.random.default_rng(0)
    for n in SIZES:
        for spread in (0.01, 1, 10, 60, 1000):
            _check_softmax(row, rng.normal(0, spread, (3, n)).astype(np.float32))
    _check_softmax(row, rng.normal(size=(2, 40000)).astype(np.float32))
    _check_softmax(row, rng.normal(size=(0, 7)).astype(np.float32))


@pytest.mark.parametrize("row", ROWS)
def test_softmax_over_all_exponents(row):
    """A row each of 0 and one number, down to where exp is 0, at either place and beside numbers that add nothing."""
    low = -np.linspace(0, 120, 4001, dtype=np.float32)
    pairs = np.stack([np.zeros_like(low), low], axis=1)
    for x in (pairs, pairs[:, ::-1]):
        for more in (0, 7, 30):
            _check_softmax(row, np.pad(x, ((0, 0), (0, more)), constant_values=-200))


@pytest.mark.parametrize("row", ROWS)
def test_softmax_with_infinities_and_nan(row):
    inf, nan = np.inf, np.nan
    x = np.zeros((6, 19), np.float32)
    x[0, 3] = -inf
    x[1, :] = -inf
    x[2, 18] = inf
    x[3, 18] = nan
    x[4, :2] = (inf, -inf)
    got = _softmax(row, x)
    np.testing.assert_allclose(got[0], np.where(np.arange(19) == 3, 0, 1 / 18), rtol=1e-6)
    assert np.isnan(got[1:4]).any(axis=1).all()
    assert np.isnan(got[[1, 3]]).all()
    np.testing.assert_allclose(got[5], 1 / 19, rtol=1e-6)


def _check_layer_norm(row, x, scale, shift, eps=1e-5):
    """x - mean has two roundings, 1 / std two, the products and the sum one each."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(eps))
    size = np.abs(y * (1 if scale is None else scale))
    y = y * (1 if scale is None else scale) + (0 if shift is None else shift)
    got = _layer_norm(row, x, scale, shift, eps)
    over = np.abs(got - y) - 8 * UNIT * size - 2 * UNIT * np.abs(y) - 1e-30
    assert over.max(initial=-1) <= 0, (x.shape, over.max())


@pytest.mark.parametrize("row", ROWS)
def test_layer_norm(row):
    rng = np.random.default_rng(1)
    for n in SIZES:
        scale, shift = rng.normal(size=(2, n)).astype(np.float32)
        x = rng.normal(rng.normal() * 3, 2, (4, n)).astype(np.float32)
        _check_layer_norm(row, x, scale, shift)
        _check_layer_norm(row, x * np.float32(1e-3), None, shift)
        _check_layer_norm(row, x * np.float32(1e6), scale, None, eps=0.0 if n > 1 else 1e-5)
        _check_layer_norm(row, x, None, None, eps=1.0)


@pytest.mark.parametrize("row", ROWS)
def test_layer_norm_far_from_zero(row):
    """Where mean and values nearly cancel: a mean, or a sum of squares, in float32 would lose all digits."""
    rng = np.random.default_rng(2)
    for n in (5, 16, 33, 1000, 30000):
        x = (4096 + rng.integers(-3, 4, (3, n)) / 8).astype(np.float32)
        _check_layer_norm(row, x, None, None)


@pytest.mark.parametrize("row", ROWS)
def test_a_constant_row_gives_the_shift(row):
    shift = np.arange(21, dtype=np.float32)
    got = _layer_norm(row, np.full((2, 21), 7.25, np.float32), None, shift)
    np.testing.assert_array_equal(got, np.stack([shift, shift]))


@pytest.mark.parametrize("row", ROWS)
def test_threads_do_not_change_a_bit(row):
    x = np.random.default_rng(3).normal(size=(300, 200)).astype(np.float32)
    scale = x[0].copy()
    for run in (lambda t: _softmax(row, x, t), lambda t: _layer_norm(row, x, scale, scale, threads=t)):
        one = run(1)
        for threads in (2, 3):
            np.testing.assert_array_equal(run(threads), one)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize("kind", [Kind.SSOFTMAX, Kind.SLAYERNORM])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": -1}, "rows"),
        ({"n": 0}, "length"),
        ({"eps": -1.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"rows": 2**62}, "too large"),
        ({"rows": 4}, "input 0 has"),
    ],
)
def test_bad_descriptions_are_refused(kind, changes, message):
    args = abi.make(abi.RowsArgs, **{"rows": 3, "n": 5, **changes})
    with pytest.raises(EngineError, match=message):
        Plan([Op(kind, (0,), 1, args)], [Buffer(60), Buffer(60)], 0)
