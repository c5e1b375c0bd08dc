"""Quantized operators that came with models from ONNX: matmul of two activations, transposed convolutions, resize."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qtool.engine.int8 import EXACT_FLOAT32, Call, Operand, by_float, exact_pair, finish, stored
from qtool.engine.requantize import F32, Accumulate, AccumulateOperands, accumulate, output_limits
from qtool.ir import Array, QParams


def _matmul(call: Call) -> tuple[Array, ...]:
    """Exact sums, then nearbyint(float(acc) * (a_scale * b_scale * (1 / scale))) + zero point.

    PyTorch's ``quantized::matmul`` multiplies dequantized floats, whose sums carry rounding errors of their own: now
    and then a result that is half way between two steps falls on the other side there.
    """
    if not call.quantized(2):
        return by_float(call)
    a, b, out = call.input(0), call.input(1), call.out
    left, right = a.centred(), b.centred()
    largest = float(np.abs(left).max(initial=0)) * float(np.abs(right).max(initial=0)) * left.shape[-1]
    if largest >= EXACT_FLOAT32:
        left, right = left.astype(np.float64), right.astype(np.float64)
    multiplier = (a.params.scale[0] * b.params.scale[0]) * (F32(1) / out.scale[0])
    low, high = out.limits
    steps = np.rint(np.matmul(left, right).astype(np.float32) * multiplier) + F32(out.zero_point[0])
    return (np.asarray(np.fmin(np.fmax(steps, low), high).astype(out.dtype.numpy)),)


def convolution_weight(array: Array, groups: int) -> Array:
    """A transposed convolution's weight (I, O / groups, *kernel) as a convolution has it, (O, I / groups, *kernel)."""
    inputs, outputs, *kernel = array.shape
    parts = array.reshape(groups, inputs // groups, outputs, *kernel)
    return parts.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *kernel)


def convolution_qparams(params: QParams, groups: int) -> QParams:
    """The parameters of that weight, along axis 0 where there are several."""
    if params.axis is None:
        return params
    return QParams(np.tile(params.scale, groups), np.tile(params.zero_point, groups), params.dtype, 0)


def transposed_weight(call: Call) -> Operand:
    """The weight as a convolution has it, with its parameters."""
    weight, groups = call.input(1), call.attrs.groups
    return Operand(convolution_weight(weight.array, groups), convolution_qparams(weight.params, groups))


def transposed_parameters(call: Call) -> Accumulate:
    """The parameters of a quantized transposed convolution."""
    weight, bias = transposed_weight(call), call.optional(2)
    operands = AccumulateOperands(call.input(0).params, weight.params, call.out, None if bias is None else bias.array)
    return accumulate(call.arithmetic, len(weight.array), operands, output_limits(call.out, "none", None))


def _conv_transpose(call: Call) -> tuple[Array, ...]:
    """The float definition on integers gives the accumulators; what lies between the strides adds nothing."""
    x, weight = call.input(0).centred(), call.input(1).centred()
    _, flat = exact_pair(x, transposed_weight(call).array.astype(np.float32))
    (acc,) = call.spec.reference(call.attrs, x.astype(flat.dtype), weight.astype(flat.dtype))
    return (stored(finish(acc, transposed_parameters(call), 1, None), call.out),)


def _resize(call: Call) -> tuple[Array, ...]:
    """Nearest only picks stored numbers; other modes compute in float, with the input's parameters, as PyTorch's do."""
    attrs, x = call.attrs, call.input(0)
    if attrs.mode != "nearest" or attrs.coordinate_transformation_mode == "tf_crop_and_resize":
        return by_float(call)
    others = (None if operand is None else operand.array for operand in call.inputs[1:])
    (picked,) = call.spec.reference(attrs, x.array.astype(np.float32), *others)
    return (picked.astype(call.out.dtype.numpy),)


PRODUCTS: Mapping[str, Callable[[Call], tuple[Array, ...]]] = {
    "matmul": _matmul,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "resize": _resize,
}
