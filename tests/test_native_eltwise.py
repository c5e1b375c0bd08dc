"""Elementwise kernels on every row: exact where the operation is rounded once, close elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.native import Kind, abi

COUNTS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1000)
OPS = {0: np.add, 1: np.subtract, 2: np.multiply, 3: np.divide}
HUGE = float(np.finfo(np.float32).max)


def floats(rng, *shape):
    x = rng.standard_normal(shape).astype(np.float32) * 4
    x.flat[0] = 0.0
    return x


def binary_args(kind, rows, channels, broadcast=0, rows_per_b=1, low=-HUGE, high=HUGE):
    return abi.make(
        abi.BinaryArgs, rows=rows, channels=channels, kind=kind, b_broadcast=broadcast, rows_per_b=rows_per_b,
        out_min_f=low, out_max_f=high,
    )  # fmt: skip


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
@pytest.mark.parametrize("kind", OPS)
def test_binary_is_exact(row, kind):
    rng = np.random.default_rng(kind)
    for count in COUNTS:
        a, b = floats(rng, 3, count), floats(rng, 3, count)
        b[b == 0] = 1
        got = run_kernel(row, Kind.SBINARY, binary_args(kind, 3, count), [a, b], a)
        np.testing.assert_array_equal(got, OPS[kind](a, b))


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
@pytest.mark.parametrize(("broadcast", "shape", "rows_per_b"), [(1, (1, 33), 1), (2, (1, 1), 1), (3, (3, 33), 2)])
def test_binary_broadcasts_and_clamps(row, broadcast, shape, rows_per_b):
    rng = np.random.default_rng(5)
    a, b = floats(rng, 6, 33), floats(rng, *shape)
    args = binary_args(2, 6, 33, broadcast, rows_per_b, low=0.0, high=6.0)
    wide = b.repeat(2, axis=0) if broadcast == 3 else b
    np.testing.assert_array_equal(run_kernel(row, Kind.SBINARY, args, [a, b], a), np.clip(a * wide, 0, 6))


UNARY = {
    abi.Unary.CLAMP: (lambda x: min(max(x, -1.0), 2.0), -1.0, 2.0),
    abi.Unary.LEAKY_RELU: (lambda x: x if x > 0 else 0.1 * x, 0.1, 0.0),
    abi.Unary.ELU: (lambda x: x if x > 0 else 0.7 * math.expm1(x), 0.7, 0.0),
    abi.Unary.HARDSWISH: (lambda x: x * min(max(x + 3, 0), 6) / 6, 0.0, 0.0),
    abi.Unary.HARDSIGMOID: (lambda x: min(max(x + 3, 0), 6) / 6, 0.0, 0.0),
    abi.Unary.SIGMOID: (lambda x: 1 / (1 + math.exp(-x)), 0.0, 0.0),
    abi.Unary.TANH: (math.tanh, 0.0, 0.0),
    abi.Unary.GELU: (lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))), 0.0, 0.0),
    abi.Unary.GELU_TANH: (
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        0.0,
        0.0,
    ),
    abi.Unary.SILU: (lambda x: x / (1 + math.exp(-x)), 0.0, 0.0),
    abi.Unary.EXP: (math.exp, 0.0, 0.0),
}


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
@pytest.mark.parametrize("kind", UNARY, ids=lambda kind: kind.name)
def test_unary(row, kind):
    function, a, b = UNARY[kind]
    rng = np.random.default_rng(7)
    for count in COUNTS:
        x = floats(rng, count)
        args = abi.make(abi.UnaryArgs, count=count, kind=int(kind), a=a, b=b)
        got = run_kernel(row, Kind.SUNARY, args, [x], x)
        expected = np.array([function(float(v)) for v in x])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


UNITS = {
    abi.Unary.ELU: (math.expm1, 2.0),
    abi.Unary.SIGMOID: (lambda x: 1 / (1 + math.exp(-x)), 3.0),
    abi.Unary.TANH: (math.tanh, 4.0),
    abi.Unary.GELU: (lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)), 8.0),
    abi.Unary.SILU: (lambda x: x / (1 + math.exp(-x)), 4.0),
    abi.Unary.EXP: (math.exp, 2.0),
}
"""The function and how many units in the last place the kernels may be wrong, by ``core/functions.h``."""


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
@pytest.mark.parametrize("kind", UNITS, ids=lambda kind: kind.name)
def test_units_in_the_last_place(row, kind):
    function, most = UNITS[kind]
    rng = np.random.default_rng(17)
    for size in (1e-30, 1e-3, 0.5, 2.0, 8.0, 13.0, 80.0):
        x = rng.uniform(-size, 0 if kind is abi.Unary.ELU else size, 3001).astype(np.float32)
        args = abi.make(abi.UnaryArgs, count=x.size, kind=int(kind), a=1.0)
        got = run_kernel(row, Kind.SUNARY, args, [x], x).astype(np.float64)
        expected = np.array([function(float(v)) for v in x])
        unit = np.maximum(np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64), 2.0**-140)
        assert (np.abs(got - expected) <= most * unit).all()


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
@pytest.mark.parametrize("kind", UNARY, ids=lambda kind: kind.name)
def test_nan_infinities_and_zeros(row, kind):
    """NaN goes through but for clamps, +infinity gives what its limit is, in every lane."""
    _, a, b = UNARY[kind]
    x = np.resize(np.array([np.nan, np.inf, 0.0, -0.0], np.float32), 44)
    got = run_kernel(row, Kind.SUNARY, abi.make(abi.UnaryArgs, count=44, kind=int(kind), a=a, b=b), [x], x)
    clamps = kind in (abi.Unary.CLAMP, abi.Unary.HARDSWISH, abi.Unary.HARDSIGMOID)
    assert clamps or np.isnan(got[0::4]).all()
    limit = {abi.Unary.CLAMP: 2.0, abi.Unary.TANH: 1.0, abi.Unary.SIGMOID: 1.0, abi.Unary.HARDSIGMOID: 1.0}
    np.testing.assert_array_equal(got[1::4], np.float32(limit.get(kind, np.inf)))
    zero = {abi.Unary.SIGMOID: 0.5, abi.Unary.HARDSIGMOID: 0.5, abi.Unary.EXP: 1.0}
    np.testing.assert_array_equal(got[2::4], np.float32(zero.get(kind, 0.0)))


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
def test_sigmoid_at_the_ends_of_the_range(row):
    x = np.array([-HUGE, -1000, -88, 88, 1000, HUGE], np.float32)
    args = abi.make(abi.UnaryArgs, count=x.size, kind=int(abi.Unary.SIGMOID))
    np.testing.assert_allclose(run_kernel(row, Kind.SUNARY, args, [x], x), [0, 0, 0, 1, 1, 1], atol=1e-30)


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
def test_table(row):
    rng = np.random.default_rng(8)
    table = rng.permutation(256).astype(np.uint8)
    for count in (*COUNTS, 20000):
        x = rng.integers(0, 256, count).astype(np.uint8)
        args = abi.make(abi.LutArgs, count=count, table=table)
        np.testing.assert_array_equal(run_kernel(row, Kind.LUT, args, [x], x), table[x])


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
def test_tables_of_channels(row):
    rng = np.random.default_rng(12)
    for pixels, channels in [(1, 1), (7, 2), (300, 17), (5, 4000), (1, 20000)]:
        tables = rng.integers(0, 256, (channels, 256), np.uint8)
        x = rng.integers(0, 256, (pixels, channels), np.uint8)
        args = abi.make(abi.LutArgs, count=x.size, table=tables, channels=channels)
        got = run_kernel(row, Kind.LUT, args, [x], x, threads=2)
        np.testing.assert_array_equal(got, tables[np.arange(channels), x])


@pytest.mark.parametrize("row", kernel_rows("eltwise"))
def test_threads_give_the_same_bits(row):
    x = floats(np.random.default_rng(9), 100_000)
    args = abi.make(abi.UnaryArgs, count=x.size, kind=int(abi.Unary.GELU))
    results = [run_kernel(row, Kind.SUNARY, args, [x], x, threads=threads) for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
