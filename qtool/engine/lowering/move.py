"""Operators that move values: without a byte copied where the layouts allow."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from qtool.engine.lowering.groups import Group
from qtool.engine.lowering.layout import Layout, Sizes, dims_of, permutation
from qtool.engine.lowering.pick import picked, ready_place, same_parameters
from qtool.engine.lowering.segment import MAX_RANK, Segment, Unsupported
from qtool.engine.lowering.view import View, dense
from qtool.engine.tables import Table, requantize_table
from qtool.ir import Node
from qtool.native import Kind, abi
from qtool.ops import attrs_of


def lower_identity(segment: Segment, group: Group) -> None:
    """identity and dropout: another name for the same bytes."""
    node = group.host
    same_parameters(segment, node)
    for layout in segment.layouts(node.inputs[0]):
        segment.alias(node.outputs[0], layout, segment.read(node.inputs[0], layout, direct=True))


def lower_reshape(segment: Segment, group: Group) -> None:
    """flatten, reshape, squeeze and unsqueeze: another shape for the same row-major bytes."""
    node = group.host
    same_parameters(segment, node)
    x, out = node.inputs[0], node.outputs[0]
    view = segment.view(x).reshaped(segment.shape(x), segment.shape(out)) if segment.is_view(x) else None
    if view is None:
        segment.alias(out, Layout.PLAIN, segment.read(x, Layout.PLAIN, direct=True))
    else:
        segment.later(out, Layout.PLAIN, lambda: segment.read(x, Layout.PLAIN, direct=True), view)


def lower_permute(segment: Segment, group: Group) -> None:
    """permute and transpose, from the layout in which the input is to that in which the output is wanted: channels-last
    bytes may already be what is asked for."""
    node = group.host
    same_parameters(segment, node)
    x, out = node.inputs[0], node.outputs[0]
    shape = segment.shape(x)
    dims = dims_of(node, len(shape))
    if segment.is_view(x):
        _permute_view(segment, node, dims)
        return
    changes = []
    for origin in segment.layouts(x):
        for target in Layout:
            wanted = tuple(dims[axis] for axis in target.axes(len(shape)))
            change = permutation(shape, origin.axes(len(shape)), wanted)
            changes.append((change is not None, target is not segment.wants(out), origin, target, change))
    _, _, origin, target, change = min(changes, key=lambda entry: entry[:2])
    if change is not None and len(change[0]) > MAX_RANK:
        raise Unsupported(f"a permutation of rank {len(change[0])}")
    read = segment.read(x, origin, direct=True)
    if change is None:
        segment.alias(out, target, read)
    else:
        view = _view_in(segment, x, origin).permuted(dims)
        segment.later(out, target, lambda: _permuted(segment, out, read, change), view)


def _permuted(segment: Segment, out: str, buffer: int, change: tuple[Sizes, Sizes]) -> int:
    target = segment.buffer(segment.sizes[buffer])
    segment.permute(buffer, target, segment.source.value(out).dtype.numpy.itemsize, change)
    return target


def _permute_view(segment: Segment, node: Node, dims: Sizes) -> None:
    """A permutation of what is only a view so far is one too; in memory it is made from the whole, or from that."""
    x, out = node.inputs[0], node.outputs[0]
    shape, view = segment.shape(out), segment.view(x).permuted(dims)
    item = segment.source.value(x).dtype.numpy.itemsize
    whole = view.permutation(shape) if math.prod(shape) * item == segment.sizes[view.buffer] else None
    change = permutation(segment.shape(x), range(len(dims)), dims)

    def make() -> int:
        if whole is not None:
            return _permuted(segment, out, view.buffer, whole)
        read = segment.read(x, Layout.PLAIN, direct=True)
        return read if change is None else _permuted(segment, out, read, change)

    segment.later(out, Layout.PLAIN, make, view)


def _view_in(segment: Segment, name: str, layout: Layout) -> View:
    """A value that lies whole in a buffer, in a layout."""
    shape = segment.shape(name)
    axes = layout.axes(len(shape))
    steps = dict(zip(axes, dense(layout.sizes(shape)), strict=True))
    return View(segment.read(name, layout, direct=True), tuple(steps[axis] for axis in range(len(shape))))


BLOCKS = {
    ("depth_to_space", "DCR"): (0, 1, 3, 2, 4, 5),
    ("depth_to_space", "CRD"): (0, 1, 4, 2, 5, 3),
    ("space_to_depth", "DCR"): (0, 1, 3, 2, 4, 5),
    ("space_to_depth", "CRD"): (0, 1, 3, 5, 2, 4),
}
"""The order of the axes of pictures that lie channels-last, with those of blocks apart."""


def lower_blocks(segment: Segment, group: Group) -> None:
    """depth_to_space and space_to_depth: blocks of pixels from channels, and back."""
    node = group.host
    same_parameters(segment, node)
    attrs, (x,), (out,) = attrs_of(node), node.inputs, node.outputs
    block, (batch, channels, height, width) = attrs.blocksize, segment.shape(x)
    if node.op == "space_to_depth":
        sizes = (batch, height // block, block, width // block, block, channels)
    else:
        rest = channels // (block * block)
        sizes = (batch, height, width, *((block, block, rest) if attrs.mode == "DCR" else (rest, block, block)))
    read, target = segment.read(x, Layout.LAST, direct=True), segment.write(out, Layout.LAST)
    item = segment.source.value(x).dtype.numpy.itemsize
    segment.permute(read, target, item, (sizes, BLOCKS[node.op, attrs.mode]))


def lower_cat(segment: Segment, group: Group) -> None:
    """Every input is copied to its place, int8 ones by a table where their parameters are others."""
    source, node = segment.source, group.host
    out = node.outputs[0]
    qparams = source.qparams(out)
    if qparams is not None:
        source.per_tensor(out)
    layout = _common_layout(segment, node)
    write = segment.write(out, layout)
    dim = attrs_of(node).dim % len(segment.shape(out))
    start = 0
    for name in node.inputs:
        table = None
        if qparams is not None and source.per_tensor(name) != qparams:
            table = requantize_table(source.per_tensor(name), qparams)
        read = segment.read(name, layout, direct=True)
        end = start + segment.shape(name)[dim]
        part = Part(segment, name, (dim, start, end), layout)
        segment.emit(Kind.COPY, (read,), write, part.copied_into(out, table))
        start = end


def _common_layout(segment: Segment, node: Node) -> Layout:
    moving = [name for name in node.inputs if name not in segment.source.constants]
    ready = [layout for layout in Layout if all(layout in segment.layouts(name) for name in moving)]
    wanted = segment.wants(node.outputs[0])
    return wanted if wanted in ready or not ready else ready[0]


def lower_slice(segment: Segment, group: Group) -> None:
    node = group.host
    attrs = attrs_of(node)
    shape = segment.shape(node.inputs[0])
    dim = attrs.dim % len(shape)
    along = slice(attrs.start, attrs.end, attrs.step)
    if attrs.step == 1:
        start, end, _ = along.indices(shape[dim])
        _cut(segment, node, [(dim, start, end)])
    else:
        picked(segment, node, {dim: np.arange(shape[dim])[along]})


def lower_split(segment: Segment, group: Group) -> None:
    node = group.host
    attrs = attrs_of(node)
    dim = attrs.dim % len(segment.shape(node.inputs[0]))
    ends = np.cumsum(attrs.split_sizes).tolist()
    _cut(segment, node, [(dim, end - size, end) for size, end in zip(attrs.split_sizes, ends, strict=True)])


def _cut(segment: Segment, node: Node, ranges: list[tuple[int, int, int]]) -> None:
    """Every output is a range of the input along one axis."""
    same_parameters(segment, node)
    x = node.inputs[0]
    layout = ready_place(segment, x)
    whole = segment.view(x) if segment.is_view(x) else _view_in(segment, x, layout)
    for out, along in zip(node.outputs, ranges, strict=True):
        args = Part(segment, out, along, layout).copied_from(x)
        segment.later(out, layout, partial(_copied, segment, (x, out), layout, args), whole.cut(*along[:2]))


def _copied(segment: Segment, names: tuple[str, str], layout: Layout, args: abi.CopyArgs) -> int:
    x, out = names
    read, target = segment.read(x, layout, direct=True), segment.write(out, layout)
    segment.emit(Kind.COPY, (read,), target, args)
    return target


class Part:
    """A value that is a range of another one along an axis, as rows of bytes."""

    def __init__(self, segment: Segment, name: str, along: tuple[int, int, int], layout: Layout) -> None:
        self._segment = segment
        self._along = along
        self._layout = layout
        self._bytes = math.prod(segment.shape(name)) * segment.source.value(name).dtype.numpy.itemsize

    def copied_into(self, whole: str, table: Table | None) -> abi.CopyArgs:
        """The arguments that copy the part to its place in the whole."""
        rows, row, start = self.rows(whole)
        part = self._bytes // max(rows, 1)
        return abi.make(
            abi.CopyArgs, rows=rows, row_bytes=part, in_stride=part, out_stride=row, out_offset=start, lut=table
        )

    def copied_from(self, whole: str) -> abi.CopyArgs:
        """The arguments that copy the part out of the whole."""
        rows, row, start = self.rows(whole)
        part = self._bytes // max(rows, 1)
        return abi.make(abi.CopyArgs, rows=rows, row_bytes=part, in_stride=row, out_stride=part, in_offset=start)

    def rows(self, whole: str) -> Sizes:
        """The whole's rows, from one index of the axis's outer neighbours to the next: their number, their bytes, and
        where the part begins in each."""
        dim, first, _ = self._along
        shape = self._segment.shape(whole)
        axes = self._layout.axes(len(shape))
        place = axes.index(dim)
        item = self._segment.source.value(whole).dtype.numpy.itemsize
        inner = math.prod(shape[axis] for axis in axes[place + 1 :]) * item
        return math.prod(shape[axis] for axis in axes[:place]), inner * shape[dim], inner * first
