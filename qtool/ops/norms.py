"""Normalizations, named and defined as ONNX has them; means and variances in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, DType, TensorType
from qtool.ops.dims import axes_of, axis_of, broadcast, need_float, need_shape, spell
from qtool.ops.registry import Attrs, OpSpec, register, require

Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class EpsilonAttrs(Attrs):
    epsilon: float = 1e-5


@dataclass(frozen=True)
class GroupNormAttrs(Attrs):
    """The channels (axis 1) in ``num_groups`` groups, each with a mean and a variance."""

    num_groups: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class TailNormAttrs(Attrs):
    """Over the axes from ``axis`` on."""

    axis: int = -1
    epsilon: float = 1e-5


@dataclass(frozen=True)
class LrnAttrs(Attrs):
    """x / (bias + alpha / size * sum of squares of the ``size`` channels around) ** beta (Krizhevsky et al., 2012)."""

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0


@dataclass(frozen=True)
class LpNormalizationAttrs(Attrs):
    axis: int = -1
    p: int = 2


@dataclass(frozen=True)
class MvnAttrs(Attrs):
    axes: tuple[int, ...] = (0, 2, 3)


def _epsilon(epsilon: float) -> None:
    require(epsilon >= 0, f"epsilon {epsilon}", "at least 0")


def _channel_type(attrs: EpsilonAttrs | GroupNormAttrs, x: TensorType, scale: TensorType, bias: TensorType) -> Types:
    need_float(x=x, scale=scale, bias=bias)
    _epsilon(attrs.epsilon)
    require(len(x.shape) >= 2, f"x of shape {spell(x.shape)}", "channels on axis 1")
    need_shape("scale", scale, (x.shape[1],))
    need_shape("bias", bias, (x.shape[1],))
    groups = attrs.num_groups if isinstance(attrs, GroupNormAttrs) else 1
    channels = x.shape[1]
    fits = groups >= 1 and (isinstance(channels, str) or channels % groups == 0)
    require(fits, f"{groups} groups of {channels} channels", "a divisor")
    return (TensorType(x.dtype, x.shape),)


def _scaled(x: Array, y: Array, scale: Array, bias: Array) -> Array:
    column = (-1, *([1] * (x.ndim - 2)))
    return np.asarray(y * scale.reshape(column) + bias.reshape(column), x.dtype)


def standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon), in float64."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon))


def instance_norm(attrs: EpsilonAttrs, x: Array, scale: Array, bias: Array) -> tuple[Array, ...]:
    return (_scaled(x, standardized(x, tuple(range(2, x.ndim)), attrs.epsilon), scale, bias),)


def group_norm(attrs: GroupNormAttrs, x: Array, scale: Array, bias: Array) -> tuple[Array, ...]:
    grouped = x.reshape(x.shape[0], attrs.num_groups, -1)
    return (_scaled(x, standardized(grouped, (2,), attrs.epsilon).reshape(x.shape), scale, bias),)


def _tail_type(attrs: TailNormAttrs, x: TensorType, scale: TensorType, bias: TensorType | None = None) -> Types:
    need_float(x=x, scale=scale, bias=bias)
    _epsilon(attrs.epsilon)
    axis = axis_of(attrs.axis, len(x.shape), "axis")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None:
            got = f"{name} of shape {spell(tensor.shape)} for x of shape {spell(x.shape)}"
            require(len(tensor.shape) <= len(x.shape), got, "one that can be broadcast")
            broadcast(tensor.shape, x.shape)
    statistics = TensorType(DType.FLOAT32, (*x.shape[:axis], *(1 for _ in x.shape[axis:])))
    return (TensorType(x.dtype, x.shape), statistics, statistics)


def layer_normalization(attrs: TailNormAttrs, x: Array, scale: Array, bias: Array | None = None) -> tuple[Array, ...]:
    """y, and the mean and 1 / sqrt(variance + epsilon) in float32."""
    axes = tuple(range(attrs.axis % x.ndim, x.ndim))
    wide = x.astype(np.float64)
    mean = wide.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(np.square(wide - mean).mean(axis=axes, keepdims=True) + attrs.epsilon)
    y = (wide - mean) * inverse * scale
    y = y if bias is None else y + bias
    return y.astype(x.dtype), mean.astype(np.float32), inverse.astype(np.float32)


def _rms_type(attrs: TailNormAttrs, x: TensorType, scale: TensorType) -> Types:
    return _tail_type(attrs, x, scale)[:1]


def rms_norm(attrs: TailNormAttrs, x: Array, scale: Array) -> tuple[Array, ...]:
    """x / sqrt(mean(x * x) + epsilon) * scale (Zhang and Sennrich, 2019)."""
    axes = tuple(range(attrs.axis % x.ndim, x.ndim))
    wide = x.astype(np.float64)
    root = np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + attrs.epsilon)
    return (np.asarray(wide / root * scale, x.dtype),)


def _lrn_type(attrs: LrnAttrs, x: TensorType) -> Types:
    need_float(x=x)
    require(len(x.shape) >= 2, f"x of shape {spell(x.shape)}", "channels on axis 1")
    require(attrs.size >= 1, f"size {attrs.size}", "at least 1")
    return (TensorType(x.dtype, x.shape),)


def lrn(attrs: LrnAttrs, x: Array) -> tuple[Array, ...]:
    channels = x.shape[1]
    before, behind = (attrs.size - 1) // 2, math.ceil((attrs.size - 1) / 2)
    square = np.square(x.astype(np.float64))
    sums = np.stack(
        [square[:, max(c - before, 0) : c + behind + 1].sum(axis=1) for c in range(channels)],
        axis=1,
    )
    return (np.asarray(x / (attrs.bias + attrs.alpha / attrs.size * sums) ** attrs.beta, x.dtype),)


def _lp_type(attrs: LpNormalizationAttrs, x: TensorType) -> Types:
    need_float(x=x)
    axis_of(attrs.axis, len(x.shape), "axis")
    require(attrs.p in (1, 2), f"p {attrs.p}", "1 or 2")
    return (TensorType(x.dtype, x.shape),)


def lp_normalization(attrs: LpNormalizationAttrs, x: Array) -> tuple[Array, ...]:
    """Zeros stay zeros."""
    wide = x.astype(np.float64)
    norm = (np.abs(wide) ** attrs.p).sum(axis=attrs.axis, keepdims=True) ** (1 / attrs.p)
    return (np.asarray(wide / np.where(norm == 0, 1, norm), x.dtype),)


def _mvn_type(attrs: MvnAttrs, x: TensorType) -> Types:
    need_float(x=x)
    axes_of(attrs.axes, len(x.shape))
    return (TensorType(x.dtype, x.shape),)


def mean_variance_normalization(attrs: MvnAttrs, x: Array) -> tuple[Array, ...]:
    """(x - mean) / (standard deviation + 1e-9), as the operator's function has it."""
    wide = x.astype(np.float64)
    mean, square = (v.mean(axis=attrs.axes, keepdims=True) for v in (wide, wide * wide))
    return (np.asarray((wide - mean) / (np.sqrt(square - mean * mean) + 1e-9), x.dtype),)


def _register(
    onnx: str,
    attrs: type[Attrs],
    inputs: tuple[str, ...],
    infer: Callable[..., Types],
    function: Callable[..., tuple[Array, ...]],
) -> None:
    register(OpSpec(function.__name__, attrs, inputs, infer, function, onnx=(onnx,)))


_register("InstanceNormalization", EpsilonAttrs, ("x", "scale", "bias"), _channel_type, instance_norm)
_register("GroupNormalization", GroupNormAttrs, ("x", "scale", "bias"), _channel_type, group_norm)
_register("LayerNormalization", TailNormAttrs, ("x", "scale", "bias?"), _tail_type, layer_normalization)
_register("RMSNormalization", TailNormAttrs, ("x", "scale"), _rms_type, rms_norm)
_register("LRN", LrnAttrs, ("x",), _lrn_type, lrn)
_register("LpNormalization", LpNormalizationAttrs, ("x",), _lp_type, lp_normalization)
_register("MeanVarianceNormalization", MvnAttrs, ("x",), _mvn_type, mean_variance_normalization)
