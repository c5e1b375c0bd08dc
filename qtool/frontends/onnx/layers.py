"""Converters of layers with weights or windows: convolutions, products, pools, normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx.call import Call
from qtool.frontends.onnx.known import Known, Unsupported, constant_of
from qtool.frontends.onnx.simple import attrs_for
from qtool.ir import Array, Attr, DType, QParams
from qtool.ops.geometry import extent

Pairs = tuple[tuple[int, int], ...]


def padding_of(call: Call, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Pairs:
    """(before, after) for each spatial axis, ``auto_pad`` worked out; Unsupported where that needs an unknown size."""
    rank = len(kernel)
    mode = call.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes = call.x().shape[2:]
        return tuple(
            _same_padding(_known(n), extent(k, d), s, mode == "SAME_LOWER")
            for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
        )
    pads = call.attr("pads") or (0,) * (2 * rank)
    if mode == "VALID":
        pads = (0,) * (2 * rank)
    if len(pads) != 2 * rank:
        raise ModelError(f"got pads {pads}, expected {2 * rank} numbers")
    return tuple((int(pads[i]), int(pads[i + rank])) for i in range(rank))


def _known(size: int | str) -> int:
    if isinstance(size, str):
        raise Unsupported("auto_pad on a picture whose size is not known")
    return size


def _same_padding(size: int, window: int, stride: int, lower: bool) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


def _per_axis(call: Call, name: str, rank: int) -> tuple[int, ...]:
    values = tuple(call.attr(name) or (1,) * rank)
    if len(values) != rank or min(values) < 1:
        raise ModelError(f"got {name} {values}, expected {rank} positive numbers")
    return values


def _spatial_rank(call: Call, most: int = 3) -> int:
    rank = call.x().rank - 2
    if not 1 <= rank <= most:
        raise Unsupported(f"it has {rank} spatial axes")
    return rank


def conv(call: Call) -> Known:
    rank = _spatial_rank(call)
    stride, dilation = (_per_axis(call, name, rank) for name in ("strides", "dilations"))
    kernel = call.x(1).shape[2:]
    if len(kernel) != rank or not all(isinstance(k, int) for k in kernel):
        raise ModelError(f"got a weight of shape {call.x(1).shape} for an input of shape {call.x().shape}")
    sizes = tuple(int(k) for k in kernel)
    if call.attr("kernel_shape") not in (None, sizes):
        raise ModelError(f"got kernel_shape {call.attr('kernel_shape')} for a weight of shape {call.x(1).shape}")
    padding = padding_of(call, sizes, stride, dilation)
    inputs = [call.x(), _layer_weight(call.x(1), 0), call.get(2)]
    groups = int(call.attr("group", 1))
    return call.emit(f"conv{rank}d", inputs, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv_transpose(call: Call) -> Known:
    """``auto_pad`` and ``output_shape`` are turned into padding, which may be negative."""
    rank = _spatial_rank(call)
    stride, dilation = (_per_axis(call, name, rank) for name in ("strides", "dilations"))
    kernel = tuple(_known(k) for k in call.x(1).shape[2:])
    extra = tuple(call.attr("output_padding") or (0,) * rank)
    padding = _transposed_padding(call, kernel, stride, dilation, extra)
    return call.emit(
        f"conv_transpose{rank}d",
        [call.x(), _layer_weight(call.x(1), 1), call.get(2)],
        stride=stride,
        padding=padding,
        output_padding=extra,
        dilation=dilation,
        groups=int(call.attr("group", 1)),
    )


def _transposed_padding(
    call: Call, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], extra: Sequence[int]
) -> Pairs:
    rank, mode = len(kernel), call.attr("auto_pad", "NOTSET")
    wanted = tuple(call.attr("output_shape") or ())[-rank:]
    if not wanted and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return padding_of(call, kernel, stride, dilation)
    pairs = []
    for axis in range(rank):
        size = _known(call.x().shape[2 + axis])
        full = (size - 1) * stride[axis] + extent(kernel[axis], dilation[axis]) + extra[axis]
        total = full - (wanted[axis] if wanted else size * stride[axis])
        if total < 0:  # what is missing comes behind, as output padding
            pairs.append((0, total))
            continue
        half = total // 2
        pairs.append((half, total - half) if mode == "SAME_UPPER" else (total - half, half))
    return tuple(pairs)


def gemm(call: Call) -> Known:
    """A linear layer where the second factor is a constant and the third a bias; else as ONNX has it."""
    weight, bias = call.x(1), call.get(2)
    alpha, beta = float(call.attr("alpha", 1.0)), float(call.attr("beta", 1.0))
    known = None if call.attr("transA") else _linear_weight(call, weight, bool(call.attr("transB")), alpha)
    vector = None if known is None else _bias_vector(bias, known.shape[0], beta)
    if known is None or (bias is not None and vector is None):
        return call.emit(
            "gemm",
            call.inputs,
            alpha=alpha,
            beta=beta,
            transA=bool(call.attr("transA")),
            transB=bool(call.attr("transB")),
        )
    return call.emit("linear", [call.x(), known, vector])


def _linear_weight(call: Call, weight: Known, is_out_in: bool, factor: float = 1.0) -> Known | None:
    """A constant matrix as a linear layer's weight (outputs, inputs), float or dequantized integers; None for others.

    It is made once, so that layers that share a weight go on sharing it.
    """
    key = f"linear {is_out_in} {factor}"
    if weight.rank != 2 or weight.dtype is not DType.FLOAT32:
        return None
    if key not in weight.notes:
        weight.notes[key] = _turned_weight(call, weight, is_out_in, factor)
    found: Known | None = weight.notes[key]
    return found


def _turned_weight(call: Call, weight: Known, is_out_in: bool, factor: float) -> Known | None:
    if weight.array is not None:
        matrix = weight.array if is_out_in else weight.array.T
        with np.errstate(all="ignore"):  # infinities and NaN stay what they are
            return constant_of(matrix if factor == 1.0 else matrix * np.float32(factor), weight.hint)
    if "integers" not in weight.notes or factor != 1.0:
        return None
    array, qparams, hint = weight.notes["integers"]
    outputs = 0 if is_out_in else 1
    if qparams.axis not in (None, outputs):
        return constant_of(
            np.ascontiguousarray(qparams.dequantize(array) if is_out_in else qparams.dequantize(array).T)
        )
    if is_out_in:
        return weight
    from qtool.frontends.onnx.integers import weight_known

    axis = None if qparams.axis is None else 0
    turned = QParams(qparams.scale, qparams.zero_point, qparams.dtype, axis)
    return weight_known(call, np.ascontiguousarray(array.T), turned, hint)


def _layer_weight(weight: Known, channel_axis: int) -> Known:
    """A layer's weight; a float constant for integers with scales along another axis than the channels."""
    if "integers" not in weight.notes:
        return weight
    array, qparams, hint = weight.notes["integers"]
    return weight if qparams.axis in (None, channel_axis) else constant_of(qparams.dequantize(array), hint)


