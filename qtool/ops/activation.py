"""Functions of one element, and the activations that other operators carry fused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.dims import axis_of, need_float, need_numbers, need_shape, product, spell
from qtool.ops.erf import erf
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import Gradients, elementwise, grad_of, gradients, unbroadcast

Activation = Literal["none", "relu", "clamp", "hardswish"]
Limits = tuple[float, float]


@dataclass(frozen=True)
class NoAttrs(Attrs):
    """Attributes of an operator that has none."""


@dataclass(frozen=True)
class ClampAttrs(Attrs):
    """y = min(max(x, low), high). A side without limit is float32's largest number, as ONNX ``Clip`` has it."""

    low: float
    high: float


@dataclass(frozen=True)
class HardtanhAttrs(ClampAttrs):
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class LeakyReluAttrs(Attrs):
    negative_slope: float = 0.01


@dataclass(frozen=True)
class EluAttrs(Attrs):
    alpha: float = 1.0


@dataclass(frozen=True)
class GeluAttrs(Attrs):
    approximate: Literal["none", "tanh"] = "none"


@dataclass(frozen=True)
class SoftmaxAttrs(Attrs):
    dim: int


def relu(x: Array) -> Array:
    return np.asarray(np.maximum(x, x.dtype.type(0)))


def _like(x: Array, number: float) -> Any:
    """A number in the type of ``x``; what is too large for float16 becomes an infinity."""
    with np.errstate(over="ignore"):
        return x.dtype.type(number)


def clamp(x: Array, low: float, high: float) -> Array:
    return np.asarray(np.minimum(np.maximum(x, _like(x, low)), _like(x, high)))


def hardswish(x: Array) -> Array:
    """x * relu6(x + 3) / 6 (Howard et al., Searching for MobileNetV3, 2019)."""
    return np.asarray(x * clamp(x + x.dtype.type(3), 0, 6) / x.dtype.type(6))


def hardsigmoid(x: Array) -> Array:
    return np.asarray(clamp(x + x.dtype.type(3), 0, 6) / x.dtype.type(6))


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is inf, and 1 / inf the right 0
        return np.asarray(x.dtype.type(1) / (x.dtype.type(1) + np.exp(-x)))


def leaky_relu(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, x * x.dtype.type(slope))


def elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, x.dtype.type(alpha) * np.expm1(np.minimum(x, x.dtype.type(0))))


def gelu(x: Array, approximate: str) -> Array:
    """x * Phi(x), by erf or by tanh (Hendrycks and Gimpel, Gaussian error linear units, 2016); inside in float64."""
    wide = x.astype(np.float64)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return np.asarray(0.5 * wide * (1 + np.tanh(inner)), x.dtype)
    return np.asarray(0.5 * wide * (1 + erf(wide / math.sqrt(2))), x.dtype)


def softmax(x: Array, dim: int) -> Array:
    powers = np.exp(x - x.max(axis=dim, keepdims=True))
    return np.asarray(powers / powers.sum(axis=dim, keepdims=True), x.dtype)


def prelu(x: Array, weight: Array) -> Array:
    """One slope for all, or one a channel (axis 1)."""
    slope = weight.reshape(-1, *([1] * (x.ndim - 2))) if weight.size > 1 else weight.reshape(())
    return np.where(x > 0, x, x * slope)


def activate(y: Array, activation: str, limits: Limits | None) -> Array:
    """The activation that a conv, a linear or an add carries."""
    if activation == "relu":
        return relu(y)
    if activation == "clamp":
        assert limits is not None  # held by check_activation
        return clamp(y, *limits)
    return hardswish(y) if activation == "hardswish" else y


def hardswish_slope(x: Array) -> Array:
    return np.where(x <= -3, 0, np.where(x < 3, x / 3 + x.dtype.type(0.5), 1)).astype(x.dtype, copy=False)


