"""Changes of element type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array, DType, TensorType
from qtool.ops.registry import Attrs, OpSpec, VjpCall, register, require
from qtool.ops.vjp import Gradients, grad_of, gradients


@dataclass(frozen=True)
class CastAttrs(Attrs):
    """``to`` is the name of an element type, such as "float32"."""

    to: str


def dtype_named(name: str) -> DType:
    """ModelError for a name that is no element type."""
    try:
        return DType(name)
    except ValueError:
        allowed = ", ".join(dtype.value for dtype in DType)
        raise ModelError(f"got element type {name!r}, expected one of {allowed}") from None


def cast_type(attrs: CastAttrs, x: TensorType) -> tuple[TensorType, ...]:
    return (TensorType(dtype_named(attrs.to), x.shape),)


def cast(attrs: CastAttrs, x: Array) -> tuple[Array, ...]:
    """Floats become integers by dropping the fraction; what does not fit wraps around, as in most engines."""
    target = np.dtype(attrs.to)
    with np.errstate(all="ignore"):
        if x.dtype.kind == "f" and target.kind in "iu" and target.itemsize < 8:
            return (x.astype(np.int64).astype(target),)
        return (x.astype(target),)


def cast_vjp(call: VjpCall) -> Gradients:
    """Between floats; nothing comes back through an integer."""
    return gradients(call, (lambda: grad_of(call)) if call.outputs[0].dtype.kind == "f" else None)


def bit_cast_type(attrs: CastAttrs, x: TensorType) -> tuple[TensorType, ...]:
    target = dtype_named(attrs.to)
    same = target.numpy.itemsize == x.dtype.numpy.itemsize
    require(same, f"{x.dtype.value} to be {target.value}", "a type of the same width")
    return (TensorType(target, x.shape),)


def bit_cast(attrs: CastAttrs, x: Array) -> tuple[Array, ...]:
    return (np.ascontiguousarray(x).view(np.dtype(attrs.to)).reshape(x.shape),)


register(OpSpec("cast", CastAttrs, ("x",), cast_type, cast, onnx=("Cast", "CastLike"), empty=True, vjp=cast_vjp))
register(OpSpec("bit_cast", CastAttrs, ("x",), bit_cast_type, bit_cast, onnx=("BitCast",), empty=True))
