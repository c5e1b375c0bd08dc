"""Fake quantization, its gradients, extremes and clamps on every row: bit for bit what QParams and NumPy give, and sums
within the bound of float32 chains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import isas, kernel_rows, run_kernel
from training_cases import chain_error

from qtool import native
from qtool.errors import EngineError
from qtool.ir import DType, QParams
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.native.training import Training

ROWS = kernel_rows("teltwise")
F32, INF, NAN = np.float32, float("inf"), float("nan")
COUNTS = [0, 1, 7, 8, 63, 64, 65, 1000, 16384, 16385, 40000]
TENSORS = [(0.37, 3, DType.INT8), (0.021, 113, DType.UINT8), (1.0, -128, DType.INT8), (1e-30, 0, DType.INT8)]


def _values(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """Numbers on both sides of the grid, halves between its points and, at their start, what is no ordinary number."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count) * 90
    halves = rng.random(count) < 0.3
    x = np.where(halves, np.rint(x) + 0.5, x) * scale
    odd = [NAN, INF, -INF, 0.0, -0.0, 3e38, -3e38, 1e-45]
    x[: len(odd)] = odd[:count]
    return x.astype(F32)


def _quant(rows: int, n: int, dtype: DType, fused: bool) -> abi.TquantArgs:
    info = np.iinfo(dtype.value)
    return abi.make(abi.TquantArgs, rows=rows, n=n, low=float(info.min), high=float(info.max), fused=int(fused))


