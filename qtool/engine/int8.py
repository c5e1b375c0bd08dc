"""The definition of every operator on quantized tensors: a table by operator name.

Arrays are the stored integers; their parameters come with them. An operator that is not in the table is its float
reference between ``dequantize`` and ``quantize``, all in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.engine.requantize import (
    F32,
    Accumulate,
    AccumulateOperands,
    Arithmetic,
    Binary,
    accumulate,
    add_parameters,
    binary,
    fused_multiply_add,
    output_limits,
)
from qtool.engine.tables import offset, requantize_table, softmax_powers, unary_table
from qtool.errors import EngineError
from qtool.ir import Array, QParams
from qtool.ops import OpSpec
from qtool.ops.conv import convolve
from qtool.ops.geometry import pad

EXACT_FLOAT32 = 2.0**24
"""Integers up to here are exact in float32, and so are sums of them, in any order, that stay below."""


@dataclass(frozen=True)
class Operand:
    """An input of a quantized operator: stored integers with their parameters, or floats without."""

    array: Array
    qparams: QParams | None

    @property
    def offset(self) -> Array:
        """Storage values as numbers in 0..255."""
        return offset(self.array, self.params)

    @property
    def params(self) -> QParams:
        if self.qparams is None:
            raise EngineError("expected a quantized input, got a float one")
        return self.qparams

    def floats(self) -> Array:
        return self.array if self.qparams is None else self.qparams.dequantize(self.array)

    def centred(self) -> Array:
        """Storage values less the zero point, exact in float32."""
        qparams = self.params
        zero = qparams.zero_point.astype(np.float32)
        if qparams.axis is not None:
            zero = zero.reshape([-1 if axis == qparams.axis else 1 for axis in range(self.array.ndim)])
        return np.asarray(self.array.astype(np.float32) - zero)


@dataclass(frozen=True)
class Call:
    """One quantized node: an input left out is None; ``outputs`` holds the parameters of each output."""

    spec: OpSpec
    attrs: Any
    arithmetic: Arithmetic
    inputs: tuple[Operand | None, ...]
    outputs: tuple[QParams, ...]

    def input(self, position: int) -> Operand:
        found = self.optional(position)
        if found is None:
            raise EngineError(f"input {position} of {self.spec.name} is missing")
        return found

    def optional(self, position: int) -> Operand | None:
        return self.inputs[position] if position < len(self.inputs) else None

    @property
    def out(self) -> QParams:
        return self.outputs[0]

    def quantized(self, count: int) -> bool:
        """Whether the first ``count`` inputs are all quantized."""
        return all(operand is not None and operand.qparams is not None for operand in self.inputs[:count])


def run(call: Call) -> tuple[Array, ...]:
    """The stored outputs of a quantized node."""
    return INT8.get(call.spec.name, by_float)(call)


def by_float(call: Call) -> tuple[Array, ...]:
    """The default: dequantize, the float reference, quantize."""
    floats = [None if operand is None else operand.floats() for operand in call.inputs]
    results = call.spec.reference(call.attrs, *floats)
    return tuple(q.quantize(np.asarray(y, np.float32)) for y, q in zip(results, call.outputs, strict=True))


def stored(values: Array, out: QParams) -> Array:
    """Numbers in 0..255, as any type, to storage values."""
    return (values.astype(np.int16) + out.limits[0]).astype(out.dtype.numpy)


# ---- convolutions and linear layers ------------------------------------------------------------------------------


def finish(acc: Array, params: Accumulate, axis: int, residual: Array | None) -> Array:
    """Exact accumulators (float32 or float64), channels along ``axis``, to numbers in 0..255; see ``Accumulate``."""
    column = [1] * acc.ndim
    column[axis] = -1
    if params.bias_i32 is not None:
        acc = acc.astype(np.float64) + params.bias_i32.reshape(column)
    r = acc.astype(np.float32)
    if params.bias_f32 is not None:
        r = r + params.bias_f32.reshape(column)
    r = r * params.multiplier.reshape(column)
    if residual is not None:
        r = r + (residual.astype(np.float32) - F32(params.res_zero)) * F32(params.res_multiplier)
    low, high = params.out_min - params.out_zero, params.out_max - params.out_zero
    return np.asarray(np.rint(np.fmin(np.fmax(r, F32(low)), F32(high))) + F32(params.out_zero))


def accumulate_parameters(call: Call) -> Accumulate:
    """The parameters of a quantized convolution or linear node."""
    bias, residual = call.optional(2), call.optional(3)
    operands = AccumulateOperands(
        call.input(0).params,
        call.input(1).params,
        call.out,
        None if bias is None else bias.array,
        None if residual is None else residual.params,
    )
    limits = output_limits(call.out, call.attrs.activation, call.attrs.clamp)
    return accumulate(call.arithmetic, len(call.input(1).array), operands, limits)


def exact_pair(x: Array, weight: Array) -> tuple[Array, Array]:
    """Both in float32, or in float64 where a sum of products could leave float32's integers."""
    taps = weight[0].size
    largest = float(np.abs(x).max(initial=0)) * float(np.abs(weight).max(initial=0)) * taps
    if largest < EXACT_FLOAT32:
        return x, weight
    return x.astype(np.float64), weight.astype(np.float64)


