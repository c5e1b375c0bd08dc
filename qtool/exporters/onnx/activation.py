"""Functions of one element and of two, and the activations that other operators carry fused."""

from __future__ import annotations

import math

import numpy as np

from qtool.exporters.onnx.call import Call
from qtool.ir import QParams

UNLIMITED = float(np.finfo(np.float32).max)
"""A limit at or beyond this is none."""


def activate(call: Call, y: str, out: QParams | None) -> str:
    """The activation that a conv, a linear, an add or a mul carries; ``out`` are the parameters of a quantized result.

    Runtimes take a layer for an int8 one only where QuantizeLinear follows it at once, or with an activation between
    that its limits make redundant. One that is not is put between a second pair of the same parameters, which gives the
    same integers: clamping before rounding or after it is one.
    """
    attrs = call.attrs
    kind = getattr(attrs, "activation", "none")
    if kind == "none":
        return y
    if kind == "hardswish":
        return hardswish(call, y)
    low, high = (0.0, math.inf) if kind == "relu" else attrs.clamp
    if out is not None and _redundant(out, low, high):
        low, high = _beyond(out, low, high)
    elif out is not None and not call.has(3):
        y = call.requantized(y, call.out)
    return call.emit("Relu", y) if kind == "relu" else _clip(call, y, low, high)


def _redundant(out: QParams, low: float, high: float) -> bool:
    """Whether no integer of the type lies outside of the limits, by the rounding of the engine."""
    least, most = out.limits
    with np.errstate(over="ignore"):
        steps = np.array([low, high], np.float32) * (np.float32(1) / out.scale[0]) + np.float32(out.zero_point[0])
    return bool(np.rint(steps[0]) <= least and np.rint(steps[1]) >= most)


def _beyond(out: QParams, low: float, high: float) -> tuple[float, float]:
    """Redundant limits moved out to the reals of the smallest and largest integer, where they are inside by a rounding
    error: then runtimes see that they are redundant."""
    least, most = out.dequantize(np.array(out.limits, out.dtype.numpy))
    return min(low, float(least)), max(high, float(most))


def _clip(call: Call, x: str, low: float, high: float) -> str:
    limits = [
        call.scalar(limit, hint) if abs(limit) < UNLIMITED else "" for limit, hint in ((low, "low"), (high, "high"))
    ]
    return call.emit("Clip", x, *limits)


def relu6(call: Call) -> str:
    return _clip(call, call.x(), 0.0, 6.0)


def clamp(call: Call) -> str:
    return _clip(call, call.x(), call.attrs.low, call.attrs.high)


def hardswish(call: Call, x: str) -> str:
    if call.opset >= 14:
        return call.emit("HardSwish", x)
    return call.emit("Mul", x, call.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def gelu(call: Call) -> str:
    """Gelu, which ONNX has since opset 20; by erf or tanh before."""
    x, approximate = call.x(), call.attrs.approximate
    if call.opset >= 20:
        return call.emit("Gelu", x, approximate=approximate)
    half = call.scalar(0.5, "half")
    if approximate == "tanh":
        cube = call.emit("Mul", call.emit("Mul", x, call.emit("Mul", x, x)), call.scalar(0.044715, "cubic"))
        inner = call.emit("Mul", call.emit("Add", x, cube), call.scalar(math.sqrt(2 / math.pi), "root"))
        curve = call.emit("Tanh", inner)
    else:
        curve = call.emit("Erf", call.emit("Div", x, call.scalar(math.sqrt(2), "root")))
    factor = call.emit("Add", curve, call.scalar(1, "one"))
    return call.emit("Mul", call.emit("Mul", x, factor), half)


def silu(call: Call) -> str:
    x = call.x()
    return call.emit("Mul", x, call.emit("Sigmoid", x))


def swiglu(call: Call) -> str:
    """SwiGLU, which ONNX has since opset 28: a * sigmoid(alpha * a) * b."""
    a, b = call.x(0), call.x(1)
    if call.opset >= 28:
        return call.emit("SwiGLU", a, b, alpha=call.attrs.alpha)
    scaled = a if call.attrs.alpha == 1 else call.emit("Mul", a, call.scalar(call.attrs.alpha, "alpha"))
    return call.emit("Mul", call.emit("Mul", a, call.emit("Sigmoid", scaled)), b)


def prelu(call: Call) -> str:
    """One slope for all, or one a channel, which ONNX broadcasts along the last axis unless it is reshaped."""
    rank, slopes = len(call.value(0).shape), call.value(1).shape
    if slopes in ((1,), ()) or rank < 3:
        return call.emit("PRelu", call.x(0), _slope_for(call, rank))
    shape = [-1, *([1] * (rank - 2))]
    array = call.array(1)
    if array is not None and call.value(1).qparams is None:
        return call.emit("PRelu", call.x(0), call.constant(array.reshape(shape), "slope"))
    return call.emit("PRelu", call.x(0), call.emit("Reshape", call.x(1), call.ints(shape, "shape")))


def _slope_for(call: Call, rank: int) -> str:
    """A slope must not have a higher rank than x."""
    if rank == 0 and call.value(1).shape:
        return call.emit("Reshape", call.x(1), call.constant(np.zeros(0, np.int64), "shape"))
    return call.x(1)


def binary(call: Call, op: str) -> str:
    """Add, Sub, Mul, Div, with the activation fused into them."""
    y = call.emit(op, call.x(0), call.x(1))
    return activate(call, y, call.out_qparams)