def _bias_vector(bias: Known | None, outputs: int | str, beta: float) -> Known | None:
    """A bias that is the same for all rows, as a vector; None where there is none or it differs from row to row."""
    if bias is None or bias.array is None or bias.dtype is not DType.FLOAT32:
        return None
    if bias.array.size not in (1, outputs) or (bias.rank and bias.shape[-1] != bias.array.size):
        return None
    if bias.array.shape == (outputs,) and beta == 1.0:
        return bias
    flat = np.broadcast_to(bias.array.reshape(-1), (int(outputs),)) * np.float32(beta)
    return constant_of(np.ascontiguousarray(flat, np.float32), bias.hint)


def matmul(call: Call) -> Known:
    """With a constant matrix on the right it is a linear layer without bias."""
    a, b = call.x(), call.x(1)
    weight = _linear_weight(call, b, False) if a.array is None and a.rank >= 1 else None
    return call.emit("matmul", [a, b]) if weight is None else call.emit("linear", [a, weight])


def max_pool(call: Call) -> Sequence[Known]:
    window = _window(call)
    if window is None or call.wants(1) or call.attr("ceil_mode"):
        return call.emit_all("max_pool", call.inputs, 2, **attrs_for(call, "max_pool"))
    kernel, stride, dilation, padding = window
    attrs: dict[str, Attr] = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return call.emit_all(f"max_pool{len(kernel)}d", call.inputs, 1, **attrs)


def average_pool(call: Call) -> Known:
    window = _window(call)
    if window is None or call.attr("ceil_mode") or max(window[2]) > 1:
        return call.emit("average_pool", call.inputs, **attrs_for(call, "average_pool"))
    kernel, stride, _, padding = window
    include = bool(call.attr("count_include_pad"))
    if not any(map(any, padding)):
        include = True
    attrs: dict[str, Attr] = {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "count_include_pad": include,
    }
    return call.emit(f"avg_pool{len(kernel)}d", call.inputs, **attrs)