def activation_grad(call: VjpCall, reference: Callable[..., tuple[Array, ...]]) -> Array:
    """The derivative of the loss by what the fused activation gets.

    The output tells it: at a limit nothing passes, as with PyTorch's ``relu`` and ``relu6`` (not its ``clamp``).
    Only hardswish needs what ``reference(attrs, *inputs)`` gives without it.
    """
    attrs, grad, y = call.attrs, grad_of(call), call.outputs[0]
    if attrs.activation == "relu":
        return np.asarray(grad * (y > 0))  # several times as fast as a choice between two arrays
    if attrs.activation == "clamp":
        low, high = attrs.clamp
        return np.asarray(grad * ((y > _like(y, low)) & (y < _like(y, high))))
    if attrs.activation == "hardswish":
        (before,) = reference(replace(attrs, activation="none"), *call.inputs)
        return np.asarray(grad * hardswish_slope(before))
    return grad


def swish_slope(x: Array, alpha: float = 1.0) -> Array:
    """Of x * sigmoid(alpha * x)."""
    scaled = x.dtype.type(alpha) * x
    s = sigmoid(scaled)
    return np.asarray(s * (1 + scaled * (1 - s)))


def gelu_slope(x: Array, y: Array, approximate: str) -> Array:
    """With Phi(x) from y = x * Phi(x), which saves another erf."""
    wide = x.astype(np.float64)
    if approximate == "tanh":
        factor = math.sqrt(2 / math.pi)
        t = np.tanh(factor * (wide + 0.044715 * wide**3))
        return np.asarray(0.5 * (1 + t) + 0.5 * wide * (1 - t * t) * factor * (1 + 3 * 0.044715 * wide**2))
    density = np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return np.asarray(np.where(x == 0, 0.5, y / np.where(x == 0, 1, wide)) + wide * density)


def softmax_vjp(call: VjpCall) -> Gradients:
    def part() -> Array:
        weighted = grad_of(call) * call.outputs[0]
        return np.asarray(weighted - call.outputs[0] * weighted.sum(axis=call.attrs.dim, keepdims=True))

    return gradients(call, part)


def prelu_vjp(call: VjpCall) -> Gradients:
    """At 0 the slope counts, as in PyTorch."""
    x, weight = call.inputs
    assert x is not None
    assert weight is not None
    grad = grad_of(call)
    column = (-1, *([1] * (x.ndim - 2))) if weight.size > 1 else ()
    slope = weight.reshape(column)
    return gradients(
        call,
        lambda: np.where(x > 0, grad, grad * slope),
        lambda: unbroadcast(np.where(x > 0, 0, grad * x), slope.shape).reshape(weight.shape),
    )


def check_activation(activation: str, limits: Limits | None) -> None:
    """``clamp`` needs limits, and only it has them."""
    if activation != "clamp":
        require(limits is None, f"clamp {limits} with activation {activation}", "clamp None")
        return
    require(limits is not None, "activation clamp without clamp", "clamp = (low, high)")
    if limits is not None:
        check_limits(*limits)


def check_limits(low: float, high: float) -> None:
    require(low <= high, f"limits {low} and {high}", "low <= high")


def _same(_: Attrs, x: TensorType) -> tuple[TensorType, ...]:
    need_float(x=x)
    return (x,)


def _relu_type(_: Attrs, x: TensorType) -> tuple[TensorType, ...]:
    need_numbers(x=x)
    return (x,)


def _clamp_type(attrs: ClampAttrs, x: TensorType) -> tuple[TensorType, ...]:
    check_limits(attrs.low, attrs.high)
    return _same(attrs, x)


def _softmax_type(attrs: SoftmaxAttrs, x: TensorType) -> tuple[TensorType, ...]:
    axis_of(attrs.dim, len(x.shape))
    return _same(attrs, x)


