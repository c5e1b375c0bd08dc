"""Pools, means, sums and normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtool.exporters.onnx.call import Call
from qtool.exporters.onnx.move import pad, slice_axis
from qtool.ops import geometry
from qtool.ops.dims import axis_of
from qtool.ops.pool import PoolAttrs, window_divisors

LAYER_NORM_SINCE = 17
REDUCE_AXES_SINCE = 18
"""From here on Reduce operators take axes as an input (ReduceSum from 13)."""


def max_pool(call: Call) -> str:
    """MaxPool with ``ceil_mode`` spelt out as padding, which is minus infinity anyway."""
    attrs = call.attrs
    pads = _reach(attrs, _sizes(call), attrs.dilation)
    x = call.x()
    kernels = zip(pads, attrs.kernel_size, strict=True)
    if any(max(pair) >= kernel for pair, kernel in kernels):  # more than runtimes allow
        x, pads = pad(call, x, len(call.value().shape), (pads, "constant", -np.inf)), ((0, 0),) * len(pads)
    return call.emit(
        "MaxPool",
        x,
        kernel_shape=attrs.kernel_size,
        strides=attrs.stride,
        dilations=attrs.dilation,
        pads=[before for before, _ in pads] + [after for _, after in pads],
    )


def avg_pool(call: Call) -> str:
    """AveragePool; windows whose divisor ONNX would count differently (ceil_mode, divisor_override) are averaged over
    zeros, and the averages corrected by constants."""
    attrs, sizes = call.attrs, _sizes(call)
    ones = (1,) * len(sizes)
    pads = _reach(attrs, sizes, ones)
    override = getattr(attrs, "divisor_override", None)
    options = {"kernel_shape": attrs.kernel_size, "strides": attrs.stride}
    if override is None and _floor(attrs, sizes):
        flat = [before for before, _ in attrs.padding] + [after for _, after in attrs.padding]
        return call.emit("AveragePool", call.x(), pads=flat, count_include_pad=int(attrs.count_include_pad), **options)
    padded = pad(call, call.x(), len(sizes) + 2, (pads, "constant", 0.0)) if any(map(any, pads)) else call.x()
    averages = call.emit("AveragePool", padded, **options)
    window = float(np.prod(attrs.kernel_size))
    correction = (window / window_divisors(attrs, sizes)).astype(np.float32)
    return averages if np.all(correction == 1) else call.emit("Mul", averages, call.like(correction, "correction"))


def _sizes(call: Call) -> list[int]:
    """Spatial sizes; numbers, as pools need them."""
    return [int(dim) for dim in call.value().shape[2:]]


def _out_sizes(attrs: PoolAttrs, sizes: Sequence[int], dilation: Sequence[int]) -> list[int]:
    axes = zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, dilation, strict=True)
    return [geometry.pool_size(*axis, attrs.ceil_mode) for axis in axes]


def _floor(attrs: PoolAttrs, sizes: Sequence[int]) -> bool:
    """Whether ``ceil_mode`` changes nothing here."""
    axes = zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, strict=True)
    return all(geometry.pool_size(*axis, 1, attrs.ceil_mode) == geometry.conv_size(*axis, 1) for axis in axes)


def _reach(attrs: PoolAttrs, sizes: Sequence[int], dilation: Sequence[int]) -> geometry.Padding:
    """Padding with which rounding down gives as many windows as asked for."""
    out = _out_sizes(attrs, sizes, dilation)
    axes = zip(sizes, attrs.kernel_size, attrs.stride, attrs.padding, dilation, out, strict=True)
    return tuple(
        (before, max((count - 1) * stride + geometry.extent(kernel, step) - size - before, 0))
        for size, kernel, stride, (before, _), step, count in axes
    )


def adaptive_pool(call: Call, kind: str) -> str:
    """A global pool, a pool with even windows, or, where bins differ in size, a slice and a reduction for each."""
    bins, sizes = call.attrs.output_size, _sizes(call)
    average = kind == "Average"
    if all(count == 1 for count in bins):
        return call.emit(f"Global{kind}Pool", call.x())
    if all(size % count == 0 for size, count in zip(sizes, bins, strict=True)):
        kernel = [size // count for size, count in zip(sizes, bins, strict=True)]
        return call.emit("AveragePool" if average else "MaxPool", call.x(), kernel_shape=kernel, strides=kernel)
    x = call.x()
    for axis, (size, count) in enumerate(zip(sizes, bins, strict=True), start=2):
        pieces = [slice_axis(call, x, axis, (*span, 1)) for span in geometry.adaptive_bins(size, count)]
        reduced = [reduce_axes(call, "ReduceMean" if average else "ReduceMax", p, [axis], True) for p in pieces]
        x = call.emit("Concat", *reduced, axis=axis)
    return x


def reduce_axes(call: Call, op: str, x: str, axes: Sequence[int] | None, keepdims: bool) -> str:
    if axes is None:
        return call.emit(op, x, keepdims=int(keepdims))
    if call.opset >= REDUCE_AXES_SINCE or op == "ReduceSum":
        return call.emit(op, x, call.ints(axes, "axes"), keepdims=int(keepdims))
    return call.emit(op, x, axes=list(axes), keepdims=int(keepdims))


def reduce(call: Call, op: str) -> str:
    """ReduceMean, ReduceSum; no axes, or an empty list of them, means all."""
    rank, attrs = len(call.value().shape), call.attrs
    axes = [axis_of(dim, rank) for dim in attrs.dim] if attrs.dim else None
    return reduce_axes(call, op, call.x(), axes, attrs.keepdim)


def batch_norm(call: Call) -> str:
    channels = int(call.value(1).shape[0])
    scale = call.x(3) or call.like(np.ones(channels), "weight")
    shift = call.x(4) or call.like(np.zeros(channels), "bias")
    return call.emit("BatchNormalization", call.x(0), scale, shift, call.x(1), call.x(2), epsilon=call.attrs.eps)


def layer_norm(call: Call) -> str:
    """LayerNormalization, which ONNX has since opset 17; by its formula before."""
    attrs = call.attrs
    weight = call.x(1) or call.like(np.ones(attrs.normalized_shape), "weight")
    first = -len(attrs.normalized_shape)
    if call.opset >= LAYER_NORM_SINCE:
        return call.emit("LayerNormalization", call.x(0), weight, call.x(2), axis=first, epsilon=attrs.eps)
    axes = list(range(first, 0))
    centred = call.emit("Sub", call.x(0), reduce_axes(call, "ReduceMean", call.x(0), axes, True))
    variance = reduce_axes(call, "ReduceMean", call.emit("Mul", centred, centred), axes, True)
    deviation = call.emit("Sqrt", call.emit("Add", variance, call.scalar(attrs.eps, "eps")))
    y = call.emit("Mul", call.emit("Div", centred, deviation), weight)
    return call.emit("Add", y, call.x(2)) if call.has(2) else y
