"""Losses, defined as ONNX has them: models exported for training carry them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Shape, TensorType
from qtool.ops.dims import need_float, need_integers, need_shape, spell
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.unary import log_softmax
from qtool.ops.vjp import Gradients, grad_of, gradients

Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class LossAttrs(Attrs):
    """Targets equal to ``ignore_index`` count nothing."""

    reduction: Literal["none", "mean", "sum"] = "mean"
    ignore_index: int | None = None


def _loss_type(attrs: LossAttrs, x: TensorType, target: TensorType, weight: TensorType | None = None) -> Types:
    need_float(x=x, weight=weight)
    need_integers(target=target)
    require(len(x.shape) >= 2, f"x of shape {spell(x.shape)}", "classes on axis 1")
    need_shape("target", target, (x.shape[0], *x.shape[2:]))
    need_shape("weight", weight, (x.shape[1],))
    shape: Shape = (x.shape[0], *x.shape[2:]) if attrs.reduction == "none" else ()
    return (TensorType(x.dtype, shape),)


def _classes(attrs: LossAttrs, target: Array) -> tuple[Array, Array]:
    """Which targets count, and the classes, int64; 0 for those that do not."""
    counted = np.ones(target.shape, np.bool_) if attrs.ignore_index is None else target != attrs.ignore_index
    return counted, np.where(counted, target, 0).astype(np.int64)


def negative_log_likelihood_loss(
    attrs: LossAttrs, x: Array, target: Array, weight: Array | None = None
) -> tuple[Array, ...]:
    """Of log probabilities (N, C, ...) and classes (N, ...); the mean is weighted."""
    counted, classes = _classes(attrs, target)
    if classes.size and not 0 <= classes.min() <= classes.max() < x.shape[1]:
        raise DataError(f"got classes from {classes.min()} to {classes.max()}, expected 0 to {x.shape[1] - 1}")
    found = np.take_along_axis(x.astype(np.float64), classes[:, None], 1)[:, 0]
    weights = counted * (1.0 if weight is None else weight.astype(np.float64)[classes])
    loss = -found * weights
    if attrs.reduction == "none":
        return (np.asarray(loss, x.dtype),)
    total = loss.sum()
    return (np.asarray(total / weights.sum() if attrs.reduction == "mean" else total, x.dtype),)


def _likelihood_grads(call: VjpCall, x: Array) -> tuple[Array, Array]:
    """The derivatives by the log probabilities ``x`` and by the classes' weights, float64."""
    _, target, weight = (*call.inputs, None)[:3]
    assert target is not None
    attrs, grad = call.attrs, grad_of(call).astype(np.float64)
    counted, classes = _classes(attrs, target)
    found = np.take_along_axis(x, classes[:, None], 1)[:, 0]
    weights = counted * (1.0 if weight is None else weight.astype(np.float64)[classes])
    loss: Array | float = 0.0
    if attrs.reduction == "mean":
        grad = grad / weights.sum()
        loss = -(found * weights).sum() / weights.sum()  # a larger weight also makes the divisor larger
    by_x = np.zeros(x.shape)
    np.put_along_axis(by_x, classes[:, None], (-grad * weights)[:, None], 1)
    by_weight = np.bincount(classes.reshape(-1), (counted * grad * (-found - loss)).reshape(-1), x.shape[1])
    return by_x, by_weight


def likelihood_vjp(call: VjpCall) -> Gradients:
    x = call.inputs[0]
    assert x is not None
    by_x, by_weight = _likelihood_grads(call, x.astype(np.float64))
    return gradients(call, lambda: by_x, None, lambda: by_weight)


def _cross_entropy_type(attrs: LossAttrs, x: TensorType, target: TensorType, weight: TensorType | None = None) -> Types:
    return (*_loss_type(attrs, x, target, weight), TensorType(x.dtype, x.shape))


def softmax_cross_entropy_loss(
    attrs: LossAttrs, x: Array, target: Array, weight: Array | None = None
) -> tuple[Array, ...]:
    """The loss, and the log probabilities."""
    probabilities = log_softmax(x.astype(np.float64), 1)
    (loss,) = negative_log_likelihood_loss(attrs, probabilities, target, weight)
    return np.asarray(loss, x.dtype), np.asarray(probabilities, x.dtype)


def cross_entropy_vjp(call: VjpCall) -> Gradients:
    x = call.inputs[0]
    assert x is not None
    probabilities = log_softmax(x.astype(np.float64), 1)
    by_x, by_weight = _likelihood_grads(call, probabilities)
    by_x = by_x + grad_of(call, 1)
    return gradients(
        call, lambda: by_x - np.exp(probabilities) * by_x.sum(axis=1, keepdims=True), None, lambda: by_weight
    )


INPUTS = ("x", "target", "weight?")
for _onnx, _infer, _reference, _vjp in (
    ("NegativeLogLikelihoodLoss", _loss_type, negative_log_likelihood_loss, likelihood_vjp),
    ("SoftmaxCrossEntropyLoss", _cross_entropy_type, softmax_cross_entropy_loss, cross_entropy_vjp),
):
    register(OpSpec(_reference.__name__, LossAttrs, INPUTS, _infer, _reference, onnx=(_onnx,), vjp=_vjp))
