"""Quantization of activations at run time, for linear layers whose weight alone is quantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.engine.requantize import F32, Arithmetic, Floats, fused_multiply_add
from qtool.ir import Array, QParams

SMALL_SCALE = F32(6.1e-5)
"""PyTorch's ``SMALL_SCALE_THRESHOLD``: the smallest normal number of float16, about."""


@dataclass(frozen=True)
class Rounding:
    """How activations are quantized, and products brought to float."""

    arithmetic: Arithmetic
    reduce_range: bool
    row_wise: bool


def choose_qparams(low: np.float32, high: np.float32, reduce_range: bool) -> tuple[np.float32, int]:
    """Scale and zero point (0..255, or 0..127 with ``reduce_range``) for numbers from ``low`` to ``high``.

    ``ChooseQuantizationParams`` of ATen/native/quantized/cpu/QuantUtils.h, in double where that is.
    """
    largest = 127 if reduce_range else 255
    least, most = min(F32(low), F32(0)), max(F32(high), F32(0))
    scale = (float(most) - float(least)) / largest
    with np.errstate(over="ignore", divide="ignore"):
        if F32(scale) == 0 or np.isinf(F32(1) / F32(scale)):
            scale = 0.1
    if scale < float(SMALL_SCALE):
        least, most = _widen(least, most, F32(scale), largest)
        scale = float(SMALL_SCALE)
    return F32(scale), _zero_point(float(least) / scale, float(most) / scale, largest)


def _widen(least: np.float32, most: np.float32, scale: np.float32, largest: int) -> tuple[np.float32, np.float32]:
    """The range that the smallest scale allowed stands for."""
    if least == 0:
        return least, SMALL_SCALE * F32(largest)
    if most == 0:
        return -SMALL_SCALE * F32(largest), most
    factor = SMALL_SCALE / scale
    return least * factor, most * factor


def _zero_point(least: float, most: float, largest: int) -> int:
    """From the end of the range with the smaller error, as the original estimates it; the ends are in steps."""
    from_least, from_most = -least, largest - most
    first = -abs(least) < largest - abs(most)
    return int(np.rint(min(max(from_least if first else from_most, 0), largest)))


def quantize_rows(x: Floats, reduce_range: bool, row_wise: bool) -> tuple[Array, Floats]:
    """(rows, n) float32 -> (q - zero point) as float64 and the scale of each row, (rows, 1); one for all unless
    ``row_wise``. Rounds as ``QParams.quantize``."""
    pieces = x if row_wise else x.reshape(1, -1)
    bounds = [(piece.min(initial=0), piece.max(initial=0)) for piece in pieces]
    chosen = [choose_qparams(low, high, reduce_range) for low, high in bounds]
    scale = np.array([scale for scale, _ in chosen], np.float32)[:, None]
    zero = np.array([zero for _, zero in chosen], np.float64)[:, None]
    q = np.rint(fused_multiply_add(x, F32(1) / scale, zero))
    centred = np.fmin(np.fmax(q, 0), 255).astype(np.float64) - zero
    return centred, np.broadcast_to(scale, (len(x), 1))


def linear_dynamic(
    arithmetic: Arithmetic, x: tuple[Array, Floats], weight: tuple[Array, QParams], bias: Array | None
) -> Floats:
    """(rows, outputs) float32 from ``quantize_rows`` and a stored weight with its parameters."""
    centred, scale = x
    stored, qparams = weight
    products = centred @ (stored.astype(np.float64) - qparams.zero_point.astype(np.float64)[:, None]).T
    return finish_rows(arithmetic, products.astype(np.float32), scale * qparams.scale, bias)


def finish_rows(arithmetic: Arithmetic, sums: Floats, multiplier: Floats, bias: Array | None) -> Floats:
    """Integer sums (rows, outputs) to numbers; FBGEMM multiplies and adds the bias with one rounding, QNNPACK with
    two."""
    if bias is None:
        return np.asarray(sums * multiplier)
    if arithmetic is Arithmetic.FLOAT_BIAS:
        return fused_multiply_add(sums, multiplier, bias)
    return np.asarray(sums * multiplier + bias)
