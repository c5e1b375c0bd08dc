"""Training's arithmetic on native kernels; whatever has none runs on NumPy.

Pictures are kept channels-last in memory, (N, C, H, W) being a view, so that nothing is copied between kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qtool import native
from qtool.ir import Array
from qtool.native.training import ConvGeometry, Training
from qtool.ops.registry import VjpCall
from qtool.quantize.qat.operators import Grid, Normalized, Operators

F32 = np.float32
UNLIMITED = (-np.inf, np.inf)


def make_operators(threads: int = 1, isa: str | None = None) -> Operators:
    """The fastest there are: NumPy's where the native library is not there."""
    if not native.available():
        return Operators()
    return NativeOperators(Training(threads, native.choose_isa(isa)))


class NativeOperators(Operators):
    """Convolutions, linear layers, batch norms, activations and fake quantizers in native code."""

    def __init__(self, kernels: Training) -> None:
        self._kernels = kernels

    def run(self, op: str, attrs: Any, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        limits = _limits(op, attrs, inputs)
        if limits is not None:
            first, *second = map(_there, inputs)
            if op == "add":
                return (elementwise(lambda a, b: self._kernels.add(a, b, *limits), first, *second),)
            return (elementwise(lambda a: self._kernels.clamp(a, *limits), first),)
        if not _is_plain(op, attrs, inputs):
            return super().run(op, attrs, inputs)
        x, weight, bias = (*inputs, None, None)[:3]
        assert x is not None  # as was looked at
        assert weight is not None
        if op == "linear":
            y = self._kernels.conv(_pixels(x), _pixels(weight), bias, ConvGeometry())
            return (y.reshape(*x.shape[:-1], len(weight)),)
        return (nchw(self._kernels.conv(nhwc(x), nhwc(weight), bias, _geometry(attrs))),)

    def vjp(self, op: str, call: VjpCall) -> tuple[Array | None, ...]:
        limits = _limits(op, call.attrs, call.inputs)
        if limits is not None:
            dy = _there(call.grads[0])
            if limits != UNLIMITED:
                dy = elementwise(lambda y, d: self._kernels.clamp_grad(y, d, *limits), call.outputs[0], dy)
            return tuple(dy if needed else None for needed in call.needed)
        if not _is_plain(op, call.attrs, call.inputs):
            return super().vjp(op, call)
        return self._linear_grad(call) if op == "linear" else self._conv_grad(call)

    def _conv_grad(self, call: VjpCall) -> tuple[Array | None, ...]:
        x, weight, dy = nhwc(_there(call.inputs[0])), nhwc(_there(call.inputs[1])), nhwc(_there(call.grads[0]))
        geometry = _geometry(call.attrs)
        kernels, needed = self._kernels, (*call.needed, False)
        dx = nchw(kernels.conv_input_grad(dy, weight, x.shape, geometry)) if needed[0] else None
        dw = nchw(kernels.conv_weight_grad(x, dy, weight.shape, geometry)) if needed[1] else None
        db = kernels.channel_sums(dy.reshape(-1, dy.shape[-1])) if needed[2] else None
        return (dx, dw, db, *[None] * 4)[: len(call.inputs)]

    def _linear_grad(self, call: VjpCall) -> tuple[Array | None, ...]:
        x, weight, dy = _pixels(_there(call.inputs[0])), _pixels(_there(call.inputs[1])), _pixels(_there(call.grads[0]))
        kernels, needed = self._kernels, (*call.needed, False)
        dx = kernels.conv_input_grad(dy, weight, x.shape, ConvGeometry()) if needed[0] else None
        dw = kernels.conv_weight_grad(x, dy, weight.shape, ConvGeometry()) if needed[1] else None
        db = kernels.channel_sums(dy.reshape(-1, dy.shape[-1])) if needed[2] else None
        shaped = None if dx is None else dx.reshape(_there(call.inputs[0]).shape)
        return (shaped, None if dw is None else dw.reshape(len(weight), -1), db, None)[: len(call.inputs)]

    def activate(self, y: Array, activation: str, clamp: tuple[float, float] | None) -> Array:
        if activation not in ("relu", "clamp"):
            return super().activate(y, activation, clamp)
        low, high = clamp or (0.0, np.inf)
        return elementwise(lambda a: self._kernels.clamp(a, low, high), y)

    def activate_grad(
        self, passed: tuple[Array, Array], dy: Array, activation: str, clamp: tuple[float, float] | None
    ) -> Array:
        if activation not in ("relu", "clamp"):
            return super().activate_grad(passed, dy, activation, clamp)
        low, high = clamp or (0.0, np.inf)
        return elementwise(lambda out, d: self._kernels.clamp_grad(out, d, low, high), passed[1], dy)

    def normalize(self, x: Array, weight: Array, bias: Array, eps: float) -> Normalized:
        if x.ndim not in (2, 4):
            return super().normalize(x, weight, bias, eps)
        y, mean, variance, inverse_std = self._kernels.batch_norm(_rows(x), weight, bias, eps)
        return Normalized(_unrows(y, x), mean, variance, inverse_std)

    def normalize_grad(self, x: Array, dy: Array, found: Normalized, weight: Array) -> tuple[Array, Array, Array]:
        if x.ndim not in (2, 4):
            return super().normalize_grad(x, dy, found, weight)
        dx, by_weight, by_bias = self._kernels.batch_norm_grad(
            _rows(x), _rows(dy), found.mean, found.inverse_std, weight
        )
        return _unrows(dx, x), by_weight, by_bias

    def fake_quant(self, x: Array, grid: Grid) -> Array:
        scale, zero = grid.qparams.scale, grid.qparams.zero_point
        if grid.qparams.axis is None:
            first = float(scale[0]), int(zero[0])
            return elementwise(lambda a: self._kernels.fake_quant(a, *first, grid.low, grid.high), x)
        if grid.qparams.axis != 0:
            return super().fake_quant(x, grid)
        return channelwise(lambda a: self._kernels.fake_quant_channels(a, scale, zero, grid.low, grid.high), x)

    def fake_quant_grad(self, x: Array, dy: Array, grid: Grid) -> Array:
        scale, zero = grid.qparams.scale, grid.qparams.zero_point
        if grid.qparams.axis is None:
            first = float(scale[0]), int(zero[0])
            return elementwise(lambda a, d: self._kernels.fake_quant_grad(a, d, *first, grid.low, grid.high), x, dy)
        if grid.qparams.axis != 0:
            return super().fake_quant_grad(x, dy, grid)
        limits = grid.low, grid.high
        return channelwise(lambda a, d: self._kernels.fake_quant_channels_grad(a, d, scale, zero, *limits), x, dy)

    def extremes(self, x: Array, axis: int | None) -> tuple[Array, Array]:
        if axis is None:
            low, high = self._kernels.min_max(_dense(x)[0])
            return np.array([low], F32), np.array([high], F32)
        return super().extremes(x, axis)


def nhwc(x: Array) -> Array:
    """A picture, or a weight, with channels last and dense; a view where it lies so already."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def nchw(x: Array) -> Array:
    """The view with channels on axis 1."""
    return x.transpose(0, 3, 1, 2)


def elementwise(function: Callable[..., Array], *arrays: Array) -> Array:
    """A function of dense arrays of one shape, given as they lie in memory."""
    first, order = _dense(arrays[0])
    rest = [np.ascontiguousarray(array.transpose(order)) for array in arrays[1:]]
    return np.asarray(function(first, *rest).reshape(first.shape).transpose(np.argsort(order)))


def channelwise(function: Callable[..., Array], *arrays: Array) -> Array:
    """A function of dense arrays (channels, numbers); axis 0 is that of the channels."""
    flat = [np.ascontiguousarray(array).reshape(len(array), -1) for array in arrays]
    return np.asarray(function(*flat).reshape(arrays[0].shape))


def _dense(x: Array) -> tuple[Array, tuple[int, ...]]:
    """The array with its axes in the order of memory, copied where that leaves gaps; and that order."""
    order = tuple(sorted(range(x.ndim), key=lambda axis: -x.strides[axis]))
    found = x.transpose(order)
    return (found, order) if found.flags.c_contiguous else (np.ascontiguousarray(found), order)


def _is_plain(op: str, attrs: Any, inputs: tuple[Array | None, ...]) -> bool:
    """Whether the native kernels do all of it."""
    if op not in ("linear", "conv2d") or attrs.activation != "none" or any(array is not None for array in inputs[3:]):
        return False
    if any(array is not None and array.dtype != np.float32 for array in inputs):
        return False
    return op == "linear" or attrs.padding_mode == "zeros"


def _limits(op: str, attrs: Any, inputs: tuple[Array | None, ...]) -> tuple[float, float] | None:
    """Between which a sum of two tensors of one shape, or a tensor, is clamped; None for any other operator."""
    if any(array is None or array.dtype != np.float32 or array.shape != _there(inputs[0]).shape for array in inputs):
        return None
    if op == "add" and attrs.activation in ("none", "relu"):
        return UNLIMITED if attrs.activation == "none" else (0.0, np.inf)
    return {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}.get(op)


def _geometry(attrs: Any) -> ConvGeometry:
    return ConvGeometry(attrs.stride, attrs.padding, attrs.dilation, attrs.groups)


def _pixels(x: Array) -> Array:
    """Rows of features as pictures of one pixel."""
    return np.ascontiguousarray(x).reshape(-1, 1, 1, x.shape[-1])


def _rows(x: Array) -> Array:
    """(rows, channels), channels on axis 1 of x."""
    return np.ascontiguousarray(x) if x.ndim == 2 else nhwc(x).reshape(-1, x.shape[1])


def _unrows(y: Array, x: Array) -> Array:
    if x.ndim == 2:
        return y
    batch, channels, height, width = x.shape
    return nchw(y.reshape(batch, height, width, channels))


def _there(array: Array | None) -> Array:
    assert array is not None  # a required input, or the derivative of an output that is in use
    return array
