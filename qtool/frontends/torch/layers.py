"""Converters of convolutions, linear layers, normalizations and pools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtool.frontends.torch.call import Call, Convert
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import Attr


def owner_of(known: Known | None) -> str:
    """The module path of a parameter."""
    return known.hint.rpartition(".")[0] if known is not None and known.array is not None else ""


def _windows(call: Call, rank: int, name: str, default: int) -> tuple[int, ...]:
    return call.integers(name, rank) if call.get(name) not in (None, []) else (default,) * rank


def conv(call: Call) -> Known:
    """conv1d, conv2d, conv3d; a padding of "same" puts the odd pixel behind, as torch does."""
    weight = call.x("weight")
    rank = weight.rank - 2
    call = call.under(owner_of(weight))
    x = call.x("input")
    single = x.rank == rank + 1
    if single:
        x = call.helper("unsqueeze", [x], dim=0)
    dilation = _windows(call, rank, "dilation", 1)
    attrs: dict[str, Attr] = {
        "stride": _windows(call, rank, "stride", 1),
        "padding": _conv_padding(call, weight, dilation),
        "dilation": dilation,
        "groups": call.integer("groups", 1),
    }
    y = call.emit(f"conv{rank}d", [x, weight, call.maybe("bias")], **attrs)
    return call.helper("squeeze", [y], dim=(0,)) if single else y


def _conv_padding(call: Call, weight: Known, dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    padding = call.get("padding", 0)
    if not isinstance(padding, str):
        return tuple((n, n) for n in _windows(call, len(dilation), "padding", 0))
    if padding == "valid":
        return ((0, 0),) * len(dilation)
    totals = [step * (int(size) - 1) for size, step in zip(weight.shape[2:], dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def conv_transpose(call: Call) -> Known:
    weight = call.x("weight")
    rank = weight.rank - 2
    call = call.under(owner_of(weight))
    attrs: dict[str, Attr] = {
        "stride": _windows(call, rank, "stride", 1),
        "padding": tuple((n, n) for n in _windows(call, rank, "padding", 0)),
        "output_padding": _windows(call, rank, "output_padding", 0),
        "dilation": _windows(call, rank, "dilation", 1),
        "groups": call.integer("groups", 1),
    }
    return call.emit(f"conv_transpose{rank}d", [call.x("input"), weight, call.maybe("bias")], **attrs)


def convolution(call: Call) -> Known:
    """The one operator that all convolutions decompose to."""
    return conv_transpose(call) if call.get("transposed", False) else conv(call)


def linear(call: Call) -> Known:
    return product(call, call.x("input"), call.x("weight"), call.maybe("bias"))


def product(call: Call, x: Known, weight: Known, bias: Known | None) -> Known:
    """x . weight' + bias; a linear layer where weight and bias are constants, so that they can be quantized."""
    if weight.array is not None and weight.rank == 2 and (bias is None or bias.array is not None):
        call = call.under(owner_of(weight))
        if bias is not None and bias.rank != 1:
            return call.helper("add", [call.emit("linear", [x, weight]), bias])
        return call.emit("linear", [x, weight, bias])
    if weight.rank == 1:
        y = call.emit("matmul", [x, weight])
    else:
        y = call.emit("matmul", [x, call.helper("transpose", [weight], dim0=0, dim1=1)])
    return y if bias is None else call.helper("add", [y, bias])


def matmul(call: Call) -> Known:
    return _matmul(call, call.x("self"), call.x("other|mat2|vec"))


def _matmul(call: Call, a: Known, b: Known, bias: Known | None = None) -> Known:
    """A constant matrix on the right is a linear layer's weight, turned."""
    if b.array is None or b.rank != 2 or not b.dtype.is_float or a.array is not None:
        y = call.emit("matmul", [a, b])
        return y if bias is None else call.helper("add", [y, bias])
    hint = b.hint or call.here("weight")
    weight = b.turned or constant_of(np.ascontiguousarray(b.array.T), hint)
    return product(call, a, weight, bias)


def addmm(call: Call) -> Known:
    """beta * self + alpha * (mat1 . mat2)"""
    bias, a, b = call.x("self"), call.x("mat1|batch1|mat|vec"), call.x("mat2|batch2|vec")
    alpha, beta = call.get("alpha", 1), call.get("beta", 1)
    if beta not in (0, 1):
        bias = call.helper("mul", [bias, call.constant(beta, bias.dtype)])
    if alpha == 1:
        return _matmul(call, a, b, bias if beta else None)
    y = _matmul(call, a, b)
    y = call.helper("mul", [y, call.constant(alpha, y.dtype)])
    return call.helper("add", [y, bias]) if beta else y


# normalizations


