"""What vector-Jacobian products share: sums over broadcast axes, and the transposes of moving elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qtool.ir import Array
from qtool.ops import geometry
from qtool.ops.registry import Vjp, VjpCall

Part = Callable[[], Any]
"""Makes the derivative by one input, in any float type and in the input's shape or one that it is broadcast to."""
Gradients = tuple[Array | None, ...]


def grad_of(call: VjpCall, output: int = 0) -> Array:
    """The derivative of the loss by an output; zeros where that has no part in it."""
    grad = call.grads[output] if output < len(call.grads) else None
    return np.zeros_like(call.outputs[output]) if grad is None else grad


def gradients(call: VjpCall, *parts: Part | None) -> Gradients:
    """One part an input, in order: those that are wanted are computed, summed over what the operator broadcast."""
    found: list[Array | None] = []
    with np.errstate(all="ignore"):  # at a pole the derivative is what IEEE arithmetic makes of it, as in PyTorch
        for position, array in enumerate(call.inputs):
            part = parts[position] if position < len(parts) else None
            if part is None or array is None or array.dtype.kind != "f" or not call.needed[position]:
                found.append(None)
            else:
                found.append(np.asarray(unbroadcast(np.asarray(part()), array.shape), array.dtype))
    return tuple(found)


def unbroadcast(grad: Array, shape: Sequence[int]) -> Array:
    """Sums over the axes along which an array of this shape was repeated."""
    if grad.shape == tuple(shape):
        return grad
    added = grad.ndim - len(shape)
    if added < 0:  # one element, taken as a scalar
        return grad.reshape(shape)
    axes = tuple(axis for axis in range(grad.ndim) if axis < added or shape[axis - added] != grad.shape[axis])
    return np.asarray(grad.sum(axis=axes)).reshape(shape)


def per_channel(grad: Array) -> Array:
    """(N, C, ...) -> (C,): what a parameter of each channel gets."""
    return np.asarray(grad.sum(axis=(0, *range(2, grad.ndim))))


def at_least_float32(x: Array) -> Array:
    """Half precision is too narrow for what lies between."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def elementwise(slope: Callable[[Any, Array, Array], Any]) -> Vjp:
    """Of a function of one element; ``slope(attrs, x, y)`` is its derivative."""

    def vjp(call: VjpCall) -> Gradients:
        def part() -> Array:
            x, y = call.inputs[0], call.outputs[0]
            assert x is not None
            return np.asarray(grad_of(call) * slope(call.attrs, at_least_float32(x), at_least_float32(y)))

        return gradients(call, part)

    return vjp


def linear_of(backward: Callable[[VjpCall, Array], Any]) -> Vjp:
    """Of an operator with one output that is linear in its first input: ``backward(call, grad)`` is its transpose."""
    return lambda call: gradients(call, lambda: backward(call, grad_of(call)))


same = linear_of(lambda _, grad: grad)
"""The operator passes its first input on."""


def _reshaped(call: VjpCall, grad: Array) -> Array:
    x = call.inputs[0]
    assert x is not None
    return grad.reshape(x.shape)


reshaped = linear_of(_reshaped)
"""The operator only changes the shape of its first input."""


def moving(move: Callable[..., tuple[Array, ...]], filler: int | None = None) -> Vjp:
    """Of an operator that moves, drops and repeats elements of its first input, and fills up with zeros, or with the
    scalar at position ``filler``: ``move(attrs, *inputs)`` of the elements' numbers tells where each of them went.
    """

    def vjp(call: VjpCall) -> Gradients:
        x = call.inputs[0]
        assert x is not None
        rest = list(call.inputs[1:])
        if filler is not None and len(call.inputs) > filler:
            rest[filler - 1] = None
        count = x.size + 1  # place 0 is what no element went to

        def sums() -> Array:
            total = np.zeros(count)
            places = move(call.attrs, np.arange(1, count).reshape(x.shape), *rest)
            for output, place in enumerate(places):
                total += np.bincount(place.reshape(-1), grad_of(call, output).reshape(-1), count)
            return total

        parts: list[Part | None] = [lambda: sums()[1:].reshape(x.shape)]
        if filler is not None:
            parts += [None] * (filler - 1) + [lambda: sums()[0]]
        return gradients(call, *parts)

    return vjp


def add_along(grad: Array, index: Array, size: int, axis: int) -> Array:
    """The transpose of ``np.take(x, index, axis)`` for x of ``size`` along the axis; index (n,) counts from 0."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    rows = np.moveaxis(grad, axis, 0)
    total = np.zeros((size, *rows.shape[1:]), grad.dtype)
    if grad.size:
        total[ordered[first]] = np.add.reduceat(rows[order], first, 0)
    return np.moveaxis(total, 0, axis)


def apply_along(x: Array, matrix: Array, axis: int) -> Array:
    """The matrix (out, size) times every row of ``x`` along the axis."""
    return np.moveaxis(np.tensordot(x, matrix.astype(x.dtype, copy=False), (axis, 1)), -1, axis)


def unpad(grad: Array, padding: geometry.Padding, mode: str = "zeros") -> Array:
    """The transpose of ``geometry.pad`` along the last axes: what a copied pixel gets, its original gets as well."""
    if mode in ("zeros", "constant"):
        sizes = grad.shape[grad.ndim - len(padding) :]
        ends = zip(padding, sizes, strict=True)
        return geometry.last_axes(grad, [slice(before, size - after) for (before, after), size in ends])
    for axis, pair in enumerate(padding, grad.ndim - len(padding)):
        if any(pair):
            size = grad.shape[axis] - sum(pair)
            grad = add_along(grad, geometry.pad(np.arange(size), (pair,), mode), size, axis)
    return grad
