"""Operators that have ONNX's own meaning and attribute names: written out as they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from qtool.exporters.onnx.call import Call, Row
from qtool.ir import Attr

DTYPE_ATTRS = ("to", "dtype", "output_dtype")
"""Attributes that name an element type: as text here, as a number in ONNX."""


def direct(op: str, since: int = 13, **renamed: str) -> Row:
    """A row for the ONNX operator ``op``. ``renamed`` maps our names of attributes to ONNX's, "" to leave one out."""

    def export(call: Call) -> tuple[str, ...]:
        return call.emit_all(op, call.all_inputs(), len(call.node.outputs), **onnx_attrs(call.attrs, renamed))

    return Row(export, since)


def reducing(op: str) -> Row:
    """A Reduce operator whose constant axes are an attribute here; in ONNX they are one up to opset 17."""

    def export(call: Call) -> str:
        attrs = onnx_attrs(call.attrs, {"axes": ""})
        axes = call.attrs.axes
        if call.opset < 18 and op != "ReduceSum":
            if call.has(1):
                raise call.unsupported("axes that are computed need opset 18")
            return call.emit(op, call.x(0), **attrs, **({} if axes is None else {"axes": axes}))
        names = call.x(1) if axes is None else call.ints(axes, "axes")
        return call.emit(op, call.x(0), names, **attrs)

    return Row(export)


