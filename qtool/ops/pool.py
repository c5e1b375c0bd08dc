"""Pools over one or two spatial axes, the last ones; (N, C, *size) -> (N, C, *out)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, Shape, TensorType
from qtool.ops import geometry
from qtool.ops.dims import UNKNOWN, need_float, need_rank, spell
from qtool.ops.registry import Attrs, OpSpec, QuantRule, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, apply_along, grad_of, gradients, unpad


@dataclass(frozen=True)
class PoolAttrs(Attrs):
    """One entry a spatial axis; ``padding`` holds a pair (before, after) for each."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] = ()
    ceil_mode: bool = False


@dataclass(frozen=True)
class MaxPoolAttrs(PoolAttrs):
    """Padding is minus infinity."""

    dilation: tuple[int, ...] = ()


@dataclass(frozen=True)
class AvgPoolAttrs(PoolAttrs):
    """The divisor of a window is its size, cut at the end of the padding (``count_include_pad``) or of the data."""

    count_include_pad: bool = True


@dataclass(frozen=True)
class MaxPool1dAttrs(MaxPoolAttrs):
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: tuple[tuple[int, int]] = ((0, 0),)
    dilation: tuple[int] = (1,)


@dataclass(frozen=True)
class MaxPool2dAttrs(MaxPoolAttrs):
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class AvgPool1dAttrs(AvgPoolAttrs):
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: tuple[tuple[int, int]] = ((0, 0),)


@dataclass(frozen=True)
class AvgPool2dAttrs(AvgPoolAttrs):
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    divisor_override: int | None = None


@dataclass(frozen=True)
class AdaptivePoolAttrs(Attrs):
    """Bin i covers floor(i * size / out) to ceil((i + 1) * size / out); bins may overlap. (1, 1) is a global pool."""

    output_size: tuple[int, ...]


@dataclass(frozen=True)
class AdaptivePool1dAttrs(AdaptivePoolAttrs):
    output_size: tuple[int]


@dataclass(frozen=True)
class AdaptivePool2dAttrs(AdaptivePoolAttrs):
    output_size: tuple[int, int]


