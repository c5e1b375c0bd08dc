"""Convolutions and linear layers, in int8 and in float."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qtool.engine.lowering.binary import add_args, within
from qtool.engine.lowering.groups import INFINITY, REALS, Group, Interval, both
from qtool.engine.lowering.layout import Layout, Sizes
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.requantize import AccumulateOperands, Arithmetic, accumulate, output_limits
from qtool.ir import Array, Node
from qtool.native import Kind, abi
from qtool.ops import attrs_of

Fields = dict[str, Any]


def lower_accumulate(segment: Segment, group: Group) -> None:
    """conv1d, conv2d and linear with all that their group has taken over."""
    source, node = segment.source, group.host
    attrs = attrs_of(node)
    layout = Layout.PLAIN if node.op == "linear" else Layout.LAST
    fields = _linear_fields(segment, node) if node.op == "linear" else _conv_fields(segment, node, attrs)
    fields["weight"] = channels_last_weight(source, node.inputs[1])
    quantized = source.qparams(node.outputs[0]) is not None
    add = _quantized if quantized else _float
    residual = add(source, group, attrs, fields)
    inputs = [segment.read(name, layout) for name in filter(None, (node.inputs[0], residual))]
    kind = Kind.QCONV if quantized else Kind.SCONV
    output = segment.write(group.output, layout)
    segment.emit(kind, tuple(inputs), output, abi.make(abi.ConvArgs, **fields))
    if attrs.activation == "hardswish":
        unary = abi.make(abi.UnaryArgs, count=math.prod(segment.shape(group.output)), kind=abi.Unary.HARDSWISH)
        segment.emit(Kind.SUNARY, (output,), output, unary)


def _quantized(source: Source, group: Group, attrs: Any, fields: Fields) -> str:
    """The fields of int8 arithmetic; gives the residual's name."""
    node = group.host
    qparams = source.qparams(node.inputs[1])
    if qparams is None or qparams.zero_point.any():
        raise Unsupported("the weight is not quantized symmetrically")
    if attrs.activation == "hardswish":
        raise Unsupported("hardswish is no bound of an int8 result")
    fused = optional(node, 3)
    out = source.per_tensor(node.outputs[0])
    operands = AccumulateOperands(
        x=source.per_tensor(node.inputs[0]),
        weight=qparams,
        out=out,
        bias=source.constant(node.inputs[2], "bias") if optional(node, 2) else None,
        residual=source.per_tensor(fused) if fused else None,
    )
    limits = output_limits(out, attrs.activation, attrs.clamp)
    params = accumulate(source.arithmetic, fields["out_channels"], operands, limits)
    for name in ("x_zero", "multiplier", "bias_i32", "bias_f32", "out_zero", "res_zero", "res_multiplier"):
        fields[name] = getattr(params, name)
    fields["out_min"], fields["out_max"] = within((params.out_min, params.out_max), group.bounds)
    fields["residual"] = 1 if fused else 2 if group.add else 0
    if group.add is not None:
        fields["add"] = add_args(source, group.add, (node_result(group), group.residual), group.add_bounds)
    fields["lut"] = group.lut
    return fused or group.residual


def node_result(group: Group) -> str:
    """The value that the add of a group reads from its host."""
    assert group.add is not None
    return next(name for name in group.add.inputs if name != group.residual)


def _float(source: Source, group: Group, attrs: Any, fields: Fields) -> str:
    """The fields of float arithmetic; gives the residual's name."""
    node = group.host
    source.need_float(*node.inputs, *node.outputs)
    fused = optional(node, 3)
    own: Interval = {"relu": (0.0, INFINITY), "clamp": attrs.clamp}.get(attrs.activation) or REALS
    if group.add is None:
        low, high = both(own, group.bounds)
    else:  # the host's own result is unbounded then
        low, high = both((0.0, INFINITY) if attrs_of(group.add).activation == "relu" else REALS, group.add_bounds)
    fields["out_min_f"], fields["out_max_f"] = low, high
    fields["bias_f32"] = source.constant(node.inputs[2], "bias") if optional(node, 2) else None
    fields["residual"] = 1 if fused or group.add else 0
    return fused or group.residual


