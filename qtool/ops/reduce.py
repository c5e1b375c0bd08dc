"""Means and sums over axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.dims import axes_of, need_float
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register
from qtool.ops.vjp import linear_of


@dataclass(frozen=True)
class ReduceAttrs(Attrs):
    """``dim`` None, or empty, means all axes."""

    dim: tuple[int, ...] | None = None
    keepdim: bool = False


def reduce_type(attrs: ReduceAttrs, x: TensorType) -> tuple[TensorType, ...]:
    need_float(x=x)
    rank = len(x.shape)
    axes = axes_of(attrs.dim, rank) if attrs.dim else tuple(range(rank))
    kept = [(1 if axis in axes else dim) for axis, dim in enumerate(x.shape) if attrs.keepdim or axis not in axes]
    return (TensorType(x.dtype, tuple(kept)),)


def mean(attrs: ReduceAttrs, x: Array) -> tuple[Array, ...]:
    result = np.mean(x, axis=attrs.dim or None, keepdims=attrs.keepdim, dtype=np.float64)
    return (np.asarray(result, x.dtype),)


def total(attrs: ReduceAttrs, x: Array) -> tuple[Array, ...]:
    result = np.sum(x, axis=attrs.dim or None, keepdims=attrs.keepdim, dtype=np.float64)
    return (np.asarray(result, x.dtype),)


def _total_back(call: VjpCall, grad: Array) -> Array:
    x = call.inputs[0]
    assert x is not None
    axes = tuple(axis % x.ndim for axis in call.attrs.dim or range(x.ndim))
    return np.broadcast_to(grad.reshape([1 if axis in axes else size for axis, size in enumerate(x.shape)]), x.shape)


def _mean_back(call: VjpCall, grad: Array) -> Array:
    found = _total_back(call, grad)
    return np.asarray(found * grad.dtype.type(grad.size / max(found.size, 1)))


register(
    OpSpec(
        name="mean",
        attrs=ReduceAttrs,
        inputs=("x",),
        infer=reduce_type,
        reference=mean,
        rule=QuantRule.SAME_AS_INPUT,
        onnx=("ReduceMean",),
        kernel="mean",
        vjp=linear_of(_mean_back),
    )
)
register(OpSpec("sum", ReduceAttrs, ("x",), reduce_type, total, onnx=("ReduceSum",), vjp=linear_of(_total_back)))
