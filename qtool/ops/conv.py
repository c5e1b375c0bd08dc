"""Convolutions, with the bias, residual and activation that fusion gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.ir import Array, Dim, Shape, TensorType
from qtool.ops import geometry
from qtool.ops.activation import Activation, activate, activation_grad, check_activation
from qtool.ops.dims import UNKNOWN, known, need_float, need_rank, need_shape, same_size
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import Gradients, at_least_float32, gradients, per_channel, unpad

LAYOUTS = {1: "NCL", 2: "NCHW", 3: "NCDHW"}
"""By the number of spatial axes."""
COLUMN_BYTES = 1 << 25
"""Samples are unfolded into columns in chunks of about this size, so that a large batch stays in bounds."""


@dataclass(frozen=True)
class ConvAttrs(Attrs):
    """One entry a spatial axis; ``padding`` has a pair (before, after) for each. y = act(conv(x) + bias + residual)."""

    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros"
    activation: Activation = "none"
    clamp: tuple[float, float] | None = None


@dataclass(frozen=True)
class Conv1dAttrs(ConvAttrs):
    stride: tuple[int] = (1,)
    padding: tuple[tuple[int, int]] = ((0, 0),)
    dilation: tuple[int] = (1,)


@dataclass(frozen=True)
class Conv2dAttrs(ConvAttrs):
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Conv3dAttrs(ConvAttrs):
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0), (0, 0))
    dilation: tuple[int, int, int] = (1, 1, 1)


def convolve(x: Array, weight: Array, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Array:
    """The bare sum of products: x (N, C, *size), already padded, and weight (O, C / groups, *kernel) -> (N, O, *out).

    Works in the arrays' common type: exact for integers held in float64.
    """
    kernel = weight.shape[2:]
    out = [
        (n - geometry.extent(k, d)) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    if weight.shape[1] == 1:
        return _convolve_depthwise(x, weight, stride, dilation, out)
    y = np.empty((x.shape[0], weight.shape[0], *out), np.result_type(x, weight))
    view = geometry.windows(x, kernel, stride, dilation)
    flat_weight = weight.reshape(groups, weight.shape[0] // groups, -1)
    for part in _chunks(x, kernel, out):
        columns = _columns(view[part], groups, len(kernel))
        y[part] = np.matmul(flat_weight, columns).reshape(len(columns), -1, *out)
    return y


def _chunks(x: Array, kernel: Sequence[int], out: Sequence[int]) -> Iterator[slice]:
    """Slices of the samples whose columns are of about ``COLUMN_BYTES``."""
    sample_bytes = x.itemsize * x.shape[1] * math.prod((*kernel, *out))
    step = max(1, COLUMN_BYTES // max(sample_bytes, 1))
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def _columns(view: Array, groups: int, rank: int) -> Array:
    """Windows (N, C, *out, *kernel) -> (N, groups, C / groups * taps, pixels)."""
    spatial = tuple(range(2, 2 + rank))
    taps = tuple(range(2 + rank, 2 + 2 * rank))
    pixels = int(np.prod(view.shape[2 : 2 + rank]))
    return view.transpose(0, 1, *taps, *spatial).reshape(view.shape[0], groups, -1, pixels)


def _convolve_depthwise(
    x: Array, weight: Array, stride: Sequence[int], dilation: Sequence[int], out: Sequence[int]
) -> Array:
    """One input channel a group: a sum over the taps, without unfolding."""
    batch, channels = x.shape[:2]
    split = weight.reshape(channels, -1, int(np.prod(weight.shape[2:])))
    y = np.zeros((batch, channels, split.shape[1], *out), np.result_type(x, weight))
    column = [1] * len(out)
    for index, under in enumerate(geometry.taps(x, weight.shape[2:], stride, dilation, out)):
        tap = split[:, :, index]
        y += under[:, :, None] * tap.reshape(*tap.shape, *column)
    return y.reshape(batch, -1, *out)


def fold(
    columns: Array, kernel: Sequence[int], full: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Array:
    """Sums columns (N, C, taps, *windows) into (N, C, *full), each tap where its window has it."""
    y = np.zeros((*columns.shape[:2], *full), columns.dtype)
    for index, under in enumerate(geometry.taps(y, kernel, stride, dilation, columns.shape[3:])):
        np.add(under, columns[:, :, index], out=under)
    return y


def convolve_transposed(
    x: Array, weight: Array, full: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Array:
    """The transpose of ``convolve``: x (N, O, *out) and weight (O, C / groups, *kernel) -> (N, C, *full)."""
    batch, channels, *out = x.shape
    kernel, inputs = weight.shape[2:], weight.shape[1] * groups
    y = np.zeros((batch, inputs, *full), np.result_type(x, weight))
    if weight.shape[1] == 1:
        split = weight.reshape(groups, -1, math.prod(kernel), *[1] * len(out))
        grouped = x.reshape(batch, groups, -1, *out)
        for index, under in enumerate(geometry.taps(y, kernel, stride, dilation, out)):
            np.add(under, (grouped * split[:, :, index]).sum(2), out=under)
        return y
    flat = weight.reshape(groups, channels // groups, -1).transpose(0, 2, 1)
    for part in _chunks(y, kernel, out):
        columns = np.matmul(flat, x[part].reshape(-1, groups, channels // groups, math.prod(out)))
        y[part] = fold(columns.reshape(-1, inputs, math.prod(kernel), *out), kernel, full, stride, dilation)
    return y


def weight_grad(x: Array, grad: Array, shape: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """The derivative by the weight (O, C / groups, *kernel) of ``convolve``, from x (N, C, *size) and that by y.

    A chunk of samples is one product of matrices for each group; with one input channel a group it is a sum a tap.
    """
    outputs, inputs, *kernel = shape
    groups, out, rank = x.shape[1] // inputs, grad.shape[2:], len(kernel)
    if inputs == 1:
        split = grad.reshape(len(x), groups, -1, *out)
        axes = (0, *range(3, 3 + rank))
        taps = geometry.taps(x, kernel, stride, dilation, out)
        return np.stack([(split * under[:, :, None]).sum(axis=axes) for under in taps], -1).reshape(shape)
    total = np.zeros((groups, outputs // groups, inputs * math.prod(kernel)), np.result_type(x, grad))
    view = geometry.last_axes(geometry.windows(x, kernel, stride, dilation), [*map(slice, out), *[slice(None)] * rank])
    order = (1, *range(2 + rank, 2 + 2 * rank), 0, *range(2, 2 + rank))
    for part in _chunks(x, kernel, out):
        columns = view[part].transpose(order).reshape(groups, total.shape[2], -1)
        rows = np.moveaxis(grad[part], 1, 0).reshape(groups, total.shape[1], -1)
        total += np.matmul(rows, columns.transpose(0, 2, 1))
    return total.reshape(shape)


def conv_type(
    attrs: ConvAttrs,
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    residual: TensorType | None = None,
) -> tuple[TensorType, ...]:
    rank = len(attrs.stride)
    need_float(x=x, weight=weight, bias=bias, residual=residual)
    need_rank("x", x, rank + 2, LAYOUTS[rank])
    need_rank("weight", weight, rank + 2, LAYOUTS[rank].replace("NC", "OI"))
    check_activation(attrs.activation, attrs.clamp)
    outputs, kernel = _check_weight(attrs, x, weight)
    out = _output_sizes(attrs, x.shape[2:], kernel)
    result = TensorType(x.dtype, (x.shape[0], outputs, *out))
    need_shape("bias", bias, (outputs,))
    need_shape("residual", residual, result.shape)
    return (result,)


def _output_sizes(attrs: ConvAttrs, sizes: Shape, kernel: Sequence[int]) -> Shape:
    require(min(map(min, attrs.padding)) >= 0, f"padding {attrs.padding}", "at least 0")
    check_pad_mode(attrs.padding, attrs.padding_mode, sizes)
    axes = zip(sizes, kernel, attrs.stride, attrs.padding, attrs.dilation, strict=True)
    out = tuple(geometry.conv_size(size, k, s, p, d) if isinstance(size, int) else UNKNOWN for size, k, s, p, d in axes)
    fits = all(isinstance(size, str) or size > 0 for size in out)
    require(fits, f"a kernel of {kernel} over {tuple(sizes)} padded by {attrs.padding}", "one that fits")
    return out


def _check_weight(attrs: ConvAttrs, x: TensorType, weight: TensorType) -> tuple[int, tuple[int, ...]]:
    outputs, inputs, *kernel = (known(dim, "weight size") for dim in weight.shape)
    channels, groups = x.shape[1], attrs.groups
    require(groups >= 1, f"groups {groups}", "at least 1")
    require(
        same_size(channels, inputs * groups),
        f"{channels} input channels",
        f"{inputs * groups} (weight {inputs} x groups {groups})",
    )
    require(outputs % groups == 0, f"{outputs} output channels", f"a multiple of groups {groups}")
    require(min(attrs.stride) >= 1, f"stride {attrs.stride}", "at least 1")
    require(min(attrs.dilation) >= 1, f"dilation {attrs.dilation}", "at least 1")
    return outputs, tuple(kernel)


def check_pad_mode(padding: Sequence[geometry.Pair], mode: str, sizes: Sequence[Dim]) -> None:
    """Reflecting needs more pixels than it pads, wrapping around as many, replicating one."""
    spare = {"reflect": 1, "circular": 0}
    for (before, after), size in zip(padding, sizes, strict=True):
        if mode in spare and isinstance(size, int):
            limit = size - spare[mode]
            require(max(before, after) <= limit, f"{mode} padding {(before, after)} of size {size}", f"at most {limit}")


def conv_reference(
    attrs: ConvAttrs, x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None
) -> tuple[Array, ...]:
    padded = geometry.pad(x, attrs.padding, attrs.padding_mode)
    if x.dtype == np.float16:  # summed up in float32 and rounded once, as everywhere
        padded, weight = padded.astype(np.float32), weight.astype(np.float32)
    y = convolve(padded, weight, attrs.stride, attrs.dilation, attrs.groups)
    if bias is not None:
        y += bias.reshape(-1, *([1] * len(attrs.stride)))
    if residual is not None:
        y += residual
    return (np.asarray(activate(y, attrs.activation, attrs.clamp), x.dtype),)


def conv_vjp(call: VjpCall) -> Gradients:
    attrs = call.attrs
    x, weight = (at_least_float32(array) for array in call.inputs[:2] if array is not None)
    grad = at_least_float32(activation_grad(call, conv_reference))
    window = (attrs.stride, attrs.dilation)

    def by_x() -> Array:
        full = [size + sum(pair) for size, pair in zip(x.shape[2:], attrs.padding, strict=True)]
        return unpad(convolve_transposed(grad, weight, full, *window, attrs.groups), attrs.padding, attrs.padding_mode)

    def by_weight() -> Array:
        return weight_grad(geometry.pad(x, attrs.padding, attrs.padding_mode), grad, weight.shape, *window)

    return gradients(call, by_x, by_weight, lambda: per_channel(grad), lambda: grad)


for _name, _attrs in (("conv1d", Conv1dAttrs), ("conv2d", Conv2dAttrs)):
    register(
        OpSpec(
            name=_name,
            attrs=_attrs,
            inputs=("x", "weight", "bias?", "residual?"),
            infer=conv_type,
            reference=conv_reference,
            rule=QuantRule.ACCUMULATE,
            weight=1,
            bias=2,
            channel_axis=0,
            onnx=("Conv",),
            kernel=_name,
            vjp=conv_vjp,
        )
    )

register(
    OpSpec(
        "conv3d",
        Conv3dAttrs,
        ("x", "weight", "bias?", "residual?"),
        conv_type,
        conv_reference,
        onnx=("Conv",),
        vjp=conv_vjp,
    )
)