def max_pool(attrs: MaxPoolAttrs, x: Array) -> Array:
    """Works on any type, so on quantized integers as well: the order of the numbers is all it needs."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    out = _output_sizes(attrs, x.shape[2:], attrs.dilation)
    padded = _pad_for(attrs, x, attrs.dilation, out, lowest)
    taps = geometry.taps(padded, attrs.kernel_size, attrs.stride, attrs.dilation, out)
    return np.array(functools.reduce(np.maximum, taps))


def window_sums(attrs: AvgPoolAttrs, x: Array) -> Array:
    """The sum over each window, padding counting 0, in the type of ``x``."""
    dilation = (1,) * len(attrs.kernel_size)
    out = _output_sizes(attrs, x.shape[2:], dilation)
    padded = _pad_for(attrs, x, dilation, out, 0)
    total = np.zeros((*x.shape[:2], *out), x.dtype)
    for under in geometry.taps(padded, attrs.kernel_size, attrs.stride, dilation, out):
        total += under
    return total


def window_divisors(attrs: AvgPoolAttrs, sizes: Sequence[int]) -> Array:
    """What the sum of each window is divided by, int64 (*out); as ATen/native/cpu/AvgPoolKernel.cpp counts."""
    out = _output_sizes(attrs, sizes, (1,) * len(sizes))
    override = getattr(attrs, "divisor_override", None)
    if override is not None:
        return np.full(out, override, np.int64)
    axes = zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, out, strict=True)
    return functools.reduce(np.multiply.outer, (_counts(*axis, attrs.count_include_pad) for axis in axes))


def _counts(size: int, kernel: int, stride: int, padding: geometry.Pair, count: int, include_pad: bool) -> Array:
    bounds = geometry.bounds(size, kernel, stride, padding, count)
    if include_pad:
        return np.array([end - start for start, end in bounds], np.int64)
    return np.array([min(end, size) - max(start, 0) for start, end in bounds], np.int64)


def avg_pool(attrs: AvgPoolAttrs, x: Array) -> Array:
    return np.asarray(window_sums(attrs, x) / window_divisors(attrs, x.shape[2:]).astype(x.dtype), x.dtype)


def adaptive_pool(x: Array, output_size: Sequence[int], reduce: Callable[..., Array]) -> Array:
    """``reduce`` (np.sum, np.max) over every bin; a box is reduced one axis after the other."""
    for axis, bins in enumerate(output_size, start=2):
        pieces = [x.take(range(*bin_), axis) for bin_ in geometry.adaptive_bins(x.shape[axis], bins)]
        x = np.stack([reduce(piece, axis=axis) for piece in pieces], axis=axis)
    return x


def adaptive_counts(sizes: Sequence[int], output_size: Sequence[int]) -> Array:
    """The number of pixels in every bin, int64 (*output_size)."""
    counts = [
        np.array([end - start for start, end in geometry.adaptive_bins(size, bins)], np.int64)
        for size, bins in zip(sizes, output_size, strict=True)
    ]
    return functools.reduce(np.multiply.outer, counts)


def adaptive_avg_pool(attrs: AdaptivePoolAttrs, x: Array) -> Array:
    sums = adaptive_pool(x.astype(np.float64), attrs.output_size, np.sum)
    return np.asarray(sums / adaptive_counts(x.shape[2:], attrs.output_size), x.dtype)


def adaptive_max_pool(attrs: AdaptivePoolAttrs, x: Array) -> Array:
    return adaptive_pool(x, attrs.output_size, np.max)


def _output_sizes(attrs: PoolAttrs, sizes: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    axes = zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, dilation, strict=True)
    return tuple(geometry.pool_size(*axis, attrs.ceil_mode) for axis in axes)


def _pad_for(attrs: PoolAttrs, x: Array, dilation: Sequence[int], out: Sequence[int], value: float) -> Array:
    """Pads so that every window lies inside: behind, as far as the last one reaches, which with ceil_mode may be more
    than the padding."""
    return geometry.pad(x, _needed(attrs, x.shape[2:], dilation, out), value=value)


def _needed(attrs: PoolAttrs, sizes: Sequence[int], dilation: Sequence[int], out: Sequence[int]) -> geometry.Padding:
    axes = zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, dilation, out, strict=True)
    return tuple(
        (before, max((count - 1) * stride + geometry.extent(kernel, step) - size - before, 0))
        for size, kernel, stride, (before, _), step, count in axes
    )


def pool_type(attrs: PoolAttrs, x: TensorType) -> tuple[TensorType, ...]:
    dilation = attrs.dilation if isinstance(attrs, MaxPoolAttrs) else (1,) * len(attrs.stride)
    sizes = _spatial(x, len(attrs.kernel_size))
    for name, values in (("kernel_size", attrs.kernel_size), ("stride", attrs.stride), ("dilation", dilation)):
        require(min(values) >= 1, f"{name} {values}", "at least 1")
    for (before, after), kernel, step in zip(attrs.padding, attrs.kernel_size, dilation, strict=True):
        limit = geometry.extent(kernel, step)
        fits = 0 <= before < limit and 0 <= after < limit
        require(fits, f"padding {attrs.padding}", f"at least 0 and less than the kernel {attrs.kernel_size}")
    divisor = getattr(attrs, "divisor_override", None)
    require(divisor is None or divisor != 0, f"divisor_override {divisor}", "another number than 0")
    out = tuple(
        geometry.pool_size(size, k, s, p, d, attrs.ceil_mode) if isinstance(size, int) else UNKNOWN
        for size, k, s, p, d in zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, dilation, strict=True)
    )
    fits = all(isinstance(size, str) or size > 0 for size in out)
    require(fits, f"a kernel of {attrs.kernel_size} over {spell(sizes)} padded by {attrs.padding}", "one that fits")
    return (TensorType(x.dtype, (*x.shape[:2], *out)),)


def adaptive_type(attrs: AdaptivePoolAttrs, x: TensorType) -> tuple[TensorType, ...]:
    sizes = _spatial(x, len(attrs.output_size))
    require(min(attrs.output_size) >= 1, f"output_size {attrs.output_size}", "at least 1")
    require(0 not in sizes, f"a picture of size {spell(sizes)}", "at least one pixel")
    out: Shape = attrs.output_size
    return (TensorType(x.dtype, (*x.shape[:2], *out)),)


def _spatial(x: TensorType, rank: int) -> Shape:
    need_float(x=x)
    need_rank("x", x, rank + 2, "NCHW" if rank == 2 else "NCL")
    return x.shape[2:]


def _pooled(call: VjpCall) -> tuple[Array, Array]:
    """x and the derivative by y."""
    (x,) = call.inputs
    assert x is not None
    return x, grad_of(call)


def max_pool_vjp(call: VjpCall) -> Gradients:
    """The first of the largest in a window gets all, as in PyTorch."""
    x, grad = _pooled(call)
    attrs, y = call.attrs, call.outputs[0]
    out = y.shape[2:]
    window = (attrs.kernel_size, attrs.stride, attrs.dilation, out)

    def part() -> Array:
        padded = _pad_for(attrs, x, attrs.dilation, out, -np.inf)
        found, free = np.zeros(padded.shape, grad.dtype), np.ones(y.shape, np.bool_)
        for under, target in zip(geometry.taps(padded, *window), geometry.taps(found, *window), strict=True):
            chosen = free & (under == y)
            free &= ~chosen
            np.add(target, grad * chosen, out=target)
        return unpad(found, _needed(attrs, x.shape[2:], attrs.dilation, out))

    return gradients(call, part)


def avg_pool_vjp(call: VjpCall) -> Gradients:
    x, grad = _pooled(call)
    attrs, out = call.attrs, grad.shape[2:]
    ones = (1,) * len(out)

    def part() -> Array:
        padding = _needed(attrs, x.shape[2:], ones, out)
        share = grad / window_divisors(attrs, x.shape[2:]).astype(grad.dtype)
        sizes = [size + sum(pair) for size, pair in zip(x.shape[2:], padding, strict=True)]
        found = np.zeros((*x.shape[:2], *sizes), grad.dtype)
        for target in geometry.taps(found, attrs.kernel_size, attrs.stride, ones, out):
            np.add(target, share, out=target)
        return unpad(found, padding)

    return gradients(call, part)


def adaptive_avg_pool_vjp(call: VjpCall) -> Gradients:
    x, grad = _pooled(call)
    sizes, bins = x.shape[2:], call.attrs.output_size

    def part() -> Array:
        share: Array = grad / adaptive_counts(sizes, bins).astype(grad.dtype)
        for axis, (size, count) in enumerate(zip(sizes, bins, strict=True), 2):
            covered = np.zeros((size, count), grad.dtype)
            for number, (start, end) in enumerate(geometry.adaptive_bins(size, count)):
                covered[start:end, number] = 1
            share = apply_along(share, covered, axis)
        return share

    return gradients(call, part)


def adaptive_max_pool_vjp(call: VjpCall) -> Gradients:
    """The first of the largest in a bin, row by row, gets all, as in PyTorch."""
    x, grad = _pooled(call)
    planes = x.reshape(-1, *x.shape[2:])
    bins = [geometry.adaptive_bins(*axis) for axis in zip(x.shape[2:], call.attrs.output_size, strict=True)]

    def part() -> Array:
        found = np.zeros(planes.shape, grad.dtype)
        every = np.arange(len(planes))
        for place, ends in zip(np.ndindex(*grad.shape[2:]), itertools.product(*bins), strict=True):
            window = geometry.last_axes(planes, [slice(*pair) for pair in ends])
            best = np.unravel_index(window.reshape(len(planes), -1).argmax(1), window.shape[1:])
            index = (every, *(position + start for position, (start, _) in zip(best, ends, strict=True)))
            found[index] += grad[(..., *place)].reshape(-1)
        return found.reshape(x.shape)

    return gradients(call, part)


def _pool(
    name: str,
    attrs: type[Attrs],
    infer: Callable[..., tuple[TensorType, ...]],
    function: Callable[..., Array],
    onnx: str,
    vjp: Vjp,
) -> None:
    def reference(attrs: Attrs, x: Array) -> tuple[Array, ...]:
        return (function(attrs, x),)

    rule = QuantRule.SAME_AS_INPUT
    register(OpSpec(name, attrs, ("x",), infer, reference, rule, onnx=(onnx,), kernel=name, vjp=vjp))


_pool("max_pool1d", MaxPool1dAttrs, pool_type, max_pool, "MaxPool", max_pool_vjp)
_pool("max_pool2d", MaxPool2dAttrs, pool_type, max_pool, "MaxPool", max_pool_vjp)
_pool("avg_pool1d", AvgPool1dAttrs, pool_type, avg_pool, "AveragePool", avg_pool_vjp)
_pool("avg_pool2d", AvgPool2dAttrs, pool_type, avg_pool, "AveragePool", avg_pool_vjp)
_pool(
    "adaptive_avg_pool1d",
    AdaptivePool1dAttrs,
    adaptive_type,
    adaptive_avg_pool,
    "GlobalAveragePool",
    adaptive_avg_pool_vjp,
)
_pool(
    "adaptive_avg_pool2d",
    AdaptivePool2dAttrs,
    adaptive_type,
    adaptive_avg_pool,
    "GlobalAveragePool",
    adaptive_avg_pool_vjp,
)
_pool(
    "adaptive_max_pool1d", AdaptivePool1dAttrs, adaptive_type, adaptive_max_pool, "GlobalMaxPool", adaptive_max_pool_vjp
)
_pool(
    "adaptive_max_pool2d", AdaptivePool2dAttrs, adaptive_type, adaptive_max_pool, "GlobalMaxPool", adaptive_max_pool_vjp
)
