"""Reductions over axes, named and defined as ONNX has them; the axes are an attribute, or a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.dims import UNKNOWN, axes_of, need_same
from qtool.ops.dynamic import as_ints, ints_of, length_of
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients

Types = tuple[TensorType, ...]
Ints = tuple[int, ...]


@dataclass(frozen=True)
class ReductionAttrs(Attrs):
    """No ``axes``, or empty ones, mean all, or none with ``noop_with_empty_axes``."""

    axes: tuple[int, ...] | None = None
    keepdims: bool = True
    noop_with_empty_axes: bool = False


def _type(attrs: ReductionAttrs, x: TensorType, axes: TensorType | None = None) -> Types:
    need_same(x=x)
    rank = len(x.shape)
    along = attrs.axes or ()
    if axes is not None:
        count, found = length_of("axes", axes), ints_of(axes)
        require(count <= rank, f"{count} axes of {rank}", "no more than there are")
        if found is None and count:
            return (TensorType(x.dtype, (UNKNOWN,) * (rank if attrs.keepdims else rank - count)),)
        along = found or ()
    places = axes_of(along, rank)
    if not places and not attrs.noop_with_empty_axes:
        places = tuple(range(rank))
    shape = tuple(
        1 if axis in places else dim for axis, dim in enumerate(x.shape) if attrs.keepdims or axis not in places
    )
    return (TensorType(x.dtype, shape),)


def _axes(attrs: ReductionAttrs, x: Array, axes: Array | None) -> Ints:
    along = as_ints(axes) if axes is not None else attrs.axes or ()
    return along or (() if attrs.noop_with_empty_axes else tuple(range(x.ndim)))


def _extreme(x: Array, axes: Ints, function: Callable[..., Any], empty: float) -> Any:
    """Of no elements at all: minus infinity or the lowest integer is the largest, and the other way round."""
    if x.dtype.kind == "f":
        initial = empty
    elif x.dtype.kind == "b":
        initial = empty > 0
    else:
        info = np.iinfo(x.dtype)
        initial = info.max if empty > 0 else info.min
    return function(x, axis=axes, keepdims=True, initial=initial)


def _log_sum_exp(x: Array, axes: Ints) -> Array:
    top = x.max(axis=axes, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0)
    return np.asarray(np.log(np.exp(x - shift).sum(axis=axes, keepdims=True)) + shift)


def _sum(x: Array, axes: Ints) -> Any:
    return np.sum(x, axis=axes, keepdims=True)


def _extreme_slope(x: Array, y: Array, axes: Ints) -> Array:
    """Equal elements share, as with ``torch.amax``."""
    best = (x == y).astype(np.float64)
    return np.asarray(best / _sum(best, axes))


def _product_slope(x: Array, _: Array, axes: Ints) -> Array:
    """The product of all others, without a division: there may be zeros."""
    moved = np.moveaxis(x, axes, range(-len(axes), 0)) if axes else x[..., None]
    rows = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
    one = np.ones_like(rows[..., :1])
    before = np.concatenate([one, rows[..., :-1]], -1).cumprod(-1)
    behind = np.concatenate([one, rows[..., :0:-1]], -1).cumprod(-1)[..., ::-1]
    found = (before * behind).reshape(moved.shape)
    return np.moveaxis(found, range(-len(axes), 0), axes) if axes else found[..., 0]


def _norm_slope(x: Array, y: Array, _: Ints) -> Array:
    """0 where the norm is 0, as in PyTorch."""
    return np.where(y == 0, 0, x / np.where(y == 0, 1, y))


SLOPES: Mapping[str, Callable[[Array, Array, Ints], Any]] = {
    "reduce_max": _extreme_slope,
    "reduce_min": _extreme_slope,
    "reduce_prod": _product_slope,
    "reduce_sum": lambda _, __, ___: 1.0,
    "reduce_mean": lambda x, y, _: y.size / x.size,
    "reduce_l1": lambda x, _, __: np.sign(x),
    "reduce_l2": _norm_slope,
    "reduce_sum_square": lambda x, _, __: 2 * x,
    "reduce_log_sum": lambda x, _, axes: 1 / _sum(x, axes),
    "reduce_log_sum_exp": lambda x, y, _: np.exp(x - y),
}
"""Derivatives by x, from x, y with the axes kept, and the axes; in float64."""


def _reduction(onnx: str, name: str, function: Callable[[Array, Ints], Any], exact: bool = False) -> None:
    """``function`` keeps the axes with size 1; it gets float64 or int64 numbers unless it is ``exact``."""

    def reference(attrs: ReductionAttrs, x: Array, axes: Array | None = None) -> tuple[Array, ...]:
        along = _axes(attrs, x, axes)
        wide = x if exact or x.dtype.kind not in "f" else x.astype(np.float64)
        with np.errstate(all="ignore"):
            y = np.asarray(function(wide, along)).astype(x.dtype)
        return (y if attrs.keepdims else np.squeeze(y, along),)

    def vjp(call: VjpCall) -> Gradients:
        x, axes = (*call.inputs, None)[:2]
        assert x is not None
        along = tuple(axis % x.ndim for axis in _axes(call.attrs, x, axes))
        kept = [1 if axis in along else size for axis, size in enumerate(x.shape)]

        def part() -> Array:
            grad, y = (array.reshape(kept).astype(np.float64) for array in (grad_of(call), call.outputs[0]))
            wide = x.astype(np.float64)
            # An empty axis has no elements that anything could go back to, but shapes that do not fit.
            return np.broadcast_to(SLOPES[name](wide, y, along) * grad, x.shape) if x.size else wide

        return gradients(call, part)

    register(OpSpec(name, ReductionAttrs, ("x", "axes?"), _type, reference, onnx=(onnx,), empty=True, vjp=vjp))


_reduction("ReduceMax", "reduce_max", lambda x, axes: _extreme(x, axes, np.max, -np.inf), exact=True)
_reduction("ReduceMin", "reduce_min", lambda x, axes: _extreme(x, axes, np.min, np.inf), exact=True)
_reduction("ReduceProd", "reduce_prod", lambda x, axes: np.prod(x, axis=axes, keepdims=True))
_reduction("ReduceSum", "reduce_sum", _sum)
_reduction("ReduceMean", "reduce_mean", lambda x, axes: np.mean(x, axis=axes, keepdims=True))
_reduction("ReduceL1", "reduce_l1", lambda x, axes: _sum(np.abs(x), axes))
_reduction("ReduceL2", "reduce_l2", lambda x, axes: np.sqrt(_sum(x.astype(np.float64) ** 2, axes)))
_reduction("ReduceSumSquare", "reduce_sum_square", lambda x, axes: _sum(x * x, axes))
_reduction("ReduceLogSum", "reduce_log_sum", lambda x, axes: np.log(_sum(x, axes)))
_reduction("ReduceLogSumExp", "reduce_log_sum_exp", lambda x, axes: _log_sum_exp(x.astype(np.float64), axes))
