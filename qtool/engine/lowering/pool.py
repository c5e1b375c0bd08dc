"""Pools, and means over a picture."""

from __future__ import annotations

import math
from typing import Any

from qtool.engine.lowering.accumulate import planar
from qtool.engine.lowering.groups import Group
from qtool.engine.lowering.layout import Layout, Sizes, permutation
from qtool.engine.lowering.norm import need_short
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.requantize import Arithmetic, offset_zero, pool_scales
from qtool.ir import DType, Node, QParams
from qtool.native import Kind, abi
from qtool.ops import attrs_of

Fields = dict[str, Any]


def lower_pool(segment: Segment, group: Group) -> None:
    """max_pool and avg_pool."""
    node = group.host
    attrs = attrs_of(node)
    average = node.op.startswith("avg")
    fields = _windows(attrs.kernel_size, attrs.stride, getattr(attrs, "dilation", ()))
    fields.update(_padding(attrs.padding))
    if average:
        fields["count_include_pad"] = int(attrs.count_include_pad)
        fields["divisor_override"] = _divisor(attrs)
    _emit(segment, node, average, fields)


def _divisor(attrs: Any) -> int:
    divisor = getattr(attrs, "divisor_override", None) or 0
    if divisor < 0:
        raise Unsupported(f"divisor_override {divisor}")
    return int(divisor)


def _windows(kernel: Sizes, stride: Sizes, dilation: Sizes) -> Fields:
    return {**planar("kernel", kernel, 1), **planar("stride", stride, 1), **planar("dilation", dilation or (1, 1), 1)}


def _padding(padding: tuple[tuple[int, int], ...]) -> Fields:
    (top, bottom), (left, right) = padding if len(padding) == 2 else ((0, 0), *padding)
    return {"pad_top": top, "pad_bottom": bottom, "pad_left": left, "pad_right": right}


def lower_adaptive_pool(segment: Segment, group: Group) -> None:
    """Adaptive pools; where all bins have one size and the arithmetic is that of a plain pool, as one."""
    node = group.host
    average = "avg" in node.op
    x = segment.source.qparams(node.inputs[0])
    sizes, bins = segment.shape(node.inputs[0])[2:], segment.shape(node.outputs[0])[2:]
    even = all(size % count == 0 for size, count in zip(sizes, bins, strict=True))
    if even and (x is None or not average or _is_qnnpack(segment.source, x)):
        window = tuple(size // count for size, count in zip(sizes, bins, strict=True))
        _emit(segment, node, average, _windows(window, window, ()))
        return
    if average and x is not None and x.dtype is DType.INT8:
        raise Unsupported("an average of int8 bins: its rounding depends on the sign of the zero point")
    _emit(segment, node, average, {**_windows((1, 1), (1, 1), ()), "adaptive": 1})


def lower_mean(segment: Segment, group: Group) -> None:
    """A mean over all pixels is a pool; in int8 only QNNPACK's is, and any other a sum of bytes divided once."""
    source, node = segment.source, group.host
    rank = len(segment.shape(node.inputs[0]))
    attrs = attrs_of(node)
    axes = tuple(sorted(axis % rank for axis in attrs.dim or range(rank)))
    x = source.qparams(node.inputs[0])
    picture = axes == tuple(range(2, rank))
    if x is not None and not (rank == 4 and picture and _is_qnnpack(source, x)):
        _mean_of_bytes(segment, node, axes)
        return
    if rank not in (3, 4) or not picture:
        raise Unsupported(f"a mean over axes {axes} of {rank}")
    window = segment.shape(node.inputs[0])[2:]
    _emit(segment, node, True, _windows(window, window, ()))


def _mean_of_bytes(segment: Segment, node: Node, axes: Sizes) -> None:
    """Over axes that lie side by side in memory, or are brought there."""
    source, x, out = segment.source, node.inputs[0], node.outputs[0]
    qparams = source.per_tensor(x)
    if source.per_tensor(out) != qparams:
        raise Unsupported("a mean with other parameters than its input")
    read, rows, inner = _summable(segment, x, axes)
    count = math.prod(segment.shape(x)) // (rows * inner)
    shift = -qparams.limits[0]
    args = abi.make(abi.QrowsArgs, rows=rows, n=need_short(count), inner=inner, shift=shift)
    segment.emit(Kind.QMEAN, (read,), segment.write(out, Layout.PLAIN), args)


def _summable(segment: Segment, x: str, axes: Sizes) -> tuple[int, int, int]:
    """A buffer in which the axes lie side by side and the others row-major, and how many numbers lie outside and inside
    of them."""
    shape = segment.shape(x)
    if axes == tuple(range(2, len(shape))) and Layout.LAST in segment.layouts(x):
        return segment.read(x, Layout.LAST), shape[0], shape[1]
    first, last = axes[0], axes[-1] + 1
    if last - first == len(axes):
        return segment.read(x, Layout.PLAIN), math.prod(shape[:first]), math.prod(shape[last:])
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    change = permutation(shape, range(len(shape)), (*kept, *axes))
    read = segment.read(x, Layout.PLAIN)
    if change is not None:
        plain, read = read, segment.buffer(math.prod(shape))
        segment.permute(plain, read, 1, change)
    return read, math.prod(shape[axis] for axis in kept), 1


def _is_qnnpack(source: Source, x: QParams) -> bool:
    """Whether averages are those of QNNPACK, which does not tell plain pools from adaptive ones."""
    return source.arithmetic is Arithmetic.INT_BIAS and x.dtype is DType.UINT8


def _emit(segment: Segment, node: Node, average: bool, fields: Fields) -> None:
    source = segment.source
    x, out = node.inputs[0], node.outputs[0]
    shape = segment.shape(x)
    batch, channels, sizes = shape[0], shape[1], shape[2:]
    fields.update(planar("in", sizes, 1), batch=batch, channels=channels)
    fields.update(planar("out", segment.shape(out)[2:] or (1,) * len(sizes), 1))
    fields["kind"] = abi.Pool.AVERAGE if average else abi.Pool.MAX
    quantized = source.qparams(out) is not None
    if quantized:
        arithmetic = Arithmetic.FLOAT_BIAS if "adaptive" in fields else source.arithmetic
        fields.update(_quantized(arithmetic, (source.per_tensor(x), source.per_tensor(out)), average))
    else:
        source.need_float(x, out)
    read = segment.read(x, Layout.LAST)
    args = abi.make(abi.PoolArgs, **fields)
    segment.emit(Kind.QPOOL if quantized else Kind.SPOOL, (read,), segment.write(out, Layout.LAST), args)


def _quantized(arithmetic: Arithmetic, qparams: tuple[QParams, QParams], average: bool) -> Fields:
    x, out = qparams
    if not average and x != out:
        raise Unsupported("a maximum with other parameters than its input")
    x_scale, out_scale = pool_scales(arithmetic, x, out) if average else (1.0, 1.0)
    return {
        "x_zero": offset_zero(x),
        "out_zero": offset_zero(out),
        "x_scale": x_scale,
        "out_scale": out_scale,
    }
