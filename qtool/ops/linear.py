"""Products of matrices: fully connected layers and matmul."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, Shape, TensorType
from qtool.ops.activation import Activation, NoAttrs, activate, activation_grad, check_activation
from qtool.ops.dims import broadcast, known, need_float, need_numbers, need_rank, need_shape, same_size, spell
from qtool.ops.registry import Attrs, OpSpec, QuantRule, VjpCall, register, require
from qtool.ops.vjp import Gradients, at_least_float32, grad_of, gradients, unbroadcast


@dataclass(frozen=True)
class LinearAttrs(Attrs):
    """y = act(x . weight' + bias + residual)."""

    activation: Activation = "none"
    clamp: tuple[float, float] | None = None


@dataclass(frozen=True)
class LinearDynamicAttrs(LinearAttrs):
    """x is quantized at run time to 8 bits (7 with ``reduce_range``), as a whole or, with ``row_wise``, row by row."""

    reduce_range: bool = False
    row_wise: bool = False


def linear_type(
    attrs: LinearAttrs,
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    residual: TensorType | None = None,
) -> tuple[TensorType, ...]:
    check_activation(attrs.activation, attrs.clamp)
    need_float(x=x, weight=weight, bias=bias, residual=residual)
    need_rank("weight", weight, 2, "(outputs, inputs)")
    outputs, inputs = (known(dim, "weight size") for dim in weight.shape)
    require(
        len(x.shape) >= 1 and same_size(x.shape[-1], inputs),
        f"x of shape {spell(x.shape)}",
        f"{inputs} as its last size",
    )
    result = TensorType(x.dtype, (*x.shape[:-1], outputs))
    need_shape("bias", bias, (outputs,))
    need_shape("residual", residual, result.shape)
    return (result,)


def linear_reference(
    attrs: LinearAttrs, x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None
) -> tuple[Array, ...]:
    y = np.asarray(np.matmul(x, weight.T))
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + residual
    return (activate(y, attrs.activation, attrs.clamp),)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def linear_vjp(call: VjpCall) -> Gradients:
    x, weight = (at_least_float32(array) for array in call.inputs[:2] if array is not None)
    grad = at_least_float32(activation_grad(call, linear_reference))
    return gradients(
        call,
        lambda: np.matmul(grad, weight),
        lambda: np.matmul(_rows(grad).T, _rows(x)),
        lambda: _rows(grad).sum(0),
        lambda: grad,
    )


def dynamic_type(
    attrs: LinearDynamicAttrs, x: TensorType, weight: TensorType, bias: TensorType | None = None
) -> tuple[TensorType, ...]:
    return linear_type(attrs, x, weight, bias)


def dynamic_reference(
    attrs: LinearDynamicAttrs, x: Array, weight: Array, bias: Array | None = None
) -> tuple[Array, ...]:
    """What the int8 arithmetic approximates: the float product with the dequantized weight."""
    return linear_reference(attrs, x, weight, bias)


def matmul_type(_: NoAttrs, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
    """As ``torch.matmul``: leading axes are broadcast, a vector is a row on the left and a column on the right."""
    need_numbers(a=a, b=b)
    got = f"shapes {spell(a.shape)} and {spell(b.shape)}"
    require(bool(a.shape) and bool(b.shape), got, "no scalars")
    left: Shape = a.shape if len(a.shape) > 1 else (1, *a.shape)
    right: Shape = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    require(same_size(left[-1], right[-2]), got, "the last size of a equal to the last but one of b")
    rows: Shape = left[-2:-1] if len(a.shape) > 1 else ()
    columns: Shape = right[-1:] if len(b.shape) > 1 else ()
    return (TensorType(a.dtype, (*broadcast(left[:-2], right[:-2]), *rows, *columns)),)


def matmul_vjp(call: VjpCall) -> Gradients:
    a, b = (at_least_float32(array) for array in call.inputs if array is not None)
    left, right = a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None]
    grad = at_least_float32(grad_of(call))
    grad = grad if b.ndim > 1 else grad[..., None]
    grad = grad if a.ndim > 1 else grad[..., None, :]

    def by_a() -> Array:
        found = unbroadcast(np.matmul(grad, np.swapaxes(right, -1, -2)), left.shape)
        return found.reshape(a.shape)

    def by_b() -> Array:
        if right.ndim == 2:  # one product for all leading axes
            return np.asarray(np.matmul(_rows(left).T, _rows(grad))).reshape(b.shape)
        return unbroadcast(np.matmul(np.swapaxes(left, -1, -2), grad), right.shape)

    return gradients(call, by_a, by_b)


register(
    OpSpec(
        name="linear",
        attrs=LinearAttrs,
        inputs=("x", "weight", "bias?", "residual?"),
        infer=linear_type,
        reference=linear_reference,
        rule=QuantRule.ACCUMULATE,
        weight=1,
        bias=2,
        channel_axis=0,
        onnx=("Gemm",),
        kernel="linear",
        vjp=linear_vjp,
    )
)
register(
    OpSpec(
        name="linear_dynamic",
        attrs=LinearDynamicAttrs,
        inputs=("x", "weight", "bias?"),
        infer=dynamic_type,
        reference=dynamic_reference,
        weight=1,
        bias=2,
        channel_axis=0,
        onnx=("DynamicQuantizeLinear", "MatMulInteger"),
        kernel="linear_dynamic",
        dynamic_of="linear",
    )
)
register(
    OpSpec(
        name="matmul",
        attrs=NoAttrs,
        inputs=("a", "b"),
        infer=matmul_type,
        reference=lambda _, a, b: (np.asarray(np.matmul(a, b)),),
        rule=QuantRule.FREE,
        onnx=("MatMul",),
        kernel="matmul",
        vjp=matmul_vjp,
    )
)