def _grid(scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return np.stack([scale.astype(F32), zero.astype(F32)])


def _steps(x: np.ndarray, q: QParams) -> np.ndarray:
    """The integers of x before they are clamped."""
    with np.errstate(all="ignore"):
        if q.axis is None:
            return np.rint((np.multiply(x, F32(1) / q.scale, dtype=np.float64) + q.zero_point).astype(F32))
        return np.rint(x * (F32(1) / q.scale)[:, None] + q.zero_point.astype(F32)[:, None])


def _cases() -> list[tuple[QParams, np.ndarray, np.ndarray]]:
    """(parameters, x, dy), of tensors and of channels."""
    found = []
    for i, count in enumerate(COUNTS):
        scale, zero, dtype = TENSORS[i % len(TENSORS)]
        found.append((QParams.per_tensor(scale, zero, dtype), _values(count, i, scale), _values(count, i + 50)))
    for i, shape in enumerate([(1, 1), (3, 5), (17, 27), (33, 144), (2, 20000), (300, 3), (5, 0)]):
        rng = np.random.default_rng(i)
        q = QParams(
            np.abs(rng.normal(size=shape[0])).astype(F32) + F32(1e-3),
            rng.integers(-20, 20, shape[0]).astype(np.int32),
            DType.INT8,
            0,
        )
        x = _values(shape[0] * shape[1], i, 0.7).reshape(shape)
        found.append((q, x, _values(x.size, i + 50).reshape(shape)))
    return found


def _run(row: native.KernelRow, kind: Kind, q: QParams, arrays: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    rows = q.scale.size
    args = _quant(rows, arrays[0].size // rows, q.dtype, q.axis is None)
    return run_kernel(row, kind, args, [*arrays, _grid(q.scale, q.zero_point)], like, threads=2)


@pytest.mark.parametrize("row", ROWS)
def test_fake_quant_is_that_of_qparams(row):
    for q, x, _ in _cases():
        got = _run(row, Kind.TFAKE_QUANT, q, [x], np.empty_like(x))
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(got, q.dequantize(q.quantize(x)))


@pytest.mark.parametrize("row", ROWS)
def test_gradients_pass_where_nothing_is_clamped(row):
    for q, x, dy in _cases():
        got = _run(row, Kind.TFAKE_QUANT_GRAD, q, [x, dy], np.empty_like(x))
        steps, (low, high) = _steps(x, q), q.limits
        np.testing.assert_array_equal(got, np.where((steps >= low) & (steps <= high), dy, F32(0)))


@pytest.mark.parametrize("row", ROWS)
def test_gradients_of_scales(row):
    for q, wild_x, wild_dy in _cases():
        x, dy = np.clip(np.nan_to_num(wild_x), -1e6, 1e6), np.clip(np.nan_to_num(wild_dy), -500, 500)
        steps, (low, high) = _steps(x, q), q.limits
        shape = (-1, 1) if q.axis == 0 else (1,)
        scale, zero = (a.astype(np.float64).reshape(shape) for a in (q.scale, q.zero_point))
        inside, ratio = (steps >= low) & (steps <= high), x / scale
        slope = np.where(inside, steps - zero - ratio, np.clip(steps, low, high) - zero)
        sizes = np.where(inside, abs(slope) + 3 * abs(ratio), abs(slope))
        got = _run(row, Kind.TFAKE_QUANT_SCALE_GRAD, q, [x, dy], np.empty(q.scale.size, F32))
        expected, size = ((dy * a).reshape(q.scale.size, -1).sum(axis=1) for a in (slope, sizes * np.sign(dy)))
        assert (abs(got - expected) <= chain_error(x.size + 4) * size).all(), (q, x.shape)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", [(1, n) for n in COUNTS] + [(17, 27), (300, 3), (2, 20000)])
def test_extremes(row, shape):
    like = np.empty((2, shape[0]), F32)
    x = np.random.default_rng(1).normal(size=shape).astype(F32)
    args = _quant(*shape, DType.INT8, True)
    got = run_kernel(row, Kind.TMIN_MAX, args, [x], like, threads=2)
    expected = np.stack([x.min(axis=1, initial=INF), x.max(axis=1, initial=-INF)])
    np.testing.assert_array_equal(got, expected)
    if x.size > 0:
        for at in {0, x.size // 2, x.size - 1}:
            for odd in (NAN, INF, -INF):
                one = x.copy()
                one.flat[at] = odd
                got = run_kernel(row, Kind.TMIN_MAX, args, [one], like, threads=2)
                np.testing.assert_array_equal(got, np.stack([one.min(axis=1), one.max(axis=1)]))


LIMITS = [(0.0, INF), (0.0, 6.0), (-1.0, 1.0), (-INF, INF), (-INF, 0.5), (2.0, 2.0)]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("limits", LIMITS)
def test_clamps_and_sums(row, limits):
    low, high = limits
    for count in COUNTS:
        x, other = _values(count, 1, 0.05), _values(count, 2, 0.05)[::-1].copy()
        x[20:24], other[20:24] = [0.0, 6.0, -1.0, 2.0][: max(0, count - 20)], 0
        args = abi.make(abi.TclampArgs, count=count, low=low, high=high)
        got = run_kernel(row, Kind.TCLAMP, args, [x], np.empty_like(x), threads=2)
        np.testing.assert_array_equal(got, np.clip(x, F32(low), F32(high)))
        with np.errstate(all="ignore"):
            total = np.clip(x + other, F32(low), F32(high))
        got = run_kernel(row, Kind.TADD, args, [x, other], np.empty_like(x), threads=2)
        np.testing.assert_array_equal(got, total)
        cut = ((x <= F32(low)) & (low > -INF)) | ((x >= F32(high)) & (high < INF))
        got = run_kernel(row, Kind.TCLAMP_GRAD, args, [x, other], np.empty_like(x), threads=2)
        np.testing.assert_array_equal(got, np.where(cut, F32(0), other))


@pytest.mark.parametrize("isa", isas())
@settings(max_examples=200)
@given(data=st.data())
def test_fake_quant_of_any_number_and_scale(isa, data):
    dtype = data.draw(st.sampled_from([DType.INT8, DType.UINT8]))
    info = np.iinfo(dtype.value)
    zero = data.draw(st.integers(info.min, info.max))
    scale = data.draw(st.floats(2.0**-100, 2.0**100, width=32))
    x = np.array(data.draw(st.lists(st.floats(width=32), min_size=1, max_size=20)), F32)
    q = QParams.per_tensor(scale, zero, dtype)
    with np.errstate(all="ignore"):
        expected = q.dequantize(q.quantize(x))
    got = Training(1, isa).fake_quant(x, scale, zero, int(info.min), int(info.max))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("isa", isas())
def test_the_python_face(isa):
    found = []
    x, dy = _values(50000, 1, 0.3).reshape(100, 500), _values(50000, 2).reshape(100, 500)
    x, dy = np.nan_to_num(x, posinf=9, neginf=9), np.nan_to_num(dy, posinf=9, neginf=9)
    scale, zero = np.linspace(0.1, 1, 100, dtype=F32), np.arange(-50, 50, dtype=np.int32)
    for threads in (1, 2, 3):
        t = Training(threads, isa)
        found.append(
            (
                t.fake_quant(x, 0.3, 5, -128, 127),
                t.fake_quant_grad(x, dy, 0.3, 5, -128, 127),
                F32(t.fake_quant_scale_grad(x, dy, 0.3, 5, -128, 127)),
                t.fake_quant_channels(x, scale, zero, -8, 7),
                t.fake_quant_channels_grad(x, dy, scale, zero, -8, 7),
                t.fake_quant_channels_scale_grad(x, dy, scale, zero, -8, 7),
                np.array(t.min_max(x), F32),
                *t.min_max_channels(x),
                t.clamp(x, 0, INF),
                t.clamp_grad(x, dy, 0, INF),
                t.add(x, dy),
            )
        )
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found[0][9], np.maximum(x, 0))
    np.testing.assert_array_equal(found[0][6], [x.min(), x.max()])
    q = QParams(scale, zero, DType.INT8, 0)
    narrow = q.dequantize(np.clip(q.quantize(x), -8, 7))
    np.testing.assert_array_equal(found[0][3], narrow)


def test_results_in_place(need_native):
    training, x = Training(2), _values(40000, 1)
    for call in (
        lambda a, out: training.clamp(a, -1, 1, out=out),
        lambda a, out: training.add(a, a, out=out),
        lambda a, out: training.fake_quant(a, 0.5, 0, -128, 127, out=out),
    ):
        same = x.copy()
        with np.errstate(all="ignore"):
            assert call(same, same) is same
            np.testing.assert_array_equal(same, call(x, None))


def test_bad_arrays_are_refused(need_native):
    training, x = Training(), np.zeros((4, 3), F32)
    ones, zeros = np.ones(4, F32), np.zeros(4, np.int32)
    bad = [
        (lambda: training.clamp(x.astype(np.float16), 0, 1), "clamp x: got a float16 array"),
        (lambda: training.clamp(x, 1, 0), "the lower limit is above the upper one"),
        (lambda: training.clamp(x, 0, 1, out=x[:2]), r"clamp out: .* of shape \(4, 3\)"),
        (lambda: training.add(x, x.T.copy()), "add b"),
        (lambda: training.min_max(x[:0]), "got no numbers"),
        (lambda: training.fake_quant(x, 1.0, 0, 5, 4), "low is above high"),
        (lambda: training.fake_quant_grad(x, ones, 1.0, 0, 0, 255), "fake_quant_grad dy"),
        (lambda: training.fake_quant_channels(x, ones[:3], zeros, -128, 127), r"scale: .* of shape \(4,\)"),
        (lambda: training.fake_quant_channels(x, ones, zeros[:3], -128, 127), r"zero_point: got shape \(3,\)"),
    ]
    for call, message in bad:
        with pytest.raises(EngineError, match=message):
            call()


def test_hostile_sizes_are_refused(need_native):
    for rows, n in ((-1, 3), (3, -1), (2**62, 2**30)):
        with pytest.raises(EngineError):
            Plan([Op(Kind.TMIN_MAX, (0,), 1, _quant(rows, n, DType.INT8, True))], [Buffer(64)] * 2, 0)
    for count in (-1, 2**62):
        args = abi.make(abi.TclampArgs, count=count, low=0.0, high=1.0)
        with pytest.raises(EngineError):
            Plan([Op(Kind.TCLAMP, (0,), 1, args)], [Buffer(64)] * 2, 0)
