"""Models quantized already: QuantizeLinear and DequantizeLinear become the graph's own quantize and dequantize, and
the QLinear operators what they stand for, dequantize, the float operator and quantize, which runs in int8.

Parameters that are no constants, and what has no place in the graph's quantization, keep ONNX's integer operators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx import layers
from qtool.frontends.onnx.call import Call
from qtool.frontends.onnx.known import Known, Quantized, Unsupported, constant_of
from qtool.frontends.onnx.simple import attrs_for
from qtool.ir import Array, Attr, DType, QParams, TensorType

STORAGE = (DType.INT8, DType.UINT8)
SHIFT = 128


def params_of(scale: Known, zero_point: Known | None, dtype: DType, axis: int | None) -> QParams | None:
    """Quantization parameters out of constants; None where they are none, or not of 8 bits."""
    if scale.array is None or (zero_point is not None and zero_point.array is None) or dtype not in STORAGE:
        return None
    scales = np.array(scale.array, np.float32).reshape(-1)
    zeros = np.zeros(scales.shape, np.int32)
    if zero_point is not None and zero_point.array is not None:
        zeros = np.array(np.broadcast_to(zero_point.array.astype(np.int32).reshape(-1), scales.shape))
    with np.errstate(all="ignore"):
        if scale.rank > 1 or not (np.isfinite(scales).all() and np.isfinite(1 / scales).all() and (scales > 0).all()):
            return None
    return QParams(scales, zeros, dtype, None if scales.size == 1 else axis)


def quantize_linear(call: Call) -> Known:
    """A ``quantize`` where scale and zero point are constants for the whole tensor."""
    x, zero_point = call.x(), call.get(2)
    attrs = attrs_or_none(call, "quantize_linear")
    dtype = zero_point.dtype if zero_point is not None else DType(str((attrs or {}).get("dtype") or "uint8"))
    qparams = params_of(call.x(1), zero_point, dtype, None)
    integers = functools.partial(_again, call, _quantize_exactly)
    plain = x.dtype is DType.FLOAT32 and x.array is None
    if qparams is None or qparams.axis is not None or qparams.scale.size != 1 or not plain:
        return _quantize_exactly(call)
    return quantized_known(call, x, qparams, integers)


def quantized_known(call: Call, x: Known, qparams: QParams, integers: Callable[[], Known] | None = None) -> Known:
    """The quantized copy of a float value, under ONNX's type: that of its integers."""
    real = call.body.border("quantize", x, qparams)
    call.body.quantizes = True
    return Known(TensorType(qparams.dtype, real.shape), make=integers, quantized=Quantized(real, qparams))


def _again(call: Call, convert: Callable[[Call], Known]) -> Known:
    with call.body.origin(call.name, ""):
        return convert(call)


def _quantize_exactly(call: Call) -> Known:
    return call.emit("quantize_linear", call.inputs, **attrs_for(call, "quantize_linear"))


def attrs_or_none(call: Call, op: str) -> dict[str, Attr] | None:
    try:
        return dict(attrs_for(call, op))
    except Unsupported:
        return None


def dequantize_linear(call: Call) -> Known:
    """A ``dequantize`` of a quantized value, or of constant integers; a float constant where those have a shape or zero
    point that int8 weights do not have."""
    known = real_of(call, call.x(), call.x(1), call.get(2), int(call.attr("axis", 1)))
    if known is not None and not call.attr("block_size"):
        return known
    return call.emit("dequantize_linear", call.inputs, **attrs_for(call, "dequantize_linear"))


