"""Converters of operators that reduce axes, or go along them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qtool.frontends.torch.call import Call, Convert
from qtool.frontends.torch.maths import truth
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import Attr, DType


def _axes(call: Call) -> tuple[int, ...] | None:
    """None for all axes."""
    return call.integers("dim") or None if call.get("dim") is not None else None


def average(call: Call) -> Known:
    x = call.cast(call.x(), call.output()[0])
    return call.emit("mean", [x], dim=_axes(call), keepdim=bool(call.get("keepdim", False)))


def total(call: Call) -> Known:
    x = call.cast(call.x(), call.output()[0])
    keep = bool(call.get("keepdim", False))
    if x.dtype.is_float:
        return call.emit("sum", [x], dim=_axes(call), keepdim=keep)
    return call.emit("reduce_sum", [x], axes=_axes(call), keepdims=keep)


def reduce(op: str) -> Convert:
    """amax and the like."""

    def convert(call: Call) -> Known:
        x = call.cast(call.x(), call.output()[0])
        return call.emit(op, [x], axes=_axes(call), keepdims=bool(call.get("keepdim", False)))

    return convert


def best(op: str, arg: str) -> Convert:
    """max.dim and min.dim: the values and where they are."""

    def convert(call: Call) -> Sequence[Known]:
        x, axis, keep = call.x(), call.integer("dim"), bool(call.get("keepdim", False))
        values = call.emit(op, [x], axes=(axis,), keepdims=keep)
        return [values, call.helper(arg, [x], axis=axis, keepdims=keep)]

    return convert


def arg(op: str) -> Convert:
    def convert(call: Call) -> Known:
        x, keep = call.x(), bool(call.get("keepdim", False))
        if call.get("dim") is None:
            return call.helper("reshape", [call.emit(op, [call.reshape(x, [-1], emit=False)], axis=0)], shape=())
        return call.emit(op, [x], axis=call.integer("dim"), keepdims=keep)

    return convert


def any_all(op: str) -> Convert:
    def convert(call: Call) -> Known:
        x = call.cast(truth(call, call.x()), DType.INT32)
        y = call.emit(op, [x], axes=_axes(call), keepdims=bool(call.get("keepdim", False)))
        return call.cast(y, DType.BOOL)

    return convert


def variance(root: bool) -> Convert:
    """var and std, over sizes that are known; with Bessel's correction unless told otherwise."""

    def convert(call: Call) -> Known:
        x, axes, keep = call.x(), _axes(call), bool(call.get("keepdim", False))
        sizes = [x.shape[axis] for axis in (range(x.rank) if axes is None else axes)]
        if not all(isinstance(size, int) for size in sizes):
            raise Unsupported("the sizes it reduces depend on the input")
        count = math.prod(int(size) for size in sizes)
        lost = float(call.get("correction", 1 if call.get("unbiased", True) else 0))
        centred = call.helper("sub", [x, call.helper("mean", [x], dim=axes, keepdim=True)])
        mean = call.helper("mean", [call.helper("mul", [centred, centred])], dim=axes, keepdim=keep)
        y = call.emit("mul", [mean, call.constant(count / max(count - lost, 1e-300), x.dtype)])
        return call.helper("sqrt", [y]) if root else y

    return convert


def norm(call: Call) -> Known:
    orders = {1: "reduce_l1", 2: "reduce_l2"}
    order = call.get("ord", call.get("p", 2))
    if order not in orders:
        raise Unsupported(f"the norm of order {order}")
    return call.emit(orders[order], [call.x()], axes=_axes(call), keepdims=bool(call.get("keepdim", False)))


def cumulative(op: str) -> Convert:
    def convert(call: Call) -> Known:
        x = call.cast(call.x(), call.output()[0])
        return call.emit(op, [x, constant_of(np.array(call.integer("dim"), np.int64))])

    return convert


def top_k(call: Call) -> Sequence[Known]:
    k = constant_of(np.array([call.integer("k")], np.int64))
    attrs: dict[str, Attr] = {"largest": bool(call.get("largest", True)), "sorted": bool(call.get("sorted", True))}
    return call.emit_all("top_k", [call.x(), k], 2, axis=call.integer("dim", -1), **attrs)
