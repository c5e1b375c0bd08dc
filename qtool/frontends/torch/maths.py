"""Converters of functions of elements and of reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qtool.frontends.torch.call import Call, Convert, dtype_of
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import Attr, DType

FLOAT32_MAX = float(np.finfo(np.float32).max)


def unary(op: str) -> Convert:
    """A function of one element; integers are computed in the type of the result."""

    def convert(call: Call) -> Known:
        return call.emit(op, [call.cast(call.x("self|input"), call.output()[0])])

    return convert


def with_attrs(op: str, **names: str) -> Convert:
    """A function of one float tensor; attributes by torch's names of the arguments."""

    def convert(call: Call) -> Known:
        attrs = {attr: float(call.args[name]) for attr, name in names.items() if call.args.get(name) is not None}
        return call.emit(op, [call.x("self|input")], **attrs)

    return convert


def test(op: str) -> Convert:
    """A function of one element that is true or false."""
    return lambda call: call.emit(op, [call.x()])


def passes(call: Call) -> Known:
    """An operator that changes nothing at inference."""
    return call.x("self|input")


def dropout(call: Call) -> Known:
    if call.get("train", False):
        raise Unsupported("it was exported in training mode: call module.eval() first")
    return call.x("input|self")


def native_dropout(call: Call) -> Sequence[Known]:
    return [dropout(call)]


def to(call: Call) -> Known:
    return call.cast(call.x("self|input"), call.output()[0])


# operands


def _operand(call: Call, value: Any, dtype: DType) -> Known:
    """A tensor, number or size in the element type that torch computes in."""
    if isinstance(value, Known):
        return call.cast(value, dtype)
    if isinstance(value, (bool, int, float)):
        return call.constant(value, dtype)
    if isinstance(value, torch.SymInt):
        return call.scalar(value, dtype)
    raise Unsupported(f"it computes with {value}")


def operands(call: Call, names: str = "self other", dtype: DType | None = None) -> list[Known]:
    """Both operands in the type of the result."""
    wanted = call.output()[0] if dtype is None else dtype
    return [_operand(call, call.args[name], wanted) for name in names.split()]


def binary(op: str, names: str = "self other") -> Convert:
    return lambda call: call.emit(op, operands(call, names))


def add(call: Call) -> Known:
    return call.emit("add", _scaled(call))


def sub(call: Call) -> Known:
    return call.emit("sub", _scaled(call))


def rsub(call: Call) -> Known:
    a, b = _scaled(call, "other self")
    return call.emit("sub", [a, b])


def _scaled(call: Call, names: str = "self other") -> list[Known]:
    a, b = operands(call, names)
    alpha = call.get("alpha", 1)
    if alpha == 1:
        return [a, b]
    if names != "self other":
        raise Unsupported(f"alpha is {alpha}")
    return [a, call.helper("mul", [b, _operand(call, alpha, b.dtype)])]


def mul(call: Call) -> Known:
    if call.output()[0] is DType.BOOL:
        return call.emit("and", operands(call))
    return call.emit("mul", operands(call))


def div(call: Call) -> Known:
    a, b = operands(call)
    mode = call.get("rounding_mode")
    if mode is None or (mode == "trunc" and not a.dtype.is_float):
        return call.emit("div", [a, b])
    if mode == "floor" and a.dtype.is_float:
        return call.helper("floor", [call.emit("div", [a, b])])
    if mode == "floor":
        return call.emit("div", [call.helper("sub", [a, call.helper("mod", [a, b])]), b])
    raise Unsupported(f"rounding_mode is {mode} for {a.dtype.value}")


def floor_divide(call: Call) -> Known:
    a, b = operands(call)
    if a.dtype.is_float:
        return call.helper("floor", [call.emit("div", [a, b])])
    return call.emit("div", [call.helper("sub", [a, call.helper("mod", [a, b])]), b])


def power(call: Call) -> Known:
    a, b = operands(call, "self exponent")
    exponent = None if b.array is None or b.array.ndim else float(b.array)
    if exponent == 2:
        return call.emit("mul", [a, a])
    if exponent == 0.5 and a.dtype.is_float:
        return call.emit("sqrt", [a])
    return call.emit("pow", [a, b])


def rsqrt(call: Call) -> Known:
    return call.emit("reciprocal", [call.helper("sqrt", [call.cast(call.x(), call.output()[0])])])


def log_of(base: float) -> Convert:
    def convert(call: Call) -> Known:
        y = call.helper("log", [call.x()])
        return call.emit("mul", [y, call.constant(1 / math.log(base), y.dtype)])

    return convert


