"""Integers made of the sizes of tensors, evaluated while importing: what exporters compute with Shape, Gather, Concat,
Mul, ... to reshape, pad and resize becomes plain numbers, or numbers and symbols.

A value is an object array of Python numbers and ``Size``. What cannot be expressed raises ``NotSymbolic``; the node
then stays in the graph as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.ir import Array, Dim
from qtool.ops.dims import divide, product

LARGEST = 4096
"""Elements of the largest vector that is evaluated."""


class NotSymbolic(Exception):  # noqa: N818  # no error: the node is converted as others are
    """The value is no number and no product of sizes."""


@dataclass(frozen=True)
class Size:
    """A size only known at run time, or a product of such and a number; never negative."""

    dim: str

    def __mul__(self, other: Any) -> Any:
        return _size(product((self.dim, _dim(other))))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        quotient = divide(self.dim, _dim(other))
        if quotient is None:
            raise NotSymbolic
        return _size(quotient)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Size) or other != 0:
            raise NotSymbolic
        return self

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return 0 if other == self else self + other

    def __rsub__(self, other: Any) -> Any:
        raise NotSymbolic

    def __rfloordiv__(self, other: Any) -> Any:
        if isinstance(other, (int, float)) and other == 0:
            return 0
        raise NotSymbolic


def _dim(value: Any) -> Dim:
    if isinstance(value, Size):
        return value.dim
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) and value >= 0:
        return int(value)
    raise NotSymbolic


def _size(dim: Dim) -> Any:
    return Size(dim) if isinstance(dim, str) else dim


def of_shape(shape: Sequence[Dim]) -> Array:
    """The object array of a shape."""
    array = np.empty(len(shape), object)
    array[:] = [_size(dim) for dim in shape]
    return array


def dims_of(array: Array) -> tuple[Dim, ...]:
    """A vector as dims: ints (negative ones too) and symbols."""
    return tuple(item.dim if isinstance(item, Size) else int(item) for item in array.reshape(-1))


def is_plain(array: Array) -> bool:
    """Whether every element is a number."""
    return not any(isinstance(item, Size) for item in array.reshape(-1))


Attrs = Mapping[str, Any]
Evaluate = Callable[..., Array]


def _each(function: Callable[..., Any]) -> Evaluate:
    def evaluate(_: Attrs, *arrays: Array) -> Array:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        flat = [np.broadcast_to(array, shape).reshape(-1) for array in arrays]
        out = np.empty(math.prod(shape), object)
        out[:] = [function(*items) for items in zip(*flat, strict=True)]
        return out.reshape(shape)

    return evaluate


def _div(a: Any, b: Any) -> Any:
    if isinstance(a, Size) or isinstance(b, Size):
        return a // b
    if b == 0:
        raise NotSymbolic
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _equal(a: Any, b: Any) -> Any:
    if isinstance(a, Size) and isinstance(b, Size):
        if a == b:
            return True
        raise NotSymbolic
    if isinstance(a, Size) or isinstance(b, Size):
        number = b if isinstance(a, Size) else a
        if number < 0:
            return False
        raise NotSymbolic
    return a == b


def _where(condition: Any, a: Any, b: Any) -> Any:
    if a == b:
        return a
    if isinstance(condition, Size):
        raise NotSymbolic
    return a if condition else b


def _rounded(function: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda a: a if isinstance(a, Size) else float(function(a))


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*items: Any) -> Any:
        if all(item == items[0] for item in items):
            return items[0]
        if any(isinstance(item, Size) for item in items):
            raise NotSymbolic
        return function(items)

    return choose


def _negative(a: Any) -> Any:
    if isinstance(a, Size):
        raise NotSymbolic
    return -a


def _cast(attrs: Attrs, array: Array) -> Array:
    kinds = {1: float, 10: float, 11: float, 6: int, 7: int, 9: bool}
    kind = kinds.get(attrs["to"])
    if kind is None or (kind is bool and not is_plain(array)):
        raise NotSymbolic
    return _each(lambda a: a if isinstance(a, Size) else kind(a))(attrs, array)


def _gather(attrs: Attrs, data: Array, indices: Array) -> Array:
    if not is_plain(indices):
        raise NotSymbolic
    return np.asarray(np.take(data, indices.astype(np.int64), attrs.get("axis", 0)), object)


def _concat(attrs: Attrs, *arrays: Array) -> Array:
    return np.concatenate(arrays, attrs.get("axis", 0))


def _unsqueeze(attrs: Attrs, data: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(data, tuple(attrs["axes"] if axes is None else map(int, axes.reshape(-1))))


def _squeeze(attrs: Attrs, data: Array, axes: Array | None = None) -> Array:
    chosen = attrs.get("axes") if axes is None else tuple(map(int, axes.reshape(-1)))
    return np.squeeze(data, None if chosen is None else tuple(chosen))


def _slice(attrs: Attrs, data: Array, *limits: Array) -> Array:
    names = ("starts", "ends", "axes", "steps")
    given = dict(zip(names, limits, strict=False)) if limits else {k: np.array(attrs[k]) for k in names if k in attrs}
    starts, ends = (np.asarray(given[name]).reshape(-1) for name in names[:2])
    axes = given.get("axes", np.arange(len(starts))).reshape(-1)
    steps = given.get("steps", np.ones(len(starts), object)).reshape(-1)
    if not all(map(is_plain, (starts, ends, axes, steps))):
        raise NotSymbolic
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if int(step) < 0 and int(end) < -data.shape[int(axis)] else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return np.asarray(data[tuple(index)], object)


def _reshape(_: Attrs, data: Array, shape: Array) -> Array:
    if not is_plain(shape) or any(int(n) == 0 for n in shape):
        raise NotSymbolic
    return data.reshape([int(n) for n in shape])


def _reduce_prod(attrs: Attrs, data: Array, axes: Array | None = None) -> Array:
    if data.ndim != 1 or (axes is not None and not is_plain(axes)):
        raise NotSymbolic
    result: Any = 1
    for item in data:
        result = item * result
    out = np.empty(1 if attrs.get("keepdims", 1) else (), object)
    out[...] = result
    return out


def _expand(_: Attrs, data: Array, shape: Array) -> Array:
    if not is_plain(shape):
        raise NotSymbolic
    target = tuple(int(n) for n in shape)
    if math.prod(target) > LARGEST:
        raise NotSymbolic
    return np.asarray(np.broadcast_to(data, np.broadcast_shapes(data.shape, target)), object)


EVALUATORS: Mapping[str, Evaluate] = {
    "Add": _each(lambda a, b: a + b),
    "Cast": _cast,
    "Ceil": _each(_rounded(math.ceil)),
    "Concat": _concat,
    "Div": _each(_div),
    "Equal": _each(_equal),
    "Expand": _expand,
    "Floor": _each(_rounded(math.floor)),
    "Gather": _gather,
    "Identity": lambda _, x: x,
    "Max": _each(_extreme(max)),
    "Min": _each(_extreme(min)),
    "Mul": _each(lambda a, b: a * b),
    "Neg": _each(_negative),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
    "Where": _each(_where),
}


def evaluate(op: str, attrs: Attrs, arrays: Sequence[Array]) -> Array:
    """The outcome of an ONNX operator on object arrays; NotSymbolic where it cannot be expressed."""
    if op not in EVALUATORS or any(array.size > LARGEST for array in arrays):
        raise NotSymbolic
    try:
        result = EVALUATORS[op](attrs, *arrays)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise NotSymbolic from error
    return np.asarray(result, object)
