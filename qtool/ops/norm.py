"""Normalizations, as they are at inference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.dims import need_float, need_shape, same_shape, spell
from qtool.ops.registry import Attrs, OpSpec, QuantRule, register, require


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


register(
    OpSpec(
        name="batch_norm",
        attrs=BatchNormAttrs,
        inputs=("x", "running_mean", "running_var", "weight?", "bias?"),
        infer=batch_norm_type,
        reference=batch_norm_reference,
        onnx=("BatchNormalization",),
        kernel="batch_norm",
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
    )
)
