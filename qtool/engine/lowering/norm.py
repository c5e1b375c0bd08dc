"""Normalizations and softmax."""

from __future__ import annotations

import math

import numpy as np

from qtool.engine.lowering.accumulate import optional
from qtool.engine.lowering.border import quantize_floats
from qtool.engine.lowering.groups import Group
from qtool.engine.lowering.layout import Layout, layouts_agree
from qtool.engine.lowering.segment import Segment, Unsupported
from qtool.engine.tables import softmax_powers
from qtool.native import Kind, abi
from qtool.ops import attrs_of

MOST_SUMMED = 1 << 22


def lower_batch_norm(segment: Segment, group: Group) -> None:
    """A scale and a shift a channel."""
    source, node = segment.source, group.host
    source.need_float(*node.inputs, *node.outputs)
    mean, variance = (source.constant(name, "running statistics") for name in node.inputs[1:3])
    weight, bias = (
        source.constant(name, "parameter") if (name := optional(node, position)) else None for position in (3, 4)
    )
    scale = np.float64(1) / np.sqrt(variance.astype(np.float64) + attrs_of(node).eps)
    scale = scale if weight is None else scale * weight
    shift = (0 if bias is None else bias) - mean * scale
    shape = segment.shape(node.inputs[0])
    args = abi.make(
        abi.AffineArgs,
        rows=math.prod(shape) // shape[1],
        channels=shape[1],
        scale=np.ascontiguousarray(scale, np.float32),
        shift=np.ascontiguousarray(shift, np.float32),
    )
    read = segment.read(node.inputs[0], Layout.LAST)
    segment.emit(Kind.SAFFINE, (read,), segment.write(node.outputs[0], Layout.LAST), args, in_place=True)


def lower_layer_norm(segment: Segment, group: Group) -> None:
    source, node = segment.source, group.host
    attrs = attrs_of(node)
    scale, shift = (
        source.constant(name, "parameter").ravel() if (name := optional(node, position)) else None
        for position in (1, 2)
    )
    size = math.prod(attrs.normalized_shape)
    rows = math.prod(segment.shape(node.inputs[0])) // size
    read = segment.read(node.inputs[0], Layout.PLAIN)
    if source.qparams(node.outputs[0]) is not None:
        source.need_float(*node.inputs[1:])
        x, out = source.per_tensor(node.inputs[0]), source.per_tensor(node.outputs[0])
        if x.dtype is not out.dtype:
            raise Unsupported("a layer norm from int8 to uint8, or back")
        numbers = {"x_zero": int(x.zero_point[0]), "out_zero": int(out.zero_point[0]), "shift": -x.limits[0]}
        scales = {"x_scale": float(x.scale[0]), "out_scale": float(out.scale[0]), "eps": attrs.eps}
        args = abi.make(
            abi.QrowsArgs, rows=rows, n=need_short(size), inner=1, weight=scale, bias=shift, **numbers, **scales
        )
        segment.emit(Kind.QLAYERNORM, (read,), segment.write(node.outputs[0], Layout.PLAIN), args)
        return
    source.need_float(*node.inputs, *node.outputs)
    floats = abi.make(abi.RowsArgs, rows=rows, n=size, eps=attrs.eps, scale=scale, shift=shift)
    segment.emit(Kind.SLAYERNORM, (read,), segment.write(node.outputs[0], Layout.PLAIN), floats)


def lower_softmax(segment: Segment, group: Group) -> None:
    """Over the axis that lies last in memory, in one layout or the other."""
    source, node = segment.source, group.host
    shape = segment.shape(node.inputs[0])
    dim = attrs_of(node).dim % len(shape)
    layout = Layout.LAST if dim == 1 and not layouts_agree(shape) else Layout.PLAIN
    if layout.axes(len(shape))[-1] != dim:
        raise Unsupported(f"softmax over axis {dim} of {len(shape)}")
    rows = {"rows": math.prod(shape) // shape[dim], "n": shape[dim]}
    read = segment.read(node.inputs[0], layout)
    if source.qparams(node.outputs[0]) is None:
        source.need_float(*node.inputs, *node.outputs)
        args = abi.make(abi.RowsArgs, **rows)
        segment.emit(Kind.SSOFTMAX, (read,), segment.write(node.outputs[0], layout), args)
        return
    need_short(shape[dim])
    powers = softmax_powers(source.per_tensor(node.inputs[0]))
    floats = segment.buffer(4 * math.prod(shape))
    segment.emit(Kind.QSOFTMAX, (read,), floats, abi.make(abi.QrowsArgs, **rows, inner=1, powers=powers))
    quantize_floats(segment, floats, segment.write(node.outputs[0], layout), node.outputs[0])


def need_short(count: int) -> int:
    """A number of elements whose sums the kernels for bytes can hold."""
    if count > MOST_SUMMED:
        raise Unsupported(f"a sum of {count} bytes")
    return count
