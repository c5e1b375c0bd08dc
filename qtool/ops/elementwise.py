"""Functions of two elements, broadcast as NumPy and PyTorch do; a scalar is a 0-d initializer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.activation import NoAttrs, activate, activation_grad
from qtool.ops.dims import broadcast, need_numbers
from qtool.ops.registry import Attrs, OpSpec, QuantRule, Vjp, VjpCall, register
from qtool.ops.vjp import Gradients, grad_of, gradients


@dataclass(frozen=True)
class AddAttrs(Attrs):
    """y = act(a + b)."""

    activation: Literal["none", "relu"] = "none"


def binary_type(_: Attrs, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
    need_numbers(a=a, b=b)
    return (TensorType(a.dtype, broadcast(a.shape, b.shape)),)


def divide(a: Array, b: Array) -> Array:
    """Integers are divided towards zero, as in C; their division by 0 gives 0."""
    with np.errstate(divide="ignore", invalid="ignore"):  # x / 0 is inf and 0 / 0 is NaN, as everywhere
        if a.dtype.kind == "f":
            return np.asarray(np.divide(a, b))
        remainder = np.asarray(np.fmod(a, b), a.dtype)
        return np.asarray(np.floor_divide(a - remainder, b), a.dtype)


def _arrays(call: VjpCall) -> tuple[Array, Array]:
    a, b = call.inputs
    assert a is not None
    assert b is not None
    return a, b


def add_vjp(call: VjpCall) -> Gradients:
    grad = activation_grad(call, lambda _, a, b: (a + b,))
    return gradients(call, lambda: grad, lambda: grad)


def sub_vjp(call: VjpCall) -> Gradients:
    return gradients(call, lambda: grad_of(call), lambda: -grad_of(call))


def mul_vjp(call: VjpCall) -> Gradients:
    a, b = _arrays(call)
    return gradients(call, lambda: grad_of(call) * b, lambda: grad_of(call) * a)


def div_vjp(call: VjpCall) -> Gradients:
    _, b = _arrays(call)
    return gradients(call, lambda: grad_of(call) / b, lambda: -grad_of(call) * (call.outputs[0] / b))


def _binary(
    name: str,
    function: Callable[[Any, Array, Array], Array],
    rule: QuantRule | None,
    onnx: str,
    attrs: type[Attrs] = NoAttrs,
    *,
    vjp: Vjp,
) -> None:
    def reference(attrs: Attrs, a: Array, b: Array) -> tuple[Array, ...]:
        return (np.asarray(function(attrs, a, b)),)

    register(OpSpec(name, attrs, ("a", "b"), binary_type, reference, rule, onnx=(onnx,), kernel=name, vjp=vjp))


_binary(
    "add", lambda attrs, a, b: activate(a + b, attrs.activation, None), QuantRule.FREE, "Add", AddAttrs, vjp=add_vjp
)
_binary("sub", lambda _, a, b: a - b, None, "Sub", vjp=sub_vjp)
_binary("mul", lambda _, a, b: a * b, QuantRule.FREE, "Mul", vjp=mul_vjp)
_binary("div", lambda _, a, b: divide(a, b), None, "Div", vjp=div_vjp)
