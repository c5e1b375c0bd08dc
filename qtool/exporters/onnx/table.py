"""Operator -> how it is exported: one table, a row an operator."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.exporters.onnx import accumulate, activation, move, reduce
from qtool.exporters.onnx.call import Call, Row
from qtool.exporters.onnx.control import CONTROL
from qtool.exporters.onnx.direct import DIRECT, direct
from qtool.ops.dims import axis_of


def _quantize(call: Call) -> str:
    value = call.out
    assert value.qparams is not None
    return call.emitter.quantize(call.x(), call.raw(value.name), value.qparams)


def _dequantize(call: Call) -> str:
    """A node of its own, since the copy that other nodes read has another name."""
    value = call.value()
    assert value.qparams is not None
    return call.emitter.dequantize(call.raw(value.name), call.raw(value.name), value.qparams)


def _softmax(call: Call) -> str:
    return call.emit("Softmax", call.x(), axis=axis_of(call.attrs.dim, len(call.value().shape)))


TABLE: Mapping[str, Row] = {
    **DIRECT,
    **CONTROL,
    "quantize": Row(_quantize),
    "dequantize": Row(_dequantize),
    "conv1d": Row(accumulate.conv),
    "conv2d": Row(accumulate.conv),
    "conv3d": Row(accumulate.conv),
    "conv_transpose1d": Row(accumulate.conv_transpose),
    "conv_transpose2d": Row(accumulate.conv_transpose),
    "conv_transpose3d": Row(accumulate.conv_transpose),
    "linear": Row(accumulate.linear),
    "linear_dynamic": Row(accumulate.linear_dynamic),
    "matmul": direct("MatMul"),
    "relu": direct("Relu"),
    "relu6": Row(activation.relu6),
    "hardtanh": Row(activation.clamp),
    "clamp": Row(activation.clamp),
    "leaky_relu": direct("LeakyRelu", negative_slope="alpha"),
    "prelu": Row(activation.prelu),
    "elu": direct("Elu"),
    "hardswish": Row(lambda call: activation.hardswish(call, call.x())),
    "hardsigmoid": Row(lambda call: call.emit("HardSigmoid", call.x(), alpha=1 / 6, beta=0.5)),
    "sigmoid": direct("Sigmoid"),
    "tanh": direct("Tanh"),
    "gelu": Row(activation.gelu),
    "silu": Row(activation.silu),
    "swiglu": Row(activation.swiglu),
    "softmax": Row(_softmax),
    "add": Row(lambda call: activation.binary(call, "Add")),
    "sub": Row(lambda call: activation.binary(call, "Sub")),
    "mul": Row(lambda call: activation.binary(call, "Mul")),
    "div": Row(lambda call: activation.binary(call, "Div")),
    "max_pool1d": Row(reduce.max_pool),
    "max_pool2d": Row(reduce.max_pool),
    "avg_pool1d": Row(reduce.avg_pool),
    "avg_pool2d": Row(reduce.avg_pool),
    "adaptive_avg_pool1d": Row(lambda call: reduce.adaptive_pool(call, "Average")),
    "adaptive_avg_pool2d": Row(lambda call: reduce.adaptive_pool(call, "Average")),
    "adaptive_max_pool1d": Row(lambda call: reduce.adaptive_pool(call, "Max")),
    "adaptive_max_pool2d": Row(lambda call: reduce.adaptive_pool(call, "Max")),
    "mean": Row(lambda call: reduce.reduce(call, "ReduceMean")),
    "sum": Row(lambda call: reduce.reduce(call, "ReduceSum")),
    "batch_norm": Row(reduce.batch_norm),
    "layer_norm": Row(reduce.layer_norm),
    "flatten": Row(move.flatten),
    "reshape": Row(move.reshape),
    "transpose": Row(move.transpose),
    "permute": Row(move.permute),
    "squeeze": Row(move.squeeze),
    "unsqueeze": Row(move.unsqueeze),
    "slice": Row(move.slice_),
    "split": Row(move.split),
    "cat": Row(move.cat),
    "pad": Row(move.pad_op),
    "identity": Row(move.same),
    "dropout": Row(move.same),
    "embedding": Row(move.embedding),
    "embedding_rows": Row(move.embedding_rows),
}
