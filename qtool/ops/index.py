"""Operators that select, place, order or search by index; named and defined as ONNX has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qtool.errors import DataError, ModelError
from qtool.ir import Array, DType, Shape, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.dims import UNKNOWN, axis_of, known, need_integers, need_same, product, same_shape, same_size, spell
from qtool.ops.dynamic import like
from qtool.ops.registry import Attrs, OpSpec, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, add_along, grad_of, gradients, moving

Types = tuple[TensorType, ...]
Reduction = Literal["none", "add", "mul", "max", "min"]
COMBINE: Mapping[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@dataclass(frozen=True)
class AxisAttrs(Attrs):
    axis: int = 0


@dataclass(frozen=True)
class GatherNdAttrs(Attrs):
    batch_dims: int = 0


@dataclass(frozen=True)
class ScatterNdAttrs(Attrs):
    reduction: Reduction = "none"


@dataclass(frozen=True)
class ScatterElementsAttrs(Attrs):
    axis: int = 0
    reduction: Reduction = "none"


@dataclass(frozen=True)
class MaybeAxisAttrs(Attrs):
    """Without ``axis`` the tensor is taken as one row."""

    axis: int | None = None


@dataclass(frozen=True)
class UniqueAttrs(Attrs):
    axis: int | None = None
    sorted: bool = True


@dataclass(frozen=True)
class ReverseSequenceAttrs(Attrs):
    batch_axis: int = 1
    time_axis: int = 0


@dataclass(frozen=True)
class TensorScatterAttrs(Attrs):
    axis: int = -2
    mode: Literal["linear", "circular"] = "linear"


def wrapped(indices: Array, size: int) -> Array:
    """Indices from 0; negative ones count from the end. DataError for one out of range."""
    places = indices.astype(np.int64)
    if places.size and (places.min() < -size or places.max() >= size):
        raise DataError(f"got indices from {places.min()} to {places.max()}, expected {-size} to {size - 1}")
    return np.where(places < 0, places + size, places)


def _gather_type(attrs: AxisAttrs, data: TensorType, indices: TensorType) -> Types:
    need_integers(indices=indices)
    axis = axis_of(attrs.axis, len(data.shape), "axis")
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if (
        data.value is None
        or indices.value is None
        or data.value.size > 64
        or not _fits(indices.value, data.shape[axis])
    ):
        return like(data, shape)
    return (TensorType(data.dtype, shape, np.take(data.value, indices.value, attrs.axis)),)


def _fits(indices: Array, size: int | str) -> bool:
    return isinstance(size, int) and bool(((indices >= -size) & (indices < size)).all())


def gather(attrs: AxisAttrs, data: Array, indices: Array) -> tuple[Array, ...]:
    return (np.take(data, wrapped(indices, data.shape[attrs.axis]), attrs.axis),)


def _elements_type(attrs: AxisAttrs, data: TensorType, indices: TensorType) -> Types:
    need_integers(indices=indices)
    axis_of(attrs.axis, len(data.shape), "axis")
    require(len(indices.shape) == len(data.shape), f"indices of shape {spell(indices.shape)}", "the rank of data")
    return like(data, indices.shape)


def _own_index(attrs: AxisAttrs | ScatterElementsAttrs, data: Array, indices: Array) -> tuple[Array, ...]:
    """The index of every element: its own position, but along the axis what ``indices`` says."""
    axis = attrs.axis % data.ndim
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = wrapped(indices, data.shape[axis])
    return tuple(grid)


def gather_elements(attrs: AxisAttrs, data: Array, indices: Array) -> tuple[Array, ...]:
    return (data[_own_index(attrs, data, indices)],)


def _gather_nd_type(attrs: GatherNdAttrs, data: TensorType, indices: TensorType) -> Types:
    need_integers(indices=indices)
    batch, rank = attrs.batch_dims, len(data.shape)
    require(bool(indices.shape), "scalar indices", "at least one axis")
    depth = known(indices.shape[-1], "the length of an index")
    fits = 0 <= batch < min(rank, len(indices.shape)) and 1 <= depth <= rank - batch
    require(fits, f"indices of shape {spell(indices.shape)} for data of shape {spell(data.shape)}", "as many axes")
    return like(data, (*indices.shape[:-1], *data.shape[batch + depth :]))


def gather_nd(attrs: GatherNdAttrs, data: Array, indices: Array) -> tuple[Array, ...]:
    batch, depth = attrs.batch_dims, indices.shape[-1]
    index = [
        np.arange(indices.shape[i]).reshape([-1 if j == i else 1 for j in range(indices.ndim - 1)])
        for i in range(batch)
    ]
    index += [wrapped(indices[..., i], data.shape[batch + i]) for i in range(depth)]
    return (data[tuple(index)],)


def _scatter_nd_type(_: ScatterNdAttrs, data: TensorType, indices: TensorType, updates: TensorType) -> Types:
    need_integers(indices=indices)
    need_same(data=data, updates=updates)
    require(bool(indices.shape), "scalar indices", "at least one axis")
    depth = known(indices.shape[-1], "the length of an index")
    require(1 <= depth <= len(data.shape), f"indices of length {depth}", f"at most {len(data.shape)}")
    expected = (*indices.shape[:-1], *data.shape[depth:])
    require(same_shape(updates.shape, expected), f"updates of shape {spell(updates.shape)}", spell(expected))
    return like(data, data.shape)


def scatter_nd(attrs: ScatterNdAttrs, data: Array, indices: Array, updates: Array) -> tuple[Array, ...]:
    return (_scattered(data, _row_index(attrs, data, indices), updates, attrs.reduction),)


def _row_index(_: ScatterNdAttrs, data: Array, indices: Array) -> tuple[Array, ...]:
    return tuple(wrapped(indices[..., i], data.shape[i]) for i in range(indices.shape[-1]))


def _scattered(data: Array, index: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    y = data.copy()
    if reduction == "none":
        y[index] = updates
    else:
        COMBINE[reduction].at(y, index, updates)
    return y


def _scatter_elements_type(
    attrs: ScatterElementsAttrs, data: TensorType, indices: TensorType, updates: TensorType
) -> Types:
    need_integers(indices=indices)
    need_same(data=data, updates=updates)
    axis_of(attrs.axis, len(data.shape), "axis")
    fits = len(indices.shape) == len(data.shape) and same_shape(indices.shape, updates.shape)
    got = f"indices of shape {spell(indices.shape)} and updates of shape {spell(updates.shape)}"
    require(fits, got, "equal ones of the rank of data")
    return like(data, data.shape)


def scatter_elements(attrs: ScatterElementsAttrs, data: Array, indices: Array, updates: Array) -> tuple[Array, ...]:
    return (_scattered(data, _own_index(attrs, data, indices), updates, attrs.reduction),)


def _non_zero_type(_: NoAttrs, x: TensorType) -> Types:
    return (TensorType(DType.INT64, (len(x.shape), UNKNOWN)),)


def non_zero(_: NoAttrs, x: Array) -> tuple[Array, ...]:
    """One row an axis, one column an element that is not zero."""
    if x.ndim == 0:
        return (np.zeros((0, int(bool(x))), np.int64),)
    return (np.array(np.nonzero(x), np.int64),)


def _compress_type(attrs: MaybeAxisAttrs, x: TensorType, condition: TensorType) -> Types:
    require(condition.dtype is DType.BOOL, f"{condition.dtype.value} as condition", "bool")
    require(len(condition.shape) == 1, f"condition of shape {spell(condition.shape)}", "one axis")
    if attrs.axis is None:
        return like(x, (UNKNOWN,))
    axis = axis_of(attrs.axis, len(x.shape), "axis")
    return like(x, (*x.shape[:axis], UNKNOWN, *x.shape[axis + 1 :]))


def compress(attrs: MaybeAxisAttrs, x: Array, condition: Array) -> tuple[Array, ...]:
    return (np.compress(condition, x, attrs.axis),)


def _unique_type(attrs: UniqueAttrs, x: TensorType) -> Types:
    shape: Shape = (UNKNOWN,)
    if attrs.axis is not None:
        axis = axis_of(attrs.axis, len(x.shape), "axis")
        shape = (*x.shape[:axis], UNKNOWN, *x.shape[axis + 1 :])
    inverse = product(x.shape) if attrs.axis is None else x.shape[attrs.axis]
    counts = TensorType(DType.INT64, (UNKNOWN,))
    return (TensorType(x.dtype, shape), counts, TensorType(DType.INT64, (inverse,)), counts)


def unique(attrs: UniqueAttrs, x: Array) -> tuple[Array, ...]:
    """The distinct values (or slices along the axis), where each comes first, which one each element is, the counts.

    In ascending order, or with ``sorted`` False in that of their first places.
    """
    y, first, inverse, counts = np.unique(x, True, True, True, axis=attrs.axis)
    inverse = inverse.reshape(-1)
    if not attrs.sorted:
        order = np.argsort(first)
        y = np.take(y, order, 0 if attrs.axis is None else attrs.axis)
        inverse = np.argsort(order)[inverse]
        first, counts = first[order], counts[order]
    return y, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


def _reverse_type(attrs: ReverseSequenceAttrs, x: TensorType, lengths: TensorType) -> Types:
    need_integers(sequence_lens=lengths)
    batch, time = (axis_of(axis, len(x.shape), "axis") for axis in (attrs.batch_axis, attrs.time_axis))
    require(batch != time, f"axis {batch} for batch and time", "two axes")
    fits = len(lengths.shape) == 1 and same_size(lengths.shape[0], x.shape[batch])
    require(fits, f"sequence_lens of shape {spell(lengths.shape)}", f"({x.shape[batch]})")
    return like(x, x.shape)


def reverse_sequence(attrs: ReverseSequenceAttrs, x: Array, lengths: Array) -> tuple[Array, ...]:
    """The first ``lengths[b]`` steps of sample b in reverse order."""
    moved = np.moveaxis(x, (attrs.time_axis, attrs.batch_axis), (0, 1))
    steps = np.arange(moved.shape[0])[:, None]
    order = np.where(steps < lengths, lengths - 1 - steps, steps)
    turned = moved[wrapped(order, moved.shape[0]), np.arange(moved.shape[1])]
    return (np.moveaxis(turned, (0, 1), (attrs.time_axis, attrs.batch_axis)),)


def _tensor_scatter_type(
    attrs: TensorScatterAttrs, cache: TensorType, update: TensorType, indices: TensorType | None = None
) -> Types:
    need_same(past_cache=cache, update=update)
    need_integers(write_indices=indices)
    axis = axis_of(attrs.axis, len(cache.shape), "axis")
    require(axis > 0, "axis 0, which is the batch", "another one")
    require(len(cache.shape) == len(update.shape), f"update of shape {spell(update.shape)}", "the rank of past_cache")
    return like(cache, cache.shape)


def tensor_scatter(
    attrs: TensorScatterAttrs, cache: Array, update: Array, indices: Array | None = None
) -> tuple[Array, ...]:
    """Writes each sample's update behind its write index; around the end in the mode "circular"."""
    y = np.moveaxis(cache.copy(), attrs.axis, 1)
    y[np.arange(len(y))[:, None], _written(attrs, cache, update, indices)] = np.moveaxis(update, attrs.axis, 1)
    return (np.moveaxis(y, 1, attrs.axis),)


