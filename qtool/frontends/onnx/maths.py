"""Converters of functions of elements, comparisons, reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qtool.errors import ModelError
from qtool.frontends.onnx.call import Call, Convert
from qtool.frontends.onnx.known import Known, Unsupported, constant_of
from qtool.frontends.onnx.simple import attrs_for
from qtool.frontends.onnx.tensors import dtype_of
from qtool.ir import DType
from qtool.ops.registry import FLOAT32_LIMIT

FLOAT_MAX = float(np.finfo(np.float32).max)


def binary(op: str) -> Convert:
    """An operator of two tensors; ``axis`` and ``broadcast`` are the rule of opset 6 and before."""

    def convert(call: Call) -> Known:
        a, b = call.x(), call.x(1)
        if call.attr("broadcast") and b.rank and "axis" in call.attrs:
            for _ in range(a.rank - int(call.attrs["axis"]) % max(a.rank, 1) - b.rank):
                b = call.emit("unsqueeze", [b], dim=b.rank)
        return call.emit(op, [a, b])

    return convert


def variadic(op: str, pair: str = "") -> Convert:
    """One tensor is itself; two are ``pair`` where there is such an operator."""

    def convert(call: Call) -> Known:
        known = [call.x(i) for i in range(len(call.inputs))]
        if len(known) == 1:
            return known[0]
        if pair and len(known) == 2:
            return call.emit(pair, known)
        return call.emit(op, known)

    return convert


def clip(call: Call) -> Known:
    """Constant limits of float32 make a relu, relu6 or clamp."""
    x = call.x()
    if "min" in call.attrs or "max" in call.attrs or len(call.inputs) == 1:
        low, high = float(call.attr("min", -FLOAT_MAX)), float(call.attr("max", FLOAT_MAX))
    else:
        arrays = [k.array if k is not None else None for k in (call.get(1), call.get(2))]
        constants = all(k is None or k.array is not None for k in (call.get(1), call.get(2)))
        if not constants or x.dtype is not DType.FLOAT32:
            return call.emit("clip", call.inputs)
        low, high = (d if a is None else float(a.reshape(-1)[0]) for a, d in zip(arrays, (-FLOAT_MAX, FLOAT_MAX)))  # noqa: B905
    if x.dtype is not DType.FLOAT32 or not low <= high or min(abs(low), abs(high)) >= FLOAT32_LIMIT:
        limits = [constant_of(np.array(limit, x.dtype.numpy)) for limit in _within(x.dtype, low, high)]
        return call.emit("clip", [x, *limits])
    if low == 0.0 and high >= FLOAT_MAX:
        return call.emit("relu", [x])
    return call.emit("relu6", [x]) if (low, high) == (0.0, 6.0) else call.emit("clamp", [x], low=low, high=high)


def _within(dtype: DType, low: float, high: float) -> tuple[Any, Any]:
    """The limits as the element type can hold them."""
    if dtype.is_float:
        return low, high
    info = np.iinfo(dtype.value)
    return int(max(low, info.min)), int(min(high, info.max))


def hard_sigmoid(call: Call) -> Known:
    alpha, beta = float(call.attr("alpha", 0.2)), float(call.attr("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return call.emit("hardsigmoid", [call.x()])
    return call.emit("hard_sigmoid", [call.x()], alpha=alpha, beta=beta)


def along_axis(op: str, name: str = "axis") -> Convert:
    """Softmax and its kin. Before opset 13 all axes from ``axis`` on count as one."""

    def convert(call: Call) -> Known:
        x, rank = call.x(), max(call.x().rank, 1)
        axis = int(call.attr("axis", 1 if call.opset < 13 else -1))
        if not -rank <= axis < rank:
            raise ModelError(f"got axis {axis} for rank {rank}")
        axis %= rank
        if call.opset >= 13 or axis == rank - 1:
            return call.emit(op, [x], **{name: axis})
        if not all(isinstance(n, int) for n in x.shape[1:]):
            raise Unsupported("over several axes of unknown size; export with opset 13 or later")
        flat = call.emit(op, [call.emit("flatten_to", [x], axis=axis)], **{name: 1})
        return call.emit("reshape", [flat], shape=tuple(-1 if isinstance(n, str) else n for n in x.shape))

    return convert


def cast(call: Call) -> Known:
    return _cast(call, dtype_of(call.attrs["to"], "its output"))


def cast_like(call: Call) -> Known:
    return _cast(call, call.x(1).dtype)


def _cast(call: Call, to: DType) -> Known:
    x = call.x()
    return x if x.dtype is to and x.quantized is None else call.emit("cast", [x], to=to.value)


def reduce(op: str, plain: str = "") -> Convert:
    """A reduction; ``plain`` is the operator for float32 with constant axes, where there is one."""

    def convert(call: Call) -> Known:
        x, keep = call.x(), bool(call.attr("keepdims", 1))
        noop = bool(call.attr("noop_with_empty_axes", 0))
        axes_in = call.get(1)
        if axes_in is not None and axes_in.array is None:
            return call.emit(op, [x, axes_in], keepdims=keep, noop_with_empty_axes=noop)
        axes = tuple(call.attrs["axes"]) if call.attr("axes") is not None else call.ints(1, "axes") or ()
        if plain and x.dtype is DType.FLOAT32 and 0 not in x.shape and (axes or not noop):
            dims = axes or tuple(range(x.rank))
            return call.emit(plain, [x], dim=dims, keepdim=keep)
        return call.emit(op, [x], axes=axes or None, keepdims=keep, noop_with_empty_axes=noop)

    return convert


def dropout(call: Call) -> Sequence[Known]:
    """Nothing at inference; the mask, where it is wanted, is all true."""
    x, ratio, training = call.x(), call.get(1), call.get(2)
    drops = ratio is None or ratio.array is None or float(ratio.array) != 0.0
    if training is not None and drops and (training.array is None or bool(training.array)):
        raise Unsupported("it is in training mode")
    if call.opset < 7 and not call.attr("is_test"):
        raise Unsupported("it is in training mode")
    if not call.wants(1):
        return (x,)
    if any(isinstance(n, str) for n in x.shape):
        raise Unsupported("its mask is used")
    kind = np.bool_ if call.opset >= 10 else x.dtype.numpy
    return x, constant_of(np.ones([int(n) for n in x.shape], kind))


def k_attr(op: str) -> Convert:
    """TopK before opset 10 has k as an attribute."""

    def convert(call: Call) -> Sequence[Known]:
        k = call.get(1) or constant_of(np.array([call.attrs["k"]], np.int64))
        return call.emit_all(op, [call.x(), k], 2, **attrs_for(_without(call, "k"), op))

    return convert


def _without(call: Call, name: str) -> Call:
    return replace(call, attrs={key: value for key, value in call.attrs.items() if key != name})


def like_input(op: str) -> Convert:
    """``dtype`` left out means that of the input."""

    def convert(call: Call) -> Known:
        number = call.attr("dtype")
        dtype = call.x().dtype if number is None else dtype_of(number, "its output")
        return call.emit(op, [call.x()], dtype=dtype.value, k=int(call.attr("k", 0)))

    return convert


def window(op: str) -> Convert:
    def convert(call: Call) -> Known:
        dtype = dtype_of(int(call.attr("output_datatype", 1)), "its output")
        return call.emit(op, [call.x()], periodic=bool(call.attr("periodic", 1)), dtype=dtype.value)

    return convert


def shape_part(call: Call) -> Known:
    """What is left of Shape when the sizes are not known while importing, or are needed at run time."""
    return call.emit("shape", [call.x()], start=int(call.attr("start", 0)), end=call.attr("end"))


def dft(call: Call) -> Known:
    """Before opset 20 the axis is an attribute."""
    axis = call.get(2) if call.opset >= 20 else constant_of(np.array(int(call.attr("axis", 1)), np.int64))
    flags: dict[str, Any] = {name: bool(call.attr(name, 0)) for name in ("inverse", "onesided")}
    return call.emit("dft", [call.x(), call.get(1), axis], **flags)
