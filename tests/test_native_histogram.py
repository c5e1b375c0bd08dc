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
from qtool.quantize.loops import Loops, NativeLoops, make_loops
from qtool.quantize.observers import make_observer
from qtool.recipe.schema import ObserverConfig

ROWS = kernel_rows("histogram")
F32 = np.float32
LARGE = 2.0**100
native_only = pytest.mark.usefixtures("need_native")


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
    for size in (*range(2, 70), 511, 512, 513, 515, 1027, 16384, 16385, 40000):
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
        Statistics()._operators.run(
            Kind.HISTOGRAM, bins, lambda: abi.make(abi.HistogramArgs, count=1, bins=bins),
            (np.zeros(1, F32), np.zeros(2, F32), np.zeros(1, np.int64)),
        )  # fmt: skip


def _batches() -> list[np.ndarray]:
    """As the engine shows values: axes in any order of memory, wider and narrower ranges, one value alone."""
    rng = np.random.default_rng(5)
    shown = [rng.normal(0, 1 + i, (2, 6, 5, 4)).astype(F32) for i in range(3)]
    shown[1] = np.ascontiguousarray(shown[1].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return [*shown, shown[0][:, ::2], np.zeros((3, 3), F32), np.full((1,), 1e30, F32), np.full((1,), -1e30, F32)]


@native_only
@pytest.mark.parametrize("name", ["histogram", "min_max", "moving_average_min_max"])
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
