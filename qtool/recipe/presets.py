"""Named qconfigs: PyTorch's defaults (torch/ao/quantization/qconfig.py, version 2.13), and qtool's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from qtool.errors import RecipeError
from qtool.recipe.schema import Backend, Mode, ObserverConfig, QConfig, QDType, Scheme
from qtool.recipe.suggest import did_you_mean

XNNPACK_EPS = 2.0**-12
"""Keeps requantization scales inside XNNPACK's limits (PyTorch's symmetric qnnpack qconfigs)."""

_WEIGHT = ObserverConfig("min_max", QDType.QINT8, Scheme.PER_TENSOR_SYMMETRIC)
_WEIGHT_PER_CHANNEL = ObserverConfig("per_channel_min_max", QDType.QINT8, Scheme.PER_CHANNEL_SYMMETRIC)
_HISTOGRAM = ObserverConfig("histogram")
_HISTOGRAM_REDUCED = ObserverConfig("histogram", reduce_range=True)
_DEFAULT = ObserverConfig("min_max", quant_min=0, quant_max=127)
_DYNAMIC = ObserverConfig("placeholder", quant_min=0, quant_max=255)
_XNNPACK = ObserverConfig("histogram", QDType.QINT8, eps=XNNPACK_EPS)
_XNNPACK_WEIGHT = replace(_WEIGHT, quant_min=-127, quant_max=127, eps=XNNPACK_EPS)
_XNNPACK_WEIGHT_PER_CHANNEL = replace(_WEIGHT_PER_CHANNEL, quant_min=-127, quant_max=127, eps=XNNPACK_EPS)
_QAT = ObserverConfig("moving_average_min_max", quant_min=0, quant_max=255)
_QAT_REDUCED = replace(_QAT, reduce_range=True)
_QAT_WEIGHT = replace(_WEIGHT, observer="moving_average_min_max", quant_min=-128, quant_max=127)
_QAT_WEIGHT_PER_CHANNEL = replace(
    _WEIGHT_PER_CHANNEL, observer="moving_average_per_channel_min_max", quant_min=-128, quant_max=127
)

_FBGEMM = QConfig(_HISTOGRAM_REDUCED, _WEIGHT_PER_CHANNEL, transposed_weight=_WEIGHT)
_FBGEMM_QAT = QConfig(_QAT_REDUCED, _QAT_WEIGHT_PER_CHANNEL, transposed_weight=_QAT_WEIGHT)

# The preset `accurate` is tuned here and nowhere else.
_ACCURATE = QConfig(ObserverConfig("mse"), _WEIGHT_PER_CHANNEL, single_rounding=True, bias_correction=True)


@dataclass(frozen=True)
class Preset:
    qconfig: QConfig
    summary: str
    source: str = ""
    """PyTorch's name of the same."""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "accurate": Preset(
            _ACCURATE, "8-bit activations of least squared error, per-channel weights, one rounding, biases corrected"
        ),
        "fbgemm": Preset(
            _FBGEMM,
            "7-bit histogram activations, per-channel weights (per-tensor of transposed convolutions)",
            "get_default_qconfig('fbgemm')",
        ),
        "x86": Preset(_FBGEMM, "as fbgemm", "get_default_qconfig('x86')"),
        "onednn": Preset(
            QConfig(_HISTOGRAM, _WEIGHT_PER_CHANNEL),
            "8-bit histogram activations, per-channel weights",
            "get_default_qconfig('onednn')",
        ),
        "qnnpack": Preset(
            QConfig(_HISTOGRAM, _WEIGHT),
            "8-bit histogram activations, per-tensor weights",
            "get_default_qconfig('qnnpack')",
        ),
        "default": Preset(
            QConfig(_DEFAULT, _WEIGHT), "7-bit min/max activations, per-tensor weights", "default_qconfig"
        ),
        "default_per_channel": Preset(
            QConfig(_DEFAULT, _WEIGHT_PER_CHANNEL),
            "7-bit min/max activations, per-channel weights",
            "default_per_channel_qconfig",
        ),
        "symmetric_qnnpack": Preset(
            QConfig(_XNNPACK, _XNNPACK_WEIGHT),
            "signed 8-bit histogram activations, per-tensor weights within -127..127",
            "default_symmetric_qnnpack_qconfig",
        ),
        "per_channel_symmetric_qnnpack": Preset(
            QConfig(_XNNPACK, _XNNPACK_WEIGHT_PER_CHANNEL),
            "signed 8-bit histogram activations, per-channel weights within -127..127",
            "default_per_channel_symmetric_qnnpack_qconfig",
        ),
        "dynamic": Preset(
            QConfig(_DYNAMIC, _WEIGHT, mode=Mode.DYNAMIC),
            "activations quantized at run time, per-tensor weights",
            "default_dynamic_qconfig",
        ),
        "per_channel_dynamic": Preset(
            QConfig(_DYNAMIC, _WEIGHT_PER_CHANNEL, mode=Mode.DYNAMIC),
            "activations quantized at run time, per-channel weights",
            "per_channel_dynamic_qconfig",
        ),
        "float_qparams": Preset(
            QConfig(_DYNAMIC, _WEIGHT, mode=Mode.DYNAMIC, embedding_bits=8),
            "as dynamic, and embeddings in 8 bits with a float scale and offset a row",
            "float_qparams_weight_only_qconfig",
        ),
        "float_qparams_4bit": Preset(
            QConfig(_DYNAMIC, _WEIGHT, mode=Mode.DYNAMIC, embedding_bits=4),
            "as dynamic, and embeddings in 4 bits with a float scale and offset a row",
            "float_qparams_weight_only_qconfig_4bit",
        ),
        "fbgemm_qat": Preset(
            _FBGEMM_QAT,
            "7-bit moving-average activations, per-channel weights, for training",
            "get_default_qat_qconfig('fbgemm')",
        ),
        "x86_qat": Preset(_FBGEMM_QAT, "as fbgemm_qat", "get_default_qat_qconfig('x86')"),
        "onednn_qat": Preset(
            QConfig(_QAT, _QAT_WEIGHT_PER_CHANNEL),
            "8-bit moving-average activations, per-channel weights, for training",
            "get_default_qat_qconfig('onednn')",
        ),
        "qnnpack_qat": Preset(
            QConfig(_QAT, _QAT_WEIGHT),
            "8-bit moving-average activations, per-tensor weights, for training",
            "get_default_qat_qconfig('qnnpack')",
        ),
    }
)


