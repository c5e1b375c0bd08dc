"""Convolutions, with the bias, residual and activation that fusion gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.ir import Array, Dim, Shape, TensorType
from qtool.ops import geometry
from qtool.ops.activation import Activation, activate, check_activation
from qtool.ops.dims import UNKNOWN, known, need_float, need_rank, need_shape, same_size
from qtool.ops.registry import Attrs, OpSpec, QuantRule, register, require

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
    sample_bytes = x.itemsize * x.shape[1] * int(np.prod((*kernel, *out)))
    step = max(1, COLUMN_BYTES // max(sample_bytes, 1))
    for start in range(0, x.shape[0], step):
        chunk = view[start : start + step]
        columns = _columns(chunk, groups, len(kernel))
        y[start : start + step] = np.matmul(flat_weight, columns).reshape(len(chunk), -1, *out)
    return y


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
        )
    )

register(
    OpSpec("conv3d", Conv3dAttrs, ("x", "weight", "bias?", "residual?"), conv_type, conv_reference, onnx=("Conv",))
)