def _written(attrs: TensorScatterAttrs, cache: Array, update: Array, indices: Array | None) -> Array:
    """Where along the axis each step of each sample's update goes; (batch, steps)."""
    size = cache.shape[attrs.axis]
    starts = np.zeros(len(cache), np.int64) if indices is None else indices.astype(np.int64)
    places = starts[:, None] + np.arange(update.shape[attrs.axis])
    return wrapped(places % size if attrs.mode == "circular" else places, size)


def gather_vjp(call: VjpCall) -> Gradients:
    data, indices = call.inputs
    assert data is not None
    assert indices is not None
    axis, grad = call.attrs.axis % data.ndim, grad_of(call)

    def part() -> Array:
        places = wrapped(indices, data.shape[axis]).reshape(-1)
        flat = grad.reshape(*data.shape[:axis], places.size, *data.shape[axis + 1 :])
        return add_along(flat, places, data.shape[axis], axis)

    return gradients(call, part)


def _scattering(scatter: Callable[..., tuple[Array, ...]], index: Callable[..., tuple[Array, ...]]) -> Vjp:
    """Each update gets what its place gets, as in PyTorch, even where another one took the place later."""

    def vjp(call: VjpCall) -> Gradients:
        data, indices, updates = call.inputs
        assert data is not None
        attrs, grad = call.attrs, grad_of(call)
        places = index(attrs, data, indices)
        if attrs.reduction == "add":
            return gradients(call, lambda: grad, None, lambda: grad[places])
        if attrs.reduction == "none":
            (kept,) = scatter(attrs, np.ones(data.shape, grad.dtype), indices, np.zeros_like(updates))
            return gradients(call, lambda: grad * kept, None, lambda: grad[places])
        raise ModelError(f"got the reduction {attrs.reduction!r} of updates, expected none or add to differentiate")

    return vjp


