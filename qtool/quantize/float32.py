"""PyTorch's float32 arithmetic where the order of operations shows in the result.

Read from ATen/native/cpu (HistogramKernel.cpp, RangeFactoriesKernel.cpp, SumKernel.cpp) and checked bit for bit
against torch 2.13 on x86-64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

CHUNK = 1 << 16
_LANES = 8  # ATen builds its sums for AVX2 even on AVX-512 machines
_ROWS = 4  # independent accumulators


def histogram(x: Float32, bins: int, low: np.float32, high: np.float32) -> NDArray[np.int64]:
    """Counts of ``x``, all of it within ``low`` < ``high``, in equal bins (``torch.histc``); the last bin is closed.

    The bin is int((x - low) * bins / (high - low)) in float32. Counts are exact, where torch adds ones in float32 and
    so stops at 2**24 a bin, a thread and a call.
    """
    exact = np.float64 if bins_overflow(bins, low, high) else np.float32
    width, count = exact(high) - exact(low), exact(bins)
    found = np.zeros(bins + 1, np.int64)
    work, index = np.empty(CHUNK, exact), np.empty(CHUNK, np.int32)
    flat = x.ravel(order="K")
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        place, bin_of = work[: part.size], index[: part.size]
        np.subtract(part, low, out=place, dtype=exact)
        np.multiply(place, count, out=place)
        np.divide(place, width, out=place)
        np.copyto(bin_of, place, casting="unsafe")
        found += np.bincount(bin_of, minlength=bins + 1)
    found[bins - 1] += found[bins]
    return found[:bins]


def bins_overflow(bins: int, low: np.float32, high: np.float32) -> bool:
    """Whether finding the bin of a number leaves float32."""
    with np.errstate(over="ignore"):
        return not np.isfinite((high - low) * np.float32(bins))


def linspace(start: np.float32, end: np.float32, count: int) -> Float32:
    """``torch.linspace``: each half is counted from its own end, with one rounding (a fused multiply-add)."""
    step = np.float64((end - start) / np.float32(count - 1))
    index = np.arange(count)
    from_start = np.float64(start) + step * index
    from_end = np.float64(end) - step * (count - 1 - index)
    return np.where(index < count // 2, from_start, from_end).astype(np.float32)


def total(x: Float32) -> Float32:
    """``torch.sum`` over the last axis, cascaded partial sums in a fixed order: (..., n), n >= 8, gives (...)."""
    count = x.shape[-1] // _LANES
    vectors = x[..., : count * _LANES].reshape(*x.shape[:-1], count, _LANES)
    groups = count // _ROWS
    rows = vectors[..., : groups * _ROWS, :].reshape(*x.shape[:-1], groups, _ROWS * _LANES)
    partial = _cascade(rows).reshape(*x.shape[:-1], _ROWS, _LANES)
    lanes = partial[..., 0, :].copy()
    for k in range(groups * _ROWS, count):
        lanes += vectors[..., k, :]
    for k in range(1, _ROWS):
        lanes += partial[..., k, :]
    result = np.zeros(x.shape[:-1], np.float32)
    for k in range(count * _LANES, x.shape[-1]):
        result = result + x[..., k]
    for k in range(_LANES):
        result = result + lanes[..., k]
    return np.asarray(result, np.float32)


def _cascade(rows: Float32) -> Float32:
    """Sum over axis -2 on four levels, each spilling into the next (``multi_row_sum``)."""
    size = rows.shape[-2]
    power = max(4, max(size - 1, 0).bit_length() // 4)
    step = 1 << power
    levels = [np.zeros((*rows.shape[:-2], rows.shape[-1]), np.float32) for _ in range(4)]
    done = 0
    while done + step <= size:
        for k in range(done, done + step):
            levels[0] += rows[..., k, :]
        done += step
        for j in range(1, 4):
            levels[j] += levels[j - 1]
            levels[j - 1][...] = 0
            if done & ((step - 1) << (j * power)):
                break
    for k in range(done, size):
        levels[0] += rows[..., k, :]
    for j in range(1, 4):
        levels[0] += levels[j]
    return levels[0]
