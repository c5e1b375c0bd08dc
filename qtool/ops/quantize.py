"""The borders between float and quantized values.

Shape inference and the float reference see logical values, so both operators do nothing there. The rounding is
``QParams.quantize`` of the output of ``quantize`` and ``QParams.dequantize`` of the input of ``dequantize``.
"""

from __future__ import annotations

from qtool.ir import Array, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import need_float
from qtool.ops.registry import OpSpec, register


def border_type(_: NoAttrs, x: TensorType) -> tuple[TensorType, ...]:
    need_float(x=x)
    return (x,)


def border(_: NoAttrs, x: Array) -> tuple[Array, ...]:
    return (x,)


register(OpSpec("quantize", NoAttrs, ("x",), border_type, border, onnx=("QuantizeLinear",), kernel="quantize"))
register(OpSpec("dequantize", NoAttrs, ("x",), border_type, border, onnx=("DequantizeLinear",), kernel="dequantize"))
