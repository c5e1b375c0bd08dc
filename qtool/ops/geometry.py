"""Windows of convolutions and pools: how many there are, where they lie, and views of an array through them.

Spatial sizes, kernels, strides and dilations are sequences with one entry a spatial axis; ``padding`` has a pair
(before, after) for each. Arrays have their spatial axes last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from qtool.ir import Array

Pair = tuple[int, int]
Padding = tuple[Pair, ...]

PAD_MODES = {"zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's names of the padding modes -> NumPy's."""


def extent(kernel: int, dilation: int) -> int:
    """Pixels between the first and the last tap of a window, both counted."""
    return dilation * (kernel - 1) + 1


def conv_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    """Number of windows along one axis; 0 or less where not one fits."""
    return (size + sum(padding) - extent(kernel, dilation)) // stride + 1


def pool_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int, ceil_mode: bool) -> int:
    """As ``conv_size``; with ``ceil_mode`` also the last window that is cut at the end, unless it would start in the
    padding behind the data (ATen/native/Pool.h, ``pooling_output_shape_pad_lr``)."""
    if not ceil_mode:
        return conv_size(size, kernel, stride, padding, dilation)
    windows = -((extent(kernel, dilation) - size - sum(padding)) // stride) + 1
    return windows - 1 if (windows - 1) * stride >= size + padding[0] else windows


def adaptive_bins(size: int, bins: int) -> list[Pair]:
    """Start and end of each bin of an adaptive pool: floor(i * size / bins) and ceil((i + 1) * size / bins)."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def bounds(size: int, kernel: int, stride: int, padding: Pair, count: int) -> list[Pair]:
    """Start and end of each undilated window, cut at the end of the padding; positions are those of the data."""
    starts = (i * stride - padding[0] for i in range(count))
    return [(start, min(start + kernel, size + padding[1])) for start in starts]


def pad(x: Array, padding: Padding, mode: str = "zeros", value: float = 0) -> Array:
    """The array with its last axes padded, in any of PyTorch's modes; ``value`` is for "zeros" and "constant"."""
    if not any(map(any, padding)):
        return x
    widths = [(0, 0)] * (x.ndim - len(padding)) + list(padding)
    options: dict[str, Any] = {"mode": PAD_MODES[mode]}
    if PAD_MODES[mode] == "constant":
        options["constant_values"] = value
    return np.asarray(np.pad(x, widths, **options))


def last_axes(x: Array, slices: Iterable[slice]) -> Array:
    """The array with its last axes sliced."""
    index: tuple[Any, ...] = (..., *slices)
    return np.asarray(x[index])


def windows(x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """A read-only view (..., *out, *kernel) of the windows of ``x`` (..., *size)."""
    rank = len(kernel)
    extents = tuple(extent(k, d) for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, extents, tuple(range(-rank, 0)))
    return last_axes(view, [slice(None, None, step) for step in (*stride, *dilation)])


def taps(
    x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], out: Sequence[int]
) -> Iterator[Array]:
    """For each kernel position, in C order, the view (..., *out) of what lies under it in all windows."""
    for position in itertools.product(*map(range, kernel)):
        starts = [p * d for p, d in zip(position, dilation, strict=True)]
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, out, stride, strict=True)]
        yield last_axes(x, map(slice, starts, ends, stride))