def log1p(call: Call) -> Known:
    x = call.x()
    return call.emit("log", [call.helper("add", [x, call.constant(1, x.dtype)])])


def expm1(call: Call) -> Known:
    y = call.helper("exp", [call.x()])
    return call.emit("sub", [y, call.constant(1, y.dtype)])


def compare(op: str, negated: bool = False) -> Convert:
    """In the type that torch compares in."""

    def convert(call: Call) -> Known:
        a, b = call.args["self"], call.args["other"]
        found = [_stand_in(item) for item in (a, b)]
        dtype = dtype_of(torch.empty(0, dtype=torch.result_type(*found)))
        if dtype is DType.BOOL and op not in ("equal",):
            dtype = DType.INT32
        result = call.emit(op, [_operand(call, item, dtype) for item in (a, b)])
        return call.helper("not", [result]) if negated else result

    return convert


def _stand_in(value: Any) -> Any:
    """Something of the same kind for ``torch.result_type``, which looks at types and ranks."""
    if isinstance(value, Known):
        return torch.empty((0,) * min(value.rank, 1), dtype=getattr(torch, value.dtype.value))
    return 1 if isinstance(value, torch.SymInt) else value


def logical(op: str) -> Convert:
    """On truth values; numbers are true where they are not 0."""

    def convert(call: Call) -> Known:
        return call.emit(op, [_truth(call, call.args[name]) for name in ("self", "other")])

    return convert


def logical_not(call: Call) -> Known:
    return call.emit("not", [_truth(call, call.x())])


def _truth(call: Call, value: Any) -> Known:
    if not isinstance(value, Known):
        return call.constant(bool(value), DType.BOOL)
    return call.cast(value, DType.BOOL)


def bitwise(op: str) -> Convert:
    def convert(call: Call) -> Known:
        pair = operands(call)
        return call.emit(op if pair[0].dtype is DType.BOOL else f"bitwise_{op}", pair)

    return convert


def bitwise_not(call: Call) -> Known:
    x = call.x()
    return call.emit("not" if x.dtype is DType.BOOL else "bitwise_not", [x])


def where(call: Call) -> Known:
    if "self" not in call.args:
        raise Unsupported("its result has a size that depends on the numbers in a tensor")
    return call.emit("where", [_truth(call, call.x("condition")), *operands(call)])


def masked_fill(call: Call) -> Known:
    x = call.x()
    return call.emit("where", [call.x("mask"), _operand(call, call.args["value"], x.dtype), x])


# activations


def clamp(call: Call) -> Known:
    low, high = (call.get(name) for name in ("min", "max"))
    x = call.cast(call.x(), call.output()[0])
    if x.dtype is not DType.FLOAT32 or isinstance(low, Known) or isinstance(high, Known):
        for op, limit in (("max", low), ("min", high)):
            x = x if limit is None else call.emit(op, [x, _operand(call, limit, x.dtype)])
        return x
    low = -FLOAT32_MAX if low is None else float(low)
    high = FLOAT32_MAX if high is None else float(high)
    return call.emit("clamp", [x], low=low, high=high)


def hardtanh(call: Call) -> Known:
    low, high = float(call.get("min_val", -1.0)), float(call.get("max_val", 1.0))
    if (low, high) == (0.0, 6.0):
        return call.emit("relu6", [call.x()])
    return call.emit("hardtanh", [call.x()], low=low, high=high)


def elu(call: Call) -> Known:
    scale, inner = call.get("scale", 1), call.get("input_scale", 1)
    if inner != 1:
        raise Unsupported(f"input_scale is {inner}")
    if scale != 1:
        return call.emit("selu", [call.x()], alpha=float(call.get("alpha", 1)), gamma=float(scale))
    return call.emit("elu", [call.x()], alpha=float(call.get("alpha", 1)))


def gelu(call: Call) -> Known:
    return call.emit("gelu", [call.x()], approximate=str(call.get("approximate", "none")))


