"""One entry of ``qconfig_dict``: a preset's name, null, or a mapping whose gaps are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from qtool.recipe.document import PRESET, QCONFIG
from qtool.recipe.items import Item
from qtool.recipe.observers import OBSERVERS, problem_with
from qtool.recipe.presets import default_for, get_preset
from qtool.recipe.schema import FLOAT32_EPS, Backend, Mode, ObserverConfig, QConfig, QDType, Scheme

_COMMON = tuple(f.name for f in fields(ObserverConfig) if f.name != "options")


def read_qconfig(item: Item, name: str, mode: Mode, backend: Backend) -> QConfig | None:
    """The qconfig of one rule in a recipe of ``mode``; RecipeError with its place.

    Gaps are filled from the preset that it names, else from the backend's default in the rule's own mode.
    """
    if item.value is None:
        return None
    if isinstance(item.value, Mapping):
        given = QCONFIG.read(item, name)
        own = Mode(given["mode"]) if "mode" in given else None
        base = get_preset(given["preset"]) if "preset" in given else default_for(own or mode, backend)
        qconfig = QConfig(
            filled(base.activation, given.get("activation", {})),
            filled(base.weight, given.get("weight", {})),
            given.get("single_rounding", base.single_rounding),
            own or base.mode,
            given.get("embedding_bits", base.embedding_bits),
            given.get("bias_correction", base.bias_correction),
            _transposed(base, given),
        )
    else:
        qconfig = get_preset(PRESET.read(item, name))
    for part, problem in _problems(qconfig, qconfig.mode or mode):
        item.entries().get(part, item).fail(f"{name}.{part}: {problem}")
    return qconfig


def _transposed(base: QConfig, given: Mapping[str, Any]) -> ObserverConfig | None:
    """The weight of transposed convolutions: a weight that is given is for them as well."""
    if "transposed_weight" in given:
        return filled(base.transposed_weight or base.weight, given["transposed_weight"])
    return None if "weight" in given else base.transposed_weight


def filled(base: ObserverConfig, given: Mapping[str, Any]) -> ObserverConfig:
    """``base`` with what is given in place.

    What no longer makes sense with it goes: another observer brings its own options and, unless a scheme is given, its
    own granularity (and the other way round); another dtype drops quant_min and quant_max; quant_min and quant_max on
    one side and reduce_range on the other replace each other.
    """
    changes = {key: value for key, value in given.items() if key in _COMMON}
    if "dtype" in changes:
        changes["dtype"] = QDType(changes["dtype"])
    if "scheme" in changes:
        changes["scheme"] = Scheme(changes["scheme"])
    if changes.get("dtype", base.dtype) is not base.dtype or "reduce_range" in changes:
        base = replace(base, quant_min=None, quant_max=None)
    if "quant_min" in changes or "quant_max" in changes:
        base = replace(base, reduce_range=False)
    merged = replace(base, **changes)
    known = OBSERVERS[merged.observer].options
    options = {key: value for key, value in base.options.items() if key in known}
    options.update({key: value for key, value in given.items() if key not in _COMMON})
    return _reconciled(replace(merged, options=MappingProxyType(options)), given)


def _reconciled(config: ObserverConfig, given: Mapping[str, Any]) -> ObserverConfig:
    """Observer and scheme of one granularity, where only one of them was given."""
    info = OBSERVERS[config.observer]
    if info.per_channel == config.scheme.per_channel or ("observer" in given and "scheme" in given):
        return config
    if "scheme" in given and info.counterpart:
        return replace(config, observer=info.counterpart)
    granularity = "per_channel" if info.per_channel else "per_tensor"
    symmetry = "symmetric" if config.scheme.symmetric else "affine"
    return replace(config, scheme=Scheme(f"{granularity}_{symmetry}")) if "observer" in given else config


def _problems(qconfig: QConfig, mode: Mode) -> list[tuple[str, str]]:
    activation = qconfig.activation
    if qconfig.embedding_bits not in (None, 4, 8):
        return [("embedding_bits", f"got {qconfig.embedding_bits}, expected 8 or 4")]
    if qconfig.embedding_bits is not None and mode is not Mode.DYNAMIC:
        return [("embedding_bits", "is for mode: dynamic")]
    problems = [("activation", problem_with(activation))]
    if activation.observer == "placeholder" and mode is not Mode.DYNAMIC:
        problems.append(("activation", "the observer 'placeholder' is for mode: dynamic"))
    if activation.scheme.per_channel:
        problems.append(("activation", f"got scheme {activation.scheme.value}; activations are quantized per tensor"))
    problems += [("weight", problem) for problem in _weight_problems(qconfig.weight)]
    if qconfig.transposed_weight is not None:
        problems += [("transposed_weight", problem) for problem in _weight_problems(qconfig.transposed_weight)]
    return [(part, problem) for part, problem in problems if problem]


def _weight_problems(weight: ObserverConfig) -> list[str]:
    problems = [problem_with(weight)]
    if weight.observer == "placeholder":
        problems.append("the observer 'placeholder' is for activations")
    if weight.dtype is not QDType.QINT8 or not weight.scheme.symmetric:
        got = f"got dtype {weight.dtype.value} and scheme {weight.scheme.value}"
        problems.append(f"{got}; the kernels take weights of dtype qint8 with a symmetric scheme")
    return problems


def plain_qconfig(qconfig: QConfig | None) -> dict[str, Any] | None:
    """The mapping that ``read_qconfig`` reads as the same qconfig, whatever it is filled from."""
    if qconfig is None:
        return None
    plain: dict[str, Any] = {
        "activation": plain_observer(qconfig.activation),
        "weight": plain_observer(qconfig.weight),
        "single_rounding": qconfig.single_rounding,
        "bias_correction": qconfig.bias_correction,
    }
    if qconfig.transposed_weight is not None:
        plain["transposed_weight"] = plain_observer(qconfig.transposed_weight)
    plain |= {} if qconfig.mode is None else {"mode": qconfig.mode.value}
    return plain | ({} if qconfig.embedding_bits is None else {"embedding_bits": qconfig.embedding_bits})


def plain_observer(config: ObserverConfig) -> dict[str, Any]:
    """An observer as a recipe would say it, without what it need not say."""
    plain = {
        "observer": config.observer,
        "dtype": config.dtype.value,
        "scheme": config.scheme.value,
        "reduce_range": config.reduce_range,
        "quant_min": config.quant_min,
        "quant_max": config.quant_max,
        "eps": config.eps if config.eps != FLOAT32_EPS else None,
        **config.options,
    }
    return {key: value for key, value in plain.items() if value is not None}