def real_of(call: Call, x: Known, scale: Known, zero_point: Known | None, axis: int) -> Known | None:
    """The real numbers that integers stand for; None where the graph's quantization cannot say them."""
    if x.quantized is not None:
        qparams = params_of(scale, zero_point, x.dtype, None)
        return call.body.border("dequantize", x.quantized.real, None) if qparams == x.quantized.qparams else None
    if x.array is None or scale.array is None or scale.rank > 1 or scale.dtype is not DType.FLOAT32:
        return None
    axis %= max(x.rank, 1)
    if scale.rank == 1 and scale.array.size not in (1, x.shape[axis] if x.rank else 1):
        raise ModelError(f"got {scale.array.size} scales along axis {axis} of shape {x.shape}")
    qparams = params_of(scale, zero_point, x.dtype, axis)
    integers = _symmetric(x.array, qparams) if qparams is not None and x.rank >= 2 else None
    if integers is None:
        return _real_constant(x, scale, zero_point, axis)
    return weight_known(call, *integers, x.hint)


def weight_known(call: Call, array: Array, qparams: QParams, hint: str) -> Known:
    """Constant integers and their dequantized copy; ``notes`` keep them for layers that turn weights around."""
    name = hint.removesuffix("_quantized") if hint else f"{call.name}.weight"
    constant = call.body.quantized_constant(array, qparams, name if name.endswith(".q") else f"{name}.q")
    known = call.body.border("dequantize", constant, None)
    call.body.quantizes = True
    known.notes["integers"] = (array, qparams, hint)
    return known


def _symmetric(array: Array, qparams: QParams) -> tuple[Array, QParams] | None:
    """As int8 with zero point 0: uint8 around 128 is shifted, which changes no number."""
    if qparams.dtype is DType.INT8 and not qparams.zero_point.any():
        return array, qparams
    if qparams.dtype is DType.UINT8 and (qparams.zero_point == SHIFT).all():
        shifted = (array.astype(np.int16) - SHIFT).astype(np.int8)
        return shifted, QParams(qparams.scale, np.zeros_like(qparams.zero_point), DType.INT8, qparams.axis)
    return None


def _real_constant(x: Known, scale: Known, zero_point: Known | None, axis: int) -> Known | None:
    """scale * (q - zero_point) in float32."""
    assert x.array is not None
    assert scale.array is not None
    if zero_point is not None and zero_point.array is None:
        return None
    column = [1] * x.rank
    if scale.array.size > 1:
        column[axis] = -1
    zeros = np.zeros(1, np.int64) if zero_point is None else np.asarray(zero_point.array).astype(np.int64)
    zeros = zeros.reshape(column if zeros.size > 1 else [1] * x.rank)
    centred = (x.array.astype(np.int64) - zeros).astype(np.float32)
    return constant_of(np.asarray(centred * scale.array.reshape(column), np.float32), x.hint)


# -------------------------------------------------------------------------------------------------- QLinear operators


def _result_params(call: Call, position: int) -> QParams | None:
    """Parameters of the output, from the inputs for its scale and zero point."""
    zero_point = call.get(position + 1)
    return params_of(call.x(position), zero_point, zero_point.dtype if zero_point else DType.UINT8, None)


def qlinear_conv(call: Call) -> Known:
    """x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B (int32, scale x_scale * w_scale)."""
    x = real_of(call, call.x(), call.x(1), call.get(2), 0) if call.x().quantized else None
    weight = real_of(call, call.x(3), call.x(4), call.get(5), 0)
    result, bias = _result_params(call, 6), call.get(8)
    if x is None or weight is None or result is None or (bias is not None and bias.array is None):
        return call.emit("qlinear_conv", call.inputs, **_conv_attrs(call))
    if bias is not None and bias.array is not None:
        unit = np.asarray(call.x(1).array, np.float32).reshape(-1) * np.asarray(call.x(4).array, np.float32).reshape(-1)
        bias = constant_of(bias.array.astype(np.float32) * unit, bias.hint)
    return quantized_known(call, layers.conv(replace(call, inputs=(x, weight, bias))), result)


def _conv_attrs(call: Call) -> dict[str, Attr]:
    weight = call.x(3 if call.op == "QLinearConv" else 1)
    kernel = tuple(int(k) for k in weight.shape[2:])
    rank = len(kernel)
    stride, dilation = (tuple(call.attr(name) or (1,) * rank) for name in ("strides", "dilations"))
    padding = layers.padding_of(call, kernel, stride, dilation)
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(call.attr("group", 1))}


