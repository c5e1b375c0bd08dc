"""Rows of a table by number: embedding, and gather along the first axis."""

from __future__ import annotations

import math

from qtool.engine.lowering.groups import Group
from qtool.engine.lowering.layout import Layout
from qtool.engine.lowering.segment import Segment, Unsupported
from qtool.native import Kind, abi
from qtool.ops import attrs_of


def lower_gather(segment: Segment, group: Group) -> None:
    source, node = segment.source, group.host
    embeds = node.op == "embedding"
    numbers, table = node.inputs if embeds else node.inputs[::-1]
    shape, kind = segment.shape(table), source.value(numbers).dtype.numpy
    if not embeds and (not shape or attrs_of(node).axis % len(shape) != 0):
        raise Unsupported("a gather along another axis than the first")
    source.need_float(table, node.outputs[0])
    if kind.kind != "i" or kind.itemsize not in (4, 8):
        raise Unsupported(f"numbers of {kind.name}")
    args = abi.make(
        abi.GatherArgs,
        count=math.prod(segment.shape(numbers)),
        table_rows=shape[0],
        row_bytes=math.prod(shape[1:]) * source.value(table).dtype.numpy.itemsize,
        index_bytes=kind.itemsize,
        wrap=int(not embeds),
    )
    reads = (segment.as_given(numbers), segment.as_given(table))
    segment.emit(Kind.GATHER, reads, segment.write(node.outputs[0], Layout.PLAIN), args)
