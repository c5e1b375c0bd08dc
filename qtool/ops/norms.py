"""Normalizations, named and defined as ONNX has them; means and variances in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.ir import Array, DType, TensorType
from qtool.ops.dims import axes_of, axis_of, broadcast, need_float, need_shape, spell
from qtool.ops.norm import standardized_grad
from qtool.ops.registry import Attrs, OpSpec, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients, per_channel

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


def _around(x: Array, before: int, behind: int) -> Array:
    """The sum of so many channels before and behind each one, and of itself."""
    ends = [(max(c - before, 0), c + behind + 1) for c in range(x.shape[1])]
    return np.stack([x[:, start:end].sum(axis=1) for start, end in ends], axis=1)


def lrn(attrs: LrnAttrs, x: Array) -> tuple[Array, ...]:
    before, behind = (attrs.size - 1) // 2, math.ceil((attrs.size - 1) / 2)
    sums = _around(np.square(x.astype(np.float64)), before, behind)
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


def _wide(call: VjpCall) -> tuple[Array, Array]:
    """x and the derivative by y in float64."""
    x = call.inputs[0]
    assert x is not None
    return x.astype(np.float64), grad_of(call).astype(np.float64)


def _channel_vjp(group: Callable[[Any, Array], Array]) -> Vjp:
    """``group`` brings an array to (N, groups, elements of a group)."""

    def vjp(call: VjpCall) -> Gradients:
        x, grad = _wide(call)
        scale = call.inputs[1]
        assert scale is not None
        scaled = grad * scale.reshape(-1, *([1] * (x.ndim - 2)))
        by_x, y = standardized_grad(group(call.attrs, x), group(call.attrs, scaled), (2,), call.attrs.epsilon)
        return gradients(
            call,
            lambda: by_x.reshape(x.shape),
            lambda: per_channel(grad * y.reshape(x.shape)),
            lambda: per_channel(grad),
        )

    return vjp


def layer_normalization_vjp(call: VjpCall) -> Gradients:
    """Mean and 1 / sqrt(variance + epsilon) are differentiated as well."""
    x, grad = _wide(call)
    scale = call.inputs[1]
    assert scale is not None
    axes = tuple(range(call.attrs.axis % x.ndim, x.ndim))
    by_x, y = standardized_grad(x, grad * scale, axes, call.attrs.epsilon)

    def part() -> Array:
        count = math.prod(x.shape[axis] for axis in axes)
        inverse = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + call.attrs.epsilon)
        statistics = grad_of(call, 1) - grad_of(call, 2) * y * np.square(inverse)
        return np.asarray(by_x + statistics / count)

    return gradients(call, part, lambda: grad * y, lambda: grad)


def rms_norm_vjp(call: VjpCall) -> Gradients:
    x, grad = _wide(call)
    scale = call.inputs[1]
    assert scale is not None
    axes = tuple(range(call.attrs.axis % x.ndim, x.ndim))
    inverse = 1 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + call.attrs.epsilon)
    y, scaled = x * inverse, grad * scale
    return gradients(
        call,
        lambda: inverse * (scaled - y * (scaled * y).mean(axis=axes, keepdims=True)),
        lambda: grad * y,
    )


def lrn_vjp(call: VjpCall) -> Gradients:
    x, grad = _wide(call)
    attrs = call.attrs
    before, behind = (attrs.size - 1) // 2, math.ceil((attrs.size - 1) / 2)
    alpha = attrs.alpha / attrs.size

    def part() -> Array:
        base = attrs.bias + alpha * _around(np.square(x), before, behind)
        shared = _around(grad * x * base ** (-attrs.beta - 1), behind, before)
        return np.asarray(grad * base**-attrs.beta - 2 * alpha * attrs.beta * x * shared)

    return gradients(call, part)


def lp_normalization_vjp(call: VjpCall) -> Gradients:
    x, grad = _wide(call)
    axis, p = call.attrs.axis, call.attrs.p

    def part() -> Array:
        norm = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
        norm = np.where(norm == 0, 1, norm)
        slope = np.sign(x) if p == 1 else x / norm  # of the norm itself
        return np.asarray(grad / norm - slope * (grad * x).sum(axis=axis, keepdims=True) / np.square(norm))

    return gradients(call, part)


def mvn_vjp(call: VjpCall) -> Gradients:
    x, grad = _wide(call)
    axes = call.attrs.axes

    def part() -> Array:
        centred = x - x.mean(axis=axes, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=axes, keepdims=True))
        divisor = deviation + 1e-9
        slope = centred / np.where(deviation == 0, 1, deviation)  # of the deviation, times the number of elements
        found = grad / divisor - slope * (grad * centred).mean(axis=axes, keepdims=True) / np.square(divisor)
        return np.asarray(found - found.mean(axis=axes, keepdims=True))

    return gradients(call, part)


def _register(
    onnx: str,
    attrs: type[Attrs],
    inputs: tuple[str, ...],
    infer: Callable[..., Types],
    function: Callable[..., tuple[Array, ...]],
    vjp: Vjp,
) -> None:
    register(OpSpec(function.__name__, attrs, inputs, infer, function, onnx=(onnx,), vjp=vjp))


def _instances(_: EpsilonAttrs, x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _groups(attrs: GroupNormAttrs, x: Array) -> Array:
    return x.reshape(x.shape[0], attrs.num_groups, -1)


CHANNELS = ("x", "scale", "bias")
TAIL = ("x", "scale", "bias?")
_register("InstanceNormalization", EpsilonAttrs, CHANNELS, _channel_type, instance_norm, _channel_vjp(_instances))
_register("GroupNormalization", GroupNormAttrs, CHANNELS, _channel_type, group_norm, _channel_vjp(_groups))
_register("LayerNormalization", TailNormAttrs, TAIL, _tail_type, layer_normalization, layer_normalization_vjp)
_register("RMSNormalization", TailNormAttrs, ("x", "scale"), _rms_type, rms_norm, rms_norm_vjp)
_register("LRN", LrnAttrs, ("x",), _lrn_type, lrn, lrn_vjp)
_register("LpNormalization", LpNormalizationAttrs, ("x",), _lp_type, lp_normalization, lp_normalization_vjp)
_register("MeanVarianceNormalization", MvnAttrs, ("x",), _mvn_type, mean_variance_normalization, mvn_vjp)