def onnx_attrs(attrs: Any, renamed: Mapping[str, str]) -> dict[str, Any]:
    """An attributes dataclass as ONNX has it: None and empty tuples are left out."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(attrs):
        name, value = renamed.get(field.name, field.name), getattr(attrs, field.name)
        if name and value is not None and value != () and not (field.name in DTYPE_ATTRS and value == ""):
            found[name] = _plain(value)
    return found


def _plain(value: Attr) -> Any:
    return int(value) if isinstance(value, bool) else value


def constant_of_shape(call: Call) -> str:
    value = np.array([call.attrs.value], call.attrs.dtype)
    return call.emit("ConstantOfShape", call.x(), value=value)


def integer_conv(op: str) -> Row:
    """Convolutions of integers have their geometry as ``conv2d`` does."""

    def export(call: Call) -> str:
        attrs = call.attrs
        pads = [before for before, _ in attrs.padding] + [after for _, after in attrs.padding]
        given = {"strides": attrs.stride, "pads": pads, "dilations": attrs.dilation}
        options = {name: numbers for name, numbers in given.items() if numbers}
        return call.emit(op, *call.all_inputs(), group=attrs.groups, **options)

    return Row(export)


def window(op: str) -> Row:
    return direct(op, 17, dtype="output_datatype")


def split_to(call: Call) -> tuple[str, ...]:
    """The number of outputs is an attribute since opset 18, and goes without saying before."""
    extra = {"num_outputs": call.attrs.outputs} if call.opset >= 18 and not call.has(1) else {}
    return call.emit_all("Split", call.all_inputs(), len(call.node.outputs), axis=call.attrs.axis, **extra)


DIRECT: Mapping[str, Row] = {
    **{name: direct(name.capitalize()) for name in ("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil")},
    **{name: direct(name.capitalize()) for name in ("cos", "cosh", "erf", "exp", "floor", "log", "neg", "reciprocal")},
    **{name: direct(name.capitalize()) for name in ("round", "sign", "sin", "sinh", "softplus", "softsign", "sqrt")},
    **{
        name: direct(name.capitalize()) for name in ("tan", "not", "pow", "mod", "and", "or", "xor", "equal", "greater")
    },
    **{name: direct(name.capitalize()) for name in ("less", "max", "min", "where", "clip", "cast", "shape", "size")},
    **{
        name: direct(name.capitalize())
        for name in ("expand", "tile", "range", "gather", "compress", "unique", "einsum")
    },
    **{name: direct(name.capitalize()) for name in ("celu", "selu", "shrink", "hardmax", "det", "gemm")},
    **{
        f"reduce_{kind}": reducing(f"Reduce{onnx}")
        for kind, onnx in {
            "max": "Max",
            "min": "Min",
            "prod": "Prod",
            "l1": "L1",
            "l2": "L2",
            "log_sum": "LogSum",
            "log_sum_exp": "LogSumExp",
            "sum_square": "SumSquare",
            "sum": "Sum",
            "mean": "Mean",
        }.items()
    },
    "mish": direct("Mish", 18),
    "swish": direct("Swish", 24),
    "bitwise_not": direct("BitwiseNot", 18),
    "bitwise_and": direct("BitwiseAnd", 18),
    "bitwise_or": direct("BitwiseOr", 18),
    "bitwise_xor": direct("BitwiseXor", 18),
    "bit_shift": direct("BitShift"),
    "bit_cast": direct("BitCast", 26),
    "is_nan": direct("IsNaN"),
    "is_inf": direct("IsInf"),
    "thresholded_relu": direct("ThresholdedRelu"),
    "hard_sigmoid": direct("HardSigmoid"),
    "log_softmax": direct("LogSoftmax"),
    "greater_or_equal": direct("GreaterOrEqual"),
    "less_or_equal": direct("LessOrEqual"),
    "prelu_broadcast": direct("PRelu"),
    "sum_of": direct("Sum"),
    "mean_of": direct("Mean"),
    "reshape_to": direct("Reshape"),
    "slice_to": direct("Slice"),
    "split_to": Row(split_to),
    "squeeze_to": direct("Squeeze"),
    "unsqueeze_to": direct("Unsqueeze"),
    "pad_to": direct("Pad"),
    "flatten_to": direct("Flatten"),
    "constant_of_shape": Row(constant_of_shape),
    "one_hot": direct("OneHot"),
    "eye_like": direct("EyeLike"),
    "trilu": direct("Trilu", 14),
    "depth_to_space": direct("DepthToSpace"),
    "space_to_depth": direct("SpaceToDepth"),
    "center_crop_pad": direct("CenterCropPad", 18),
    "gather_elements": direct("GatherElements"),
    "gather_nd": direct("GatherND"),
    "scatter_elements": direct("ScatterElements"),
    "scatter_nd": direct("ScatterND"),
    "non_zero": direct("NonZero"),
    "reverse_sequence": direct("ReverseSequence"),
    "top_k": direct("TopK"),
    "arg_max": direct("ArgMax"),
    "arg_min": direct("ArgMin"),
    "non_max_suppression": direct("NonMaxSuppression"),
    "tensor_scatter": direct("TensorScatter", 24),
    "cum_sum": direct("CumSum"),
    "cum_prod": direct("CumProd", 26),
    "max_pool": direct("MaxPool"),
    "average_pool": direct("AveragePool"),
    "lp_pool": direct("LpPool"),
    "global_lp_pool": direct("GlobalLpPool"),
    "max_unpool": direct("MaxUnpool"),
    "col2im": direct("Col2Im", 18),
    "instance_norm": direct("InstanceNormalization"),
    "group_norm": direct("GroupNormalization", 21),
    "lrn": direct("LRN"),
    "lp_normalization": direct("LpNormalization"),
    "mean_variance_normalization": direct("MeanVarianceNormalization"),
    "layer_normalization": direct("LayerNormalization", 17),
    "rms_norm": direct("RMSNormalization", 23),
    **{f"{name}_dynamic": direct(name.upper(), reduce_range="", row_wise="") for name in ("lstm", "gru", "rnn")},
    "lstm": direct("LSTM"),
    "gru": direct("GRU"),
    "rnn": direct("RNN"),
    "resize": direct("Resize"),
    "grid_sample": direct("GridSample", 20),
    "affine_grid": direct("AffineGrid", 20),
    "roi_align": direct("RoiAlign", 16),
    "hann_window": window("HannWindow"),
    "hamming_window": window("HammingWindow"),
    "blackman_window": window("BlackmanWindow"),
    "dft": direct("DFT", 20),
    "negative_log_likelihood_loss": direct("NegativeLogLikelihoodLoss"),
    "softmax_cross_entropy_loss": direct("SoftmaxCrossEntropyLoss"),
    "rotary_embedding": direct("RotaryEmbedding", 23),
    "attention": direct("Attention", 24),
    "quantize_linear": direct("QuantizeLinear", dtype="output_dtype"),
    "dequantize_linear": direct("DequantizeLinear", dtype="output_dtype"),
    "dynamic_quantize_linear": direct("DynamicQuantizeLinear"),
    "matmul_integer": direct("MatMulInteger"),
    "qlinear_matmul": direct("QLinearMatMul"),
    "conv_integer": integer_conv("ConvInteger"),
    "qlinear_conv": integer_conv("QLinearConv"),
}
"""A row an operator; those of ``table`` come first. ONNX has no recurrent layer that quantizes activations at run time:
``lstm_dynamic`` and its like keep their 8-bit weights and are float otherwise."""
