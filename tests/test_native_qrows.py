"""Every row of the family of rows of bytes against the NumPy formulas, exactly, with tails and corner values."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.engine.tables import softmax_powers
from qtool.errors import EngineError
from qtool.ir import DType, QParams
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("qrows")
LENGTHS = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 1023, 1024, 1025, 5000]
F32 = np.float32


def _bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    kind = rng.integers(4)
    if kind == 0:
        return np.full(shape, rng.choice([0, 255]), np.uint8)
    return rng.choice([0, 255], shape).astype(np.uint8) if kind == 1 else rng.integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("scale", [1e-4, 0.03, 0.7, 40.0])
def test_softmax(row, scale):
    rng = np.random.default_rng(1)
    powers = softmax_powers(QParams.per_tensor(scale, 0, DType.UINT8))
    for n in LENGTHS:
        x = _bytes(rng, (5, n))
        taken = powers[x.max(axis=1, keepdims=True).astype(int) - x]
        expected = (taken.astype(np.float64) / taken.sum(axis=1, keepdims=True)).astype(F32)
        args = abi.make(abi.QrowsArgs, rows=5, n=n, inner=1, powers=powers)
        got = run_kernel(row, Kind.QSOFTMAX, args, [x], np.empty(x.shape, F32), threads=2)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shift", [0, 128])
def test_mean(row, shift):
    rng = np.random.default_rng(2)
    for n in (*LENGTHS, 70000, 1 << 20):
        for inner in (1, 2, 17, 1023, 1030) if n < 1000 else (1, 3):
            x = _bytes(rng, (3, n, inner))
            sums = (x.astype(np.int64) - shift).sum(axis=1)
            expected = np.rint(sums.astype(F32) / F32(n)) + shift
            args = abi.make(abi.QrowsArgs, rows=3, n=n, inner=inner, shift=shift)
            got = run_kernel(row, Kind.QMEAN, args, [x], np.empty((3, inner), np.uint8), threads=2)
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("row", ROWS)
def test_dot_products(row):
    """All tails of rows, columns and sums, and the largest sums that there can be."""
    rng = np.random.default_rng(3)
    for rows, inner, columns in [(1, 1, 1), (3, 31, 5), (4, 33, 64), (2, 64, 65), (5, 200, 131), (1, 33000, 3)]:
        a, b = _bytes(rng, (rows, inner)), _bytes(rng, (inner, columns))
        if inner == 33000:
            a[:], b[:] = 255, 0
        zeros = (0, 255) if inner == 33000 else tuple(int(v) for v in rng.integers(0, 256, 2))
        exact = (a.astype(np.int64) - zeros[0]) @ (b.astype(np.int64) - zeros[1])
        scale = F32(1 / max(1, np.abs(exact).max() / 100))
        expected = np.clip(np.rint(exact.astype(F32) * scale) + 90, 0, 255)
        strides = {"a_row": inner, "a_inner": 1, "b_inner": columns, "b_column": 1, "y_row": columns}
        sizes = {"batch": (1, 1, 1, 1), "rows": rows, "inner": inner, "columns": columns, "scale": scale}
        args = abi.make(abi.MatmulArgs, **sizes, **strides, a_zero=zeros[0], b_zero=zeros[1], out_zero=90)
        got = run_kernel(row, Kind.QMATMUL, args, [a, b], np.empty((rows, columns), np.uint8), threads=2)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (Kind.QMEAN, {"n": 0}, "their length"),
        (Kind.QMEAN, {"n": 1 << 23}, "their length"),
        (Kind.QMEAN, {"inner": 0}, "inner"),
        (Kind.QMEAN, {"shift": 3}, "shift"),
        (Kind.QSOFTMAX, {"inner": 2}, "inner"),
        (Kind.QSOFTMAX, {}, "powers are missing"),
        (Kind.QSOFTMAX, {"powers": np.full(256, -1)}, "2\\^40"),
        (Kind.QSOFTMAX, {"powers": np.zeros(256, np.int64)}, "largest power"),
        (Kind.QLAYERNORM, {"x_scale": 0.0, "out_scale": 1.0}, "scale"),
        (Kind.QLAYERNORM, {"x_scale": 1.0, "out_scale": 1.0, "eps": -1.0}, "eps"),
    ],
)
def test_bad_descriptions(kind, fields, expected):
    args = abi.make(abi.QrowsArgs, **{"rows": 1, "n": 4, "inner": 1, **fields})
    with pytest.raises(EngineError, match=expected):
        Plan([Op(kind, (0,), 1, args)], [Buffer(64), Buffer(64)], 0)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mask": 1}, "no mask"),
        ({"inner": 33001}, "inner"),
        ({"rows": 0}, "rows and columns"),
        ({"b_inner": -1}, "out of range"),
        ({"a_zero": 256}, "zero point"),
        ({"scale": float("nan")}, "scale"),
        ({"a_offset": 63}, "expected 67"),
    ],
)
def test_bad_products(fields, expected):
    sizes = {"batch": (1, 1, 1, 1), "rows": 1, "inner": 4, "columns": 1, "a_inner": 1, "b_inner": 1, "scale": 1.0}
    args = abi.make(abi.MatmulArgs, **{**sizes, **fields})
    with pytest.raises(EngineError, match=expected):
        Plan([Op(Kind.QMATMUL, (0, 1), 2, args)], [Buffer(64), Buffer(64), Buffer(64)], 0)
