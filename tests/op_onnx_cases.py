"""Cases for the operators that came with ONNX: attributes and arrays that fit together, a few an operator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qtool.ir import Array
from qtool.ops import all_ops

RNG = np.random.default_rng(7)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def scalar(number: int) -> Array:
    return np.array(number, np.int64)


def mask(*shape: int) -> Array:
    return RNG.random(shape) < 0.5


def whole(*shape: int) -> Array:
    return RNG.integers(1, 5, shape)


UNARY = [
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "erf",
    "exp",
    "floor",
    "log",
    "neg",
    "reciprocal",
    "round",
    "sign",
    "sin",
    "sinh",
    "softplus",
    "softsign",
    "sqrt",
    "tan",
    "mish",
    "is_nan",
    "is_inf",
    "celu",
    "selu",
    "thresholded_relu",
    "shrink",
    "hard_sigmoid",
    "swish",
    "log_softmax",
    "hardmax",
]
REDUCTIONS = ["max", "min", "prod", "l1", "l2", "log_sum", "log_sum_exp", "sum_square", "sum", "mean"]
SUMS = ("mod", "pow", "equal", "greater", "less", "greater_or_equal", "less_or_equal")
CONV1, CONV2, CONV3 = f(2, 3, 5), f(1, 4, 5, 4), f(1, 2, 3, 4, 3)
WINDOW = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)}
RECURRENT = (f(5, 2, 3), 4)


def recurrent(gates: int, directions: int = 1) -> tuple[Array, ...]:
    x, hidden = RECURRENT
    return x, f(directions, gates * hidden, 3), f(directions, gates * hidden, hidden)


def elementwise() -> Iterator[tuple]:
    yield from ((op, {}, f(2, 3)) for op in UNARY)
    yield from ((op, {}, f(2, 3), f(3)) for op in SUMS)
    yield from ((op, {}, whole(2, 3), whole(2, 1)) for op in ("bitwise_and", "bitwise_or", "bitwise_xor", "mod", "pow"))
    yield from ((op, {}, mask(2, 3), mask(3)) for op in ("and", "or", "xor"))
    yield from ((op, {}, f(2, 3), f(3), f(4, 1, 1)) for op in ("max", "min", "sum_of", "mean_of"))
    yield "bit_shift", {"direction": "LEFT"}, whole(3), whole(3)
    yield "bitwise_not", {}, whole(3)
    yield "not", {}, mask(3)
    yield "abs", {}, whole(3)
    yield "prelu_broadcast", {}, f(2, 3, 4), f(3, 1)
    yield "swiglu", {"alpha": 1.5}, f(2, 3), f(2, 3)
    yield "where", {}, mask(2, 1), f(2, 3), f(3)
    yield "clip", {}, f(2, 3), np.array(-0.5, np.float32), np.array(0.5, np.float32)
    yield "clip", {}, whole(3), None, scalar(3)
    yield "cast", {"to": "int16"}, f(2, 3) * 5
    yield "bit_cast", {"to": "int32"}, f(2, 3)


def shapes() -> Iterator[tuple]:
    yield "shape", {"start": 1}, f(2, 3, 4)
    yield "size", {}, f(2, 3, 4)
    yield "reshape_to", {}, f(2, 3, 4), i64(0, -1, 2)
    yield "expand", {}, f(2, 1, 4), i64(3, 1)
    yield "tile", {}, f(2, 3), i64(2, 1)
    yield "slice_to", {}, f(6, 5), i64(1, -1), i64(5, -99), i64(0, 1), i64(2, -1)
    yield "slice_to", {}, f(6, 5), i64(1), i64(3)
    yield "split_to", {"outputs": 2, "axis": 1}, f(2, 5), i64(2, 3)
    yield "split_to", {"outputs": 3}, f(5, 2)
    yield "squeeze_to", {}, f(2, 1, 3, 1), i64(1, -1)
    yield "squeeze_to", {}, f(2, 1, 3)
    yield "unsqueeze_to", {}, f(2, 3), i64(0, -1)
    yield "flatten_to", {"axis": 2}, f(2, 3, 4)
    yield "pad_to", {}, f(2, 3), i64(0, 1, 2, -1)
    yield "pad_to", {"mode": "reflect"}, f(2, 4), i64(3, 2), None, i64(1)
    yield "center_crop_pad", {}, f(5, 3), i64(2, 6)
    yield "constant_of_shape", {"value": 3, "dtype": "int32"}, i64(2, 3)
    yield "range", {}, scalar(2), scalar(9), scalar(3)
    yield "one_hot", {"axis": 1}, i64(0, -1, 7), scalar(4), f(2)
    yield "eye_like", {"k": 1, "dtype": "float64"}, f(3, 4)
    yield "trilu", {"upper": False}, f(2, 3, 3), scalar(-1)
    yield "depth_to_space", {"blocksize": 2, "mode": "CRD"}, f(1, 8, 2, 3)
    yield "space_to_depth", {"blocksize": 2}, f(1, 2, 4, 6)
    yield from ((f"{name}_window", {}, scalar(6)) for name in ("hann", "hamming", "blackman"))


def indices() -> Iterator[tuple]:
    yield "gather", {"axis": 1}, f(2, 4, 3), np.array([[0, -1], [2, 1]])
    yield "gather_elements", {"axis": 1}, f(2, 4), np.array([[0, -1, 1], [2, 1, 1]])
    yield "gather_nd", {"batch_dims": 1}, f(2, 4, 3), np.array([[0], [2]])
    yield "scatter_nd", {"reduction": "add"}, f(4, 3), np.array([[1], [1]]), f(2, 3)
    yield "scatter_elements", {"axis": 1}, f(2, 4), np.array([[0, -1], [2, 1]]), f(2, 2)
    yield "non_zero", {}, mask(2, 3)
    yield "compress", {"axis": 0}, f(3, 2), np.array([True, False, True])
    yield "unique", {"sorted": False}, i64(3, 1, 3, 2)
    yield "unique", {"axis": 0}, np.array([[3, 1], [3, 1], [0, 1]])
    yield "reverse_sequence", {}, f(4, 2, 3), i64(2, 4)
    yield "tensor_scatter", {"mode": "circular"}, f(2, 4, 3), f(2, 2, 3), i64(1, 3)
    yield "top_k", {"largest": False}, f(3, 5), i64(2)
    yield "arg_max", {"axis": 1}, f(3, 5)
    yield "arg_min", {"keepdims": False, "select_last_index": True}, whole(5, 3)
    yield "cum_sum", {"reverse": True}, f(3, 4), scalar(1)
    yield "cum_prod", {"exclusive": True}, whole(3, 4), scalar(-1)
    yield from ((f"reduce_{name}", {"axes": (1,), "keepdims": False}, np.abs(f(2, 3, 4))) for name in REDUCTIONS)
    yield from ((f"reduce_{name}", {}, np.abs(f(2, 3)), i64(0)) for name in REDUCTIONS)


def layers() -> Iterator[tuple]:
    yield "gemm", {"transB": True, "alpha": 0.5}, f(2, 3), f(4, 3), f(4)
    yield "einsum", {"equation": "...ij, ...jk -> ...ik"}, f(2, 3, 4), f(4, 5)
    yield "einsum", {"equation": "ii"}, f(3, 3)
    yield "det", {}, f(2, 3, 3)
    yield "conv3d", {"padding": ((1, 0), (0, 0), (1, 1))}, CONV3, f(4, 2, 2, 2, 2), f(4)
    yield "conv_transpose1d", {"stride": (2,), "output_padding": (1,)}, CONV1, f(3, 4, 3), f(4)
    yield "conv_transpose2d", {"groups": 2, "padding": ((1, 0), (-1, 0))}, CONV2, f(4, 3, 2, 3)
    yield "conv_transpose3d", {"dilation": (1, 2, 1)}, CONV3, f(2, 3, 2, 2, 2)
    yield "col2im", {"pads": (0, 1, 0, 1)}, f(1, 8, 5), i64(2, 4), i64(2, 2)
    yield from ((f"{name}_pool", WINDOW, CONV2) for name in ("max", "average", "lp"))
    yield "max_pool", {"kernel_shape": (2,), "auto_pad": "SAME_UPPER", "strides": (2,)}, CONV1
    yield "average_pool", {"kernel_shape": (2, 2), "ceil_mode": True, "strides": (2, 3)}, CONV2
    yield "global_lp_pool", {}, CONV2
    yield "max_unpool", {"kernel_shape": (2,), "strides": (2,)}, f(1, 1, 3), np.array([[[0, 3, 4]]])
    yield "instance_norm", {}, CONV2, f(4), f(4)
    yield "group_norm", {"num_groups": 2}, CONV2, f(4), f(4)
    yield "layer_normalization", {"axis": 1}, f(2, 3, 4), f(3, 4), f(4)
    yield "rms_norm", {}, f(2, 3, 4), f(4)
    yield "lrn", {"size": 3}, CONV2
    yield "lp_normalization", {"p": 1}, f(2, 3)
    yield "mean_variance_normalization", {}, CONV2
    yield "lstm", {"hidden_size": 4}, *recurrent(4)
    yield "lstm", {"hidden_size": 4, "direction": "bidirectional"}, *recurrent(4, 2), f(2, 32), i64(3, 5)
    yield "gru", {"hidden_size": 4, "linear_before_reset": True}, *recurrent(3), f(1, 24)
    yield "rnn", {"hidden_size": 4, "direction": "reverse", "activations": ("Relu",)}, *recurrent(1)
    scales = np.array([1, 1, 1.5, 0.5], np.float32)
    for mode in ("nearest", "linear", "cubic"):
        yield "resize", {"mode": mode, "antialias": mode != "nearest"}, CONV2, None, scales
    yield "resize", {"axes": (3, 2), "coordinate_transformation_mode": "align_corners"}, CONV2, None, None, i64(7, 3)
    for loss in ("negative_log_likelihood_loss", "softmax_cross_entropy_loss"):
        yield loss, {"ignore_index": 1}, f(4, 3), i64(0, 1, 2, 1), np.abs(f(3))
        yield loss, {"reduction": "none"}, f(2, 3, 2), np.array([[0, 1], [2, 1]])


def integers() -> Iterator[tuple]:
    a, b = whole(2, 3).astype(np.uint8), whole(3, 4).astype(np.int8)
    one, zero = np.array(0.5, np.float32), np.array(3, np.uint8)
    x, w = whole(1, 2, 5, 4).astype(np.uint8), whole(3, 2, 2, 3).astype(np.int8)
    yield "quantize_linear", {"axis": 0}, f(2, 3), np.array([0.5, 0.1], np.float32), np.array([3, 9], np.int8)
    yield "quantize_linear", {"axis": 1, "block_size": 2, "dtype": "int16"}, f(2, 3), np.abs(f(2, 2)) + 1
    yield "dequantize_linear", {}, a, one, zero
    yield "dequantize_linear", {"axis": 0}, b, np.abs(f(3))
    yield "dynamic_quantize_linear", {}, f(2, 3)
    yield "matmul_integer", {}, a, b, np.array([1, 2], np.uint8), np.array(0, np.int8)
    yield "qlinear_matmul", {}, a, one, zero, b, one, np.array(-1, np.int8), one, zero
    yield "conv_integer", {"padding": ((1, 0), (1, 1)), "stride": (2, 1)}, x, w, zero
    yield "qlinear_conv", {}, x, one, zero, w, one, np.array(0, np.int8), one, zero, whole(3).astype(np.int32)


def pictures() -> Iterator[tuple]:
    for mode in ("linear", "nearest", "cubic"):
        yield "grid_sample", {"mode": mode, "padding_mode": "reflection"}, CONV2, f(1, 3, 2, 2)
    yield "grid_sample", {"align_corners": True}, CONV3, f(1, 3, 2, 4, 3)
    yield "affine_grid", {}, f(2, 2, 3), i64(2, 3, 5, 4)
    yield "roi_align", {"output_height": 2, "output_width": 3}, CONV2, np.abs(f(3, 4)).cumsum(1), i64(0, 0, 0)
    yield "roi_align", {"mode": "max", "sampling_ratio": 2}, CONV2, np.abs(f(2, 4)).cumsum(1), i64(0, 0)
    threshold = np.array([0.5], np.float32)
    yield "non_max_suppression", {}, np.abs(f(2, 5, 4)).cumsum(2), f(2, 3, 5), i64(2), threshold, threshold
    yield "dft", {"onesided": True}, f(2, 6, 1), None, scalar(1)
    yield "dft", {"inverse": True}, f(2, 6, 3, 2), scalar(4), scalar(-3)


ONNX_CASES: dict[str, list[tuple]] = {}
for _op, *_rest in (*elementwise(), *shapes(), *indices(), *layers(), *integers(), *pictures()):
    ONNX_CASES.setdefault(_op, []).append(tuple(_rest))

CONTROL = ("if", "loop", "scan")
"""Tested with their bodies in test_subgraphs.py."""
ONNX_CASES.update({op: [] for op in CONTROL})
assert set(ONNX_CASES) <= set(all_ops())
