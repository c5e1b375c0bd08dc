"""Functions of two elements, broadcast as NumPy and PyTorch do; a scalar is a 0-d initializer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qtool.ir import Array, TensorType
from qtool.ops.activation import NoAttrs, activate
from qtool.ops.dims import broadcast, need_numbers
from qtool.ops.registry import Attrs, OpSpec, QuantRule, register


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


def _binary(
    name: str,
    function: Callable[[Any, Array, Array], Array],
    rule: QuantRule | None,
    onnx: str,
    attrs: type[Attrs] = NoAttrs,
) -> None:
    def reference(attrs: Attrs, a: Array, b: Array) -> tuple[Array, ...]:
        return (np.asarray(function(attrs, a, b)),)

    register(OpSpec(name, attrs, ("a", "b"), binary_type, reference, rule, onnx=(onnx,), kernel=name))


_binary("add", lambda attrs, a, b: activate(a + b, attrs.activation, None), QuantRule.FREE, "Add", AddAttrs)
_binary("sub", lambda _, a, b: a - b, None, "Sub")
_binary("mul", lambda _, a, b: a * b, QuantRule.FREE, "Mul")
_binary("div", lambda _, a, b: divide(a, b), None, "Div")