def _window(call: Call) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Pairs] | None:
    """Kernel, stride, dilation and padding where the pools over one and two axes can do it; else None."""
    rank = _spatial_rank(call)
    kernel, stride, dilation = (_per_axis(call, name, rank) for name in ("kernel_shape", "strides", "dilations"))
    x = call.x()
    if rank > 2 or (x.dtype is not DType.FLOAT32 and x.quantized is None) or call.attr("storage_order"):
        return None
    try:
        padding = padding_of(call, kernel, stride, dilation)
    except Unsupported:
        return None
    fits = all(0 <= p < extent(k, d) for pair, k, d in zip(padding, kernel, dilation, strict=True) for p in pair)
    return (kernel, stride, dilation, padding) if fits else None


def global_average_pool(call: Call) -> Known:
    rank = _spatial_rank(call, 16)
    if rank > 2:
        return call.emit("mean", [call.x()], dim=tuple(range(2, 2 + rank)), keepdim=True)
    return call.emit(f"adaptive_avg_pool{rank}d", [call.x()], output_size=(1,) * rank)


def global_max_pool(call: Call) -> Known:
    rank = _spatial_rank(call, 16)
    if rank > 2:
        return call.emit("reduce_max", [call.x()], axes=tuple(range(2, 2 + rank)), keepdims=True)
    return call.emit(f"adaptive_max_pool{rank}d", [call.x()], output_size=(1,) * rank)


def batch_norm(call: Call) -> Known:
    if call.attr("training_mode") or call.wants(1) or not call.attr("spatial", 1):
        raise Unsupported("it is in training mode, or not spatial")
    if call.opset < 7 and not call.attr("is_test"):
        raise Unsupported("it is in training mode")
    x, weight, bias, mean, variance = (call.x(i) for i in range(5))
    return call.emit("batch_norm", [x, mean, variance, weight, bias], eps=float(call.attr("epsilon", 1e-5)))


def layer_norm(call: Call) -> Sequence[Known]:
    x, axis = call.x(), int(call.attr("axis", -1))
    shape = x.shape[axis % max(x.rank, 1) :]
    affine = [known for known in call.inputs[1:] if known is not None]
    plain = all(isinstance(n, int) for n in shape) and all(known.shape == shape for known in affine)
    if plain and x.dtype is DType.FLOAT32 and not call.wants(1) and not call.wants(2):
        sizes = tuple(int(n) for n in shape)
        return call.emit_all(
            "layer_norm", call.inputs, 1, normalized_shape=sizes, eps=float(call.attr("epsilon", 1e-5))
        )
    return call.emit_all("layer_normalization", call.inputs, 3, **attrs_for(call, "layer_normalization"))


def group_norm(call: Call) -> Known:
    """Before opset 21 scale and bias have one number a group, since then one a channel."""
    x, groups = call.x(), int(call.attrs["num_groups"])
    affine = [call.x(1), call.x(2)]
    if call.opset < 21:
        channels = _known(x.shape[1])
        affine = [_repeated(call, known, groups, channels) for known in affine]
    epsilon = float(call.attr("epsilon", 1e-5))
    return call.emit("group_norm", [x, *affine], num_groups=groups, epsilon=epsilon)


def _repeated(call: Call, known: Known, groups: int, channels: int) -> Known:
    """A number a group -> the same number for each of its channels."""
    if known.shape == (channels,) and channels != groups:
        return known
    column = call.emit("unsqueeze", [known], dim=1)
    target: Array = np.array([groups, channels // groups], np.int64)
    return call.emit("reshape", [call.emit("expand", [column, constant_of(target)])], shape=(channels,))


def prelu(call: Call) -> Known:
    """One slope for all, or one a channel, is a prelu as PyTorch has it."""
    x, slope = call.x(), call.x(1)
    channel_shape = (x.shape[1], *([1] * (x.rank - 2))) if x.rank >= 2 else None
    if x.dtype is not DType.FLOAT32 or slope.array is None:
        return call.emit("prelu_broadcast", [x, slope])
    shapes = [channel_shape, (1, *(channel_shape or ()))]
    if call.opset < 7:
        shapes.append(x.shape[1:2])
    if slope.array.size == 1 or slope.shape in shapes:
        flat = slope if slope.rank == 1 else constant_of(slope.array.reshape(-1), slope.hint)
        return call.emit("prelu", [x, flat])
    return call.emit("prelu_broadcast", [x, slope])
