"""The numbers that int8 arithmetic runs on: pure functions of quantization parameters.

The NumPy reference and the lowering to the native engine both call these and nothing else, so that they agree by
construction. The classes' fields are named as those of the structs in ``qtool/native/qtool_args.h``.

Everything here, and every kernel, counts storage values from the smallest one of their type: 0..255 for uint8 and
int8 alike (``offset_zero``). Shifting an int8 tensor so is exact.

The formulas are those of PyTorch 2.13, found by comparing single bits (``tests/peers/test_int8_torch.py``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qtool.errors import EngineError, QuantizationError
from qtool.ir import Array, DType, QParams

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

F32 = np.float32
SPLIT_LIMIT = 2.0**24
"""Beyond it float32 holds no fractions of an accumulator, and splitting a bias gains nothing."""
INT32 = np.iinfo(np.int32)
EXACT_SUM = 1 << 16
"""As many differences of two bytes have sums that float32 holds exactly."""
BLOCK = 1 << 20
"""Weights that are looked at together."""


class Arithmetic(enum.Enum):
    """How a backend brings an int32 accumulator to eight bits."""

    FLOAT_BIAS = "float bias"
    """FBGEMM and oneDNN: (float(acc) + bias / s) * (s / s_out)."""
    INT_BIAS = "int bias"
    """QNNPACK: float(acc + round(bias / s)) * (s * (1 / s_out)); add in fixed point."""


ARITHMETICS = {
    "fbgemm": Arithmetic.FLOAT_BIAS,
    "x86": Arithmetic.FLOAT_BIAS,
    "onednn": Arithmetic.FLOAT_BIAS,
    "qnnpack": Arithmetic.INT_BIAS,
}


def arithmetic_of(backend: str) -> Arithmetic:
    """The arithmetic of a quantized graph's backend; EngineError for a name that is not known."""
    try:
        return ARITHMETICS[backend]
    except KeyError:
        raise EngineError(f"got backend {backend!r}, expected one of {', '.join(ARITHMETICS)}") from None


def offset_zero(qparams: QParams) -> int:
    """The zero point of a tensor as a number in 0..255."""
    return int(qparams.zero_point[0]) - qparams.limits[0]


