"""Operators on shapes, with sizes, axes and steps given as tensors; named and defined as ONNX has them.

Where such a tensor is a constant, shape inference reads it (``TensorType.value``); elsewhere its length gives the rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, DType, Shape, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import (
    UNKNOWN,
    axes_of,
    axis_of,
    broadcast,
    divide,
    known,
    need_integers,
    need_same,
    numbers,
    product,
    same_size,
    spell,
)
from qtool.ops.registry import Attrs, OpSpec, Vjp, register, require
from qtool.ops.vjp import moving, reshaped, same

Types = tuple[TensorType, ...]
Ints = tuple[int, ...]


@dataclass(frozen=True)
class ShapeAttrs(Attrs):
    """The sizes from axis ``start`` to before ``end``; out of range is cut."""

    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class ReshapeToAttrs(Attrs):
    """In ``shape`` -1 takes what is left, and 0 the size that x has there, unless ``allowzero``."""

    allowzero: bool = False


@dataclass(frozen=True)
class SplitToAttrs(Attrs):
    """``outputs`` is their number; without ``split`` they are of one size, but for the last."""

    outputs: int
    axis: int = 0


@dataclass(frozen=True)
class FlattenToAttrs(Attrs):
    """To two axes: those before ``axis``, and the others."""

    axis: int = 1


@dataclass(frozen=True)
class PadToAttrs(Attrs):
    """``pads`` holds what is added before every axis, then behind every axis; negative ones crop."""

    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant"


@dataclass(frozen=True)
class CenterCropPadAttrs(Attrs):
    axes: tuple[int, ...] | None = None


def ints_of(tensor: TensorType | None) -> Ints | None:
    """The integers of a constant; None where they are not known."""
    if tensor is None or tensor.value is None:
        return None
    return tuple(int(n) for n in tensor.value.reshape(-1))


def length_of(name: str, tensor: TensorType) -> int:
    """The number of integers in a tensor of one axis; a single one may be a scalar."""
    need_integers(**{name: tensor})
    require(len(tensor.shape) <= 1, f"{name} of shape {spell(tensor.shape)}", "one axis")
    return known(tensor.shape[0], f"the number of {name}") if tensor.shape else 1


def sizes_of(name: str, tensor: TensorType) -> Shape:
    """The shape that a tensor of sizes stands for."""
    length = length_of(name, tensor)
    found = ints_of(tensor)
    if found is None:
        return (UNKNOWN,) * length
    require(min(found, default=0) >= 0, f"{name} {found}", "at least 0")
    return found


def like(x: TensorType, shape: Shape) -> Types:
    return (TensorType(x.dtype, shape),)


def as_ints(array: Array) -> Ints:
    return tuple(int(n) for n in array.reshape(-1))


def _shape_type(attrs: ShapeAttrs, x: TensorType) -> Types:
    sizes = numbers(x.shape[slice(attrs.start, attrs.end)])
    count = len(x.shape[slice(attrs.start, attrs.end)])
    value = None if sizes is None else np.array(sizes, np.int64)
    return (TensorType(DType.INT64, (count,), value),)


def _size_type(_: NoAttrs, x: TensorType) -> Types:
    sizes = numbers(x.shape)
    return (TensorType(DType.INT64, (), None if sizes is None else np.array(math.prod(sizes), np.int64)),)


def _reshape_type(attrs: ReshapeToAttrs, x: TensorType, shape: TensorType) -> Types:
    length, target = length_of("shape", shape), ints_of(shape)
    if target is None:
        return like(x, (UNKNOWN,) * length)
    require(min(target, default=0) >= -1 and target.count(-1) <= 1, f"shape {target}", "sizes and at most one -1")
    copied = [i for i, n in enumerate(target) if n == 0 and not attrs.allowzero]
    require(max(copied, default=-1) < len(x.shape), f"shape {target} for {spell(x.shape)}", "a size to copy for each 0")
    dims: list[Dim] = [x.shape[i] if i in copied else n for i, n in enumerate(target)]
    total, fixed = product(x.shape), product(dim for dim in dims if dim != -1)
    got = f"x of shape {spell(x.shape)} to be {target}"
    if -1 not in target:
        require(same_size(total, fixed), got, "as many elements")
        return like(x, tuple(dims))
    rest = divide(total, fixed)
    require(rest is not None or isinstance(total, str) or isinstance(fixed, str), got, "as many elements")
    return like(x, tuple((UNKNOWN if rest is None else rest) if dim == -1 else dim for dim in dims))


def reshape_to(attrs: ReshapeToAttrs, x: Array, shape: Array) -> tuple[Array, ...]:
    sizes = [x.shape[i] if n == 0 and not attrs.allowzero else n for i, n in enumerate(as_ints(shape))]
    try:
        return (x.reshape(sizes),)
    except ValueError:
        raise DataError(f"got x of shape {x.shape} to be {tuple(sizes)}, expected as many elements") from None


def _expand_type(_: NoAttrs, x: TensorType, shape: TensorType) -> Types:
    return like(x, broadcast(x.shape, sizes_of("shape", shape)))


def expand(_: NoAttrs, x: Array, shape: Array) -> tuple[Array, ...]:
    return (np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, as_ints(shape)))),)


def _tile_type(_: NoAttrs, x: TensorType, repeats: TensorType) -> Types:
    times = sizes_of("repeats", repeats)
    require(len(times) == len(x.shape), f"{len(times)} repeats for x of shape {spell(x.shape)}", "one an axis")
    return like(x, tuple(product(pair) for pair in zip(x.shape, times, strict=True)))


def tile(_: NoAttrs, x: Array, repeats: Array) -> tuple[Array, ...]:
    return (np.tile(x, as_ints(repeats)),)


def _axes(axes: TensorType | None, rank: int, count: int) -> Ints | None:
    """The axes that a tensor gives, or the first ``count`` ones; None where they are not known."""
    if axes is None:
        require(count <= rank, f"{count} axes of {rank}", "no more than there are")
        return tuple(range(count))
    need_integers(axes=axes)
    require(length_of("axes", axes) == count, f"axes of shape {spell(axes.shape)}", f"{count} of them")
    found = ints_of(axes)
    return None if found is None else axes_of(found, rank)


def _slice_type(
    _: NoAttrs,
    x: TensorType,
    starts: TensorType,
    ends: TensorType,
    axes: TensorType | None = None,
    steps: TensorType | None = None,
) -> Types:
    count, rank = length_of("starts", starts), len(x.shape)
    for name, tensor in (("ends", ends), ("steps", steps)):
        if tensor is not None:
            require(length_of(name, tensor) == count, f"{name} of shape {spell(tensor.shape)}", f"{count} of them")
    along = _axes(axes, rank, count)
    if along is None:
        return like(x, (UNKNOWN,) * rank)
    first, last = ints_of(starts), ints_of(ends)
    by = (1,) * count if steps is None else ints_of(steps)
    shape = list(x.shape)
    for i, axis in enumerate(along):
        whole = shape[axis]
        if first is None or last is None or by is None or isinstance(whole, str):
            shape[axis] = UNKNOWN
        else:
            require(by[i] != 0, "a step of 0", "another one")
            shape[axis] = len(range(*slice_of(first[i], last[i], by[i], whole).indices(whole)))
    return like(x, tuple(shape))


def slice_of(start: int, end: int, step: int, size: int) -> slice:
    """ONNX cuts starts and ends as Python does, but an end before the first element, going backwards, includes it."""
    return slice(start, None if step < 0 and end < -size else end, step)


def slice_to(
    _: NoAttrs, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> tuple[Array, ...]:
    first, last = as_ints(starts), as_ints(ends)
    along = as_ints(axes) if axes is not None else tuple(range(len(first)))
    by = as_ints(steps) if steps is not None else (1,) * len(first)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        index[axis] = slice_of(start, end, step, x.shape[axis])
    return (x[tuple(index)].copy(),)


def _split_type(attrs: SplitToAttrs, x: TensorType, split: TensorType | None = None) -> Types:
    axis, count = axis_of(attrs.axis, len(x.shape), "axis"), attrs.outputs
    require(1 <= count <= 100_000, f"{count} outputs", "at least one")
    size = x.shape[axis]
    sizes: Shape = (UNKNOWN,) * count
    if split is not None:
        sizes = sizes_of("split", split)
        total = sum(size for size in sizes if isinstance(size, int))
        require(len(sizes) == count, f"{len(sizes)} sizes", f"{count}, one an output")
        require(numbers(sizes) is None or same_size(size, total), f"sizes {sizes} of {size}", "a sum of it")
    elif isinstance(size, int):
        sizes = _even_sizes(size, count)
    return tuple(TensorType(x.dtype, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes)


def _even_sizes(size: int, count: int) -> Ints:
    chunk = -(-size // count)
    last = size - chunk * (count - 1)
    require(last >= 0, f"a size of {size} for {count} outputs", "enough for all")
    return (*(chunk,) * (count - 1), last)


def split_to(attrs: SplitToAttrs, x: Array, split: Array | None = None) -> tuple[Array, ...]:
    sizes = as_ints(split) if split is not None else _even_sizes(x.shape[attrs.axis], attrs.outputs)
    if len(sizes) != attrs.outputs or sum(sizes) != x.shape[attrs.axis]:
        raise DataError(f"got sizes {sizes} to split {x.shape[attrs.axis]} into {attrs.outputs}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], attrs.axis))


def _squeeze_type(_: NoAttrs, x: TensorType, axes: TensorType | None = None) -> Types:
    if axes is None:
        sizes = [known(dim, "a size that may be dropped") for dim in x.shape]
        return like(x, tuple(size for size in sizes if size != 1))
    count, rank = length_of("axes", axes), len(x.shape)
    dropped = ints_of(axes)
    require(count <= rank, f"{count} axes to drop of {rank}", "no more than there are")
    if dropped is None:
        return like(x, (UNKNOWN,) * (rank - count))
    places = axes_of(dropped, rank)
    for place in places:
        require(same_size(x.shape[place], 1), f"axis {place} of shape {spell(x.shape)}", "a size of 1")
    return like(x, tuple(dim for axis, dim in enumerate(x.shape) if axis not in places))


def squeeze_to(_: NoAttrs, x: Array, axes: Array | None = None) -> tuple[Array, ...]:
    try:
        return (np.squeeze(x, None if axes is None else as_ints(axes)),)
    except ValueError:
        raise DataError(f"got x of shape {x.shape} without axes {axes}, expected sizes of 1") from None


def _unsqueeze_type(_: NoAttrs, x: TensorType, axes: TensorType) -> Types:
    count = length_of("axes", axes)
    rank, added = len(x.shape) + count, ints_of(axes)
    if added is None:
        return like(x, (UNKNOWN,) * rank)
    places, rest = axes_of(added, rank), iter(x.shape)
    return like(x, tuple(1 if axis in places else next(rest) for axis in range(rank)))


def _flatten_type(attrs: FlattenToAttrs, x: TensorType) -> Types:
    rank = len(x.shape)
    require(-rank <= attrs.axis <= rank, f"axis {attrs.axis} of shape {spell(x.shape)}", f"at most {rank}")
    axis = attrs.axis + rank if attrs.axis < 0 else attrs.axis
    return like(x, (product(x.shape[:axis]), product(x.shape[axis:])))


def flatten_to(attrs: FlattenToAttrs, x: Array) -> tuple[Array, ...]:
    axis = attrs.axis + x.ndim if attrs.axis < 0 else attrs.axis
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


def _pad_type(
    _: PadToAttrs, x: TensorType, pads: TensorType, value: TensorType | None = None, axes: TensorType | None = None
) -> Types:
    need_same(x=x, constant_value=value)
    count, rank = length_of("pads", pads), len(x.shape)
    require(count % 2 == 0, f"{count} pads", "a pair an axis")
    along, amounts = _axes(axes, rank, count // 2), ints_of(pads)
    if along is None or amounts is None:
        return like(x, (UNKNOWN,) * rank)
    shape = list(x.shape)
    for i, axis in enumerate(along):
        added, whole = amounts[i] + amounts[i + count // 2], shape[axis]
        if added:
            shape[axis] = UNKNOWN if isinstance(whole, str) else max(whole + added, 0)
    return like(x, tuple(shape))


def pad_to(
    attrs: PadToAttrs, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None
) -> tuple[Array, ...]:
    amounts = as_ints(pads)
    half = len(amounts) // 2
    along = as_ints(axes) if axes is not None else tuple(range(half))
    grown, crop = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for axis, before, after in zip(along, amounts[:half], amounts[half:], strict=True):
        grown[axis] = (max(before, 0), max(after, 0))
        crop[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    kept = x[tuple(crop)]
    if attrs.mode == "constant":
        return (np.pad(kept, grown, constant_values=0 if value is None else value.reshape(())),)
    return (np.pad(kept, grown, mode=attrs.mode),)


def _crop_type(attrs: CenterCropPadAttrs, x: TensorType, shape: TensorType) -> Types:
    sizes = sizes_of("shape", shape)
    axes = range(len(x.shape)) if attrs.axes is None else axes_of(attrs.axes, len(x.shape))
    require(len(axes) == len(sizes), f"{len(sizes)} sizes for {len(axes)} axes", "as many")
    new = dict(zip(axes, sizes, strict=True))
    return like(x, tuple(new.get(axis, dim) for axis, dim in enumerate(x.shape)))


def center_crop_pad(attrs: CenterCropPadAttrs, x: Array, shape: Array) -> tuple[Array, ...]:
    """What is cut or added falls on both sides alike, and the odd one behind."""
    axes = range(x.ndim) if attrs.axes is None else [axis % x.ndim for axis in attrs.axes]
    for axis, size in zip(axes, as_ints(shape), strict=True):
        excess = x.shape[axis] - size
        if excess > 0:
            index = [slice(None)] * x.ndim
            index[axis] = slice(excess // 2, excess // 2 + size)
            x = x[tuple(index)]
        elif excess < 0:
            grown = [(0, 0)] * x.ndim
            grown[axis] = (-excess // 2, -excess - (-excess // 2))
            x = np.pad(x, grown)
    return (x,)


VJPS: Mapping[str, Vjp] = {
    **dict.fromkeys(("reshape_to", "squeeze_to", "unsqueeze_to", "flatten_to"), reshaped),
    "expand": same,  # what was repeated is summed, as for all operators
    "tile": moving(tile),
    "slice_to": moving(slice_to),
    "split_to": moving(split_to),
    "pad_to": moving(pad_to, filler=2),
    "center_crop_pad": moving(center_crop_pad),
}
for _spec in (
    OpSpec(
        "shape",
        ShapeAttrs,
        ("x",),
        _shape_type,
        lambda a, x: (np.array(x.shape[slice(a.start, a.end)], np.int64),),
        onnx=("Shape",),
    ),
    OpSpec("size", NoAttrs, ("x",), _size_type, lambda _, x: (np.array(x.size, np.int64),), onnx=("Size",)),
    OpSpec("reshape_to", ReshapeToAttrs, ("x", "shape"), _reshape_type, reshape_to, onnx=("Reshape",)),
    OpSpec("expand", NoAttrs, ("x", "shape"), _expand_type, expand, onnx=("Expand",)),
    OpSpec("tile", NoAttrs, ("x", "repeats"), _tile_type, tile, onnx=("Tile",)),
    OpSpec("slice_to", NoAttrs, ("x", "starts", "ends", "axes?", "steps?"), _slice_type, slice_to, onnx=("Slice",)),
    OpSpec("split_to", SplitToAttrs, ("x", "split?"), _split_type, split_to, onnx=("Split",)),
    OpSpec("squeeze_to", NoAttrs, ("x", "axes?"), _squeeze_type, squeeze_to, onnx=("Squeeze",)),
    OpSpec(
        "unsqueeze_to",
        NoAttrs,
        ("x", "axes"),
        _unsqueeze_type,
        lambda _, x, axes: (np.expand_dims(x, as_ints(axes)),),
        onnx=("Unsqueeze",),
    ),
    OpSpec("flatten_to", FlattenToAttrs, ("x",), _flatten_type, flatten_to, onnx=("Flatten",)),
    OpSpec("pad_to", PadToAttrs, ("x", "pads", "constant_value?", "axes?"), _pad_type, pad_to, onnx=("Pad",)),
    OpSpec("center_crop_pad", CenterCropPadAttrs, ("x", "shape"), _crop_type, center_crop_pad, onnx=("CenterCropPad",)),
):
    register(dataclasses.replace(_spec, empty=True, vjp=VJPS.get(_spec.name)))
