"""Normalizations, as they are at inference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.dims import need_float, need_shape, same_shape, spell
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import Gradients, at_least_float32, grad_of, gradients, per_channel


@dataclass(frozen=True)
class BatchNormAttrs(Attrs):
    """y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, a channel (axis 1) at a time."""

    eps: float = 1e-5


@dataclass(frozen=True)
class LayerNormAttrs(Attrs):
    """Mean and (biased) variance over the last axes, whose sizes are ``normalized_shape``."""

    normalized_shape: tuple[int, ...]
    eps: float = 1e-5


def batch_norm_type(
    attrs: BatchNormAttrs,
    x: TensorType,
    running_mean: TensorType,
    running_var: TensorType,
    weight: TensorType | None = None,
    bias: TensorType | None = None,
) -> tuple[TensorType, ...]:
    parameters = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    need_float(x=x, **parameters)
    require(len(x.shape) >= 2, f"x of shape {spell(x.shape)}", "channels on axis 1")
    require(attrs.eps >= 0, f"eps {attrs.eps}", "at least 0")
    for name, parameter in parameters.items():
        need_shape(name, parameter, (x.shape[1],))
    return (x,)


def batch_norm_reference(
    attrs: BatchNormAttrs,
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
) -> tuple[Array, ...]:
    column = (-1, *([1] * (x.ndim - 2)))
    inverse = x.dtype.type(1) / np.sqrt(running_var + x.dtype.type(attrs.eps))
    y = (x - running_mean.reshape(column)) * inverse.reshape(column)
    if weight is not None:
        y = y * weight.reshape(column)
    if bias is not None:
        y = y + bias.reshape(column)
    return (y,)


def layer_norm_type(
    attrs: LayerNormAttrs, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None
) -> tuple[TensorType, ...]:
    need_float(x=x, weight=weight, bias=bias)
    shape = attrs.normalized_shape
    fits = 0 < len(shape) <= len(x.shape) and same_shape(x.shape[-len(shape) :], shape)
    require(fits, f"x of shape {spell(x.shape)}", f"{spell(shape)} as its last sizes (normalized_shape)")
    require(attrs.eps >= 0, f"eps {attrs.eps}", "at least 0")
    need_shape("weight", weight, shape)
    need_shape("bias", bias, shape)
    return (x,)


def layer_norm_reference(
    attrs: LayerNormAttrs, x: Array, weight: Array | None = None, bias: Array | None = None
) -> tuple[Array, ...]:
    axes = tuple(range(-len(attrs.normalized_shape), 0))
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + attrs.eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return (np.asarray(y, x.dtype),)


def batch_norm_vjp(call: VjpCall) -> Gradients:
    """With mean and variance as the inputs that they are at inference, not functions of x."""
    x, mean, var, weight, _ = (*call.inputs, None, None)[:5]
    assert x is not None
    assert mean is not None
    assert var is not None
    column = (-1, *([1] * (x.ndim - 2)))
    grad = at_least_float32(grad_of(call))
    inverse = 1 / np.sqrt(at_least_float32(var) + grad.dtype.type(call.attrs.eps))
    slope = inverse if weight is None else inverse * weight

    def moment() -> Array:
        """By each channel, the sum of the derivative times the distance from the mean."""
        return per_channel(grad * (x - mean.reshape(column)))

    return gradients(
        call,
        lambda: grad * slope.reshape(column),
        lambda: -slope * per_channel(grad),
        lambda: -0.5 * slope * np.square(inverse) * moment(),
        lambda: inverse * moment(),
        lambda: per_channel(grad),
    )


def standardized_grad(x: Array, grad: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    """The derivative by x of y = (x - mean) / sqrt(variance + epsilon), from that by y; and y. Both float64."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
    y = centred * inverse
    along = (grad * y).mean(axis=axes, keepdims=True)
    return np.asarray(inverse * (grad - grad.mean(axis=axes, keepdims=True) - y * along)), np.asarray(y)


def layer_norm_vjp(call: VjpCall) -> Gradients:
    x, weight = (*call.inputs, None)[:2]
    assert x is not None
    grad = grad_of(call).astype(np.float64)
    axes = tuple(range(-len(call.attrs.normalized_shape), 0))
    by_x, y = standardized_grad(x, grad if weight is None else grad * weight, axes, call.attrs.eps)
    return gradients(call, lambda: by_x, lambda: grad * y, lambda: grad)


register(
    OpSpec(
        name="batch_norm",
        attrs=BatchNormAttrs,
        inputs=("x", "running_mean", "running_var", "weight?", "bias?"),
        infer=batch_norm_type,
        reference=batch_norm_reference,
        onnx=("BatchNormalization",),
        kernel="batch_norm",
        vjp=batch_norm_vjp,
    )
)
register(
    OpSpec(
        name="layer_norm",
        attrs=LayerNormAttrs,
        inputs=("x", "weight?", "bias?"),
        infer=layer_norm_type,
        reference=layer_norm_reference,
        rule=QuantRule.FREE,
        onnx=("LayerNormalization",),
        kernel="layer_norm",
        vjp=layer_norm_vjp,
    )
)
