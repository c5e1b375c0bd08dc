"""Functions of two tensors, with the broadcasts that rows of channels can have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qtool.engine.lowering.border import as_floats, quantize_floats
from qtool.engine.lowering.groups import BYTES, INFINITY, REALS, Group, Interval, both
from qtool.engine.lowering.layout import Layout, Sizes
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.requantize import add_parameters, binary, output_limits
from qtool.ir import Node
from qtool.native import Kind, abi
from qtool.ops import attrs_of

KINDS = {"add": abi.Binary.ADD, "sub": abi.Binary.SUB, "mul": abi.Binary.MUL, "div": abi.Binary.DIV}
COMMUTATIVE = ("add", "mul")
SAME, ROW, SCALAR, ROWS = range(4)
"""``b_broadcast``: the same shape, one row for all, one number, one row for every ``rows_per_b`` rows."""


@dataclass(frozen=True)
class Broadcast:
    """The output as rows x channels, and how b is spread over it."""

    rows: int
    channels: int
    how: int
    rows_per_b: int = 0

    def fields(self) -> dict[str, int]:
        return {
            "rows": self.rows,
            "channels": self.channels,
            "b_broadcast": self.how,
            "rows_per_b": self.rows_per_b,
        }


def lower_binary(segment: Segment, group: Group) -> None:
    """add, sub, mul and div, with the bounds that follow."""
    source, node = segment.source, group.host
    quantized = source.qparams(node.outputs[0]) is not None
    a, b = node.inputs
    if segment.shape(a) != segment.shape(node.outputs[0]) and node.op in COMMUTATIVE:
        a, b = b, a
    layout, broadcast = _arranged(segment, (a, b), node.outputs[0])
    if quantized and not all(map(source.qparams, (a, b))):
        _through_floats(segment, group, (a, b), layout, broadcast)
        return
    if quantized:
        args = _quantized_args(source, node, (a, b), group.bounds)
        for name, value in broadcast.fields().items():
            setattr(args, name, value)
    else:
        source.need_float(a, b, node.outputs[0])
        args = _float_args(node, broadcast, group.bounds)
    inputs = (segment.read(a, layout), segment.read(b, layout))
    kind = Kind.QBINARY if quantized else Kind.SBINARY
    segment.emit(kind, inputs, segment.write(group.output, layout), args, in_place=True)


def _float_args(node: Node, broadcast: Broadcast, bounds: Interval) -> abi.BinaryArgs:
    low, high = both((0.0, INFINITY) if _has_relu(node) else REALS, bounds)
    return abi.make(abi.BinaryArgs, kind=KINDS[node.op], out_min_f=low, out_max_f=high, **broadcast.fields())


def _through_floats(
    segment: Segment, group: Group, names: tuple[str, str], layout: Layout, broadcast: Broadcast
) -> None:
    """A quantized tensor and a float one: dequantized, combined, quantized, and bounded last."""
    output = group.output
    read = [as_floats(segment, name, layout) for name in names]
    floats = segment.buffer(4 * math.prod(segment.shape(output)))
    segment.emit(Kind.SBINARY, (read[0], read[1]), floats, _float_args(group.host, broadcast, REALS))
    result = segment.write(output, layout)
    quantize_floats(segment, floats, result, group.host.outputs[0])
    if group.bounds != BYTES:
        table = np.clip(np.arange(256), *group.bounds).astype(np.uint8)
        segment.emit(Kind.LUT, (result,), result, abi.make(abi.LutArgs, count=segment.sizes[result], table=table))


def _has_relu(node: Node) -> bool:
    return node.op == "add" and attrs_of(node).activation == "relu"


def _arranged(segment: Segment, inputs: tuple[str, str], output: str) -> tuple[Layout, Broadcast]:
    """A layout in which b can be spread over a, best one that both are in already."""
    a, b = (segment.shape(name) for name in inputs)
    if a != segment.shape(output):
        raise Unsupported(f"shapes {a} and {b}: the first is spread as well")
    moving = [name for name in inputs if name not in segment.source.constants]
    ready = [layout for layout in Layout if all(layout in segment.layouts(name) for name in moving)]
    wanted = segment.wants(output)
    preferred = sorted(Layout, key=lambda layout: (layout not in ready, layout is not wanted))
    for layout in preferred:
        broadcast = spread(a, b, layout)
        if broadcast is not None:
            return layout, broadcast
    raise Unsupported(f"shapes {a} and {b}")


def spread(a: Sizes, b: Sizes, layout: Layout) -> Broadcast | None:
    """How b is spread over a when both lie in ``layout``; None where rows of channels cannot say it."""
    if len(b) < len(a) and layout is Layout.LAST and math.prod(b) != 1:
        b = (1,) * (len(a) - len(b)) + b
    b = (1,) * (len(a) - len(b)) + b
    outer, inner = layout.sizes(a), layout.sizes(b)
    if a == b:
        return Broadcast(math.prod(outer[:-1]), outer[-1] if outer else 1, SAME)
    if math.prod(b) == 1:
        return Broadcast(math.prod(outer[:-1]), outer[-1], SCALAR)
    head = next(i for i, (n, m) in enumerate(zip(outer, inner, strict=True)) if n != m)
    tail = max(i for i, (n, m) in enumerate(zip(outer, inner, strict=True)) if n != m) + 1
    if math.prod(inner[head:tail]) != 1:
        return None
    channels, repeats = math.prod(outer[tail:]), math.prod(outer[head:tail])
    rows = math.prod(outer[:tail])
    if math.prod(outer[:head]) == 1:
        return Broadcast(rows, channels, ROW)
    return Broadcast(rows, channels, ROWS, repeats)


def _quantized_args(source: Source, node: Node, inputs: tuple[str, str], bounds: Interval) -> abi.BinaryArgs:
    a, b, out = (source.per_tensor(name) for name in (*inputs, node.outputs[0]))
    relu = "relu" if _has_relu(node) else "none"
    limits = within(output_limits(out, relu, None), bounds)
    if node.op == "add":
        same_shape = len({source.shapes[name] for name in inputs}) == 1
        params = add_parameters(source.arithmetic, same_shape, (a, b, out), limits)
    else:
        params = binary(node.op, a, b, out, limits)
    fields = {name: getattr(params, name) for name in params.__dataclass_fields__}
    return abi.make(abi.BinaryArgs, kind=KINDS[node.op], **fields)


def add_args(source: Source, node: Node, inputs: tuple[str, str], bounds: Interval) -> abi.BinaryArgs:
    """The add that a convolution does in its epilogue: of its own rounded result and a residual of that shape."""
    args = _quantized_args(source, node, inputs, bounds)
    shape = source.shapes[node.outputs[0]]
    channels = shape[-1] if len(shape) == 2 else shape[1]
    args.rows, args.channels = math.prod(shape) // channels, channels
    return args


def within(limits: tuple[int, int], bounds: Interval) -> tuple[int, int]:
    """Limits of a byte, bounded once more."""
    low, high = both(limits, bounds)
    return int(low), int(high)