def _convolution(call: Call) -> tuple[Array, ...]:
    attrs, residual = call.attrs, call.optional(3)
    x, weight = exact_pair(call.input(0).centred(), call.input(1).centred())
    padded = pad(x, attrs.padding, attrs.padding_mode)
    acc = convolve(padded, weight, attrs.stride, attrs.dilation, attrs.groups)
    result = finish(acc, accumulate_parameters(call), 1, None if residual is None else residual.offset)
    return (stored(result, call.out),)


def _linear(call: Call) -> tuple[Array, ...]:
    residual = call.optional(3)
    x, weight = exact_pair(call.input(0).centred(), call.input(1).centred())
    acc = np.matmul(x, weight.T)
    result = finish(acc, accumulate_parameters(call), -1, None if residual is None else residual.offset)
    return (stored(result, call.out),)


# ---- one and two tensors -----------------------------------------------------------------------------------------


def _unary(call: Call) -> tuple[Array, ...]:
    x = call.input(0)
    table = unary_table(call.spec.name, call.attrs, (x.params, call.out), call.arithmetic)
    if table is None:
        return by_float(call)
    return (stored(table[x.offset], call.out),)


def _cat(call: Call) -> tuple[Array, ...]:
    if not call.quantized(len(call.inputs)):
        return by_float(call)
    operands = map(call.input, range(len(call.inputs)))
    pieces = (requantize_table(operand.params, call.out)[operand.offset] for operand in operands)
    (joined,) = call.spec.reference(call.attrs, *pieces)
    return (stored(joined, call.out),)


def _prelu(call: Call) -> tuple[Array, ...]:
    """In integers, the slope 1 being 1 / weight scale steps (``qprelu_out_kernel``, which cuts that at the weight's
    largest value and so mistakes slopes of less than 1 for larger ones; here it is not cut)."""
    if not call.quantized(2):
        return by_float(call)
    x, weight, out = call.input(0), call.input(1), call.out
    inverse = F32(1) / out.scale[0]
    multiplier = (x.params.scale[0] * weight.params.scale[0]) * inverse
    one = np.rint(F32(1) / weight.params.scale[0])
    steps, slope = x.centred(), weight.centred()
    if slope.size > 1:
        slope = slope.reshape(-1, *([1] * (steps.ndim - 2)))
    products = np.maximum(steps, F32(0)) * one + np.minimum(steps, F32(0)) * slope
    return (_quantize_steps(products * multiplier, out),)


def _quantize_steps(r: Array, out: QParams) -> Array:
    """nearbyint(r) + zero point, cut to the storage type."""
    low, high = out.limits
    return np.fmin(np.fmax(np.rint(r) + F32(out.zero_point[0]), low), high).astype(out.dtype.numpy)


def combine(op: str, params: Binary, a: Array, b: Array) -> Array:
    """Two arrays of numbers in 0..255 to one by add, sub or mul; see ``Binary``."""
    if params.fixed_point:
        return _combine_fixed(params, a, b)
    values = [
        fused_multiply_add(q.astype(np.float32), F32(scale), -(F32(scale) * F32(zero)))
        for q, scale, zero in ((a, params.a_scale, params.a_zero), (b, params.b_scale, params.b_zero))
    ]
    r = _COMBINE[op](*values) * F32(params.inv_scale)
    low, high = params.out_min - params.out_zero, params.out_max - params.out_zero
    return np.asarray(np.rint(np.fmin(np.fmax(r, F32(low)), F32(high))) + F32(params.out_zero))


