"""From the range of a tensor to its scale and zero point: the one place where this is computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtool.errors import QuantizationError
from qtool.ir import DType, QParams
from qtool.recipe.schema import ObserverConfig, QDType

Float32 = NDArray[np.float32]

STORAGE = {QDType.QUINT8: DType.UINT8, QDType.QINT8: DType.INT8}

_LIMITS = {QDType.QUINT8: (0, 255), QDType.QINT8: (-128, 127)}
_REDUCED = {QDType.QUINT8: (0, 127), QDType.QINT8: (-64, 63)}


def quant_limits(config: ObserverConfig) -> tuple[int, int]:
    """Smallest and largest integer the range is spread over (PyTorch ``calculate_qmin_qmax``).

    ``reduce_range`` also halves limits that are given, rounding down, as PyTorch does.
    """
    low, high = config.quant_min, config.quant_max
    if low is None or high is None:
        return (_REDUCED if config.reduce_range else _LIMITS)[config.dtype]
    return (low // 2, high // 2) if config.reduce_range else (low, high)


def choose_qparams(low: Float32, high: Float32, config: ObserverConfig, axis: int | None = None) -> QParams:
    """Scale and zero point that cover ``low`` .. ``high``, both of shape (1,), or (C,) along ``axis``.

    The formulas and their order in float32 are those of PyTorch's ``_calculate_qparams``
    (torch/ao/quantization/observer.py); zero is always inside the range. QuantizationError where low > high, or where
    the range is too wide for a float32 scale.
    """
    if not bool(np.all(low <= high)):
        raise QuantizationError(f"the range to quantize is empty: low {_extreme(low)}, high {_extreme(high)}")
    quant_min, quant_max = quant_limits(config)
    below, above = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    eps = np.float32(config.eps)
    if config.scheme.symmetric:
        reach = np.maximum(-below, above)
        scale = np.maximum(reach / np.float32((quant_max - quant_min) / 2), eps)
        zero_point = np.full(scale.shape, _symmetric_zero_point(config), np.int32)
    else:
        with np.errstate(over="ignore"):
            scale = np.maximum((above - below) / np.float32(quant_max - quant_min), eps)
        steps = np.rint(below / scale).astype(np.int32)
        zero_point = np.clip(quant_min - steps, quant_min, quant_max).astype(np.int32)
    if not bool(np.isfinite(scale).all()):
        raise QuantizationError(f"the range {_extreme(below)} .. {_extreme(above)} is too wide for a float32 scale")
    return QParams(scale, zero_point, STORAGE[config.dtype], axis)


def clip_to_limits(x: Float32, qparams: QParams, config: ObserverConfig) -> Float32:
    """x within what the limits that a configuration gives can hold: -8..7 for four bits, where the storage type, to
    which ``QParams.quantize`` clips, has eight. The same array where nothing is beyond, or no limits are given."""
    if config.quant_min is None or config.quant_max is None:
        return x
    low, high = quant_limits(config)
    stored = np.asarray(qparams.quantize(x), np.int32)
    beyond = (stored < low) | (stored > high)
    return np.where(beyond, qparams.dequantize(np.clip(stored, low, high)), x) if beyond.any() else x


def representable(qparams: QParams, config: ObserverConfig) -> tuple[Float32, Float32]:
    """Real numbers that the smallest and the largest integer of the configuration stand for."""
    quant_min, quant_max = quant_limits(config)
    zero_point = qparams.zero_point.astype(np.float32)
    return (np.float32(quant_min) - zero_point) * qparams.scale, (np.float32(quant_max) - zero_point) * qparams.scale


def _symmetric_zero_point(config: ObserverConfig) -> int:
    if config.dtype is QDType.QINT8:
        return 0
    if config.quant_min is None or config.quant_max is None:
        return 128
    low, high = quant_limits(config)
    return (low + high) // 2


def _extreme(values: Float32) -> str:
    return f"{values.flat[np.argmax(np.abs(values))]:g}"
