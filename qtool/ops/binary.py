"""Functions of two or more elements, broadcast as NumPy does; named and defined as ONNX has them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qtool.ir import Array, DType, TensorType
from qtool.ops.activation import NoAttrs, sigmoid, swish_slope
from qtool.ops.dims import broadcast, need_float, need_numbers, need_same, need_shape, spell
from qtool.ops.registry import Attrs, OpSpec, Vjp, VjpCall, register, require
from qtool.ops.vjp import Gradients, Part, grad_of, gradients, unbroadcast

Types = tuple[TensorType, ...]


@dataclass(frozen=True)
class ModAttrs(Attrs):
    """The result has the sign of the divisor, or with ``fmod`` that of the dividend, as in C."""

    fmod: bool = False


@dataclass(frozen=True)
class BitShiftAttrs(Attrs):
    direction: Literal["LEFT", "RIGHT"]


@dataclass(frozen=True)
class SwigluAttrs(Attrs):
    """swish(a) * b, where swish(a) = a * sigmoid(alpha * a)."""

    alpha: float = 1.0


def number_type(_: Attrs, a: TensorType, b: TensorType) -> Types:
    need_numbers(a=a, b=b)
    return (TensorType(a.dtype, broadcast(a.shape, b.shape)),)


def _gated_type(_: Attrs, a: TensorType, b: TensorType) -> Types:
    need_float(a=a, b=b)
    need_shape("b", b, a.shape)
    return (TensorType(a.dtype, a.shape),)


def _power_type(_: Attrs, a: TensorType, b: TensorType) -> Types:
    need_numbers(a=a)
    need_numbers(b=b)
    return (TensorType(a.dtype, broadcast(a.shape, b.shape)),)


def _integer_type(_: Attrs, a: TensorType, b: TensorType) -> Types:
    require(a.dtype.is_integer, f"{a.dtype.value} as a", "integers")
    return number_type(_, a, b)


def _logic_type(_: Attrs, a: TensorType, b: TensorType) -> Types:
    require(a.dtype is DType.BOOL, f"{a.dtype.value} as a", "bool")
    need_same(a=a, b=b)
    return (TensorType(a.dtype, broadcast(a.shape, b.shape)),)


def _compare_type(_: Attrs, a: TensorType, b: TensorType) -> Types:
    need_same(a=a, b=b)
    return (TensorType(DType.BOOL, broadcast(a.shape, b.shape)),)


def _many_type(_: Attrs, *tensors: TensorType) -> Types:
    require(bool(tensors), "no inputs", "at least one")
    need_numbers(**{f"input {i}": tensor for i, tensor in enumerate(tensors)})
    return (TensorType(tensors[0].dtype, broadcast(*(tensor.shape for tensor in tensors))),)


def _mean_type(attrs: Attrs, *tensors: TensorType) -> Types:
    need_float(**{f"input {i}": tensor for i, tensor in enumerate(tensors)})
    return _many_type(attrs, *tensors)


def _where_type(_: Attrs, condition: TensorType, x: TensorType, y: TensorType) -> Types:
    require(condition.dtype is DType.BOOL, f"{condition.dtype.value} as condition", "bool")
    need_same(x=x, y=y)
    return (TensorType(x.dtype, broadcast(condition.shape, x.shape, y.shape)),)


def _clip_type(_: Attrs, x: TensorType, low: TensorType | None = None, high: TensorType | None = None) -> Types:
    need_numbers(x=x, min=low, max=high)
    for name, limit in (("min", low), ("max", high)):
        require(
            limit is None or limit.shape in ((), (1,)), f"{name} of shape {spell(limit.shape)}" if limit else "", "()"
        )
    return (TensorType(x.dtype, x.shape),)


def _slope_type(_: Attrs, x: TensorType, slope: TensorType) -> Types:
    need_numbers(x=x, slope=slope)
    require(
        len(slope.shape) <= len(x.shape),
        f"a slope of shape {spell(slope.shape)} for x of shape {spell(x.shape)}",
        "one that can be broadcast to x",
    )
    broadcast(x.shape, slope.shape)
    return (TensorType(x.dtype, x.shape),)


def power(a: Array, b: Array) -> Array:
    """In the type of ``a``; integers to negative powers give 0, but for 1 and -1."""
    if a.dtype.kind != "f" and b.dtype.kind == "f":
        return np.asarray(np.power(a.astype(np.float64), b), a.dtype)
    if a.dtype.kind != "f" and b.size and b.dtype.kind == "i" and b.min() < 0:
        return np.asarray(np.trunc(np.power(a.astype(np.float64), b.astype(np.float64))), a.dtype)
    return np.asarray(np.power(a, b.astype(a.dtype)), a.dtype)


def modulo(a: Array, b: Array, fmod: bool) -> Array:
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b), a.dtype)


def shift(a: Array, b: Array, direction: str) -> Array:
    """Shifts by as many bits as there are, or by a negative number, leave nothing but the sign going right."""
    bits = a.dtype.itemsize * 8
    amount = np.clip(b, 0, bits - 1).astype(a.dtype)
    moved = np.left_shift(a, amount) if direction == "LEFT" else np.right_shift(a, amount)
    emptied = np.where(a < 0, -1, 0) if direction == "RIGHT" and a.dtype.kind == "i" else np.zeros((), a.dtype)
    return np.where((b >= 0) & (b < bits), moved, emptied).astype(a.dtype)


def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    y = x if low is None else np.maximum(x, low.reshape(()))
    return np.asarray(y if high is None else np.minimum(y, high.reshape(())))


def _given(call: VjpCall) -> tuple[Array, ...]:
    """The inputs, of which none may be left out."""
    return tuple(array for array in call.inputs if array is not None)


def pow_vjp(call: VjpCall) -> Gradients:
    """Without NaN where the derivative is 0 whatever the other factor: a ** 0 by a, 0 ** b by b."""
    a, b = _given(call)
    grad, y = grad_of(call), call.outputs[0]

    def by_base() -> Array:
        power = b.astype(a.dtype)
        return np.where(power == 0, 0, grad * power * np.power(a, power - 1))

    return gradients(call, by_base, lambda: np.where((a == 0) & (b >= 0), 0, grad * y * np.log(a)))


def mod_vjp(call: VjpCall) -> Gradients:
    a, b = _given(call)
    whole = np.trunc if call.attrs.fmod else np.floor
    return gradients(call, lambda: grad_of(call), lambda: -grad_of(call) * whole(a / b))


def swiglu_vjp(call: VjpCall) -> Gradients:
    a, b = _given(call)
    grad, alpha = grad_of(call), a.dtype.type(call.attrs.alpha)
    return gradients(call, lambda: grad * b * swish_slope(a, alpha), lambda: grad * a * sigmoid(alpha * a))


def where_vjp(call: VjpCall) -> Gradients:
    condition, grad = _given(call)[0], grad_of(call)
    return gradients(call, None, lambda: np.where(condition, grad, 0), lambda: np.where(condition, 0, grad))


def clip_vjp(call: VjpCall) -> Gradients:
    """As ``torch.clamp`` with tensors: x passes at the limits, and where they cross the upper one counts."""
    x, low, high = (*call.inputs, None, None)[:3]
    assert x is not None
    least = x.dtype.type(-np.inf) if low is None else low.reshape(())
    most = x.dtype.type(np.inf) if high is None else high.reshape(())
    grad = grad_of(call)
    return gradients(
        call,
        lambda: np.where((x >= least) & (x <= most), grad, 0),
        lambda: np.where((x < least) & (least < most), grad, 0),
        lambda: np.where((x > most) | (most < least), grad, 0),
    )


def prelu_broadcast_vjp(call: VjpCall) -> Gradients:
    """At 0 the slope counts, as in PyTorch."""
    x, slope = _given(call)
    grad = grad_of(call)
    return gradients(call, lambda: np.where(x > 0, grad, grad * slope), lambda: np.where(x > 0, 0, grad * x))


def _sum_vjp(call: VjpCall) -> Gradients:
    return gradients(call, *[lambda: grad_of(call)] * len(call.inputs))


def _mean_vjp(call: VjpCall) -> Gradients:
    return gradients(call, *[lambda: grad_of(call) / len(call.inputs)] * len(call.inputs))


def _extreme_vjp(choose: Callable[[Array, Array], Array]) -> Vjp:
    """Pair by pair, as the reference goes; equal elements get half each, as with ``torch.maximum``."""

    def vjp(call: VjpCall) -> Gradients:
        arrays = _given(call)
        best = list(itertools.accumulate(arrays, choose))
        rest = grad_of(call)
        found = list[Array]()
        for before, array in zip(reversed(best[:-1]), reversed(arrays[1:]), strict=True):
            chosen = choose(before, array)
            share = ((array == chosen).astype(rest.dtype) + (before != chosen)) / 2
            found.append(unbroadcast(rest * share, array.shape))
            rest = unbroadcast(rest * (1 - share), before.shape)
        parts: list[Part] = [lambda array=array: array for array in [rest, *reversed(found)]]  # type: ignore[misc]
        return gradients(call, *parts)

    return vjp


def _binary(
    onnx: str,
    name: str,
    infer: Callable[..., Types],
    function: Callable[[Any, Array, Array], Array],
    attrs: type[Attrs] = NoAttrs,
    vjp: Vjp | None = None,
) -> None:
    def reference(attrs: Attrs, a: Array, b: Array) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return (np.asarray(function(attrs, a, b)),)

    register(OpSpec(name, attrs, ("a", "b"), infer, reference, onnx=(onnx,), empty=True, vjp=vjp))


_binary("Pow", "pow", _power_type, lambda _, a, b: power(a, b), vjp=pow_vjp)
_binary("Mod", "mod", number_type, lambda attrs, a, b: modulo(a, b, attrs.fmod), ModAttrs, mod_vjp)
_binary("BitShift", "bit_shift", _integer_type, lambda attrs, a, b: shift(a, b, attrs.direction), BitShiftAttrs)
_binary("BitwiseAnd", "bitwise_and", _integer_type, lambda _, a, b: a & b)
_binary("BitwiseOr", "bitwise_or", _integer_type, lambda _, a, b: a | b)
_binary("BitwiseXor", "bitwise_xor", _integer_type, lambda _, a, b: a ^ b)
_binary("And", "and", _logic_type, lambda _, a, b: a & b)
_binary("Or", "or", _logic_type, lambda _, a, b: a | b)
_binary("Xor", "xor", _logic_type, lambda _, a, b: a ^ b)
_binary("Equal", "equal", _compare_type, lambda _, a, b: a == b)
_binary("Greater", "greater", _compare_type, lambda _, a, b: a > b)
_binary("Less", "less", _compare_type, lambda _, a, b: a < b)
_binary("GreaterOrEqual", "greater_or_equal", _compare_type, lambda _, a, b: a >= b)
_binary("LessOrEqual", "less_or_equal", _compare_type, lambda _, a, b: a <= b)


_binary(
    "SwiGLU",
    "swiglu",
    _gated_type,
    lambda attrs, a, b: np.asarray(a * sigmoid(a.dtype.type(attrs.alpha) * a) * b),
    SwigluAttrs,
    swiglu_vjp,
)


def _many(
    onnx: str, name: str, infer: Callable[..., Types], function: Callable[[tuple[Array, ...]], Any], vjp: Vjp
) -> None:
    def reference(_: Attrs, *arrays: Array) -> tuple[Array, ...]:
        return (np.asarray(function(arrays), arrays[0].dtype),)

    register(OpSpec(name, NoAttrs, ("tensors*",), infer, reference, onnx=(onnx,), empty=True, vjp=vjp))


_many("Max", "max", _many_type, lambda arrays: functools.reduce(np.maximum, arrays), _extreme_vjp(np.maximum))
_many("Min", "min", _many_type, lambda arrays: functools.reduce(np.minimum, arrays), _extreme_vjp(np.minimum))
_many("Sum", "sum_of", _many_type, lambda arrays: functools.reduce(np.add, arrays), _sum_vjp)
_many(
    "Mean",
    "mean_of",
    _mean_type,
    lambda arrays: functools.reduce(np.add, arrays) / arrays[0].dtype.type(len(arrays)),
    _mean_vjp,
)

register(
    OpSpec(
        name="where",
        attrs=NoAttrs,
        inputs=("condition", "x", "y"),
        infer=_where_type,
        reference=lambda _, condition, x, y: (np.asarray(np.where(condition, x, y)),),
        onnx=("Where",),
        empty=True,
        vjp=where_vjp,
    )
)
register(
    OpSpec(
        name="clip",
        attrs=NoAttrs,
        inputs=("x", "min?", "max?"),
        infer=_clip_type,
        reference=lambda _, x, low=None, high=None: (clip(x, low, high),),
        onnx=("Clip",),
        empty=True,
        vjp=clip_vjp,
    )
)
register(
    OpSpec(
        name="prelu_broadcast",
        attrs=NoAttrs,
        inputs=("x", "slope"),
        infer=_slope_type,
        reference=lambda _, x, slope: (np.asarray(np.where(x < 0, x * slope, x), x.dtype),),
        onnx=("PRelu",),
        empty=True,
        vjp=prelu_broadcast_vjp,
    )
)
