"""Counting in bins: every row against NumPy, exactly, and observers with and without the native library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as extra
from kernels import kernel_rows, run_kernel

from qtool.errors import DataError, EngineError
from qtool.native import Kind, abi
from qtool.native.statistics import Statistics
from qtool.quantize import float32
from qtool.quantize.dyadic import HALF
from qtool.quantize.float32 import CHUNK
from qtool.quantize.loops import Loops, NativeLoops, make_loops
from qtool.quantize.observers import make_observer
from qtool.recipe.schema import ObserverConfig

ROWS = kernel_rows("histogram")
F32 = np.float32
LARGE = 2.0**100
SUBNORMAL = 2.0**-149
native_only = pytest.mark.usefixtures("need_native")
SIZES = (*range(2, 70), 511, 512, 513, 515, 1027, 16384, 16385, 40000)


def _counts(row, x: np.ndarray, bins: int, low: F32, high: F32, threads: int = 1) -> np.ndarray:
    args = abi.make(abi.HistogramArgs, count=x.size, bins=bins)
    return run_kernel(
        row, Kind.HISTOGRAM, args, [x, np.array([low, high], F32)], np.empty(bins, np.int64), threads=threads
    )


def _check(row, x: np.ndarray, bins: int = 2048, threads: int = 1) -> None:
    x = x.astype(F32)
    low, high = x.min(), x.max()
    np.testing.assert_array_equal(_counts(row, x, bins, low, high, threads), float32.histogram(x, bins, low, high))


@pytest.mark.parametrize("row", ROWS)
def test_all_sizes_about_vectors_and_blocks(row):
    rng = np.random.default_rng(1)
    for size in SIZES:
        _check(row, rng.normal(0, 1, size))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_number_of_threads_gives_the_same_counts(row, threads):
    _check(row, np.random.default_rng(2).normal(3, 2, 200_001), 2048, threads)
    _check(row, np.maximum(np.random.default_rng(3).normal(0, 1, 100_000), 0), 100, threads)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bins", [1, 2, 3, 15, 16, 17, 255, 2048, 5000])
def test_numbers_on_the_edges_of_bins_and_beside_them(row, bins):
    for low, high in ((0.0, 1.0), (-1.7, 3.3), (1e-40, 1e-38), (-3e30, 1e30), (1000.0, 1000.1)):
        edges = np.linspace(low, high, bins + 1).astype(F32)
        beside = np.concatenate([edges, np.nextafter(edges, F32(np.inf)), np.nextafter(edges, F32(-np.inf))])
        _check(row, beside[(beside >= F32(low)) & (beside <= F32(high))], bins)


@pytest.mark.parametrize("row", ROWS)
def test_what_lies_outside_is_counted_at_the_ends_and_nowhere_else(row):
    x = np.array([np.nan, -np.inf, np.inf, -1e30, 1e30, 0.5, 2, -2], F32)
    np.testing.assert_array_equal(_counts(row, x, 4, F32(0), F32(1)), [4, 0, 1, 3])


@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=60)
@given(
    x=extra.arrays(F32, st.integers(1, 300), elements=st.floats(-LARGE, LARGE, width=32)),
    bins=st.integers(1, 300),
    ends=st.tuples(*[st.floats(-LARGE, LARGE, width=32)] * 2),
)
def test_any_numbers(row, x, bins, ends):
    x = np.append(x, np.array(ends, F32))
    if x.min() < x.max():
        _check(row, x, bins)


def _dyadic(row, x: np.ndarray, bins: int, factor: float, threads: int = 1) -> np.ndarray:
    args = abi.make(abi.HistogramArgs, count=x.size, bins=bins, dyadic=1)
    return run_kernel(
        row, Kind.HISTOGRAM, args, [x, np.array([factor], F32)], np.empty(bins, np.int64), threads=threads
    )


def _check_dyadic(row, x: np.ndarray, bins: int = 2 * HALF, threads: int = 1) -> None:
    """With the least bins that hold all numbers, as observers have them, and with wider ones."""
    x = x.astype(F32)
    for further in (0, 1, 9):
        exponent = max(int(np.frexp(np.abs(x).max())[1]), -100) + further
        factor = F32(bins // 2 * 2.0**-exponent)
        expected = Loops().dyadic(x, bins, factor)
        assert expected.sum() == x.size
        np.testing.assert_array_equal(_dyadic(row, x, bins, factor, threads), expected)


@pytest.mark.parametrize("row", ROWS)
def test_dyadic_bins_at_all_sizes_about_vectors_and_blocks(row):
    rng = np.random.default_rng(6)
    for size in (1, *SIZES):
        _check_dyadic(row, rng.normal(0, 1, size))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_number_of_threads_gives_the_same_dyadic_counts(row, threads):
    _check_dyadic(row, np.random.default_rng(7).normal(3, 2, 200_001), 2 * HALF, threads)
    _check_dyadic(row, np.maximum(np.random.default_rng(8).normal(0, 1, 100_000), 0), 256, threads)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bins", [2, 16, 2048, 2 * HALF])
@pytest.mark.parametrize("exponent", [-126, -100, -20, 0, 1, 100, 127])
def test_numbers_on_the_edges_of_dyadic_bins_and_beside_them(row, bins, exponent):
    """The ends among them, zeros of both signs, and what underflows on its way to a place."""
    edges = (np.arange(-bins // 2, bins // 2 + 1) * (2.0**exponent / (bins // 2))).astype(F32)
    beside = np.concatenate([edges, np.nextafter(edges, F32(np.inf)), np.nextafter(edges, F32(-np.inf))])
    tiny = np.array([0.0, -0.0, SUBNORMAL, -SUBNORMAL, 2.0**-126, -(2.0**-126), 1e-40, -1e-40], F32)
    _check_dyadic(row, np.concatenate([beside, tiny]), bins)


@pytest.mark.parametrize("row", ROWS)
def test_places_of_dyadic_bins(row):
    x = np.array([-2, -1.5, -1, -0.75, -SUBNORMAL, -0.0, 0, SUBNORMAL, 0.99, 1, 1.999999], F32)
    np.testing.assert_array_equal(_dyadic(row, x, 4, 1), [2, 3, 4, 2])
    np.testing.assert_array_equal(_dyadic(row, x, 8, 2), [1, 1, 2, 1, 3, 1, 1, 1])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("bins", [1, 2, 5, 1000])
@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0**127, np.inf, -np.inf, np.nan, -1.0, 0.0])
def test_what_no_dyadic_bin_holds_is_counted_at_the_ends(row, bins, factor):
    x = np.array([np.nan, -np.inf, np.inf, -3e38, 3e38, 0, -0.0, 1e30, -1e30] * 20, F32)
    with np.errstate(all="ignore"):
        place = np.floor(x * F32(factor)) + bins // 2
    expected = np.clip(np.nan_to_num(place, nan=0), 0, bins - 1).astype(int)
    np.testing.assert_array_equal(_dyadic(row, x, bins, factor), np.bincount(expected, minlength=bins))


@pytest.mark.parametrize("row", ROWS)
@settings(max_examples=60)
@given(
    x=extra.arrays(F32, st.integers(1, 300), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)),
    bits=st.integers(1, 13),
)
def test_any_numbers_in_dyadic_bins(row, x, bits):
    _check_dyadic(row, x, 1 << bits)


@native_only
def test_dyadic_arrays_that_are_refused():
    with pytest.raises(EngineError, match="C-contiguous float32"):
        Statistics().dyadic(np.zeros((4, 4), F32)[:, ::2], 8, F32(1))
    with pytest.raises(EngineError, match="C-contiguous float32"):
        Statistics().dyadic(np.zeros(4), 8, F32(1))


@native_only
@pytest.mark.parametrize(
    ("low", "high", "match"),
    [(1, 1, "finite range"), (2, 1, "finite range"), (-3e38, 3e38, "finite range"), (0, np.nan, "finite range")],
)
def test_ranges_that_cannot_be_counted_in(low, high, match):
    with pytest.raises(EngineError, match=match):
        Statistics().histogram(np.zeros(4, F32), 8, F32(low), F32(high))


@native_only
@pytest.mark.parametrize("bins", [0, -1, (1 << 20) + 1])
def test_numbers_of_bins_that_are_refused(bins):
    with pytest.raises(EngineError, match="number of bins"):
        Statistics()._counting.run(
            Kind.HISTOGRAM, bins, lambda: abi.make(abi.HistogramArgs, count=1, bins=bins),
            (np.zeros(1, F32), np.zeros(2, F32), np.zeros(1, np.int64)),
        )  # fmt: skip


def _batches() -> list[np.ndarray]:
    """As the engine shows values: axes in any order of memory, wider and narrower ranges, one value alone."""
    rng = np.random.default_rng(5)
    shown = [rng.normal(0, 1 + i, (2, 6, 5, 4)).astype(F32) for i in range(3)]
    shown[1] = np.ascontiguousarray(shown[1].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    large = np.maximum(rng.normal(0, 3, (3, 5, 90, 70)), 0).astype(F32)  # beyond what is counted in NumPy in any case
    shown += [large, large.transpose(0, 2, 3, 1) - F32(1), large[..., ::-1], F32(0.01) * large[:, :, ::2]]
    return [*shown, shown[0][:, ::2], np.zeros((3, 3), F32), np.full((1,), 1e30, F32), np.full((1,), -1e30, F32)]


@native_only
@pytest.mark.parametrize("name", ["histogram", "min_max", "moving_average_min_max", "percentile", "entropy", "mse"])
def test_observers_find_the_same_with_native_loops(name):
    plain, ours = make_observer(ObserverConfig(name)), make_observer(ObserverConfig(name))
    ours.loops = make_loops(2, None)
    assert isinstance(ours.loops, NativeLoops)
    for x in _batches():
        plain.observe(x)
        ours.observe(x)
        assert [v.tobytes() for v in plain.range()] == [v.tobytes() for v in ours.range()]
    assert plain.qparams() == ours.qparams()


@native_only
@pytest.mark.parametrize("shape", [(CHUNK,), (CHUNK + 1,), (3, 7, 100, 50)])
def test_dyadic_loops_count_the_same_in_any_order_of_memory(shape, monkeypatch):
    counted = []
    dyadic = Statistics.dyadic
    monkeypatch.setattr(
        Statistics, "dyadic", lambda self, x, *bins: (counted.append(x.size), dyadic(self, x, *bins))[1]
    )
    x = np.random.default_rng(9).normal(0, 0.9, shape).clip(-3.9, 3.9).astype(F32)
    for same in (x, x.T, x[..., ::-1]):
        found = make_loops(2, None).dyadic(same, 2 * HALF, F32(HALF / 4))
        np.testing.assert_array_equal(found, Loops().dyadic(x, 2 * HALF, F32(HALF / 4)))
    assert counted == ([] if x.size <= CHUNK else [x.size] * 3)


@native_only
def test_bins_that_overflow_float32_are_counted_in_numpy():
    x = np.array([-3e38, 0, 1, 3e38], F32)
    np.testing.assert_array_equal(
        make_loops(1, None).histogram(x, 8, x[0], x[-1]), Loops().histogram(x, 8, x[0], x[-1])
    )


@native_only
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_as_in_numpy(bad):
    observer = make_observer(ObserverConfig("histogram"))
    observer.loops = make_loops(1, None)
    with pytest.raises(DataError, match="1 "):
        observer.observe(np.array([1, bad, 2], F32))
