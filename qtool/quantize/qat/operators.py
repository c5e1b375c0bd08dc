"""The arithmetic of training on arrays, in NumPy: the definition that native kernels are held against.

Arrays are float32; a picture is (N, C, H, W), in any order in memory. Nothing here knows of graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array, QParams
from qtool.ops import get
from qtool.ops.activation import NoAttrs, activate
from qtool.ops.registry import VjpCall

F32 = np.float32


@dataclass(frozen=True)
class Grid:
    """The numbers that a tensor is rounded to: ``scale * (q - zero_point)`` for integers q in ``low`` .. ``high``."""

    qparams: QParams
    low: int
    high: int


@dataclass(frozen=True)
class Normalized:
    """A batch norm by the statistics of the batch; ``variance`` is the biased one, of shape (C,) as the others."""

    y: Array
    mean: Array
    variance: Array
    inverse_std: Array


class Operators:
    """Forward and backward of everything that training needs; a subclass runs on native kernels."""

    def run(self, op: str, attrs: Any, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """The float outputs of an operator."""
        with np.errstate(all="ignore"):  # infinities and NaN are looked for in the loss
            return tuple(get(op).reference(attrs, *inputs))

    def vjp(self, op: str, call: VjpCall) -> tuple[Array | None, ...]:
        """Derivatives by its inputs; ModelError for an operator that cannot be trained through."""
        product = get(op).vjp
        if product is None:
            raise ModelError(f"{op} has no derivative, so nothing in front of it can be trained")
        with np.errstate(all="ignore"):
            return product(call)

    def activate(self, y: Array, activation: str, clamp: tuple[float, float] | None) -> Array:
        """The activation that a convolution, a linear layer or a sum carries."""
        return activate(y, activation, clamp)

    def activate_grad(
        self, passed: tuple[Array, Array], dy: Array, activation: str, clamp: tuple[float, float] | None
    ) -> Array:
        """The derivative by what went into the activation; ``passed`` is that and what came out."""
        before, out = passed
        if activation == "hardswish":
            (dx,) = self.vjp("hardswish", VjpCall(NoAttrs(), (before,), (out,), (dy,), (True,)))
            assert dx is not None
            return dx
        if activation == "none":
            return dy
        low, high = clamp or (0.0, np.inf)
        return np.where((out > F32(low)) & (out < F32(high)), dy, F32(0))

    def normalize(self, x: Array, weight: Array, bias: Array, eps: float) -> Normalized:
        """(x - mean) / sqrt(var + eps) * weight + bias by the batch's own mean and variance, channels on axis 1."""
        axes = (0, *range(2, x.ndim))
        mean = x.mean(axis=axes, dtype=np.float64)
        variance = np.square(x - along(mean.astype(F32), x)).mean(axis=axes, dtype=np.float64)
        inverse_std = (1 / np.sqrt(variance + eps)).astype(F32)
        scale = weight * inverse_std
        y = x * along(scale, x) + along(bias - mean.astype(F32) * scale, x)
        return Normalized(y, mean.astype(F32), variance.astype(F32), inverse_std)

    def normalize_grad(self, x: Array, dy: Array, found: Normalized, weight: Array) -> tuple[Array, Array, Array]:
        """Derivatives by x, weight and bias (Ioffe and Szegedy, Batch normalization, 2015, section 3)."""
        axes, count = (0, *range(2, x.ndim)), x.size // x.shape[1]
        unit = (x - along(found.mean, x)) * along(found.inverse_std, x)
        by_bias = dy.sum(axis=axes, dtype=np.float64).astype(F32)
        by_weight = (dy * unit).sum(axis=axes, dtype=np.float64).astype(F32)
        inner = dy - along(by_bias / count, x) - unit * along(by_weight / count, x)
        return inner * along(weight * found.inverse_std, x), by_weight, by_bias

    def fake_quant(self, x: Array, grid: Grid) -> Array:
        """x rounded to the grid, as ``quantize`` and ``dequantize`` of the converted graph do it."""
        q = grid.qparams.quantize(x)
        return grid.qparams.dequantize(np.clip(q, grid.low, grid.high))

    def fake_quant_grad(self, x: Array, dy: Array, grid: Grid) -> Array:
        """Straight through (Bengio et al., 2013) where x is not clipped, zero elsewhere."""
        steps = rounded_steps(x, grid.qparams)
        return np.where((steps >= grid.low) & (steps <= grid.high), dy, F32(0))

    def scale_grad(self, x: Array, dy: Array, grid: Grid) -> Array:
        """The derivative by the scale, of its shape (Esser et al., Learned step size quantization, 2020, eq. 3)."""
        steps = rounded_steps(x, grid.qparams)
        scale, zero = (
            along_axis(grid.qparams.scale, x, grid.qparams),
            along_axis(grid.qparams.zero_point, x, grid.qparams),
        )
        inside = (steps >= grid.low) & (steps <= grid.high)
        slope = np.where(inside, steps - zero - x / scale, np.clip(steps, grid.low, grid.high) - zero)
        axes = tuple(axis for axis in range(x.ndim) if axis != grid.qparams.axis)
        return np.asarray((dy * slope).sum(axis=axes, dtype=np.float64), F32).reshape(grid.qparams.scale.shape)

    def extremes(self, x: Array, axis: int | None) -> tuple[Array, Array]:
        """Smallest and largest number, of shape (1,), or (C,) along ``axis``; NaN where there is one."""
        if axis is None:
            return x.min().reshape(1), x.max().reshape(1)
        axes = tuple(other for other in range(x.ndim) if other != axis)
        return x.min(axis=axes), x.max(axis=axes)


def along(channels: Array, x: Array) -> Array:
    """An array of shape (C,) as one to be broadcast along axis 1 of x."""
    return channels.reshape(1, -1, *[1] * (x.ndim - 2))


def along_axis(numbers: Array, x: Array, qparams: QParams) -> Array:
    """Numbers a tensor or a channel, to be broadcast against x."""
    return numbers.reshape([-1 if axis == qparams.axis else 1 for axis in range(x.ndim)])


def rounded_steps(x: Array, qparams: QParams) -> Array:
    """What ``QParams.quantize`` rounds to before it clamps, in float32."""
    inverse, zero = F32(1) / along_axis(qparams.scale, x, qparams), along_axis(qparams.zero_point, x, qparams)
    with np.errstate(over="ignore"):
        if qparams.axis is None:
            return np.rint((np.multiply(x, inverse, dtype=np.float64) + zero).astype(F32))
        return np.rint(x * inverse + zero.astype(F32))