def qlinear_matmul(call: Call) -> Known:
    """a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point."""
    a = real_of(call, call.x(), call.x(1), call.get(2), -1) if call.x().quantized else None
    b = real_of(call, call.x(3), call.x(4), call.get(5), -1)
    result = _result_params(call, 6)
    if a is None or b is None or result is None:
        return call.emit("qlinear_matmul", call.inputs)
    return quantized_known(call, layers.matmul(replace(call, inputs=(a, b))), result)


def qgemm(call: Call) -> Known:
    """ONNX Runtime's QGemm: a, a_scale, a_zero_point, b, b_scale, b_zero_point, c?, y_scale?, y_zero_point?."""
    a = real_of(call, call.x(), call.x(1), call.get(2), -1) if call.x().quantized else None
    b = real_of(call, call.x(3), call.x(4), call.get(5), 0 if call.attr("transB") else 1)
    bias = call.get(6)
    if a is None or b is None or (bias is not None and bias.array is None):
        raise Unsupported("its parameters are no constants")
    if bias is not None and bias.array is not None:
        unit = np.asarray(call.x(1).array, np.float32).reshape(-1) * np.asarray(call.x(4).array, np.float32).reshape(-1)
        bias = constant_of(bias.array.astype(np.float32) * unit * np.float32(call.attr("alpha", 1.0)), bias.hint)
    real = layers.gemm(replace(call, inputs=(a, b, bias)))
    if call.get(7) is None:
        return real
    result = _result_params(call, 7)
    if result is None:
        raise Unsupported("its output's parameters are no constants")
    return quantized_known(call, real, result)


def qlinear_binary(op: str) -> Callable[[Call], Known]:
    """ONNX Runtime's QLinearAdd and QLinearMul: three inputs each for a, b, and two for the output."""

    def convert(call: Call) -> Known:
        sides = [real_of(call, call.x(i), call.x(i + 1), call.get(i + 2), -1) for i in (0, 3)]
        result = _result_params(call, 6)
        if result is None or sides[0] is None or sides[1] is None:
            raise Unsupported("its parameters are no constants")
        return quantized_known(call, call.emit(op, [sides[0], sides[1]]), result)

    return convert


def qlinear_unary(convert_float: Callable[[Call], Known]) -> Callable[[Call], Known]:
    """ONNX Runtime's QLinear operators of one tensor: x, x_scale, x_zero_point, y_scale, y_zero_point."""

    def convert(call: Call) -> Known:
        if call.attr("channels_last"):
            raise Unsupported("attribute channels_last")
        x = real_of(call, call.x(), call.x(1), call.get(2), -1) if call.x().quantized else None
        result = _result_params(call, 3)
        if x is None or result is None:
            raise Unsupported("its parameters are no constants")
        return quantized_known(call, convert_float(replace(call, inputs=(x,))), result)

    return convert


def qlinear_concat(call: Call) -> Known:
    """ONNX Runtime's QLinearConcat: y_scale, y_zero_point, then three inputs a tensor."""
    result = _result_params(call, 0)
    tensors = [
        real_of(call, call.x(i), call.x(i + 1), call.get(i + 2), -1) if call.x(i).quantized else None
        for i in range(2, len(call.inputs), 3)
    ]
    if result is None or any(tensor is None for tensor in tensors):
        raise Unsupported("its parameters are no constants")
    return quantized_known(call, call.emit("cat", tensors, dim=int(call.attr("axis", 1))), result)


# ------------------------------------------------------------------------------------------------------------ dynamic


def dynamic_quantize_linear(call: Call) -> Sequence[Known]:
    """uint8 integers, scale and zero point of what arrives at run time."""
    return call.emit_all("dynamic_quantize_linear", call.inputs, 3)


def matmul_integer(call: Call) -> Known:
    return call.emit("matmul_integer", call.inputs)


def conv_integer(call: Call) -> Known:
    return call.emit("conv_integer", call.inputs, **_conv_attrs(call))
