"""Transposed convolutions, with PyTorch's attributes, and the folding of columns into pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qtool.errors import DataError
from qtool.ir import Array, Shape, TensorType
from qtool.ops import geometry
from qtool.ops.conv import LAYOUTS, convolve, convolve_transposed, fold, weight_grad
from qtool.ops.dims import UNKNOWN, known, need_float, need_integers, need_rank, need_shape, same_size, spell
from qtool.ops.dynamic import as_ints, ints_of, sizes_of
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import Gradients, at_least_float32, grad_of, gradients, per_channel

Types = tuple[TensorType, ...]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ConvTransposeAttrs(Attrs):
    """One entry a spatial axis. The padding is cut off the result, ``output_padding`` added behind it."""

    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True)
class ConvTranspose1dAttrs(ConvTransposeAttrs):
    stride: tuple[int] = (1,)
    padding: tuple[tuple[int, int]] = ((0, 0),)
    output_padding: tuple[int] = (0,)
    dilation: tuple[int] = (1,)


@dataclass(frozen=True)
class ConvTranspose2dAttrs(ConvTransposeAttrs):
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class ConvTranspose3dAttrs(ConvTransposeAttrs):
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0), (0, 0))
    output_padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class Col2ImAttrs(Attrs):
    """ONNX's: ``pads`` has what lies before every axis, then what lies behind. Empty tuples are ones, and zeros."""

    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


def conv_transpose_type(
    attrs: ConvTransposeAttrs, x: TensorType, weight: TensorType, bias: TensorType | None = None
) -> Types:
    rank = len(attrs.stride)
    need_float(x=x, weight=weight, bias=bias)
    need_rank("x", x, rank + 2, LAYOUTS[rank])
    need_rank("weight", weight, rank + 2, LAYOUTS[rank].replace("NC", "IO"))
    for name, values, low in (("stride", attrs.stride, 1), ("dilation", attrs.dilation, 1)):
        require(min(values) >= low, f"{name} {values}", f"at least {low}")
    require(min(attrs.output_padding) >= 0, f"output_padding {attrs.output_padding}", "at least 0")
    inputs, outputs, *kernel = (known(dim, "weight size") for dim in weight.shape)
    groups = attrs.groups
    require(groups >= 1 and inputs % groups == 0, f"groups {groups} for {inputs} input channels", "a divisor")
    require(same_size(x.shape[1], inputs), f"{x.shape[1]} input channels", f"{inputs}")
    need_shape("bias", bias, (outputs * groups,))
    sizes: Shape = tuple(
        _full(size, k, s, d, extra) - sum(cut) if isinstance(size, int) else UNKNOWN
        for size, k, s, d, extra, cut in zip(
            x.shape[2:], kernel, attrs.stride, attrs.dilation, attrs.output_padding, attrs.padding, strict=True
        )
    )
    fits = all(isinstance(size, str) or size > 0 for size in sizes)
    require(fits, f"padding {attrs.padding} of {spell(x.shape)}", "something left")
    return (TensorType(x.dtype, (x.shape[0], outputs * groups, *sizes)),)


def _full(size: int, kernel: int, stride: int, dilation: int, extra: int) -> int:
    """The size before anything is cut off."""
    return (size - 1) * stride + geometry.extent(kernel, dilation) + extra


def conv_transpose(attrs: ConvTransposeAttrs, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, ...]:
    axes = zip(x.shape[2:], weight.shape[2:], attrs.stride, attrs.dilation, attrs.output_padding, strict=True)
    full = [_full(*axis) for axis in axes]
    y = cut(convolve_transposed(x, weight, full, attrs.stride, attrs.dilation, attrs.groups), attrs.padding)
    if bias is not None:
        y = y + bias.reshape(-1, *([1] * len(full)))
    return (y,)


def conv_transpose_vjp(call: VjpCall) -> Gradients:
    """Of a transposed convolution by x: a convolution; by the weight: that convolution's, with x and y changed over."""
    attrs = call.attrs
    x, weight = (at_least_float32(array) for array in call.inputs[:2] if array is not None)
    grad = at_least_float32(grad_of(call))
    whole = cut(grad, tuple((-before, -after) for before, after in attrs.padding))

    def by_x() -> Array:
        y = convolve(whole, weight, attrs.stride, attrs.dilation, attrs.groups)
        return geometry.last_axes(y, map(slice, x.shape[2:]))  # output_padding may make room for more windows

    def by_weight() -> Array:
        return weight_grad(whole, x, weight.shape, attrs.stride, attrs.dilation)

    return gradients(call, by_x, by_weight, lambda: per_channel(grad))


