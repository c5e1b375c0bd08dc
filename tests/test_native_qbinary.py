"""Sums and products of quantized tensors on every kernel row, exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.native import Kind, abi

F32 = np.float32
COLUMNS = (1, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 130)
COMBINE = {0: np.add, 1: np.subtract, 2: np.multiply}


def fma(a, b, c):
    """float32 multiply-add with one rounding: the product of two float32 is exact in float64."""
    return (a.astype(np.float64) * np.float64(b) + np.float64(c)).astype(F32)


def dequantized(q, scale, zero):
    return fma(q.astype(F32), F32(scale), -(F32(scale) * F32(zero)))


def float_reference(a, b, p):
    r = COMBINE[p["kind"]](dequantized(a, p["a_scale"], p["a_zero"]), dequantized(b, p["b_scale"], p["b_zero"])) * F32(
        p["inv_scale"]
    )
    r = np.where(np.isnan(r), F32(-np.inf), r)
    q = np.rint(np.clip(r, p["out_min"] - p["out_zero"], p["out_max"] - p["out_zero"])) + p["out_zero"]
    return q.astype(np.uint8)


def fixed_reference(a, b, p):
    s = p["a_multiplier"] * a.astype(np.int64) + p["b_multiplier"] * b.astype(np.int64) + p["offset"]
    half = (1 << p["shift"]) >> 1
    rounded = np.where(s >= 0, (s + half) >> p["shift"], -((-s + half) >> p["shift"]))
    return np.clip(rounded + p["out_zero"], p["out_min"], p["out_max"]).astype(np.uint8)


def run(row, a, b, p, *, broadcast=0, rows_per_b=1, threads=1):
    args = abi.make(
        abi.BinaryArgs, rows=a.shape[0], channels=a.shape[1], b_broadcast=broadcast, rows_per_b=rows_per_b, **p
    )
    return run_kernel(row, Kind.QBINARY, args, [a, b], a, threads=threads)


def parameters(rng, kind):
    zeros = {
        "a_zero": int(rng.integers(0, 256)),
        "b_zero": int(rng.integers(0, 256)),
        "out_zero": int(rng.integers(0, 256)),
    }
    low = int(rng.integers(0, 128)) if rng.random() < 0.5 else 0
    scales = 10.0 ** rng.uniform(-3, 0, 2)
    if kind == 2:
        scales[:] = 1.0
    inverse = 10.0 ** rng.uniform(-4, 2)
    return {
        "kind": kind, **zeros, "out_min": low, "out_max": int(rng.integers(low, 256)),
        "a_scale": float(F32(scales[0])), "b_scale": float(F32(scales[1])), "inv_scale": float(F32(inverse)),
    }  # fmt: skip


@pytest.mark.parametrize("row", kernel_rows("qbinary"))
@pytest.mark.parametrize("kind", COMBINE)
def test_float_arithmetic(row, kind):
    rng = np.random.default_rng(kind)
    for columns, _ in itertools.product(COLUMNS, range(6)):
        a, b = rng.integers(0, 256, (2, 3, columns)).astype(np.uint8)
        p = parameters(rng, kind)
        np.testing.assert_array_equal(run(row, a, b, p), float_reference(a, b, p), str(p))


@pytest.mark.parametrize("row", kernel_rows("qbinary"))
def test_every_pair_of_bytes(row):
    a, b = (x.astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    for seed in range(3):
        p = parameters(np.random.default_rng(seed), 0)
        np.testing.assert_array_equal(run(row, a, b, p), float_reference(a, b, p))


@pytest.mark.parametrize("row", kernel_rows("qbinary"))
@pytest.mark.parametrize("kind", COMBINE)
def test_results_about_the_ends_of_int32(row, kind):
    """What is larger than int32 is clamped as all else; sums and products may leave float32 on the way."""
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 256, (2, 3, 200)).astype(np.uint8)
    for scale, inverse in [
        (1.0, 2**22),
        (1.0, 2**23),
        (1.0, 2**24),
        (1e10, 1e25),
        (1e34, 1e-30),
        (2e36, 1e-36),
        (1e36, 1e10),
    ]:
        p = parameters(rng, kind) | {"a_scale": float(F32(scale)), "b_scale": 1.0, "inv_scale": float(F32(inverse))}
        p["b_scale"] = float(F32(-scale)) if kind < 2 else 1e3
        with np.errstate(over="ignore", invalid="ignore"):
            np.testing.assert_array_equal(run(row, a, b, p), float_reference(a, b, p), str(p))


@pytest.mark.parametrize("row", kernel_rows("qbinary"))
def test_fixed_point(row):
    rng = np.random.default_rng(3)
    a, b = (x.astype(np.uint8) for x in np.meshgrid(np.arange(256), np.arange(256)))
    for shift in (13, 20, 21, 30):
        p = {
            "kind": 0, "fixed_point": 1, "shift": shift, "a_multiplier": int(rng.integers(1, 1 << 22)),
            "b_multiplier": int(rng.integers(1, 1 << 21)), "offset": -int(rng.integers(0, 1 << 28)),
            "out_zero": int(rng.integers(0, 256)), "out_min": 10, "out_max": 250,
        }  # fmt: skip
        np.testing.assert_array_equal(run(row, a, b, p), fixed_reference(a, b, p), str(p))


@pytest.mark.parametrize("row", kernel_rows("qbinary"))
@pytest.mark.parametrize(("broadcast", "rows", "rows_per_b"), [(1, 1, 1), (2, None, 1), (3, 4, 3)])
def test_broadcasts(row, broadcast, rows, rows_per_b):
    rng = np.random.default_rng(4)
    for columns in (5, 300):
        a = rng.integers(0, 256, (11, columns)).astype(np.uint8)
        b = rng.integers(0, 256, (1, 1) if rows is None else (rows, columns)).astype(np.uint8)
        wide = b.repeat(rows_per_b, axis=0)[:11] if broadcast == 3 else np.broadcast_to(b, a.shape)
        p = parameters(rng, 2)
        got = run(row, a, b, p, broadcast=broadcast, rows_per_b=rows_per_b)
        np.testing.assert_array_equal(got, float_reference(a, wide, p))


@pytest.mark.parametrize("row", kernel_rows("qbinary"))
def test_threads_give_the_same_bits(row):
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 256, (2, 700, 130)).astype(np.uint8)
    p = parameters(rng, 0)
    results = [run(row, a, b, p, threads=threads) for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
