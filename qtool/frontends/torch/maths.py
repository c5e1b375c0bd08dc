"""Converters of functions of elements and of reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qtool.frontends.torch.call import Call, Convert, dtype_of
from qtool.frontends.torch.values import Known, Unsupported
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


def exp2(call: Call) -> Known:
    x = call.x()
    return call.emit("exp", [call.helper("mul", [x, call.constant(math.log(2.0), x.dtype)])])


def trunc(call: Call) -> Known:
    x = call.x()
    return call.emit("mul", [call.helper("sign", [x]), call.helper("floor", [call.helper("abs", [x])])])


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
        return call.emit(op, [truth(call, call.args[name]) for name in ("self", "other")])

    return convert


def logical_not(call: Call) -> Known:
    return call.emit("not", [truth(call, call.x())])


def truth(call: Call, value: Any) -> Known:
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
    return call.emit("where", [truth(call, call.x("condition")), *operands(call)])


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


def log_sigmoid(call: Call) -> Known:
    """log(1 / (1 + exp(-x))) = -softplus(-x)"""
    return call.emit("neg", [call.helper("softplus", [call.helper("neg", [call.x()])])])


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
