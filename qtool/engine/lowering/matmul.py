"""Products of matrices: in float, and of two activations in int8."""

from __future__ import annotations

import math

import numpy as np

from qtool.engine.lowering.accumulate import Fields, arranged, product_fields
from qtool.engine.lowering.groups import INFINITY, Group
from qtool.engine.lowering.layout import Layout, Sizes
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.lowering.view import View, broadcast_strides, dense
from qtool.engine.requantize import F32, offset_zero
from qtool.ir import Node
from qtool.native import Kind, abi

BATCH_AXES = 4
MOST_INNER = 33000
MOST_MULTIPLIER = 1e28


def lower_matmul(segment: Segment, group: Group) -> None:
    """A product with a constant matrix on the right is a linear layer; any other reads both sides where they lie."""
    source, node = segment.source, group.host
    if source.qparams(node.outputs[0]) is not None:
        _lower_product(segment, group, _quantized(source, node))
        return
    source.need_float(*node.inputs, *node.outputs)
    a, b = (segment.shape(name) for name in node.inputs)
    if node.inputs[1] in source.constants and len(b) == 2 and len(a) >= 2:
        _lower_linear(segment, group)
    else:
        _lower_product(segment, group, {"scale": group.factor})


def _lower_linear(segment: Segment, group: Group) -> None:
    source, node = segment.source, group.host
    a, b = (segment.shape(name) for name in node.inputs)
    fields = product_fields(math.prod(a[:-1]), b[0], b[1])
    weight = arranged(source, node.inputs[1], "transposed", np.transpose)
    args = abi.make(abi.ConvArgs, weight=weight, out_min_f=-INFINITY, out_max_f=INFINITY, **fields)
    read = segment.read(node.inputs[0], Layout.PLAIN)
    segment.emit(Kind.SCONV, (read,), segment.write(node.outputs[0], Layout.PLAIN), args)


def _quantized(source: Source, node: Node) -> Fields:
    """The arithmetic of bytes, as the reference has it: exact sums, one multiplier, one rounding."""
    a, b, out = (source.per_tensor(name) for name in (*node.inputs, *node.outputs))
    multiplier = (a.scale[0] * b.scale[0]) * (F32(1) / out.scale[0])
    if not 0 < multiplier < MOST_MULTIPLIER:
        raise Unsupported(f"a multiplier of {multiplier}")
    zeros = {"a_zero": offset_zero(a), "b_zero": offset_zero(b), "out_zero": offset_zero(out)}
    return {"scale": float(multiplier), **zeros}


def _lower_product(segment: Segment, group: Group, numbers: Fields) -> None:
    node, mask = group.host, group.residual
    if mask:
        segment.source.need_float(mask)
    a, b = (_matrix(segment, name, side) for side, name in enumerate(node.inputs))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if len(batch) > BATCH_AXES:
        raise Unsupported(f"a product over {len(batch)} leading axes")
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    fields: Fields = {"batch": (1,) * (BATCH_AXES - len(batch)) + batch, "rows": rows, "inner": inner}
    fields |= {"columns": columns, **numbers, "mask": int(bool(mask))}
    *fields["a_batch"], fields["a_row"], fields["a_inner"] = a.strides
    *fields["b_batch"], fields["b_inner"], fields["b_column"] = b.strides
    fields |= {"a_offset": a.offset, "b_offset": b.offset}
    inputs = [a.buffer, b.buffer]
    if mask:
        view = segment.view(mask)
        if view.strides[-1] != 1 and columns != 1:
            view = View(segment.read(mask, Layout.PLAIN, direct=True), dense(segment.shape(mask)))
        strides = broadcast_strides(segment.shape(mask), view.strides, BATCH_AXES + 2)
        fields |= {"mask_batch": strides[:-2], "mask_row": strides[-2], "mask_offset": view.offset}
        inputs.append(view.buffer)
    *fields["y_batch"], fields["y_row"], _ = _output_strides((*batch, rows, columns), group.dims)
    args = abi.make(abi.MatmulArgs, **{name: _plain(value) for name, value in fields.items()})
    quantized = segment.source.qparams(node.outputs[0]) is not None
    if quantized and inner > MOST_INNER:
        raise Unsupported(f"sums of {inner} products of bytes")
    segment.emit(
        Kind.QMATMUL if quantized else Kind.SMATMUL, tuple(inputs), segment.write(group.output, Layout.PLAIN), args
    )


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class _Operand:
    """A side of the product: its shape with two axes at least, and the strides of six axes."""

    def __init__(self, shape: Sizes, view: View) -> None:
        self.shape = shape
        self.buffer = view.buffer
        self.offset = view.offset
        spread = broadcast_strides(shape[:-2], view.strides[:-2], BATCH_AXES)
        self.strides = (*spread, *view.strides[-2:])


def _matrix(segment: Segment, name: str, side: int) -> _Operand:
    """A vector is a row on the left and a column on the right."""
    shape, view = segment.shape(name), segment.view(name)
    if len(shape) > BATCH_AXES + 2:
        raise Unsupported(f"a product of shape {shape}")
    if len(shape) == 1:
        (step,) = view.strides
        shape, strides = ((1, *shape), (0, step)) if side == 0 else ((*shape, 1), (step, 1))
        view = View(view.buffer, strides, view.offset)
    return _Operand(shape, view)


def _output_strides(shape: Sizes, dims: Sizes | None) -> Sizes:
    """Of the product's axes in the output, whose axes are the product's in the order ``dims``."""
    order = tuple(range(len(shape))) if dims is None else dims
    steps = dense(tuple(shape[axis] for axis in order))
    own = tuple(steps[order.index(axis)] for axis in range(len(shape)))
    return broadcast_strides(shape[:-2], own[:-2], BATCH_AXES) + own[-2:]