def batch_norm(call: Call) -> Known:
    if call.get("training", False):
        raise Unsupported("it was exported in training mode: call module.eval() first")
    mean, variance = call.maybe("running_mean"), call.maybe("running_var")
    if mean is None or variance is None:
        raise Unsupported("it has no running statistics (track_running_stats=False)")
    inputs = [call.x("input"), mean, variance, call.maybe("weight"), call.maybe("bias")]
    return call.emit("batch_norm", inputs, eps=float(call.args["eps"]))


def only_first(convert: Convert) -> Convert:
    """Of operators that also give what only training uses."""

    def first(call: Call) -> Sequence[Known]:
        result = convert(call)
        return [result] if isinstance(result, Known) else result

    return first


def layer_norm(call: Call) -> Known:
    shape = call.integers("normalized_shape")
    inputs = [call.x("input"), call.maybe("weight"), call.maybe("bias")]
    return call.emit("layer_norm", inputs, normalized_shape=shape, eps=float(call.get("eps", 1e-5)))


def _scale_and_bias(call: Call, channels: int) -> list[Known]:
    x = call.x("input")
    weight, bias = call.maybe("weight"), call.maybe("bias")
    ones, zeros = (constant_of(np.full(channels, value, x.dtype.numpy)) for value in (1, 0))
    return [weight or ones, bias or zeros]


def _channels(call: Call) -> int:
    channels = call.x("input").shape[1]
    if not isinstance(channels, int):
        raise Unsupported("the number of channels depends on the input")
    return channels


def group_norm(call: Call) -> Known:
    inputs = [call.x("input"), *_scale_and_bias(call, _channels(call))]
    return call.emit("group_norm", inputs, num_groups=call.integer("num_groups"), epsilon=float(call.get("eps", 1e-5)))


def instance_norm(call: Call) -> Known:
    scale_and_bias = _scale_and_bias(call, _channels(call))
    if not call.get("use_input_stats", True):
        statistics = [call.maybe("running_mean"), call.maybe("running_var")]
        return call.emit("batch_norm", [call.x("input"), *statistics, *scale_and_bias], eps=float(call.args["eps"]))
    return call.emit("instance_norm", [call.x("input"), *scale_and_bias], epsilon=float(call.args["eps"]))


def rms_norm(call: Call) -> Known:
    x, shape = call.x("input"), call.integers("normalized_shape")
    weight = call.maybe("weight") or constant_of(np.ones(shape, x.dtype.numpy))
    eps = call.get("eps", float(np.finfo(x.dtype.value).eps))
    return call.emit("rms_norm", [x, weight], axis=-len(shape), epsilon=float(eps))


# pools


def _pool_attrs(call: Call, rank: int) -> dict[str, Attr]:
    kernel = call.integers("kernel_size", rank)
    stride = call.integers("stride", rank) or kernel
    padding = tuple((n, n) for n in _windows(call, rank, "padding", 0))
    return {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "ceil_mode": bool(call.get("ceil_mode", False)),
    }


def _batched(call: Call, rank: int) -> tuple[Known, bool]:
    x = call.x("self|input")
    single = x.rank == rank + 1
    return (call.helper("unsqueeze", [x], dim=0) if single else x), single


def max_pool(rank: int) -> Convert:
    def convert(call: Call) -> Known:
        x, single = _batched(call, rank)
        attrs = {**_pool_attrs(call, rank), "dilation": _windows(call, rank, "dilation", 1)}
        y = call.emit(f"max_pool{rank}d", [x], **attrs)
        return call.helper("squeeze", [y], dim=(0,)) if single else y

    return convert


def avg_pool(rank: int) -> Convert:
    def convert(call: Call) -> Known:
        x, single = _batched(call, rank)
        attrs = {**_pool_attrs(call, rank), "count_include_pad": bool(call.get("count_include_pad", True))}
        if call.get("divisor_override") is not None:
            attrs["divisor_override"] = call.integer("divisor_override")
        y = call.emit(f"avg_pool{rank}d", [x], **attrs)
        return call.helper("squeeze", [y], dim=(0,)) if single else y

    return convert


def adaptive_pool(kind: str, rank: int) -> Convert:
    def convert(call: Call) -> Known:
        x, single = _batched(call, rank)
        fake = call.result[0] if isinstance(call.result, (list, tuple)) else call.result
        sizes = [dim for dim in call.sizes.shape(fake.shape[-rank:]) if isinstance(dim, int)]
        if len(sizes) != rank:
            raise Unsupported("the size of its output depends on the input")
        y = call.emit(f"adaptive_{kind}_pool{rank}d", [x], output_size=tuple(sizes))
        return call.helper("squeeze", [y], dim=(0,)) if single else y

    return convert
