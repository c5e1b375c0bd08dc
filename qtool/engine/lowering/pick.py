"""Operators that pick pixels by index: pads, slices with a step, pictures resized to the nearest pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qtool.engine.lowering.groups import Group
from qtool.engine.lowering.layout import Layout, Sizes
from qtool.engine.lowering.segment import Segment, Unsupported
from qtool.engine.tables import offset
from qtool.ir import Array, Node
from qtool.native import Kind, abi
from qtool.ops import attrs_of, get
from qtool.ops.resize import nearest_pixels
from qtool.ops.shape import pad_pairs

OUTSIDE = -1
"""The index of what is filled."""
MOST_ROWS = 1 << 24


def same_parameters(segment: Segment, node: Node) -> None:
    """Unsupported unless the node only moves its input's stored numbers."""
    source = segment.source
    x = source.qparams(node.inputs[0])
    if any(source.qparams(out) != x for out in node.outputs) or (x is not None and x.axis is not None):
        raise Unsupported("an output with other parameters than the input")


def ready_place(segment: Segment, name: str) -> Layout:
    """A layout that a value is in already."""
    return Layout.PLAIN if segment.is_view(name) else segment.layouts(name)[0]


def lower_pad(segment: Segment, group: Group) -> None:
    """Every mode; what is cut off is a pad of less than nothing."""
    node = group.host
    attrs = attrs_of(node)
    shape, pairs = segment.shape(node.inputs[0]), pad_pairs(attrs)
    indices = {}
    for axis, pair in enumerate(pairs, len(shape) - len(pairs)):
        along = replace(attrs, pad=pair, value=float(OUTSIDE))
        if any(pair):
            (padded,) = get("pad").reference(along, np.arange(shape[axis]))
            indices[axis] = padded
    picked(segment, node, indices, attrs.value)


def lower_resize(segment: Segment, group: Group) -> None:
    """To the nearest pixel; all else is a sum that the reference takes in float64."""
    source, node = segment.source, group.host
    attrs = attrs_of(node)
    if attrs.mode != "nearest" or attrs.coordinate_transformation_mode == "tf_crop_and_resize":
        raise Unsupported(f"a resize in mode {attrs.mode} and {attrs.coordinate_transformation_mode}")
    told = [source.constant(name, "new size") if name else None for name in node.inputs[2:]]
    scales, sizes = (*told, None, None)[:2]
    shape = segment.shape(node.inputs[0])
    indices = nearest_pixels(attrs, shape, scales, sizes)
    whole = {axis: np.arange(shape[axis]) for axis in indices}
    picked(segment, node, {axis: i for axis, i in indices.items() if not np.array_equal(i, whole[axis])})


def picked(segment: Segment, node: Node, indices: Mapping[int, Array], fill: float = 0.0) -> None:
    """Every pixel of the output is one of the input, whose index along some axes is given; or, outside, the fill."""
    same_parameters(segment, node)
    x, out = node.inputs[0], node.outputs[0]
    layout = ready_place(segment, x)
    read = segment.read(x, layout, direct=True)
    if not indices:
        segment.alias(out, layout, read)
        return
    shape, value = segment.shape(x), segment.source.value(x)
    axes = layout.axes(len(shape))
    rows, inner = _rows(layout.sizes(shape), {axes.index(axis): index for axis, index in indices.items()})
    number = np.array([fill], np.float32)
    qparams = value.qparams
    filled = number.astype(value.dtype.numpy) if qparams is None else offset(qparams.quantize(number), qparams)
    args = abi.make(
        abi.MoveArgs,
        outer=math.prod(layout.sizes(shape)) // math.prod(inner),
        count=rows.size,
        in_rows=inner[0],
        out_rows=rows.size,
        row_bytes=inner[1] * filled.itemsize,
        source=rows,
        fill=(*filled.tobytes(), *bytes(8 - filled.itemsize)),
        element_bytes=filled.itemsize,
    )
    segment.emit(Kind.MOVE, (read,), segment.write(out, layout), args)


def _rows(sizes: Sizes, indices: Mapping[int, Array]) -> tuple[Array, Sizes]:
    """The rows that are picked of all axes from the first to the last one with an index, as numbers of one axis; and
    how many there are before, and elements in each. Axes are those of memory."""
    first, last = min(indices), max(indices) + 1
    along = [indices.get(axis, np.arange(sizes[axis])) for axis in range(first, last)]
    if math.prod(index.size for index in along) > MOST_ROWS:
        raise Unsupported(f"more than {MOST_ROWS} rows of bytes to move")
    rows, outside = np.zeros((), np.int64), np.zeros((), np.bool_)
    for index, size in zip(np.ix_(*along), sizes[first:last], strict=True):
        rows, outside = rows * size + index, outside | (index == OUTSIDE)
    picked = np.ascontiguousarray(np.where(outside, OUTSIDE, rows).ravel(), np.int32)
    return picked, (math.prod(sizes[first:last]), math.prod(sizes[last:]))
