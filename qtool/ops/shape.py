"""Operators that move, select or join values without changing any: they work on every element type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qtool.ir import Array, Dim, Shape, TensorType
from qtool.ops import geometry
from qtool.ops.activation import NoAttrs
from qtool.ops.conv import check_pad_mode
from qtool.ops.dims import (
    UNKNOWN,
    axes_of,
    axis_of,
    divide,
    known,
    need_float,
    numbers,
    product,
    same_shape,
    same_size,
    spell,
)
from qtool.ops.registry import Attrs, OpSpec, QuantRule, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, Part, grad_of, gradients, linear_of, reshaped, same, unpad


@dataclass(frozen=True)
class FlattenAttrs(Attrs):
    start_dim: int = 1
    end_dim: int = -1


@dataclass(frozen=True)
class ReshapeAttrs(Attrs):
    """``shape`` may hold one -1, which takes what is left (the unknown batch as well)."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class TransposeAttrs(Attrs):
    dim0: int
    dim1: int


@dataclass(frozen=True)
class PermuteAttrs(Attrs):
    dims: tuple[int, ...]


@dataclass(frozen=True)
class SqueezeAttrs(Attrs):
    """Axes to drop; as in PyTorch one whose size is not 1 stays."""

    dim: tuple[int, ...]


@dataclass(frozen=True)
class UnsqueezeAttrs(Attrs):
    dim: int


@dataclass(frozen=True)
class SliceAttrs(Attrs):
    """x[start:end:step] along one axis, with Python's rules for negative and too large ends."""

    dim: int = 0
    start: int = 0
    end: int | None = None
    step: int = 1


@dataclass(frozen=True)
class SplitAttrs(Attrs):
    """One output an entry of ``split_sizes``."""

    split_sizes: tuple[int, ...]
    dim: int = 0


@dataclass(frozen=True)
class CatAttrs(Attrs):
    dim: int = 0


@dataclass(frozen=True)
class PadAttrs(Attrs):
    """``pad`` as PyTorch has it: (before, after) of the last axis, then of the one before, ...

    Negative ones crop, in the mode "constant" only.
    """

    pad: tuple[int, ...]
    mode: Literal["constant", "reflect", "replicate", "circular"] = "constant"
    value: float = 0.0


@dataclass(frozen=True)
class DropoutAttrs(Attrs):
    """Does nothing at inference; ``p`` is kept for training."""

    p: float = 0.5


def same_type(_: Attrs, x: TensorType) -> tuple[TensorType, ...]:
    return (x,)


def flatten_type(attrs: FlattenAttrs, x: TensorType) -> tuple[TensorType, ...]:
    if not x.shape:
        return (TensorType(x.dtype, (1,)),)
    start, end = (axis_of(dim, len(x.shape)) for dim in (attrs.start_dim, attrs.end_dim))
    require(start <= end, f"start_dim {attrs.start_dim} and end_dim {attrs.end_dim}", "start_dim not after end_dim")
    return (TensorType(x.dtype, (*x.shape[:start], product(x.shape[start : end + 1]), *x.shape[end + 1 :])),)


def flatten(attrs: FlattenAttrs, x: Array) -> Array:
    if not x.shape:
        return x.reshape(1)
    start, end = attrs.start_dim % x.ndim, attrs.end_dim % x.ndim
    merged = int(np.prod(x.shape[start : end + 1]))
    return x.reshape(*x.shape[:start], merged, *x.shape[end + 1 :])


def reshape_type(attrs: ReshapeAttrs, x: TensorType) -> tuple[TensorType, ...]:
    shape = attrs.shape
    require(all(n == -1 or n > 0 for n in shape), f"shape {shape}", "positive sizes and at most one -1")
    require(shape.count(-1) <= 1, f"shape {shape}", "at most one -1")
    total, fixed = product(x.shape), product(n for n in shape if n != -1)
    rest = divide(total, fixed)
    if rest is None and isinstance(total, str):
        rest = UNKNOWN
    got = f"x of shape {spell(x.shape)} to be {spell(shape)}"
    require(rest is not None, got, "as many elements")
    if rest is None or -1 not in shape:
        require(rest is not None and same_size(rest, 1), got, "as many elements")
        return (TensorType(x.dtype, shape),)
    return (TensorType(x.dtype, tuple(rest if n == -1 else n for n in shape)),)


def transpose_type(attrs: TransposeAttrs, x: TensorType) -> tuple[TensorType, ...]:
    first, second = (axis_of(dim, len(x.shape)) for dim in (attrs.dim0, attrs.dim1))
    shape = list(x.shape)
    shape[first], shape[second] = shape[second], shape[first]
    return (TensorType(x.dtype, tuple(shape)),)


def _transpose_back(call: VjpCall, grad: Array) -> Array:
    return np.swapaxes(grad, call.attrs.dim0, call.attrs.dim1)


def _permute_back(call: VjpCall, grad: Array) -> Array:
    return np.transpose(grad, np.argsort([dim % grad.ndim for dim in call.attrs.dims]))