def cut(y: Array, padding: Pairs) -> Array:
    """Without the padding; where that is negative there is more, and it is zero."""
    crop = [
        slice(max(before, 0), size - max(after, 0)) for (before, after), size in zip(padding, y.shape[2:], strict=True)
    ]
    grown = tuple((max(-before, 0), max(-after, 0)) for before, after in padding)
    return geometry.pad(geometry.last_axes(y, crop), grown)


def _col2im_type(attrs: Col2ImAttrs, x: TensorType, image: TensorType, block: TensorType) -> Types:
    need_integers(image_shape=image, block_shape=block)
    need_rank("x", x, 3, "(batch, channels * taps, windows)")
    sizes, kernel = sizes_of("image_shape", image), ints_of(block)
    rank = len(sizes)
    for name, values, count in (("strides", attrs.strides, rank), ("dilations", attrs.dilations, rank)):
        require(len(values) in (0, count) and min(values, default=1) >= 1, f"{name} {values}", f"{count} of at least 1")
    require(len(attrs.pads) in (0, 2 * rank), f"pads {attrs.pads}", f"{2 * rank}")
    channels = x.shape[1]
    if kernel is None or isinstance(channels, str):
        return (TensorType(x.dtype, (x.shape[0], UNKNOWN, *sizes)),)
    taps = math.prod(kernel)
    require(len(kernel) == rank and taps > 0 and channels % taps == 0, f"block_shape {kernel}", "one that fits")
    return (TensorType(x.dtype, (x.shape[0], channels // taps, *sizes)),)


def col2im(attrs: Col2ImAttrs, x: Array, image: Array, block: Array) -> tuple[Array, ...]:
    """(N, C * taps, windows) -> (N, C, *image): what lies on one pixel is summed."""
    sizes, kernel = as_ints(image), as_ints(block)
    strides, dilations, padding = _columns_of(attrs, len(sizes))
    windows = tuple(map(geometry.conv_size, sizes, kernel, strides, padding, dilations))
    if x.shape[2] != math.prod(windows):
        raise DataError(f"got {x.shape[2]} windows, expected {math.prod(windows)}")
    columns = x.reshape(x.shape[0], -1, math.prod(kernel), *windows)
    full = [size + sum(pair) for size, pair in zip(sizes, padding, strict=True)]
    return (cut(fold(columns, kernel, full, strides, dilations), padding),)


def _columns_of(attrs: Col2ImAttrs, rank: int) -> tuple[Sequence[int], Sequence[int], Pairs]:
    """Strides, dilations and padding."""
    pads = attrs.pads or (0,) * (2 * rank)
    padding = tuple(zip(pads[:rank], pads[rank:], strict=True))
    return attrs.strides or (1,) * rank, attrs.dilations or (1,) * rank, padding


def col2im_vjp(call: VjpCall) -> Gradients:
    x, image, block = call.inputs
    assert x is not None
    assert image is not None
    assert block is not None
    strides, dilations, padding = _columns_of(call.attrs, image.size)

    def by_x() -> Array:
        whole = geometry.pad(grad_of(call), padding)
        view = geometry.windows(whole, as_ints(block), strides, dilations)
        rank = image.size
        return view.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)).reshape(x.shape)

    return gradients(call, by_x)


for _rank, _attrs in ((1, ConvTranspose1dAttrs), (2, ConvTranspose2dAttrs), (3, ConvTranspose3dAttrs)):
    register(
        OpSpec(
            name=f"conv_transpose{_rank}d",
            attrs=_attrs,
            inputs=("x", "weight", "bias?"),
            infer=conv_transpose_type,
            reference=conv_transpose,
            rule=QuantRule.ACCUMULATE if _rank < 3 else None,
            weight=1 if _rank < 3 else None,
            bias=2,
            channel_axis=1,
            onnx=("ConvTranspose",),
            kernel=f"conv_transpose{_rank}d" if _rank < 3 else "",
            vjp=conv_transpose_vjp,
        )
    )
register(
    OpSpec(
        "col2im",
        Col2ImAttrs,
        ("x", "image_shape", "block_shape"),
        _col2im_type,
        col2im,
        onnx=("Col2Im",),
        vjp=col2im_vjp,
    )
)
