"""Operators that make tensors out of sizes and numbers; named and defined as ONNX has them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, TensorType
from qtool.ops.activation import NoAttrs
from qtool.ops.cast import dtype_named
from qtool.ops.dims import UNKNOWN, axis_of, need_integers, need_numbers, product, spell
from qtool.ops.dynamic import as_ints, ints_of, like, sizes_of
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients

Types = tuple[TensorType, ...]
MOST_ELEMENTS = 1 << 31
"""A tensor made at run time from numbers of the model may not have more elements than this."""


@dataclass(frozen=True)
class FillAttrs(Attrs):
    value: bool | int | float = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class OneHotAttrs(Attrs):
    axis: int = -1


@dataclass(frozen=True)
class EyeAttrs(Attrs):
    """Ones on the ``k``-th diagonal; ``dtype`` "" means that of x."""

    dtype: str = ""
    k: int = 0


@dataclass(frozen=True)
class TriluAttrs(Attrs):
    upper: bool = True


@dataclass(frozen=True)
class WindowAttrs(Attrs):
    periodic: bool = True
    dtype: str = "float32"


def checked_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """DataError for a shape that no tensor can have."""
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_ELEMENTS:
        raise DataError(f"got a tensor of shape {shape} to be made, expected at most {MOST_ELEMENTS} elements")
    return shape


def _fill_type(attrs: FillAttrs, shape: TensorType) -> Types:
    return (TensorType(dtype_named(attrs.dtype), sizes_of("shape", shape)),)


def fill(attrs: FillAttrs, shape: Array) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        return (np.full(checked_size(as_ints(shape)), np.asarray(attrs.value).astype(attrs.dtype)),)


def _range_type(_: NoAttrs, start: TensorType, limit: TensorType, delta: TensorType) -> Types:
    need_numbers(start=start, limit=limit, delta=delta)
    for name, number in (("start", start), ("limit", limit), ("delta", delta)):
        require(number.shape in ((), (1,)), f"{name} of shape {spell(number.shape)}", "()")
    values = [tensor.value for tensor in (start, limit, delta) if tensor.value is not None]
    length: Dim = UNKNOWN
    if len(values) == 3 and all(np.isfinite(value).all() for value in values) and values[2].any():
        length = _range_length(*values)
    return (TensorType(start.dtype, (length,)),)


def _range_length(start: Array, limit: Array, delta: Array) -> int:
    number = float if start.dtype.kind == "f" else int
    first, last, by = (number(array.reshape(())) for array in (start, limit, delta))
    return max(math.ceil((last - first) / by), 0)


def range_of(_: NoAttrs, start: Array, limit: Array, delta: Array) -> tuple[Array, ...]:
    if delta.reshape(()) == 0:
        raise DataError("got a step of 0, expected another one")
    (length,) = checked_size((_range_length(start, limit, delta),))
    return ((start.reshape(()) + np.arange(length) * delta.reshape(())).astype(start.dtype),)


def _one_hot_type(attrs: OneHotAttrs, indices: TensorType, depth: TensorType, values: TensorType) -> Types:
    need_numbers(indices=indices)
    need_numbers(depth=depth)
    require(values.shape in ((2,), (UNKNOWN,)), f"values of shape {spell(values.shape)}", "(2)")
    rank = len(indices.shape) + 1
    axis = axis_of(attrs.axis, rank, "axis")
    classes = ints_of(depth)
    size: Dim = UNKNOWN if classes is None or len(classes) != 1 else max(classes[0], 0)
    return like(values, (*indices.shape[:axis], size, *indices.shape[axis:]))


def one_hot(attrs: OneHotAttrs, indices: Array, depth: Array, values: Array) -> tuple[Array, ...]:
    """Negative indices count from the end; those out of range have no hot place."""
    classes = int(depth.reshape(()))
    axis = attrs.axis % (indices.ndim + 1)
    checked_size((*indices.shape, classes))
    places = np.arange(classes).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    wanted = np.expand_dims(indices, axis).astype(np.int64)
    return (np.where(places == np.where(wanted < 0, wanted + classes, wanted), values[1], values[0]),)


def one_hot_vjp(call: VjpCall) -> Gradients:
    indices, depth, _ = call.inputs
    assert indices is not None
    assert depth is not None

    def by_values() -> Array:
        (hot,) = one_hot(call.attrs, indices, depth, np.array([False, True]))
        grad = grad_of(call)
        return np.array([grad[~hot].sum(), grad[hot].sum()])

    return gradients(call, None, None, by_values)


def _eye_type(attrs: EyeAttrs, x: TensorType) -> Types:
    require(len(x.shape) == 2, f"x of shape {spell(x.shape)}", "two axes")
    return (TensorType(dtype_named(attrs.dtype) if attrs.dtype else x.dtype, x.shape),)


def eye_like(attrs: EyeAttrs, x: Array) -> tuple[Array, ...]:
    rows, columns = x.shape
    return (np.eye(rows, columns, attrs.k).astype(attrs.dtype or x.dtype),)


def _trilu_type(_: TriluAttrs, x: TensorType, k: TensorType | None = None) -> Types:
    require(len(x.shape) >= 2, f"x of shape {spell(x.shape)}", "matrices")
    need_integers(k=k)
    return like(x, x.shape)


def trilu(attrs: TriluAttrs, x: Array, k: Array | None = None) -> tuple[Array, ...]:
    offset = 0 if k is None else int(k.reshape(()))
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
    kept = columns - rows >= offset if attrs.upper else columns - rows <= offset
    return (np.where(kept, x, np.zeros((), x.dtype)),)


def trilu_vjp(call: VjpCall) -> Gradients:
    _, k = (*call.inputs, None)[:2]
    return gradients(call, lambda: trilu(call.attrs, grad_of(call), k)[0])


def _window_type(attrs: WindowAttrs, size: TensorType) -> Types:
    need_integers(size=size)
    require(product(size.shape) == 1, f"size of shape {spell(size.shape)}", "one number")
    known_size = ints_of(size)
    return (TensorType(dtype_named(attrs.dtype), (UNKNOWN if known_size is None else max(known_size[0], 0),)),)


def _window(onnx: str, name: str, terms: tuple[float, ...]) -> None:
    """A sum of cosines of 0, 1, ... turns over the window; a periodic one begins again right behind its end."""

    def reference(attrs: WindowAttrs, size: Array) -> tuple[Array, ...]:
        (count,) = checked_size(as_ints(size))
        turns = 2 * np.pi * np.arange(count) / max(count if attrs.periodic else count - 1, 1)
        total = sum(term * np.cos(order * turns) for order, term in enumerate(terms))
        return (np.asarray(total).astype(attrs.dtype),)

    register(OpSpec(name, WindowAttrs, ("size",), _window_type, reference, onnx=(onnx,), empty=True))


_window("HannWindow", "hann_window", (0.5, -0.5))
_window("HammingWindow", "hamming_window", (25 / 46, -21 / 46))
_window("BlackmanWindow", "blackman_window", (0.42, -0.5, 0.08))

for _spec in (
    OpSpec("constant_of_shape", FillAttrs, ("shape",), _fill_type, fill, onnx=("ConstantOfShape",)),
    OpSpec("range", NoAttrs, ("start", "limit", "delta"), _range_type, range_of, onnx=("Range",)),
    OpSpec(
        "one_hot",
        OneHotAttrs,
        ("indices", "depth", "values"),
        _one_hot_type,
        one_hot,
        onnx=("OneHot",),
        vjp=one_hot_vjp,
    ),
    OpSpec("eye_like", EyeAttrs, ("x",), _eye_type, eye_like, onnx=("EyeLike",)),
    OpSpec("trilu", TriluAttrs, ("x", "k?"), _trilu_type, trilu, onnx=("Trilu",), vjp=trilu_vjp),
):
    register(dataclasses.replace(_spec, empty=True))
