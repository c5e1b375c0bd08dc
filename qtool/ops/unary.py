"""Functions of one element, named and defined as ONNX has them (ONNX operators, opset 27)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.ir import Array, DType, TensorType
from qtool.ops.activation import NoAttrs, sigmoid, swish_slope
from qtool.ops.dims import axis_of, need_float, need_numbers
from qtool.ops.erf import erf
from qtool.ops.registry import Attrs, OpSpec, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, elementwise, grad_of, gradients

Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class AlphaAttrs(Attrs):
    alpha: float = 1.0


@dataclass(frozen=True)
class SeluAttrs(Attrs):
    """The defaults make the outputs of deep nets keep mean 0 and variance 1 (Klambauer et al., 2017)."""

    alpha: float = 1.67326319217681884765625
    gamma: float = 1.05070102214813232421875


@dataclass(frozen=True)
class ShrinkAttrs(Attrs):
    bias: float = 0.0
    lambd: float = 0.5


@dataclass(frozen=True)
class HardSigmoidAttrs(Attrs):
    alpha: float = 0.2
    beta: float = 0.5


@dataclass(frozen=True)
class IsInfAttrs(Attrs):
    detect_negative: bool = True
    detect_positive: bool = True


@dataclass(frozen=True)
class AxisAttrs(Attrs):
    axis: int = -1


def float_type(_: Attrs, x: TensorType) -> Types:
    need_float(x=x)
    return (TensorType(x.dtype, x.shape),)


def number_type(_: Attrs, x: TensorType) -> Types:
    need_numbers(x=x)
    return (TensorType(x.dtype, x.shape),)


def bool_type(_: Attrs, x: TensorType) -> Types:
    require(x.dtype is DType.BOOL, f"{x.dtype.value} as x", "bool")
    return (TensorType(x.dtype, x.shape),)


def _test_type(_: Attrs, x: TensorType) -> Types:
    need_float(x=x)
    return (TensorType(DType.BOOL, x.shape),)


def _integer_type(_: Attrs, x: TensorType) -> Types:
    require(x.dtype.is_integer, f"{x.dtype.value} as x", "integers")
    return (TensorType(x.dtype, x.shape),)


def _along_type(attrs: AxisAttrs, x: TensorType) -> Types:
    axis_of(attrs.axis, len(x.shape), "axis")
    return float_type(attrs, x)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def log_softmax(x: Array, axis: int) -> Array:
    centred = x - x.max(axis=axis, keepdims=True)
    return np.asarray(centred - np.log(np.exp(centred).sum(axis=axis, keepdims=True)))


def hardmax(x: Array, axis: int) -> Array:
    """1 at the first of the largest, 0 elsewhere."""
    best = np.expand_dims(x.argmax(axis), axis)
    positions = np.arange(x.shape[axis]).reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    return np.asarray(positions == best)


def celu(x: Array, alpha: float) -> Array:
    return np.asarray(np.maximum(x, 0) + np.minimum(alpha * np.expm1(np.minimum(x, 0) / alpha), 0))


def selu(x: Array, alpha: float, gamma: float) -> Array:
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def shrink(x: Array, bias: float, lambd: float) -> Array:
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))


def is_inf(x: Array, negative: bool, positive: bool) -> Array:
    return np.asarray((np.isposinf(x) & positive) | (np.isneginf(x) & negative))


def _mish_slope(x: Array) -> Array:
    t = np.tanh(softplus(x))
    return np.asarray(t + x * sigmoid(x) * (1 - t * t))


def log_softmax_vjp(call: VjpCall) -> Gradients:
    def part() -> Array:
        grad = grad_of(call)
        return np.asarray(grad - np.exp(call.outputs[0]) * grad.sum(axis=call.attrs.axis, keepdims=True))

    return gradients(call, part)


SLOPES: Mapping[str, Callable[[Any, Array, Array], Any]] = {
    "abs": lambda _, x, __: np.sign(x),
    "acos": lambda _, x, __: -1 / np.sqrt(1 - x * x),
    "acosh": lambda _, x, __: 1 / np.sqrt(x * x - 1),
    "asin": lambda _, x, __: 1 / np.sqrt(1 - x * x),
    "asinh": lambda _, x, __: 1 / np.sqrt(1 + x * x),
    "atan": lambda _, x, __: 1 / (1 + x * x),
    "atanh": lambda _, x, __: 1 / (1 - x * x),
    "ceil": lambda _, x, __: np.zeros_like(x),
    "cos": lambda _, x, __: -np.sin(x),
    "cosh": lambda _, x, __: np.sinh(x),
    "erf": lambda _, x, __: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "exp": lambda _, __, y: y,
    "floor": lambda _, x, __: np.zeros_like(x),
    "log": lambda _, x, __: 1 / x,
    "neg": lambda _, x, __: -np.ones_like(x),
    "reciprocal": lambda _, __, y: -y * y,
    "round": lambda _, x, __: np.zeros_like(x),
    "sign": lambda _, x, __: np.zeros_like(x),
    "sin": lambda _, x, __: np.cos(x),
    "sinh": lambda _, x, __: np.cosh(x),
    "softplus": lambda _, x, __: sigmoid(x),
    "softsign": lambda _, x, __: 1 / np.square(1 + np.abs(x)),
    "sqrt": lambda _, __, y: 0.5 / y,
    "tan": lambda _, __, y: 1 + y * y,
    "mish": lambda _, x, __: _mish_slope(x),
    "celu": lambda a, x, _: np.exp(np.minimum(x, 0) / a.alpha),
    "selu": lambda a, x, _: a.gamma * np.where(x > 0, 1, a.alpha * np.exp(np.minimum(x, 0))),
    "thresholded_relu": lambda a, x, _: x > a.alpha,
    "shrink": lambda a, x, _: np.abs(x) > a.lambd,
    "hard_sigmoid": lambda a, _, y: a.alpha * ((y > 0) & (y < 1)),
    "swish": lambda a, x, _: swish_slope(x, a.alpha),
}
"""Derivatives of the functions, from x and y; at kinks as PyTorch has them."""
VJPS: Mapping[str, Vjp] = {
    **{name: elementwise(slope) for name, slope in SLOPES.items()},
    "log_softmax": log_softmax_vjp,
}


def _unary(
    onnx: str,
    name: str,
    function: Callable[[Any, Array], Any],
    infer: Callable[..., Types] = float_type,
    attrs: type[Attrs] = NoAttrs,
    kernel: str = "",
) -> None:
    """Computes in float64 where the input is float (it is rounded once, at the end), in the input's type elsewhere."""

    def reference(attrs: Attrs, x: Array) -> tuple[Array, ...]:
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        with np.errstate(all="ignore"):
            y = np.asarray(function(attrs, wide))
            return (y if y.dtype == np.bool_ and infer is _test_type else y.astype(x.dtype, copy=False),)

    spec = OpSpec(name, attrs, ("x",), infer, reference, onnx=(onnx,), empty=True, kernel=kernel)
    register(dataclasses.replace(spec, vjp=VJPS.get(name)))