def get_preset(name: str) -> QConfig:
    """A preset's qconfig; RecipeError with the nearest names for one that does not exist."""
    if name not in PRESETS:
        raise RecipeError(f"unknown preset '{name}'{did_you_mean(name, PRESETS)}")
    return PRESETS[name].qconfig


def get_default_qconfig(backend: str | Backend = Backend.FBGEMM) -> QConfig:
    """PyTorch's ``get_default_qconfig``: the static qconfig of a backend; RecipeError for an unknown one."""
    return get_preset(_backend(backend).value)


def get_default_dynamic_qconfig(per_channel: bool = False) -> QConfig:
    """PyTorch's ``default_dynamic_qconfig``, or ``per_channel_dynamic_qconfig``."""
    return get_preset("per_channel_dynamic" if per_channel else "dynamic")


def get_default_qat_qconfig(backend: str | Backend = Backend.FBGEMM) -> QConfig:
    """PyTorch's ``get_default_qat_qconfig``: the ranges and averages of both its versions, which are the same."""
    return get_preset(f"{_backend(backend).value}_qat")


def default_for(mode: Mode, backend: Backend) -> QConfig:
    """What a recipe that leaves a qconfig, or a part of one, out means."""
    if mode is Mode.DYNAMIC:
        return get_default_dynamic_qconfig()
    return get_default_qat_qconfig(backend) if mode is Mode.QAT else get_default_qconfig(backend)


def _backend(backend: str | Backend) -> Backend:
    try:
        return Backend(backend)
    except ValueError:
        names = [known.value for known in Backend]
        raise RecipeError(f"unknown backend '{backend}'{did_you_mean(str(backend), names)}") from None