_COMBINE: dict[str, Callable[[Array, Array], Array]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _combine_fixed(params: Binary, a: Array, b: Array) -> Array:
    sums = a.astype(np.int64) * params.a_multiplier + b.astype(np.int64) * params.b_multiplier + params.offset
    half = (1 << params.shift) >> 1
    rounded = np.sign(sums) * ((np.abs(sums) + half) >> params.shift)
    return np.asarray(np.clip(rounded + params.out_zero, params.out_min, params.out_max))


def _add(call: Call) -> tuple[Array, ...]:
    if not call.quantized(2):
        return by_float(call)
    a, b = call.input(0), call.input(1)
    limits = output_limits(call.out, call.attrs.activation, None)
    same_shape = a.array.shape == b.array.shape
    params = add_parameters(call.arithmetic, same_shape, (a.params, b.params, call.out), limits)
    return (stored(combine("add", params, a.offset, b.offset), call.out),)


def _product(call: Call) -> tuple[Array, ...]:
    if not call.quantized(2):
        return by_float(call)
    a, b = call.input(0), call.input(1)
    params = binary(call.spec.name, a.params, b.params, call.out, output_limits(call.out, "none", None))
    return (stored(combine(call.spec.name, params, a.offset, b.offset), call.out),)


def _layer_norm(call: Call) -> tuple[Array, ...]:
    """Mean and variance from exact integer sums of the stored numbers, the rest in float32, one operation after the
    other (``quantized_normalize_kernel``)."""
    x, weight, bias, attrs = call.input(0), call.optional(1), call.optional(2), call.attrs
    axes = tuple(range(-len(attrs.normalized_shape), 0))
    count = F32(np.prod(attrs.normalized_shape))
    q, scale = x.array.astype(np.int64), x.params.scale[0]
    mean = q.sum(axis=axes, keepdims=True).astype(np.float32) / count
    variance = np.maximum((q * q).sum(axis=axes, keepdims=True).astype(np.float32) / count - mean * mean, F32(0))
    deviation = np.sqrt((variance * scale * scale).astype(np.float64) + attrs.eps)
    y = (x.centred() - (mean - F32(x.params.zero_point[0]))) * (np.float64(scale) / deviation).astype(np.float32)
    if weight is not None:
        y = y * weight.floats()
    if bias is not None:
        y = y + bias.floats()
    return (_quantize_steps(y * (F32(1) / call.out.scale[0]), call.out),)


def _softmax(call: Call) -> tuple[Array, ...]:
    """Of whole numbers, whose sum has no order: the power of each distance from the row's largest, from a table."""
    x, dim = call.input(0), call.attrs.dim
    steps = x.offset.astype(np.int64)
    powers = softmax_powers(x.params)[steps.max(axis=dim, keepdims=True) - steps]
    y = powers.astype(np.float64) / powers.sum(axis=dim, keepdims=True).astype(np.float64)
    return (call.out.quantize(y.astype(np.float32)),)


def _move(call: Call) -> tuple[Array, ...]:
    """The largest number is the largest storage value, and what only moves about need not be converted."""
    x = call.input(0)
    if any(out != x.params for out in call.outputs):
        return by_float(call)
    return call.spec.reference(call.attrs, x.array)


MOVES = (
    *("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
    *("identity", "dropout", "flatten", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "slice", "split"),
)
"""Operators whose float reference works on stored integers as well."""

Define = Callable[[Call], tuple[Array, ...]]

INT8: dict[str, Define] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "linear": _linear,
    "add": _add,
    "mul": _product,
    "cat": _cat,
    "relu": _unary,
    "relu6": _unary,
    "hardtanh": _unary,
    "clamp": _unary,
    "leaky_relu": _unary,
    "elu": _unary,
    "hardswish": _unary,
    "hardsigmoid": _unary,
    "sigmoid": _unary,
    "tanh": _unary,
    "prelu": _prelu,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    **dict.fromkeys(MOVES, _move),
}
"""The operators with a definition of their own here; averages are in ``int8_pool``."""