def optional(node: Node, position: int) -> str:
    """The name of an optional input; "" where it is left out."""
    return node.inputs[position] if len(node.inputs) > position else ""


def channels_last_weight(source: Source, name: str) -> Array:
    """OIHW -> O, H, W, I (and OIL, OI alike), contiguous."""
    return arranged(source, name, "channels last", lambda w: np.moveaxis(w, 1, -1))


def arranged(source: Source, name: str, how: str, arrange: Callable[[Array], Array]) -> Array:
    """A constant in another order, made once a plan."""
    key = (name, how)
    if key not in source.cache:
        source.cache[key] = np.ascontiguousarray(arrange(source.constant(name, "weight")))
    return source.cache[key]


def _linear_fields(segment: Segment, node: Node) -> Fields:
    x, weight = segment.shape(node.inputs[0]), segment.shape(node.inputs[1])
    return product_fields(math.prod(x[:-1]), weight[1], weight[0])


def product_fields(rows: int, inputs: int, outputs: int) -> Fields:
    """A matrix product as a convolution of ``rows`` pictures of one pixel."""
    ones = "in_height in_width out_height out_width kernel_height kernel_width stride_height stride_width"
    fields: Fields = dict.fromkeys([*ones.split(), "dilation_height", "dilation_width", "groups"], 1)
    return {**fields, "batch": rows, "in_channels": inputs, "out_channels": outputs}


def _conv_fields(segment: Segment, node: Node, attrs: Any) -> Fields:
    x, weight, out = (segment.shape(name) for name in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if attrs.padding_mode != "zeros" and any(map(any, attrs.padding)):
        raise Unsupported(f"padding_mode {attrs.padding_mode}")
    fields: Fields = {"batch": x[0], "in_channels": x[1], "out_channels": weight[0], "groups": attrs.groups}
    before = tuple(pair[0] for pair in attrs.padding)
    for prefix, values, fill in (
        ("in", x[2:], 1),
        ("out", out[2:], 1),
        ("kernel", weight[2:], 1),
        ("stride", attrs.stride, 1),
        ("dilation", attrs.dilation, 1),
    ):
        fields.update(planar(prefix, values, fill))
    fields.update(zip(("pad_top", "pad_left"), _two(before, 0), strict=True))
    return fields


def planar(prefix: str, values: Sizes, fill: int) -> Fields:
    """``{prefix}_height`` and ``{prefix}_width``; one axis is the width."""
    return dict(zip((f"{prefix}_height", f"{prefix}_width"), _two(values, fill), strict=True))


def _two(values: Sizes, fill: int) -> Sizes:
    return values if len(values) == 2 else (fill, *values)


def lower_linear_dynamic(segment: Segment, group: Group) -> None:
    source, node = segment.source, group.host
    attrs = attrs_of(node)
    source.need_float(node.inputs[0], optional(node, 2), *node.outputs)
    qparams = source.qparams(node.inputs[1])
    if qparams is None or qparams.zero_point.any():
        raise Unsupported("the weight is not quantized symmetrically")
    bounds = {"none": REALS, "relu": (0.0, INFINITY), "clamp": attrs.clamp}.get(attrs.activation)
    if bounds is None:
        raise Unsupported(f"activation {attrs.activation}")
    x, (outputs, inputs) = segment.shape(node.inputs[0]), segment.shape(node.inputs[1])
    args = abi.make(
        abi.LinearDynamicArgs,
        rows=math.prod(x[:-1]),
        in_features=inputs,
        out_features=outputs,
        reduce_range=int(attrs.reduce_range),
        row_wise=int(attrs.row_wise),
        fused=int(source.arithmetic is Arithmetic.FLOAT_BIAS),
        out_min_f=bounds[0],
        out_max_f=bounds[1],
        weight=source.constant(node.inputs[1], "weight"),
        w_scale=np.ascontiguousarray(np.broadcast_to(qparams.scale, outputs)),
        bias=source.constant(node.inputs[2], "bias") if optional(node, 2) else None,
    )
    read = segment.read(node.inputs[0], Layout.PLAIN)
    segment.emit(Kind.QLINEAR_DYNAMIC, (read,), segment.write(node.outputs[0], Layout.PLAIN), args)