def fused_multiply_add(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Floats:
    """a * b + c in float32 with one rounding: float64 holds the product exactly.

    The sum in float64 may round as well, 2**-29 below the last bit of float32: too little to be met in practice.
    """
    product = np.multiply(a, b, dtype=np.float64)
    return np.asarray(product + np.asarray(c, np.float64), np.float32)


def dequantize_fused(q: Array, qparams: QParams) -> Floats:
    """As PyTorch's vector code dequantizes inside of an operator: fma(scale, q, -(scale * zero point)).

    May differ in the last bit from ``QParams.dequantize``, which is what its ``dequantize`` operator does.
    """
    scale = qparams.scale[0]
    shift = -(scale * F32(qparams.zero_point[0]))
    return fused_multiply_add(q.astype(np.float32), scale, shift)


def quantize_outside(x: Floats, out: QParams) -> Array:
    """As PyTorch's vector code quantizes inside of an operator: clamp(nearbyint(x * (1 / scale)) + zero point)."""
    low, high = out.limits
    steps = np.rint(x * (F32(1) / out.scale[0])) + F32(out.zero_point[0])
    return np.asarray(np.fmin(np.fmax(steps, low), high), out.dtype.numpy)


def quantize_limit(x: float, out: QParams) -> int:
    """A limit of ``clamp`` as a storage value: nearbyint(x * (1 / scale) + zero point), every operation rounded."""
    low, high = out.limits
    with np.errstate(over="ignore"):  # what overflows to infinity is clamped
        value = np.rint(F32(x) * (F32(1) / out.scale[0]) + F32(out.zero_point[0]))
    return int(min(max(value, low), high))


def output_limits(out: QParams, activation: str, clamp: tuple[float, float] | None) -> tuple[int, int]:
    """Smallest and largest result, in 0..255, of an operator with a fused activation; EngineError where it has none."""
    low, high = out.limits
    zero = offset_zero(out)
    if activation == "none":
        return 0, high - low
    if activation == "relu":
        return max(zero, 0), high - low
    if activation == "clamp" and clamp is not None:
        return quantize_limit(clamp[0], out) - low, quantize_limit(clamp[1], out) - low
    raise EngineError(f"activation '{activation}' cannot be fused with an int8 operator; keep it as a node of its own")


# ---- convolutions and linear layers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accumulate:
    """From products of 8-bit numbers to 8 bits; arrays have one entry an output channel.

    acc = sum of (x - x_zero) * (w - weight_zero);  r = (float(acc + bias_i32) + bias_f32) * multiplier, each operation
    rounded to float32; plus (float(residual) - res_zero) * res_multiplier if there is one;
    q = nearbyint(clamp(r, out_min - out_zero, out_max - out_zero)) + out_zero.
    """

    x_zero: int
    weight_zero: Ints
    multiplier: Floats
    bias_i32: Ints | None
    bias_f32: Floats | None
    out_zero: int
    out_min: int
    out_max: int
    res_zero: int = 0
    res_multiplier: float = 0.0


@dataclass(frozen=True)
class AccumulateOperands:
    """The quantization parameters around a convolution or linear layer, and its bias (float32, or None)."""

    x: QParams
    weight: QParams
    out: QParams
    bias: Array | None = None
    residual: QParams | None = None


def accumulate(
    arithmetic: Arithmetic, channels: int, operands: AccumulateOperands, limits: tuple[int, int]
) -> Accumulate:
    """The parameters of a convolution or linear layer with ``channels`` outputs; ``limits`` from ``output_limits``."""
    x, weight, out = operands.x, operands.weight, operands.out
    scale = x.scale[0] * weight.scale
    multiplier = scale / out.scale[0] if arithmetic is Arithmetic.FLOAT_BIAS else scale * (F32(1) / out.scale[0])
    bias_i32, bias_f32 = _biases(arithmetic, operands.bias, scale, weight.axis is not None)
    residual = operands.residual
    return Accumulate(
        x_zero=offset_zero(x),
        weight_zero=np.broadcast_to(weight.zero_point, channels),
        multiplier=np.ascontiguousarray(np.broadcast_to(multiplier, channels)),
        bias_i32=bias_i32,
        bias_f32=bias_f32,
        out_zero=offset_zero(out),
        out_min=limits[0],
        out_max=limits[1],
        res_zero=offset_zero(residual) if residual else 0,
        res_multiplier=float(residual.scale[0] / out.scale[0]) if residual else 0.0,
    )


def _biases(
    arithmetic: Arithmetic, bias: Array | None, scale: Floats, per_channel: bool
) -> tuple[Ints | None, Floats | None]:
    if bias is None:
        return None, None
    if arithmetic is Arithmetic.INT_BIAS:
        steps = np.rint(np.asarray(bias * (F32(1) / scale), np.float64))
        return np.clip(steps, INT32.min, INT32.max).astype(np.int32), None
    if per_channel:
        return None, np.asarray(bias / scale, np.float32)
    return _split(np.multiply(bias, F32(1) / scale, dtype=np.float64))


def _split(exact: Array) -> tuple[Ints, Floats]:
    """A bias as an integer and a rest.

    With one scale for all channels FBGEMM adds the bias as fma(bias, 1 / s, float(acc)), unrounded: acc + integer is
    exact, and adding the rest rounds once, as the fused operation does.
    """
    whole = np.clip(np.rint(exact), -SPLIT_LIMIT, SPLIT_LIMIT)
    return whole.astype(np.int32), np.asarray(exact - whole, np.float32)


def accumulator_bounds(weight: Array, x: QParams, params: Accumulate) -> tuple[int, int]:
    """Smallest and largest value that an accumulator with its int32 bias can have, whatever the input.

    ``weight`` is the stored int8 array with the output channels first.
    """
    low, high = x.limits
    ends = np.array([0, high - low], np.int64) - params.x_zero
    positive, negative = _signed_sums(weight.reshape(weight.shape[0], -1), params.weight_zero)
    bias = np.zeros(len(weight), np.int64) if params.bias_i32 is None else params.bias_i32.astype(np.int64)
    least = positive * ends[0] + negative * ends[1] + bias
    most = positive * ends[1] + negative * ends[0] + bias
    return int(least.min()), int(most.max())


def _signed_sums(rows: Array, zero: Array) -> tuple[Array, Array]:
    """The sums of the positive and of the negative numbers of each row of int8, less its zero point: int64."""
    positive, negative = np.zeros((2, len(rows)), np.int64)
    block = max(1, BLOCK // max(1, rows.shape[1]))
    for first in range(0, len(rows), block):
        some = slice(first, first + block)
        for left in range(0, rows.shape[1], EXACT_SUM):  # in float32, whose sums NumPy has in vectors
            part = rows[some, left : left + EXACT_SUM].astype(F32) - zero[some, None].astype(F32)
            upper = np.maximum(part, 0).sum(axis=1)
            positive[some] += upper.astype(np.int64)
            negative[some] += (part.sum(axis=1) - upper).astype(np.int64)
    return positive, negative


def check_accumulator(layer: str, weight: Array, x: QParams, params: Accumulate) -> tuple[str, ...]:
    """Warnings about a layer's arithmetic; QuantizationError, naming it, where an int32 accumulator could overflow."""
    least, most = accumulator_bounds(weight, x, params)
    if least < INT32.min or most > INT32.max:
        raise QuantizationError(
            f"layer '{layer}': its int32 accumulator can reach {most if most > INT32.max else least}, beyond 32 bits; "
            "leave the layer in float, or give it larger scales"
        )
    warnings = []
    if not np.isfinite(params.multiplier).all() or (params.multiplier < np.finfo(np.float32).tiny).any():
        warnings.append(f"layer '{layer}': its requantization scale is not a normal float32 number")
    elif (params.multiplier >= 256).any():
        warnings.append(f"layer '{layer}': its requantization scale is {params.multiplier.max():.3g}, above 256")
    if params.bias_i32 is not None and (np.abs(params.bias_i32.astype(np.int64)) == INT32.max).any():
        warnings.append(f"layer '{layer}': its bias is too large for 32 bits at this scale and was cut")
    return tuple(warnings)


# ---- two tensors -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binary:
    """Two quantized tensors to one, as ``qt_binary_args``; numbers in 0..255.

    Float: da = fma(a_scale, a, -(a_scale * a_zero)), db alike; q = nearbyint(op(da, db) * inv_scale) + out_zero.
    Fixed point: q = (a_multiplier * a + b_multiplier * b + offset) / 2**shift, half away from zero, + out_zero.
    """

    a_scale: float
    b_scale: float
    inv_scale: float
    a_zero: int
    b_zero: int
    out_zero: int
    out_min: int
    out_max: int
    fixed_point: bool = False
    a_multiplier: int = 0
    b_multiplier: int = 0
    offset: int = 0
    shift: int = 0


def binary(op: str, a: QParams, b: QParams, out: QParams, limits: tuple[int, int]) -> Binary:
    """Parameters in float arithmetic of add, sub and mul; mul multiplies integers and has one scale for all."""
    inverse = F32(1) / out.scale[0]
    a_scale, b_scale = a.scale[0], b.scale[0]
    if op == "mul":
        inverse = (a_scale * b_scale) * inverse
        a_scale = b_scale = F32(1)
    zeros = offset_zero(a), offset_zero(b), offset_zero(out)
    return Binary(float(a_scale), float(b_scale), float(inverse), *zeros, *limits)


def fixed_point_add(a: QParams, b: QParams, out: QParams, limits: tuple[int, int]) -> Binary | None:
    """Parameters of QNNPACK's add (``qnnpack/requantization.h``): multipliers of 22 bits.

    None where a scale is not within 2**-14 to 2**8 of the output's; QNNPACK refuses those.
    """
    ratios = a.scale[0] / out.scale[0], b.scale[0] / out.scale[0]
    if not all(2.0**-14 <= ratio < 2.0**8 for ratio in ratios):
        return None
    shift = 21 - (int(np.frexp(max(ratios))[1]) - 1)
    a_multiplier, b_multiplier = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    return replace(
        binary("add", a, b, out, limits),
        fixed_point=True,
        a_multiplier=a_multiplier,
        b_multiplier=b_multiplier,
        offset=-(a_multiplier * offset_zero(a) + b_multiplier * offset_zero(b)),
        shift=shift,
    )


def add_parameters(
    arithmetic: Arithmetic, same_shape: bool, qparams: tuple[QParams, QParams, QParams], limits: tuple[int, int]
) -> Binary:
    """Parameters of add: in fixed point where QNNPACK does it so, which is for tensors of one shape."""
    if arithmetic is Arithmetic.INT_BIAS and same_shape:
        fixed = fixed_point_add(*qparams, limits)
        if fixed is not None:
            return fixed
    return binary("add", *qparams, limits)


# ---- pools -------------------------------------------------------------------------------------------------------


def pool_scales(arithmetic: Arithmetic, x: QParams, out: QParams) -> tuple[float, float]:
    """(x_scale, out_scale) of an average; a window of n is multiplied by x_scale / (out_scale * n), in float32.

    QNNPACK computes just that; PyTorch's own kernels (x_scale / out_scale) / n, which is that with (ratio, 1).
    """
    if arithmetic is Arithmetic.INT_BIAS and x.dtype is DType.UINT8:
        return float(x.scale[0]), float(out.scale[0])
    return float(x.scale[0] / out.scale[0]), 1.0


def pool_multiplier(scales: tuple[float, float], count: Array) -> Floats:
    """The float32 multipliers of windows that are divided by ``count``."""
    x_scale, out_scale = map(F32, scales)
    return np.asarray(x_scale / (out_scale * count.astype(np.float32)), np.float32)