_unary("Abs", "abs", lambda _, x: np.abs(x), number_type)
_unary("Acos", "acos", lambda _, x: np.arccos(x))
_unary("Acosh", "acosh", lambda _, x: np.arccosh(x))
_unary("Asin", "asin", lambda _, x: np.arcsin(x))
_unary("Asinh", "asinh", lambda _, x: np.arcsinh(x))
_unary("Atan", "atan", lambda _, x: np.arctan(x))
_unary("Atanh", "atanh", lambda _, x: np.arctanh(x))
_unary("Ceil", "ceil", lambda _, x: np.ceil(x))
_unary("Cos", "cos", lambda _, x: np.cos(x))
_unary("Cosh", "cosh", lambda _, x: np.cosh(x))
_unary("Erf", "erf", lambda _, x: erf(np.asarray(x, np.float64)), number_type)
_unary("Exp", "exp", lambda _, x: np.exp(x), kernel="exp")
_unary("Floor", "floor", lambda _, x: np.floor(x))
_unary("Log", "log", lambda _, x: np.log(x))
_unary("Neg", "neg", lambda _, x: -x, number_type)
_unary("Reciprocal", "reciprocal", lambda _, x: 1 / x)
_unary("Round", "round", lambda _, x: np.rint(x))
_unary("Sign", "sign", lambda _, x: np.sign(x), number_type)
_unary("Sin", "sin", lambda _, x: np.sin(x))
_unary("Sinh", "sinh", lambda _, x: np.sinh(x))
_unary("Softplus", "softplus", lambda _, x: softplus(x))
_unary("Softsign", "softsign", lambda _, x: x / (1 + np.abs(x)))
_unary("Sqrt", "sqrt", lambda _, x: np.sqrt(x))
_unary("Tan", "tan", lambda _, x: np.tan(x))
_unary("Mish", "mish", lambda _, x: x * np.tanh(softplus(x)))
_unary("Not", "not", lambda _, x: ~x, bool_type)
_unary("BitwiseNot", "bitwise_not", lambda _, x: ~x, _integer_type)
_unary("IsNaN", "is_nan", lambda _, x: np.isnan(x), _test_type)
_unary("IsInf", "is_inf", lambda a, x: is_inf(x, a.detect_negative, a.detect_positive), _test_type, IsInfAttrs)
_unary("Celu", "celu", lambda a, x: celu(x, a.alpha), float_type, AlphaAttrs)
_unary("Selu", "selu", lambda a, x: selu(x, a.alpha, a.gamma), float_type, SeluAttrs)
_unary("ThresholdedRelu", "thresholded_relu", lambda a, x: np.where(x > a.alpha, x, 0), float_type, AlphaAttrs)
_unary("Shrink", "shrink", lambda a, x: shrink(x, a.bias, a.lambd), number_type, ShrinkAttrs)
_unary(
    "HardSigmoid",
    "hard_sigmoid",
    lambda a, x: np.clip(a.alpha * x + a.beta, 0, 1),
    float_type,
    HardSigmoidAttrs,
)
_unary("Swish", "swish", lambda a, x: x * sigmoid(a.alpha * x), float_type, AlphaAttrs)
_unary("LogSoftmax", "log_softmax", lambda a, x: log_softmax(x, a.axis), _along_type, AxisAttrs)
_unary("Hardmax", "hardmax", lambda a, x: hardmax(x, a.axis), _along_type, AxisAttrs)
