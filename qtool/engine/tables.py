"""Operators of one quantized tensor as tables of 256 entries, and the limits that need none.

Entry i is the result for the i-th smallest storage value of the input, counted from the smallest of the output: both
uint8, for int8 tensors as well. Exponentials are computed in float64 and rounded to float32, so that a table is the
same on every machine, whatever NumPy's float32 functions do there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.engine.requantize import (
    F32,
    Arithmetic,
    Floats,
    dequantize_fused,
    offset_zero,
    quantize_limit,
    quantize_outside,
)
from qtool.ir import Array, DType, QParams
from qtool.ops import get
from qtool.ops.activation import hardsigmoid, hardswish, leaky_relu

Table = NDArray[np.uint8]
INFINITY = float("inf")


def every_value(qparams: QParams) -> Array:
    """The 256 storage values, smallest first."""
    low, high = qparams.limits
    return np.arange(low, high + 1).astype(qparams.dtype.numpy)


def offset(q: Array, qparams: QParams) -> Table:
    """Storage values as numbers in 0..255."""
    return np.asarray(q.astype(np.int16) - qparams.limits[0], np.uint8)


def requantize_table(x: QParams, out: QParams) -> Table:
    """The same number under other parameters, as the inputs of ``cat`` are brought to those of its output."""
    if x == out:
        return np.arange(256, dtype=np.uint8)
    return offset(quantize_outside(dequantize_fused(every_value(x), x), out), out)


def softmax_powers(x: QParams) -> NDArray[np.int64]:
    """exp(-scale * i) for i steps below the largest number of a softmax, in units of 2**-40."""
    return np.rint(np.exp(-np.float64(x.scale[0]) * np.arange(256)) * 2.0**40).astype(np.int64)


def unary_table(op: str, attrs: Any, qparams: tuple[QParams, QParams], arithmetic: Arithmetic) -> Table | None:
    """The table of an operator of one tensor, input and output having ``qparams``; None for one that has none."""
    x, out = qparams
    if op in LIMITS:
        return _limit_table(op, attrs, x, out)
    if op not in FUNCTIONS:
        return None
    if arithmetic is Arithmetic.INT_BIAS and x.dtype is DType.UINT8 and out.dtype is DType.UINT8:
        table = _qnnpack_table(op, x, out)
        if table is not None:
            return table
    return offset(quantize_outside(FUNCTIONS[op](attrs, dequantize_fused(every_value(x), x)), out), out)


def clamp_limits(op: str, attrs: Any, out: QParams) -> tuple[int, int]:
    """Smallest and largest storage value that relu, relu6, hardtanh or clamp lets through, counted from 0."""
    low, high = LIMITS[op](attrs)
    least = offset_zero(out) if op == "relu" else quantize_limit(low, out) - out.limits[0]
    return least, quantize_limit(high, out) - out.limits[0]


def _limit_table(op: str, attrs: Any, x: QParams, out: QParams) -> Table:
    if x == out:
        return np.clip(np.arange(256), *clamp_limits(op, attrs, out)).astype(np.uint8)
    (y,) = get(op).reference(attrs, x.dequantize(every_value(x)))
    return offset(out.quantize(y), out)


LIMITS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "relu": lambda _: (0.0, INFINITY),
    "relu6": lambda _: (0.0, 6.0),
    "hardtanh": lambda attrs: (attrs.low, attrs.high),
    "clamp": lambda attrs: (attrs.low, attrs.high),
}
"""Operators that only bound their input."""


def _exp(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # inf, whose reciprocal is the right 0
        return np.exp(x.astype(np.float64)).astype(np.float32)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(F32(1) / (F32(1) + _exp(-x)))


def _tanh(x: Floats) -> Floats:
    return np.tanh(x.astype(np.float64)).astype(np.float32)


def _elu(x: Floats, alpha: float) -> Floats:
    below = np.expm1(np.minimum(x, F32(0)).astype(np.float64)).astype(np.float32)
    return np.where(x > 0, x, below * F32(alpha))


FUNCTIONS: dict[str, Callable[[Any, Floats], Floats]] = {
    "hardswish": lambda _, x: hardswish(x),
    "hardsigmoid": lambda _, x: hardsigmoid(x),
    "leaky_relu": lambda attrs, x: leaky_relu(x, attrs.negative_slope),
    "elu": lambda attrs, x: _elu(x, attrs.alpha),
    "sigmoid": lambda _, x: _sigmoid(x),
    "tanh": lambda _, x: _tanh(x),
}
"""Operators that compute, in float32, one operation after the other as ATen's QuantizedOpKernels.cpp does."""


def _qnnpack_table(op: str, x: QParams, out: QParams) -> Table | None:
    """The tables that QNNPACK builds itself (``hardswish.c``, ``sigmoid.c``, ...): the zero point is added before the
    rounding. None for an operator, or an output, that it has none for."""
    value = x.dequantize(every_value(x))
    inverse, zero = F32(1) / out.scale[0], F32(out.zero_point[0])
    fixed = (float(out.scale[0]), int(out.zero_point[0]))
    if op == "hardswish":
        steps = inverse * hardswish(value) + zero
    elif op == "hardsigmoid" and fixed == (1 / 256, 0):
        steps = inverse * hardsigmoid(value) + zero
    elif op == "sigmoid" and fixed == (1 / 256, 0):
        steps = F32(256) / (F32(1) + _exp(-value))
    elif op == "tanh" and fixed == (2 / 256, 128):
        steps = F32(128) * _tanh(value) + F32(128)
    else:
        return None
    return np.asarray(np.clip(np.rint(steps), 0, 255), np.uint8)