def permute_type(attrs: PermuteAttrs, x: TensorType) -> tuple[TensorType, ...]:
    axes = axes_of(attrs.dims, len(x.shape))
    require(len(axes) == len(x.shape), f"dims {attrs.dims} for x of shape {spell(x.shape)}", "every axis once")
    return (TensorType(x.dtype, tuple(x.shape[axis] for axis in axes)),)


def squeeze_type(attrs: SqueezeAttrs, x: TensorType) -> tuple[TensorType, ...]:
    axes = axes_of(attrs.dim, len(x.shape))
    dropped = {axis for axis in axes if known(x.shape[axis], "the size to squeeze") == 1}
    return (TensorType(x.dtype, tuple(dim for axis, dim in enumerate(x.shape) if axis not in dropped)),)


def squeeze(attrs: SqueezeAttrs, x: Array) -> Array:
    dropped = tuple(dim for dim in attrs.dim if x.shape[dim] == 1)
    return np.squeeze(x, dropped)


def unsqueeze_type(attrs: UnsqueezeAttrs, x: TensorType) -> tuple[TensorType, ...]:
    axis = axis_of(attrs.dim, len(x.shape) + 1)
    return (TensorType(x.dtype, (*x.shape[:axis], 1, *x.shape[axis:])),)


def slice_type(attrs: SliceAttrs, x: TensorType) -> tuple[TensorType, ...]:
    axis = axis_of(attrs.dim, len(x.shape))
    require(attrs.step >= 1, f"step {attrs.step}", "at least 1")
    if (attrs.start, attrs.end, attrs.step) == (0, None, 1):
        return (x,)
    whole = x.shape[axis]
    size: Dim = UNKNOWN if isinstance(whole, str) else len(range(*_span(attrs).indices(whole)))
    require(size != 0, f"{attrs.start}:{attrs.end} of size {whole}", "at least one element left")
    return (TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])),)


def _span(attrs: SliceAttrs) -> slice:
    return slice(attrs.start, attrs.end, attrs.step)


def _part(span: slice, dim: int, rank: int) -> tuple[slice, ...]:
    """The index of a part along one axis."""
    index = [slice(None)] * rank
    index[dim] = span
    return tuple(index)


def slice_axis(attrs: SliceAttrs, x: Array) -> Array:
    return x[_part(_span(attrs), attrs.dim, x.ndim)]


def _slice_back(call: VjpCall, grad: Array) -> Array:
    x = call.inputs[0]
    assert x is not None
    found = np.zeros(x.shape, grad.dtype)
    found[_part(_span(call.attrs), call.attrs.dim, x.ndim)] = grad
    return found


