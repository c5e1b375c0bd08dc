"""The histogram observer's parts, against slow and plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from observer_cases import numbers, wave

from qtool.quantize import float32, search


def slow_narrow(histogram: np.ndarray, low: float, high: float) -> tuple[int, int]:
    """PyTorch's loop, one step at a time."""
    cumulative = np.cumsum(histogram, dtype=np.float64).astype(np.float32)
    total = float(float32.total(histogram))
    alpha, beta, start, end, least = 0.0, 1.0, 0, histogram.size - 1, np.inf
    while alpha < beta:
        next_alpha, next_beta = alpha + 1e-5, beta - 1e-5
        left, right = start, end
        while left < end and cumulative[left] < np.float32(next_alpha * total):
            left += 1
        while right > start and cumulative[right] > np.float32(next_beta * total):
            right -= 1
        next_start, next_end = start, end
        if left - start > end - right:
            next_start, alpha = left, next_alpha
        else:
            next_end, beta = right, next_beta
        if (next_start, next_end) == (start, end):
            continue
        error = search.squared_errors(histogram, high - low, np.array([next_start]), np.array([next_end]))[0]
        if error > least:
            break
        least, start, end = error, next_start, next_end
    return start, end


@pytest.mark.parametrize("seed", range(10))
def test_search_takes_the_steps_of_the_plain_loop(seed) -> None:
    rng = np.random.default_rng(seed)
    bins = 256
    shapes = [
        rng.random(bins),
        rng.random(bins) ** 8,
        np.exp(-(np.linspace(-3, 5, bins) ** 2)),
        rng.integers(0, 2, bins),
    ]
    histogram = (shapes[seed % 4] * 10 ** rng.uniform(1, 5)).astype(np.float32)
    histogram[rng.integers(0, bins)] += np.float32(1e3)
    low, high = np.float32(-1.5), np.float32(2.5)
    start, end = slow_narrow(histogram, float(low), float(high))
    width = (high - low) / np.float32(bins)
    expected = low + width * np.float32(start), low + width * np.float32(end + 1)
    assert search.narrow(histogram, low, high) == expected


def test_search_minimizes_the_error_it_estimates() -> None:
    """The estimated error is close to that of really quantizing numbers spread over the bins."""
    histogram = np.exp(-(np.linspace(-4, 4, 512) ** 2)).astype(np.float32)
    histogram /= histogram.sum()
    starts, ends = np.array([0, 100, 200]), np.array([511, 411, 311])
    estimated = search.squared_errors(histogram, 8.0, starts, ends)
    points = (np.arange(512 * 64) + 0.5) / 64 * (8.0 / 512)
    for k in range(3):
        low, high = starts[k] * 8.0 / 512, (ends[k] + 1) * 8.0 / 512
        step = (high - low) / 256
        level = np.clip(np.floor((points - low) / step), 0, 255)
        errors = ((level + 0.5) * step + low - points) ** 2
        assert estimated[k] == pytest.approx(float(np.repeat(histogram, 64) @ errors / 64), rel=0.02)


@given(x=hnp.arrays(np.float32, st.integers(2, 300), elements=numbers), bins=st.integers(2, 70))
def test_bins_of_a_histogram(x, bins) -> None:
    low, high = x.min(), x.max()
    if low == high:
        return
    expected = [0] * bins
    for value in x:
        place = int((value - low) * np.float32(bins) / (high - low))
        expected[min(place, bins - 1)] += 1
    assert float32.histogram(x, bins, low, high).tolist() == expected


def test_histogram_longer_than_a_chunk() -> None:
    x = wave(3 * float32.CHUNK + 17, 1.0, 0.0)
    parts = [float32.histogram(part, 99, x.min(), x.max()) for part in np.array_split(x, 7)]
    assert float32.histogram(x, 99, x.min(), x.max()).tolist() == sum(parts).tolist()
    assert sum(parts).sum() == x.size


@given(start=st.floats(-1e3, 1e3, width=32), reach=st.floats(0.0009765625, 1e3, width=32), count=st.integers(2, 500))
def test_linspace_is_even_and_ends_where_it_should(start, reach, count) -> None:
    low, high = np.float32(start), np.float32(start) + np.float32(reach)
    found = float32.linspace(low, high, count)
    assert found[0] == low
    assert found[-1] == high
    np.testing.assert_allclose(found, np.linspace(float(low), float(high), count), atol=2e-4)


@given(x=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(8, 700)), elements=st.floats(0, 1, width=32)))
def test_total_is_a_sum(x) -> None:
    np.testing.assert_allclose(float32.total(x), x.sum(axis=1, dtype=np.float64), rtol=1e-5)
