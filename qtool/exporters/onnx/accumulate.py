"""Convolutions and linear layers: bias, residual and activation become nodes of their own where ONNX has no room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qtool.exporters.onnx.activation import activate
from qtool.exporters.onnx.call import Call
from qtool.exporters.onnx.move import pad
from qtool.ir import Array, DType, QParams

INT_BIAS = "qnnpack"
"""The backend that adds biases as integers; the others add them in float, so that a float bias is exact for them (and
runtimes that want an integer one make it themselves)."""
EXACT_BIAS = 1 << 22
"""Integers below this survive being multiplied by their scale and divided again, in float32."""


def conv(call: Call) -> str:
    """Conv; padding of another mode than zeros is a Pad before it, a residual an Add behind it."""
    attrs = call.attrs
    x, pads = call.x(0), flat_pads(attrs.padding)
    if attrs.padding_mode != "zeros" and any(pads):
        rank = len(call.value(0).shape)
        x = call.requantized(pad(call, x, rank, (attrs.padding, attrs.padding_mode, 0.0)), call.value(0))
        pads = [0] * len(pads)
    kernel = [int(n) for n in call.value(1).shape[2:] if isinstance(n, int)]
    options: dict[str, Any] = {"kernel_shape": kernel, "strides": attrs.stride, "pads": pads}
    options.update(dilations=attrs.dilation, group=attrs.groups)
    y = call.emit("Conv", x, call.x(1), bias(call), **options)
    return finish(call, y)


def conv_transpose(call: Call) -> str:
    """ConvTranspose; output that negative padding adds behind is output padding there."""
    attrs = call.attrs
    extra = [max(-after, 0) + more for (_, after), more in zip(attrs.padding, attrs.output_padding, strict=True)]
    limits = map(max, attrs.stride, attrs.dilation)
    if min(before for before, _ in attrs.padding) < 0 or any(e and e >= n for e, n in zip(extra, limits, strict=True)):
        raise call.unsupported(f"padding {attrs.padding} makes more output than ONNX has room for")
    pads = flat_pads(tuple((before, max(after, 0)) for before, after in attrs.padding))
    options = {"strides": attrs.stride, "pads": pads, "output_padding": extra, "dilations": attrs.dilation}
    kernel = list(call.value(1).shape[2:])
    return call.emit(
        "ConvTranspose", call.x(0), call.x(1), call.x(2), kernel_shape=kernel, group=attrs.groups, **options
    )


def linear(call: Call) -> str:
    """Gemm for matrices; for tensors of another rank MatMul with the weight transposed, and Add."""
    if len(call.value(0).shape) == 2:
        y = call.emit("Gemm", call.x(0), call.x(1), bias(call), transB=1)
    else:
        y = _with_bias(call, call.emit("MatMul", call.x(0), transposed(call)))
    return finish(call, y)


def linear_dynamic(call: Call) -> str:
    """MatMulInteger of int8 weights and an activation quantized at run time: by DynamicQuantizeLinear, or, where that
    cannot say it (7 bits), by QuantizeLinear with a scale computed by ordinary nodes. Where every row has parameters of
    its own, which no integer operator of ONNX takes, rounding and product are done in float."""
    weight = call.value(1).qparams
    if call.attrs.row_wise or weight is None or call.array(1) is None:
        return activate(
            call, _with_bias(call, call.emit("MatMul", _rounded_rows(call, call.x(0)), transposed(call))), None
        )
    quantized, scale, zero = _quantized_at_run_time(call, call.x(0))
    stored, (weight_scale, weight_zero) = _stored_transposed(call, weight)
    sums = call.emit("Cast", call.emit("MatMulInteger", quantized, stored, zero, weight_zero), to="float32")
    y = call.emit("Mul", sums, call.emit("Mul", scale, weight_scale))
    return activate(call, _with_bias(call, y), None)


def _stored_transposed(call: Call, qparams: QParams) -> tuple[str, tuple[str, str]]:
    """The int8 weight as (I, O), and its scale and zero point; the zero point, one for all, is a scalar."""
    array = call.array(1)
    assert array is not None
    stored = call.constant(np.ascontiguousarray(array.T), "weight_transposed")
    scale = qparams.scale.reshape(() if qparams.axis is None else (-1,))
    zero = qparams.zero_point.astype(qparams.dtype.numpy)
    zero = zero.reshape(-1)[0] if (zero == zero.flat[0]).all() else zero
    return stored, (call.constant(scale, "weight_scale"), call.constant(np.asarray(zero), "weight_zero_point"))


def _with_bias(call: Call, y: str) -> str:
    return call.emit("Add", y, call.x(2)) if call.has(2) else y


def finish(call: Call, y: str) -> str:
    """The residual and the activation of a fused node."""
    if call.has(3):
        y = call.emit("Add", y, call.x(3))
    return activate(call, y, call.out_qparams)


def transposed(call: Call) -> str:
    """The weight (O, I) of a linear layer as (I, O), int8 with its parameters where it is quantized."""
    array, value = call.array(1), call.value(1)
    if array is None:
        return call.emit("Transpose", call.x(1), perm=[1, 0])
    stored = call.constant(np.ascontiguousarray(array.T), "weight_transposed")
    if value.qparams is None:
        return stored
    qparams = value.qparams
    turned = qparams if qparams.axis is None else replace(qparams, axis=1 - qparams.axis)
    return call.emitter.dequantize(stored, stored, turned)


def bias(call: Call) -> str:
    """As float, or, for the arithmetic with integer biases, as int32 with the scale x * weight."""
    array = call.array(2)
    x, weight, out = call.value(0).qparams, call.value(1).qparams, call.out_qparams
    if array is None or x is None or weight is None or out is None or call.graph.backend != INT_BIAS:
        return call.x(2)
    scale = np.asarray(x.scale[0] * weight.scale, np.float32)
    steps = _integer_bias(array, scale)
    if steps is None:
        return call.x(2)
    name = call.emitter.initializer(call.emitter.values.take(f"{call.node.inputs[2]}_quantized"), steps)
    qparams = QParams(scale, np.zeros(len(scale), np.int32), DType.INT32, None if weight.axis is None else 0)
    return call.emitter.dequantize(name, name, qparams)


def _integer_bias(array: Array, scale: Array) -> Array | None:
    """The bias that the backend adds; None where float32 could not give it back exactly."""
    steps = np.rint(np.asarray(array * (np.float32(1) / scale), np.float64))
    return steps.astype(np.int32) if np.abs(steps).max(initial=0) < EXACT_BIAS else None


def flat_pads(padding: tuple[tuple[int, int], ...]) -> list[int]:
    """((before, after), ...) -> all befores, then all afters, as ONNX has them."""
    return [before for before, _ in padding] + [after for _, after in padding]


# ---- activations quantized at run time ----------------------------------------------------------------------------


def _quantized_at_run_time(call: Call, x: str) -> tuple[str, str, str]:
    """x as uint8 with parameters of its own range; scale and zero point."""
    if not call.attrs.reduce_range:
        quantized, scale, zero = call.emit_all("DynamicQuantizeLinear", [x], 3)
        return quantized, scale, zero
    scale, steps = _dynamic_parameters(call, x, {"keepdims": 0}, None)
    zero = call.emit("Cast", steps, to="uint8")
    return call.emit("QuantizeLinear", x, scale, zero), scale, zero


def _dynamic_parameters(call: Call, x: str, reduce: dict[str, int], axes: list[int] | None) -> tuple[str, str]:
    """Scale and zero point (float) for the numbers of x: as DynamicQuantizeLinear, for 7 bits or 8."""
    largest = 127.0 if call.attrs.reduce_range else 255.0
    zero = call.scalar(0, "zero")
    low, high = (call.emit(kind, _reduced(call, kind, x, reduce, axes), zero) for kind in ("Min", "Max"))
    span = call.emit("Div", call.emit("Sub", high, low), call.scalar(largest, "steps"))
    scale = call.emit("Max", span, call.scalar(SMALLEST_SCALE, "smallest_scale"))
    steps = call.emit("Round", call.emit("Neg", call.emit("Div", low, scale)))
    return scale, call.emit("Clip", steps, zero, call.scalar(largest, "steps"))


SMALLEST_SCALE = 6.1e-5
"""PyTorch's, and qtool's, for activations quantized at run time."""


def _reduced(call: Call, kind: str, x: str, reduce: dict[str, int], axes: list[int] | None) -> str:
    if axes is None:
        return call.emit(f"Reduce{kind}", x, **reduce)
    if call.opset < 18:
        return call.emit(f"Reduce{kind}", x, axes=axes, **reduce)
    return call.emit(f"Reduce{kind}", x, call.ints(axes, "axes"), **reduce)


def _rounded_rows(call: Call, x: str) -> str:
    scale, zero = _dynamic_parameters(call, x, {"keepdims": 1}, [-1])
    steps = call.emit("Add", call.emit("Round", call.emit("Div", x, scale)), zero)
    clipped = call.emit("Clip", steps, call.scalar(0, "zero"), call.scalar(255, "largest"))
    return call.emit("Mul", call.emit("Sub", clipped, zero), scale)