def split_type(attrs: SplitAttrs, x: TensorType) -> tuple[TensorType, ...]:
    axis = axis_of(attrs.dim, len(x.shape))
    sizes = attrs.split_sizes
    size = x.shape[axis]
    fits = bool(sizes) and min(sizes) >= 1 and same_size(sum(sizes), size)
    require(fits, f"split_sizes {sizes} of size {size}", "positive sizes that add up to it")
    return tuple(TensorType(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes)


def split(attrs: SplitAttrs, x: Array) -> tuple[Array, ...]:
    return tuple(np.split(x, np.cumsum(attrs.split_sizes)[:-1], attrs.dim))


def split_vjp(call: VjpCall) -> Gradients:
    return gradients(call, lambda: np.concatenate([grad_of(call, i) for i in range(len(call.outputs))], call.attrs.dim))


def cat_type(attrs: CatAttrs, *tensors: TensorType) -> tuple[TensorType, ...]:
    require(bool(tensors), "no inputs", "at least one")
    head = tensors[0]
    axis = axis_of(attrs.dim, len(head.shape))
    shapes = f"shapes {', '.join(spell(t.shape) for t in tensors)}"
    for tensor in tensors:
        require(tensor.dtype is head.dtype, f"{tensor.dtype.value} beside {head.dtype.value}", "one element type")
        require(len(tensor.shape) == len(head.shape), shapes, "one rank")
        others = (*tensor.shape[:axis], head.shape[axis], *tensor.shape[axis + 1 :])
        require(same_shape(others, head.shape), shapes, f"equal ones but for axis {axis}")
    joined: Dim = head.shape[axis]
    if len(tensors) > 1:
        sizes = numbers([t.shape[axis] for t in tensors])
        joined = UNKNOWN if sizes is None else sum(sizes)
    return (
        TensorType(head.dtype, tuple(joined if i == axis else _surest(tensors, i) for i in range(len(head.shape)))),
    )


def _surest(tensors: Sequence[TensorType], axis: int) -> Dim:
    """A size that all tensors have: a number, where one of them says so."""
    sizes = [tensor.shape[axis] for tensor in tensors]
    return next((size for size in sizes if isinstance(size, int)), sizes[0])


def cat(attrs: CatAttrs, *arrays: Array) -> tuple[Array, ...]:
    return (np.concatenate(arrays, attrs.dim),)


def cat_vjp(call: VjpCall) -> Gradients:
    grad, dim = grad_of(call), call.attrs.dim
    parts, start = list[Part](), 0
    for array in call.inputs:
        assert array is not None
        span = slice(start, start + array.shape[dim])
        parts.append(lambda span=span: grad[_part(span, dim, grad.ndim)])  # type: ignore[misc]
        start = span.stop
    return gradients(call, *parts)


def pad_pairs(attrs: PadAttrs) -> geometry.Padding:
    """(before, after) for each padded axis, in the order of the axes; they are the last ones."""
    pairs = [(attrs.pad[i], attrs.pad[i + 1]) for i in range(0, len(attrs.pad), 2)]
    return tuple(reversed(pairs))


def pad_type(attrs: PadAttrs, x: TensorType) -> tuple[TensorType, ...]:
    count, rank = len(attrs.pad), len(x.shape)
    require(count % 2 == 0 and count <= 2 * rank, f"pad {attrs.pad}", f"a pair an axis, for at most {rank} axes")
    if attrs.mode == "constant":
        need_float(x=x)  # the value of other types would not be a float
    else:
        require(min(attrs.pad, default=0) >= 0, f"pad {attrs.pad} in mode {attrs.mode}", "at least 0")
    pairs = [(0, 0)] * (rank - count // 2) + list(pad_pairs(attrs))
    shape: Shape = tuple(_padded(dim, pair) for dim, pair in zip(x.shape, pairs, strict=True))
    sizes = [dim for dim, pair in zip(x.shape, pairs, strict=True) if any(pair)]
    check_pad_mode([pair for pair in pairs if any(pair)], attrs.mode, sizes)
    return (TensorType(x.dtype, shape),)


def _padded(dim: Dim, pair: geometry.Pair) -> Dim:
    if not any(pair):
        return dim
    if isinstance(dim, str):
        return UNKNOWN
    size = dim
    cropped = size + min(pair[0], 0) + min(pair[1], 0)
    require(cropped >= 1, f"pad {pair} of size {size}", "at least one element left")
    return cropped + max(pair[0], 0) + max(pair[1], 0)


def pad(attrs: PadAttrs, x: Array) -> Array:
    grown, cropped = _grown_and_cropped(attrs)
    return geometry.pad(unpad(x, cropped), grown, attrs.mode, attrs.value)


def _grown_and_cropped(attrs: PadAttrs) -> tuple[geometry.Padding, geometry.Padding]:
    pairs = pad_pairs(attrs)
    grown = tuple((max(before, 0), max(after, 0)) for before, after in pairs)
    return grown, tuple((max(-before, 0), max(-after, 0)) for before, after in pairs)


def _pad_back(call: VjpCall, grad: Array) -> Array:
    grown, cropped = _grown_and_cropped(call.attrs)
    return geometry.pad(unpad(grad, grown, call.attrs.mode), cropped)


SAME = QuantRule.SAME_AS_INPUT


def _mover(
    name: str,
    attrs: type[Attrs],
    infer: Callable[..., tuple[TensorType, ...]],
    function: Callable[[Any, Array], Array],
    onnx: str,
    vjp: Vjp,
) -> None:
    def reference(attrs: Attrs, x: Array) -> tuple[Array, ...]:
        return (function(attrs, x),)

    register(OpSpec(name, attrs, ("x",), infer, reference, SAME, onnx=(onnx,), kernel=name, vjp=vjp))


_mover("flatten", FlattenAttrs, flatten_type, flatten, "Flatten", reshaped)
_mover("reshape", ReshapeAttrs, reshape_type, lambda a, x: x.reshape(a.shape), "Reshape", reshaped)
_mover(
    "transpose",
    TransposeAttrs,
    transpose_type,
    lambda a, x: np.swapaxes(x, a.dim0, a.dim1),
    "Transpose",
    linear_of(_transpose_back),
)
_mover(
    "permute", PermuteAttrs, permute_type, lambda a, x: np.transpose(x, a.dims), "Transpose", linear_of(_permute_back)
)
_mover("squeeze", SqueezeAttrs, squeeze_type, squeeze, "Squeeze", reshaped)
_mover("unsqueeze", UnsqueezeAttrs, unsqueeze_type, lambda a, x: np.expand_dims(x, a.dim), "Unsqueeze", reshaped)
_mover("slice", SliceAttrs, slice_type, slice_axis, "Slice", linear_of(_slice_back))
_mover("identity", NoAttrs, same_type, lambda _, x: x, "Identity", same)
_mover("dropout", DropoutAttrs, same_type, lambda _, x: x, "Dropout", same)

register(OpSpec("split", SplitAttrs, ("x",), split_type, split, SAME, onnx=("Split",), kernel="split", vjp=split_vjp))
register(OpSpec("cat", CatAttrs, ("tensors*",), cat_type, cat, SAME, onnx=("Concat",), kernel="cat", vjp=cat_vjp))
_mover("pad", PadAttrs, pad_type, pad, "Pad", linear_of(_pad_back))
