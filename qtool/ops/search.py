"""The largest, the smallest, and running totals; named and defined as ONNX has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, DType, TensorType
from qtool.ops.dims import UNKNOWN, axis_of, need_integers, need_numbers, product, spell
from qtool.ops.dynamic import ints_of
from qtool.ops.registry import Attrs, OpSpec, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients

Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class TopKAttrs(Attrs):
    axis: int = -1
    largest: bool = True
    sorted: bool = True


@dataclass(frozen=True)
class ArgAttrs(Attrs):
    axis: int = 0
    keepdims: bool = True
    select_last_index: bool = False


@dataclass(frozen=True)
class CumulativeAttrs(Attrs):
    """``exclusive`` leaves the element itself out, ``reverse`` begins at the end."""

    exclusive: bool = False
    reverse: bool = False


def _top_k_type(attrs: TopKAttrs, x: TensorType, k: TensorType) -> Types:
    need_numbers(x=x)
    need_integers(k=k)
    require(product(k.shape) == 1, f"k of shape {spell(k.shape)}", "one number")
    axis = axis_of(attrs.axis, len(x.shape), "axis")
    count = ints_of(k)
    size: Dim = UNKNOWN if count is None else count[0]
    whole = x.shape[axis]
    if isinstance(size, int):
        fits = size >= 0 and (isinstance(whole, str) or size <= whole)
        require(fits, f"k {size} of {whole}", "at most as many as there are")
    shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return (TensorType(x.dtype, shape), TensorType(DType.INT64, shape))


def top_k(attrs: TopKAttrs, x: Array, k: Array) -> tuple[Array, ...]:
    """Values and indices; of equal elements the first one comes first. In order even where it is not asked for."""
    count = int(k.reshape(()))
    if not 0 <= count <= x.shape[attrs.axis]:
        raise DataError(f"got k {count}, expected at most the {x.shape[attrs.axis]} elements there are")
    order = _descending(x, attrs.axis) if attrs.largest else np.argsort(x, attrs.axis, kind="stable")
    indices = np.take(order, np.arange(count), attrs.axis)
    return np.take_along_axis(x, indices, attrs.axis), indices.astype(np.int64)


def top_k_vjp(call: VjpCall) -> Gradients:
    x, (_, indices) = call.inputs[0], call.outputs
    assert x is not None

    def part() -> Array:
        found = np.zeros(x.shape, x.dtype)
        np.put_along_axis(found, indices, grad_of(call), call.attrs.axis)
        return found

    return gradients(call, part)


def _descending(x: Array, axis: int) -> Array:
    """A stable order from the largest down: that of the reversed array from the smallest up, reversed."""
    backwards = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - backwards)


def _arg_type(attrs: ArgAttrs, x: TensorType) -> Types:
    need_numbers(x=x)
    axis = axis_of(attrs.axis, len(x.shape), "axis")
    kept = (1,) if attrs.keepdims else ()
    return (TensorType(DType.INT64, (*x.shape[:axis], *kept, *x.shape[axis + 1 :])),)


def _arg(onnx: str, name: str, find: Callable[..., Array]) -> None:
    def reference(attrs: ArgAttrs, x: Array) -> tuple[Array, ...]:
        source = np.flip(x, attrs.axis) if attrs.select_last_index else x
        found = find(source, attrs.axis)
        if attrs.select_last_index:
            found = x.shape[attrs.axis] - 1 - found
        return (np.asarray(np.expand_dims(found, attrs.axis) if attrs.keepdims else found, np.int64),)

    register(OpSpec(name, ArgAttrs, ("x",), _arg_type, reference, onnx=(onnx,)))


def _cumulative_type(_: CumulativeAttrs, x: TensorType, axis: TensorType) -> Types:
    need_numbers(x=x)
    need_integers(axis=axis)
    require(product(axis.shape) == 1, f"axis of shape {spell(axis.shape)}", "one number")
    given = ints_of(axis)
    if given is not None:
        axis_of(given[0], len(x.shape), "axis")
    return (TensorType(x.dtype, x.shape),)


def _in_order(call: VjpCall) -> tuple[int, Array, Array]:
    """The axis, and x and the derivative by y with it first, in the order in which they are accumulated."""
    x, axis = call.inputs
    assert x is not None
    assert axis is not None
    along = int(axis.reshape(()))
    step = -1 if call.attrs.reverse else 1
    return along, np.moveaxis(x, along, 0)[::step], np.moveaxis(grad_of(call), along, 0)[::step]


def _put_back(call: VjpCall, found: Array, along: int) -> Array:
    return np.moveaxis(found[::-1] if call.attrs.reverse else found, 0, along)


def _shifted(call: VjpCall, grad: Array) -> Array:
    """With ``exclusive`` each total is that of the element before, and the last one is not seen."""
    return np.concatenate([grad[1:], np.zeros_like(grad[:1])]) if call.attrs.exclusive else grad


def cum_sum_vjp(call: VjpCall) -> Gradients:
    along, _, grad = _in_order(call)
    return gradients(call, lambda: _put_back(call, _shifted(call, grad)[::-1].cumsum(axis=0)[::-1], along))


def cum_prod_vjp(call: VjpCall) -> Gradients:
    """Step by step from the end, without a division: there may be zeros."""
    along, x, grad = _in_order(call)

    def part() -> Array:
        found, shifted = np.zeros(x.shape, grad.dtype), _shifted(call, grad)
        before = np.concatenate([np.ones_like(x[:1]), x[:-1]]).cumprod(axis=0)
        rest = np.zeros_like(grad[:1])
        for step in reversed(range(len(x))):
            rest = shifted[step] + rest
            found[step] = rest * before[step]
            rest = rest * x[step]
        return _put_back(call, found, along)

    return gradients(call, part)


def _cumulative(onnx: str, name: str, accumulate: Callable[..., Array], neutral: int, vjp: Vjp) -> None:
    def reference(attrs: CumulativeAttrs, x: Array, axis: Array) -> tuple[Array, ...]:
        along = int(axis.reshape(()))
        if not -x.ndim <= along < x.ndim:
            raise DataError(f"got axis {along} of {x.ndim}")
        moved = np.moveaxis(x, along, 0)
        moved = moved[::-1] if attrs.reverse else moved
        y = accumulate(moved, axis=0, dtype=x.dtype)
        if attrs.exclusive:
            y = np.concatenate([np.full_like(y[:1], neutral), y[:-1]])
        return (np.moveaxis(y[::-1] if attrs.reverse else y, 0, along),)

    inputs = ("x", "axis")
    register(OpSpec(name, CumulativeAttrs, inputs, _cumulative_type, reference, onnx=(onnx,), empty=True, vjp=vjp))


register(OpSpec("top_k", TopKAttrs, ("x", "k"), _top_k_type, top_k, onnx=("TopK",), empty=True, vjp=top_k_vjp))
_arg("ArgMax", "arg_max", np.argmax)
_arg("ArgMin", "arg_min", np.argmin)
_cumulative("CumSum", "cum_sum", np.cumsum, 0, cum_sum_vjp)
_cumulative("CumProd", "cum_prod", np.cumprod, 1, cum_prod_vjp)
