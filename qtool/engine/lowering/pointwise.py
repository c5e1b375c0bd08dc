"""Functions of one element: tables for bytes, formulas for floats, and the borders between the two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qtool.engine.lowering.groups import INFINITY, Group
from qtool.engine.lowering.layout import Layout
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.reference import run_node
from qtool.engine.tables import every_value, offset
from qtool.ir import Node
from qtool.native import Kind, abi
from qtool.ops import attrs_of

Formula = Callable[[Any], tuple[abi.Unary, float, float]]

FORMULAS: dict[str, Formula] = {
    "relu": lambda _: (abi.Unary.CLAMP, 0.0, INFINITY),
    "relu6": lambda _: (abi.Unary.CLAMP, 0.0, 6.0),
    "hardtanh": lambda attrs: (abi.Unary.CLAMP, attrs.low, attrs.high),
    "clamp": lambda attrs: (abi.Unary.CLAMP, attrs.low, attrs.high),
    "leaky_relu": lambda attrs: (abi.Unary.LEAKY_RELU, attrs.negative_slope, 0.0),
    "elu": lambda attrs: (abi.Unary.ELU, attrs.alpha, 0.0),
    "hardswish": lambda _: (abi.Unary.HARDSWISH, 0.0, 0.0),
    "hardsigmoid": lambda _: (abi.Unary.HARDSIGMOID, 0.0, 0.0),
    "sigmoid": lambda _: (abi.Unary.SIGMOID, 0.0, 0.0),
    "tanh": lambda _: (abi.Unary.TANH, 0.0, 0.0),
    "gelu": lambda attrs: (abi.Unary.GELU_TANH if attrs.approximate == "tanh" else abi.Unary.GELU, 0.0, 0.0),
    "exp": lambda _: (abi.Unary.EXP, 0.0, 0.0),
    "silu": lambda _: (abi.Unary.SILU, 0.0, 0.0),
}


def lower_unary(segment: Segment, group: Group) -> None:
    """relu, sigmoid, hardswish and the like."""
    source, node = segment.source, group.host
    if source.qparams(node.outputs[0]) is not None:
        _lower_channel_tables(segment, group)
        return
    source.need_float(*node.inputs, *node.outputs)
    kind, a, b = _formula(source, node)
    args = abi.make(abi.UnaryArgs, count=math.prod(segment.shape(node.inputs[0])), kind=kind, a=a, b=b)
    pointwise(segment, group, node.inputs[0], Kind.SUNARY, args)


def _lower_channel_tables(segment: Segment, group: Group) -> None:
    """prelu in int8 with a slope a channel: a table for each."""
    source, node = segment.source, group.host
    x, out, shape = node.inputs[0], node.outputs[0], segment.shape(node.inputs[0])
    if node.op != "prelu" or len(shape) < 2:
        raise Unsupported("no function of one byte")
    slope, values = source.constant(node.inputs[1], "slope"), every_value(source.per_tensor(x))
    spread = np.ascontiguousarray(np.broadcast_to(values[:, None], (256, shape[1])))
    (result,) = run_node(source.graph, node, {node.inputs[1]: slope, x: spread})
    tables = np.ascontiguousarray(offset(result, source.per_tensor(out)).T)
    args = abi.make(abi.LutArgs, count=math.prod(shape), table=tables, channels=shape[1])
    read = segment.read(x, Layout.LAST)
    segment.emit(Kind.LUT, (read,), segment.write(group.output, Layout.LAST), args, in_place=True)


def _formula(source: Source, node: Node) -> tuple[abi.Unary, float, float]:
    if node.op == "prelu":
        slope = source.constant(node.inputs[1], "slope")
        if slope.size != 1:
            raise Unsupported("a slope a channel")
        return abi.Unary.LEAKY_RELU, float(slope.reshape(())), 0.0
    return FORMULAS[node.op](attrs_of(node))


def lower_table(segment: Segment, group: Group) -> None:
    """A function of one byte, or several on end."""
    name = next(name for name in group.host.inputs if name and name not in segment.source.constants)
    if segment.shape(name) != segment.shape(group.output):
        raise Unsupported("a constant of a higher rank")
    table = np.ascontiguousarray(group.lut)
    pointwise(segment, group, name, Kind.LUT, abi.make(abi.LutArgs, count=math.prod(segment.shape(name)), table=table))


def pointwise(segment: Segment, group: Group, name: str, kind: Kind, args: abi.Args) -> None:
    """An operator that does not care where an element lies."""
    layout = ready_layout(segment, name, group.output)
    read = segment.read(name, layout)
    segment.emit(kind, (read,), segment.write(group.output, layout), args, in_place=True)


def ready_layout(segment: Segment, name: str, output: str) -> Layout:
    """The layout that the output is wanted in, if the input is there already; else the one that it is in."""
    ready = segment.layouts(name)
    return segment.wants(output) if segment.wants(output) in ready else ready[0]
