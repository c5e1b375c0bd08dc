"""Averages of quantized tensors: sums of integers, divided once."""

from __future__ import annotations

import numpy as np

from qtool.engine.int8 import Call, Define, by_float, stored
from qtool.engine.requantize import F32, Arithmetic, fused_multiply_add, offset_zero, pool_multiplier, pool_scales
from qtool.ir import Array, DType
from qtool.ops.dims import axes_of
from qtool.ops.pool import adaptive_counts, adaptive_pool, window_divisors, window_sums


def _outside(call: Call, sums: Array, count: Array) -> tuple[Array, ...]:
    """clamp(nearbyint(sum * multiplier) + zero point); ``sums`` of stored numbers less their zero point."""
    multiplier = pool_multiplier(pool_scales(call.arithmetic, call.input(0).params, call.out), count)
    steps = np.rint(sums.astype(np.float32) * multiplier) + F32(offset_zero(call.out))
    return (stored(np.clip(steps, 0, 255), call.out),)


def _avg_pool(call: Call) -> tuple[Array, ...]:
    centred = call.input(0).centred().astype(np.float64)
    return _outside(call, window_sums(call.attrs, centred), window_divisors(call.attrs, centred.shape[2:]))


def _adaptive_avg_pool(call: Call) -> tuple[Array, ...]:
    """QNNPACK pools as ``avg_pool`` where all bins have one size; all else adds the zero point before rounding."""
    x, bins = call.input(0), call.attrs.output_size
    sums = adaptive_pool(x.centred().astype(np.float64), bins, np.sum)
    count = adaptive_counts(x.array.shape[2:], bins)
    if call.arithmetic is Arithmetic.INT_BIAS and x.params.dtype is DType.UINT8 and even_bins(x.array.shape[2:], bins):
        return _outside(call, sums, count)
    multiplier = pool_multiplier(pool_scales(Arithmetic.FLOAT_BIAS, x.params, call.out), count)
    q = np.rint(fused_multiply_add(sums.astype(np.float32), multiplier, F32(offset_zero(call.out))))
    return (stored(np.clip(q, 0, 255), call.out),)


def even_bins(sizes: tuple[int, ...], bins: tuple[int, ...]) -> bool:
    """Whether an adaptive pool is one with windows of one size that do not overlap."""
    return all(size % count == 0 for size, count in zip(sizes, bins, strict=True))


def _mean(call: Call) -> tuple[Array, ...]:
    """nearbyint(sum / n) of the stored numbers where parameters stay (``qmean_inner_dim_kernel``), except for QNNPACK's
    mean over a picture, which is its average pool."""
    x, attrs = call.input(0), call.attrs
    axes = axes_of(attrs.dim, x.array.ndim) if attrs.dim else tuple(range(x.array.ndim))
    count = np.array(np.prod([x.array.shape[axis] for axis in axes]), np.int64)
    if x.params != call.out:
        return by_float(call)
    picture = x.array.ndim == 4 and axes == (2, 3) and x.params.dtype is DType.UINT8
    if call.arithmetic is Arithmetic.INT_BIAS and picture:
        return _outside(call, x.centred().sum(axis=axes, keepdims=attrs.keepdim, dtype=np.float64), count)
    sums = x.array.sum(axis=axes, keepdims=attrs.keepdim, dtype=np.int64)
    return (np.asarray(np.rint(sums.astype(np.float32) / count.astype(np.float32)), call.out.dtype.numpy),)


POOLS: dict[str, Define] = {
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool1d": _adaptive_avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "mean": _mean,
}
