"""Quantization that a model does by its own arithmetic, with scales and zero points as tensors; defined as ONNX has it.

Graphs that qtool quantizes have ``quantize`` and ``dequantize`` instead, whose parameters belong to the values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, DType, Shape, TensorType
from qtool.ops import geometry
from qtool.ops.activation import NoAttrs
from qtool.ops.cast import dtype_named
from qtool.ops.conv import convolve
from qtool.ops.dims import UNKNOWN, axis_of, known, need_float, product, same_size, spell
from qtool.ops.linear import matmul_type
from qtool.ops.registry import Attrs, OpSpec, register, require

Types = tuple[TensorType, ...]
STORED = (DType.UINT8, DType.INT8, DType.UINT16, DType.INT16, DType.UINT32, DType.INT32)


@dataclass(frozen=True)
class LinearQuantAttrs(Attrs):
    """``block_size`` elements along ``axis`` share a scale; 0 means one scale an index, or one for all. ``dtype`` ""
    means that of the zero point, else uint8 (or for dequantizing, that of the scale)."""

    axis: int = 1
    block_size: int = 0
    dtype: str = ""


@dataclass(frozen=True)
class ConvIntegerAttrs(Attrs):
    """One entry a spatial axis, as ``conv2d`` has them; empty tuples are ones, and zeros."""

    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


def _spread_type(attrs: LinearQuantAttrs, x: TensorType, scale: TensorType, zero_point: TensorType | None) -> None:
    require(attrs.block_size >= 0, f"block_size {attrs.block_size}", "at least 0")
    if zero_point is not None:
        same = len(zero_point.shape) == len(scale.shape) and all(map(same_size, zero_point.shape, scale.shape))
        require(same, f"a zero point of shape {spell(zero_point.shape)}", spell(scale.shape))
    if product(scale.shape) == 1 and not attrs.block_size:
        return
    axis = axis_of(attrs.axis, len(x.shape), "axis")
    got = f"a scale of shape {spell(scale.shape)} for x of shape {spell(x.shape)}"
    if not attrs.block_size:
        require(len(scale.shape) == 1 and same_size(scale.shape[0], x.shape[axis]), got, f"({x.shape[axis]})")
        return
    require(len(scale.shape) == len(x.shape), got, "one a block")
    for place, (size, count) in enumerate(zip(x.shape, scale.shape, strict=True)):
        blocks = -(-size // attrs.block_size) if place == axis and isinstance(size, int) else size
        require((place == axis and isinstance(size, str)) or same_size(blocks, count), got, "one a block")


def spread(attrs: LinearQuantAttrs, parameter: Array, x: Array) -> Array:
    """Scales or zero points such that they broadcast with x."""
    if parameter.size == 1 and not attrs.block_size:
        return parameter.reshape(())
    axis = attrs.axis % x.ndim
    if attrs.block_size:
        wide = np.repeat(parameter, attrs.block_size, axis)
        return np.take(wide, np.arange(x.shape[axis]), axis)
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def saturated(numbers: Array, dtype: np.dtype[np.generic]) -> Array:
    info = np.iinfo(dtype)  # type: ignore[type-var]
    return np.asarray(np.clip(numbers, info.min, info.max)).astype(dtype)


def _quantize_type(
    attrs: LinearQuantAttrs, x: TensorType, scale: TensorType, zero_point: TensorType | None = None
) -> Types:
    require(x.dtype.is_float or x.dtype is DType.INT32, f"{x.dtype.value} as x", "floats or int32")
    need_float(y_scale=scale)
    _spread_type(attrs, x, scale, zero_point)
    target = dtype_named(attrs.dtype) if attrs.dtype else DType.UINT8 if zero_point is None else zero_point.dtype
    require(target in STORED[:4], f"{target.value} as result", ", ".join(dtype.value for dtype in STORED[:4]))
    require(zero_point is None or zero_point.dtype is target, "a zero point of another type", target.value)
    return (TensorType(target, x.shape),)


def quantize_linear(
    attrs: LinearQuantAttrs, x: Array, scale: Array, zero_point: Array | None = None
) -> tuple[Array, ...]:
    """saturate(rint(x / scale) + zero_point), the quotient in the type of the scale."""
    target = np.dtype(attrs.dtype or ("uint8" if zero_point is None else zero_point.dtype))
    with np.errstate(all="ignore"):
        levels = np.rint(x.astype(scale.dtype) / spread(attrs, scale, x)).astype(np.float64)
        levels = np.nan_to_num(levels, nan=0.0)
    if zero_point is not None:
        levels = levels + spread(attrs, zero_point, x)
    return (saturated(levels, target),)


def _dequantize_type(
    attrs: LinearQuantAttrs, x: TensorType, scale: TensorType, zero_point: TensorType | None = None
) -> Types:
    require(x.dtype in STORED, f"{x.dtype.value} as x", ", ".join(dtype.value for dtype in STORED))
    need_float(x_scale=scale)
    _spread_type(attrs, x, scale, zero_point)
    target = dtype_named(attrs.dtype) if attrs.dtype else scale.dtype
    require(target.is_float, f"{target.value} as result", "floats")
    return (TensorType(target, x.shape),)


def dequantize_linear(
    attrs: LinearQuantAttrs, x: Array, scale: Array, zero_point: Array | None = None
) -> tuple[Array, ...]:
    centred = x.astype(np.int64)
    if zero_point is not None:
        centred = centred - spread(attrs, zero_point, x).astype(np.int64)
    return (np.asarray(centred.astype(scale.dtype) * spread(attrs, scale, x)).astype(attrs.dtype or scale.dtype),)


def _dynamic_type(_: NoAttrs, x: TensorType) -> Types:
    require(x.dtype is DType.FLOAT32, f"{x.dtype.value} as x", "float32")
    return TensorType(DType.UINT8, x.shape), TensorType(DType.FLOAT32, ()), TensorType(DType.UINT8, ())


def dynamic_quantize_linear(_: NoAttrs, x: Array) -> tuple[Array, ...]:
    """To uint8 over the range of x, 0 always in it; (y, scale, zero point)."""
    low, high = np.float32(min(x.min(initial=0), 0)), np.float32(max(x.max(initial=0), 0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    y = saturated(np.rint(x / scale) + zero_point, np.dtype(np.uint8))
    return y, np.asarray(scale), np.asarray(zero_point, np.uint8)


def _bytes(**tensors: TensorType | None) -> None:
    for name, tensor in tensors.items():
        fits = tensor is None or tensor.dtype in (DType.UINT8, DType.INT8)
        require(fits, f"{tensor.dtype.value if tensor else ''} as {name}", "uint8 or int8")


def _matmul_integer_type(
    _: NoAttrs, a: TensorType, b: TensorType, a_zp: TensorType | None = None, b_zp: TensorType | None = None
) -> Types:
    _bytes(a=a, b=b, a_zero_point=a_zp, b_zero_point=b_zp)
    _zero_point_fits("a", a.shape[-2:-1], a_zp)
    _zero_point_fits("b", b.shape[-1:], b_zp)
    (y,) = matmul_type(_, TensorType(DType.INT32, a.shape), TensorType(DType.INT32, b.shape))
    return (y,)


def _zero_point_fits(name: str, places: Shape, zero_point: TensorType | None) -> None:
    """One for all, or one for each row of a or column of b."""
    if zero_point is not None:
        count = product(zero_point.shape)
        fits = count == 1 or (bool(places) and len(zero_point.shape) == 1 and same_size(count, places[0]))
        require(
            fits or len(zero_point.shape) > 1,
            f"{name}_zero_point of shape {spell(zero_point.shape)}",
            "one, or one each",
        )


def _rows(zero_point: Array | None) -> Array | int:
    """As a column, one entry a row."""
    if zero_point is None:
        return 0
    wide = zero_point.astype(np.int64)
    return wide[:, None] if wide.ndim == 1 and wide.size > 1 else wide.reshape(()) if wide.size == 1 else wide


def _columns(zero_point: Array | None) -> Array | int:
    return 0 if zero_point is None else zero_point.astype(np.int64)


def matmul_integer(
    _: NoAttrs, a: Array, b: Array, a_zp: Array | None = None, b_zp: Array | None = None
) -> tuple[Array, ...]:
    """(a - a_zp) . (b - b_zp) in int32."""
    left, right = a.astype(np.int64) - _rows(a_zp), b.astype(np.int64) - _columns(b_zp)
    return (np.asarray(np.matmul(left, right)).astype(np.int32),)


QMATMUL = ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point")


def _qlinear_matmul_type(_: NoAttrs, *inputs: TensorType) -> Types:
    a, a_scale, a_zp, b, b_scale, b_zp, y_scale, y_zp = inputs
    need_float(a_scale=a_scale, b_scale=b_scale, y_scale=y_scale)
    _bytes(y_zero_point=y_zp)
    (y,) = _matmul_integer_type(_, a, b, a_zp, b_zp)
    return (TensorType(y_zp.dtype, y.shape),)


def qlinear_matmul(_: NoAttrs, *inputs: Array) -> tuple[Array, ...]:
    a, a_scale, a_zp, b, b_scale, b_zp, y_scale, y_zp = inputs
    (product_,) = matmul_integer(_, a, b, a_zp, b_zp)
    left = a_scale[:, None] if a_scale.ndim == 1 and a_scale.size > 1 else a_scale
    levels = np.rint(product_ * (left.astype(np.float64) * b_scale) / y_scale)
    return (saturated(levels + y_zp, y_zp.dtype),)


def _axes(attrs: ConvIntegerAttrs, rank: int) -> tuple[tuple[int, ...], geometry.Padding, tuple[int, ...]]:
    ones = (1,) * rank
    return attrs.stride or ones, attrs.padding or ((0, 0),) * rank, attrs.dilation or ones


def _conv_integer_type(
    attrs: ConvIntegerAttrs,
    x: TensorType,
    w: TensorType,
    x_zp: TensorType | None = None,
    w_zp: TensorType | None = None,
) -> Types:
    _bytes(x=x, w=w, x_zero_point=x_zp, w_zero_point=w_zp)
    rank = len(w.shape) - 2
    require(rank >= 1 and len(x.shape) == rank + 2, f"x of shape {spell(x.shape)}", f"rank {rank + 2}")
    stride, padding, dilation = _axes(attrs, rank)
    fits = all(len(each) == rank for each in (stride, padding, dilation)) and min(*stride, *dilation) >= 1
    require(
        fits and min(map(min, padding)) >= 0, f"stride {stride}, padding {padding}, dilation {dilation}", "one an axis"
    )
    outputs, inputs, *kernel = (known(dim, "weight size") for dim in w.shape)
    groups = attrs.groups
    fits = groups >= 1 and outputs % groups == 0 and same_size(x.shape[1], inputs * groups)
    require(fits, f"{x.shape[1]} channels in {groups} groups", f"{inputs} a group")
    require(w_zp is None or product(w_zp.shape) in (1, outputs), "a zero point of w", "one, or one an output")
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    sizes = tuple(UNKNOWN if isinstance(n, str) else geometry.conv_size(n, k, s, p, d) for n, k, s, p, d in axes)
    require(all(isinstance(n, str) or n > 0 for n in sizes), f"a kernel of {tuple(kernel)}", "one that fits")
    return (TensorType(DType.INT32, (x.shape[0], outputs, *sizes)),)


def conv_integer(
    attrs: ConvIntegerAttrs, x: Array, w: Array, x_zp: Array | None = None, w_zp: Array | None = None
) -> tuple[Array, ...]:
    """conv(x - x_zp, w - w_zp) in int32; the padding is the zero point. Sums are exact in float64."""
    rank = w.ndim - 2
    stride, padding, dilation = _axes(attrs, rank)
    data = x.astype(np.float64) - (0 if x_zp is None else x_zp.reshape(()))
    offset = 0 if w_zp is None else w_zp.reshape(-1, *[1] * (rank + 1))
    padded = geometry.pad(data, padding)
    y = convolve(padded, w.astype(np.float64) - offset, stride, dilation, attrs.groups)
    return (y.astype(np.int32),)


QCONV = ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias?")


def _qlinear_conv_type(attrs: ConvIntegerAttrs, *inputs: TensorType | None) -> Types:
    x, x_scale, x_zp, w, w_scale, w_zp, y_scale, y_zp, bias = (*inputs, None)[:9]
    need_float(x_scale=x_scale, w_scale=w_scale, y_scale=y_scale)
    _bytes(y_zero_point=y_zp)
    require(bias is None or bias.dtype is DType.INT32, "a bias of another type", "int32")
    if x is None or w is None or y_zp is None or w_scale is None:
        raise AssertionError  # the registry holds that they are there
    (y,) = _conv_integer_type(attrs, x, w, x_zp, w_zp)
    channels = y.shape[1]
    require(product(w_scale.shape) in (1, channels), "a scale of w", "one, or one an output")
    require(bias is None or bias.shape == (channels,), "a bias of another shape", f"({channels})")
    return (TensorType(y_zp.dtype, y.shape),)


def qlinear_conv(attrs: ConvIntegerAttrs, *inputs: Array) -> tuple[Array, ...]:
    x, x_scale, x_zp, w, w_scale, w_zp, y_scale, y_zp = inputs[:8]
    (sums,) = conv_integer(attrs, x, w, x_zp, w_zp)
    column = (-1, *[1] * (w.ndim - 2))
    wide = sums.astype(np.float64)
    if len(inputs) > 8:
        wide = wide + inputs[8].reshape(column)
    factor = x_scale.astype(np.float64).reshape(()) * w_scale.reshape(column) / y_scale.reshape(())
    return (saturated(np.rint(wide * factor) + y_zp.reshape(()), y_zp.dtype),)


def _register(
    onnx: str,
    attrs: type[Attrs],
    inputs: tuple[str, ...],
    infer: Callable[..., Types],
    function: Callable[..., tuple[Array, ...]],
) -> None:
    register(OpSpec(function.__name__, attrs, inputs, infer, function, onnx=(onnx,)))


_register("QuantizeLinear", LinearQuantAttrs, ("x", "y_scale", "y_zero_point?"), _quantize_type, quantize_linear)
_register("DequantizeLinear", LinearQuantAttrs, ("x", "x_scale", "x_zero_point?"), _dequantize_type, dequantize_linear)
_register("DynamicQuantizeLinear", NoAttrs, ("x",), _dynamic_type, dynamic_quantize_linear)
_register("MatMulInteger", NoAttrs, ("a", "b", "a_zero_point?", "b_zero_point?"), _matmul_integer_type, matmul_integer)
_register("QLinearMatMul", NoAttrs, QMATMUL, _qlinear_matmul_type, qlinear_matmul)
_register(
    "ConvInteger",
    ConvIntegerAttrs,
    ("x", "w", "x_zero_point?", "w_zero_point?"),
    _conv_integer_type,
    conv_integer,
)
_register("QLinearConv", ConvIntegerAttrs, QCONV, _qlinear_conv_type, qlinear_conv)