def tensor_scatter_vjp(call: VjpCall) -> Gradients:
    cache, update, indices = (*call.inputs, None)[:3]
    assert cache is not None
    assert update is not None
    attrs, grad = call.attrs, grad_of(call)

    def by_cache() -> Array:
        (kept,) = tensor_scatter(attrs, np.ones(cache.shape, grad.dtype), np.zeros_like(update, grad.dtype), indices)
        return np.asarray(grad * kept)

    def by_update() -> Array:
        rows, places = np.moveaxis(grad, attrs.axis, 1), _written(attrs, cache, update, indices)
        return np.moveaxis(rows[np.arange(len(rows))[:, None], places], 1, attrs.axis)

    return gradients(call, by_cache, by_update)


def _register(
    onnx: str,
    attrs: type[Attrs],
    inputs: tuple[str, ...],
    infer: Callable[..., Types],
    function: Callable[..., tuple[Array, ...]],
    vjp: Vjp | None = None,
    kernel: str = "",
) -> None:
    spec = OpSpec(function.__name__, attrs, inputs, infer, function, onnx=(onnx,), kernel=kernel, vjp=vjp)
    register(dataclasses.replace(spec, empty=True))


ELEMENTS = ("data", "indices", "updates")
_register("Gather", AxisAttrs, ("data", "indices"), _gather_type, gather, gather_vjp, "gather")
_register("GatherElements", AxisAttrs, ("data", "indices"), _elements_type, gather_elements, moving(gather_elements))
_register("GatherND", GatherNdAttrs, ("data", "indices"), _gather_nd_type, gather_nd, moving(gather_nd))
_register("ScatterND", ScatterNdAttrs, ELEMENTS, _scatter_nd_type, scatter_nd, _scattering(scatter_nd, _row_index))
_register(
    "ScatterElements",
    ScatterElementsAttrs,
    ELEMENTS,
    _scatter_elements_type,
    scatter_elements,
    _scattering(scatter_elements, _own_index),
)
_register("NonZero", NoAttrs, ("x",), _non_zero_type, non_zero)
_register("Compress", MaybeAxisAttrs, ("x", "condition"), _compress_type, compress, moving(compress))
_register("Unique", UniqueAttrs, ("x",), _unique_type, unique)
_register(
    "ReverseSequence",
    ReverseSequenceAttrs,
    ("x", "sequence_lens"),
    _reverse_type,
    reverse_sequence,
    moving(reverse_sequence),
)
_register(
    "TensorScatter",
    TensorScatterAttrs,
    ("past_cache", "update", "write_indices?"),
    _tensor_scatter_type,
    tensor_scatter,
    tensor_scatter_vjp,
)