def glu(call: Call) -> Known:
    x, axis = call.x(), call.integer("dim", -1)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise Unsupported(f"the size it halves is {size}")
    a, b = call.emit_all("split", [x], 2, split_sizes=(size // 2, size // 2), dim=axis)
    return call.emit("mul", [a, call.helper("sigmoid", [b])])


def softplus(call: Call) -> Known:
    beta = float(call.get("beta", 1))
    x = call.x()
    if beta == 1:
        return call.emit("softplus", [x])
    y = call.emit("softplus", [call.helper("mul", [x, call.constant(beta, x.dtype)])])
    return call.helper("div", [y, call.constant(beta, x.dtype)])


def softmax(op: str, attr: str) -> Convert:
    def convert(call: Call) -> Known:
        x = call.cast(call.x(), call.output()[0])
        attrs: dict[str, Attr] = {attr: call.integer("dim")}
        return call.emit(op, [x], **attrs)

    return convert


def prelu(call: Call) -> Known:
    return call.emit("prelu", [call.x(), call.x("weight")])


# reductions


def _axes(call: Call) -> tuple[int, ...] | None:
    """None for all axes."""
    return call.integers("dim") or None if call.get("dim") is not None else None


def average(call: Call) -> Known:
    x = call.cast(call.x(), call.output()[0])
    return call.emit("mean", [x], dim=_axes(call), keepdim=bool(call.get("keepdim", False)))


def total(call: Call) -> Known:
    x = call.cast(call.x(), call.output()[0])
    keep = bool(call.get("keepdim", False))
    if x.dtype.is_float:
        return call.emit("sum", [x], dim=_axes(call), keepdim=keep)
    return call.emit("reduce_sum", [x], axes=_axes(call), keepdims=keep)


def reduce(op: str) -> Convert:
    """amax and the like."""

    def convert(call: Call) -> Known:
        x = call.cast(call.x(), call.output()[0])
        return call.emit(op, [x], axes=_axes(call), keepdims=bool(call.get("keepdim", False)))

    return convert


def best(op: str, arg: str) -> Convert:
    """max.dim and min.dim: the values and where they are."""

    def convert(call: Call) -> Sequence[Known]:
        x, axis, keep = call.x(), call.integer("dim"), bool(call.get("keepdim", False))
        values = call.emit(op, [x], axes=(axis,), keepdims=keep)
        return [values, call.helper(arg, [x], axis=axis, keepdims=keep)]

    return convert


def arg(op: str) -> Convert:
    def convert(call: Call) -> Known:
        x, keep = call.x(), bool(call.get("keepdim", False))
        if call.get("dim") is None:
            return call.helper("reshape", [call.emit(op, [call.reshape(x, [-1], emit=False)], axis=0)], shape=())
        return call.emit(op, [x], axis=call.integer("dim"), keepdims=keep)

    return convert


def any_all(op: str) -> Convert:
    def convert(call: Call) -> Known:
        x = call.cast(_truth(call, call.x()), DType.INT32)
        y = call.emit(op, [x], axes=_axes(call), keepdims=bool(call.get("keepdim", False)))
        return call.cast(y, DType.BOOL)

    return convert


def variance(root: bool) -> Convert:
    """var and std, over sizes that are known; with Bessel's correction unless told otherwise."""

    def convert(call: Call) -> Known:
        x, axes, keep = call.x(), _axes(call), bool(call.get("keepdim", False))
        sizes = [x.shape[axis] for axis in (range(x.rank) if axes is None else axes)]
        if not all(isinstance(size, int) for size in sizes):
            raise Unsupported("the sizes it reduces depend on the input")
        count = math.prod(int(size) for size in sizes)
        lost = float(call.get("correction", 1 if call.get("unbiased", True) else 0))
        centred = call.helper("sub", [x, call.helper("mean", [x], dim=axes, keepdim=True)])
        mean = call.helper("mean", [call.helper("mul", [centred, centred])], dim=axes, keepdim=keep)
        y = call.emit("mul", [mean, call.constant(count / max(count - lost, 1e-300), x.dtype)])
        return call.helper("sqrt", [y]) if root else y

    return convert


def norm(call: Call) -> Known:
    orders = {1: "reduce_l1", 2: "reduce_l2"}
    order = call.get("ord", call.get("p", 2))
    if order not in orders:
        raise Unsupported(f"the norm of order {order}")
    return call.emit(orders[order], [call.x()], axes=_axes(call), keepdims=bool(call.get("keepdim", False)))


def cumulative(op: str) -> Convert:
    def convert(call: Call) -> Known:
        x = call.cast(call.x(), call.output()[0])
        return call.emit(op, [x, constant_of(np.array(call.integer("dim"), np.int64))])

    return convert


def top_k(call: Call) -> Sequence[Known]:
    k = constant_of(np.array([call.integer("k")], np.int64))
    attrs: dict[str, Attr] = {"largest": bool(call.get("largest", True)), "sorted": bool(call.get("sorted", True))}
    return call.emit_all("top_k", [call.x(), k], 2, axis=call.integer("dim", -1), **attrs)
