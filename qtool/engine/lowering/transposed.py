"""Transposed convolutions, as ordinary ones: the pixels between two strides are a convolution each.

Along one axis tap k of pixel i is added to pixel i * stride + k * dilation - padding. The results p, p + stride, ...
see the taps k for which p + padding - k * dilation is a multiple of the stride, one pixel apart or a few: an ordinary
convolution of stride 1. What these make is put between one another.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.engine.int8_products import convolution_qparams, convolution_weight
from qtool.engine.lowering.accumulate import Fields, optional, planar
from qtool.engine.lowering.groups import INFINITY, Group
from qtool.engine.lowering.layout import Layout, Sizes
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.requantize import AccumulateOperands, accumulate, output_limits
from qtool.ir import Array, Node
from qtool.native import Kind, abi
from qtool.ops import attrs_of


@dataclass(frozen=True)
class Phase:
    """The results start, start + stride, ... of one axis: ``count`` of them, as a convolution of stride 1.

    ``taps`` has the kernel's taps in the order in which the convolution has them, -1 for one that adds nothing.
    """

    start: int
    count: int
    taps: tuple[int, ...]
    dilation: int
    padding: int


def phases(size: int, kernel: int, stride: int, dilation: int, padding: int) -> list[Phase]:
    """The phases of an axis with ``size`` results."""
    return [_phase(p, -(-(size - p) // stride), kernel, (stride, dilation, padding)) for p in range(min(stride, size))]


def _phase(start: int, count: int, kernel: int, steps: tuple[int, int, int]) -> Phase:
    stride, dilation, padding = steps
    shift = start + padding
    taps = [k for k in reversed(range(kernel)) if (shift - k * dilation) % stride == 0]
    if not taps:
        return Phase(start, count, (-1,), 1, 0)
    step = dilation // math.gcd(stride, dilation)
    return Phase(start, count, tuple(taps), step, -((shift - taps[0] * dilation) // stride))


def lower_conv_transpose(segment: Segment, group: Group) -> None:
    source, node = segment.source, group.host
    attrs = attrs_of(node)
    x, out = node.inputs[0], node.outputs[0]
    shape, result = segment.shape(x), segment.shape(out)
    quantized = source.qparams(out) is not None
    weight, numbers = (_quantized if quantized else _float)(source, node, attrs.groups)
    axes = [
        phases(size, *steps)
        for size, *steps in zip(
            result[2:], weight.shape[2:], attrs.stride, attrs.dilation, (cut[0] for cut in attrs.padding), strict=True
        )
    ]
    fields: Fields = {**numbers, "batch": shape[0], "in_channels": shape[1], "out_channels": result[1]}
    fields |= {**planar("in", shape[2:], 1), **planar("stride", (1,) * len(axes), 1), "groups": attrs.groups}
    read, target = segment.read(x, Layout.LAST), segment.write(out, Layout.LAST)
    item = segment.sizes[target] // math.prod(result)
    for parts in itertools.product(*axes):
        counts = tuple(part.count for part in parts)
        args = _convolution(fields, weight, parts)
        whole = counts == result[2:]
        made = target if whole else segment.buffer(shape[0] * math.prod(counts) * result[1] * item)
        segment.emit(Kind.QCONV if quantized else Kind.SCONV, (read,), made, args)
        if not whole:
            places = _places(parts, attrs.stride, result[2:])
            sizes = {"outer": shape[0], "in_rows": places.size, "out_rows": math.prod(result[2:])}
            moved = {"count": places.size, "row_bytes": result[1] * item, "element_bytes": 1, "target": places}
            segment.emit(Kind.MOVE, (made,), target, abi.make(abi.MoveArgs, **sizes, **moved))


def _convolution(fields: Fields, weight: Array, parts: tuple[Phase, ...]) -> abi.ConvArgs:
    """The convolution of one phase an axis; weight (O, I / groups, *kernel)."""
    taken = np.pad(weight, [(0, 0), (0, 0), *[(0, 1)] * len(parts)])  # tap -1 is zero
    for axis, part in enumerate(parts, 2):
        taken = np.take(taken, part.taps, axis)
    own = {
        **planar("out", tuple(part.count for part in parts), 1),
        **planar("kernel", taken.shape[2:], 1),
        **planar("dilation", tuple(part.dilation for part in parts), 1),
        **planar("pad", tuple(part.padding for part in parts), 0),
    }
    own["pad_top"], own["pad_left"] = own.pop("pad_height"), own.pop("pad_width")
    return abi.make(abi.ConvArgs, **fields, **own, weight=np.ascontiguousarray(np.moveaxis(taken, 1, -1)))


def _places(parts: tuple[Phase, ...], stride: Sizes, sizes: Sizes) -> Array:
    """Where the pixels of a phase lie in the picture, as numbers of pixels."""
    place = np.zeros((), np.int64)
    axes = [part.start + step * np.arange(part.count) for part, step in zip(parts, stride, strict=True)]
    for index, size in zip(np.ix_(*axes), sizes, strict=True):
        place = place * size + index
    return np.ascontiguousarray(place.ravel(), np.int32)


def _quantized(source: Source, node: Node, groups: int) -> tuple[Array, Fields]:
    """The weight as a convolution has it, and the fields of int8 arithmetic."""
    qparams = source.qparams(node.inputs[1])
    if qparams is None or qparams.zero_point.any():
        raise Unsupported("the weight is not quantized symmetrically")
    weight = convolution_weight(source.constant(node.inputs[1], "weight"), groups)
    bias = source.constant(node.inputs[2], "bias") if optional(node, 2) else None
    out = source.per_tensor(node.outputs[0])
    operands = AccumulateOperands(source.per_tensor(node.inputs[0]), convolution_qparams(qparams, groups), out, bias)
    found: Any = accumulate(source.arithmetic, len(weight), operands, output_limits(out, "none", None))
    names = ("x_zero", "multiplier", "bias_i32", "bias_f32", "out_zero", "out_min", "out_max")
    return weight, {name: getattr(found, name) for name in names}


def _float(source: Source, node: Node, groups: int) -> tuple[Array, Fields]:
    source.need_float(*node.inputs, *node.outputs)
    weight = convolution_weight(source.constant(node.inputs[1], "weight"), groups)
    bias = source.constant(node.inputs[2], "bias") if optional(node, 2) else None
    return weight, {"bias_f32": bias, "out_min_f": -INFINITY, "out_max_f": INFINITY}