def _prelu_type(_: NoAttrs, x: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
    need_float(x=x, weight=weight)
    if product(weight.shape) != 1:
        require(len(x.shape) >= 2, f"x of shape {spell(x.shape)} with a slope a channel", "channels on axis 1")
        need_shape("weight", weight, (x.shape[1],))
    return (x,)


def _unary(
    name: str,
    function: Callable[[Any, Array], Array],
    rule: QuantRule | None,
    onnx: str = "",
    attrs: type[Attrs] = NoAttrs,
    infer: Callable[..., tuple[TensorType, ...]] = _same,
    **more: Any,
) -> None:
    def reference(attrs: Attrs, x: Array) -> tuple[Array, ...]:
        return (function(attrs, x),)

    names = (onnx,) if onnx else ()
    register(OpSpec(name, attrs, ("x",), infer, reference, rule, onnx=names, kernel=name, **more))


SAME, FREE, FIXED = QuantRule.SAME_AS_INPUT, QuantRule.FREE, QuantRule.FIXED
UNIT = (1.0 / 256.0, 0)
"""Parameters of an output in [0, 1): PyTorch's ``default_fixed_qparams_range_0to1_observer``."""
SYMMETRIC = (2.0 / 256.0, 128)
"""Parameters of an output in [-1, 1): PyTorch's ``default_fixed_qparams_range_neg1to1_observer``."""

_unary("relu", lambda _, x: relu(x), SAME, "Relu", NoAttrs, _relu_type, vjp=elementwise(lambda _, __, y: y > 0))
_unary("relu6", lambda _, x: clamp(x, 0, 6), SAME, "Clip", vjp=elementwise(lambda _, x, __: (x > 0) & (x < 6)))
_unary(
    "hardtanh",
    lambda a, x: clamp(x, a.low, a.high),
    SAME,
    "Clip",
    HardtanhAttrs,
    _clamp_type,
    vjp=elementwise(lambda a, x, _: (x > _like(x, a.low)) & (x < _like(x, a.high))),
)
_unary(
    "clamp",
    lambda a, x: clamp(x, a.low, a.high),
    SAME,
    "Clip",
    ClampAttrs,
    _clamp_type,
    vjp=elementwise(lambda a, x, _: (x >= _like(x, a.low)) & (x <= _like(x, a.high))),
)
_unary(
    "leaky_relu",
    lambda a, x: leaky_relu(x, a.negative_slope),
    FREE,
    "LeakyRelu",
    LeakyReluAttrs,
    vjp=elementwise(lambda a, x, _: np.where(x > 0, 1, _like(x, a.negative_slope))),
)
_unary(
    "elu",
    lambda a, x: elu(x, a.alpha),
    FREE,
    "Elu",
    EluAttrs,
    vjp=elementwise(lambda a, x, _: np.where(x > 0, 1, _like(x, a.alpha) * np.exp(np.minimum(x, 0)))),
)
_unary("hardswish", lambda _, x: hardswish(x), FREE, "HardSwish", vjp=elementwise(lambda _, x, __: hardswish_slope(x)))
_unary(
    "hardsigmoid",
    lambda _, x: hardsigmoid(x),
    FIXED,
    "HardSigmoid",
    fixed=UNIT,
    vjp=elementwise(lambda _, x, __: ((x > -3) & (x < 3)) / x.dtype.type(6)),
)
_unary("sigmoid", lambda _, x: sigmoid(x), FIXED, "Sigmoid", fixed=UNIT, vjp=elementwise(lambda _, __, y: y * (1 - y)))
_unary("tanh", lambda _, x: np.tanh(x), FIXED, "Tanh", fixed=SYMMETRIC, vjp=elementwise(lambda _, __, y: 1 - y * y))
_unary(
    "gelu",
    lambda a, x: gelu(x, a.approximate),
    None,
    "Gelu",
    GeluAttrs,
    vjp=elementwise(lambda a, x, y: gelu_slope(x, y, a.approximate)),
)
_unary("silu", lambda _, x: x * sigmoid(x), None, "Swish", vjp=elementwise(lambda _, x, __: swish_slope(x)))
_unary(
    "softmax",
    lambda a, x: softmax(x, a.dim),
    FIXED,
    "Softmax",
    SoftmaxAttrs,
    _softmax_type,
    fixed=UNIT,
    vjp=softmax_vjp,
)

register(
    OpSpec(
        name="prelu",
        attrs=NoAttrs,
        inputs=("x", "weight"),
        infer=_prelu_type,
        reference=lambda _, x, weight: (prelu(x, weight),),
        rule=FREE,
        onnx=("PRelu",),
        kernel="prelu",
        vjp=prelu_vjp,
    )
)
