"""The observers a recipe may name: which options each takes, which schemes it knows, and what it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qtool.recipe.kinds import Flag, Real, Whole
from qtool.recipe.schema import ObserverConfig, QDType

EPS = Real(0.0, 1.0, above=True)
QUANT_LIMIT = Whole(-128, 255)

_STORAGE = {QDType.QUINT8: (0, 255), QDType.QINT8: (-128, 127)}


@dataclass(frozen=True)
class ObserverInfo:
    """One line of ``qtool recipe schema``. An option without a default must be given."""

    summary: str
    per_channel: bool = False
    options: Mapping[str, Whole | Real | Flag] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    counterpart: str = ""
    """The same per channel instead of per tensor, or the other way round."""


_AVERAGE = {"averaging_constant": Real(0.0, 1.0, above=True)}

OBSERVERS: Mapping[str, ObserverInfo] = MappingProxyType(
    {
        "min_max": ObserverInfo("smallest and largest value seen", counterpart="per_channel_min_max"),
        "moving_average_min_max": ObserverInfo(
            "average of each batch's extremes, later batches weighing averaging_constant (0.01)",
            options=_AVERAGE,
            counterpart="moving_average_per_channel_min_max",
        ),
        "per_channel_min_max": ObserverInfo("min_max for each channel", per_channel=True, counterpart="min_max"),
        "moving_average_per_channel_min_max": ObserverInfo(
            "moving_average_min_max for each channel",
            per_channel=True,
            options=_AVERAGE,
            counterpart="moving_average_min_max",
        ),
        "histogram": ObserverInfo(
            "PyTorch's: cuts the ends of a histogram (bins, upsample_rate) off until its squared error grows",
            options={"bins": Whole(64, 65536), "upsample_rate": Whole(1, 1024)},
        ),
        "percentile": ObserverInfo(
            "leaves out all but the given percentile (99.99) of the values", options={"percentile": Real(50.0, 100.0)}
        ),
        "entropy": ObserverInfo("the range whose quantized distribution diverges least (KL) from the one seen"),
        "mse": ObserverInfo("the range that quantizes what was seen with the least squared error"),
        "fixed": ObserverInfo(
            "the scale and zero_point given, whatever is seen",
            options={"scale": Real(2.0**-126, 2.0**100), "zero_point": QUANT_LIMIT},
            required=("scale", "zero_point"),
        ),
        "placeholder": ObserverInfo(
            "nothing: the parameters are computed at run time (mode: dynamic), with row_wise for each row by itself",
            options={"row_wise": Flag()},
        ),
    }
)


def problem_with(config: ObserverConfig) -> str:
    """Why the parts of a configuration do not go together, "" where they do."""
    info = OBSERVERS.get(config.observer)
    if info is None:
        return f"is not known; expected one of {', '.join(OBSERVERS)}"
    if info.per_channel != config.scheme.per_channel:
        need = "per channel" if info.per_channel else "per tensor"
        hint = f", or the observer {info.counterpart}" if info.counterpart else ""
        return f"works {need}, but the scheme is {config.scheme.value}; expected a {need} scheme{hint}"
    return _options_problem(config, info) or _range_problem(config)


def _options_problem(config: ObserverConfig, info: ObserverInfo) -> str:
    for name, value in config.options.items():
        kind = info.options.get(name)
        if kind is None:
            return f"takes no option '{name}'; it takes {', '.join(info.options) or 'none'}"
        if not kind.accepts(value):
            return f"got {name} {value!r}, expected {kind}"
    missing = [name for name in info.required if name not in config.options]
    return f"needs the option '{missing[0]}'" if missing else ""


def _range_problem(config: ObserverConfig) -> str:
    low, high = _STORAGE[config.dtype]
    given = (config.quant_min, config.quant_max)
    if not EPS.accepts(config.eps):
        return f"got eps {config.eps!r}, expected {EPS}"
    if (given[0] is None) != (given[1] is None):
        return "quant_min and quant_max go together; got only one of them"
    if given[0] is not None and given[1] is not None:
        if not low <= given[0] <= 0 <= given[1] <= high or given[0] == given[1]:
            expected = f"{low} <= quant_min <= 0 <= quant_max <= {high}"
            return f"got quant_min {given[0]} and quant_max {given[1]}, expected {expected}"
        if config.reduce_range and given[0] // 2 == given[1] // 2:
            return f"reduce_range leaves nothing of quant_min {given[0]} and quant_max {given[1]}"
    if config.reduce_range and config.scheme.symmetric and config.dtype is QDType.QUINT8:
        return "reduce_range does not go with a symmetric scheme on quint8, whose zero point is in the middle"
    if config.observer == "fixed" and not low <= config.options["zero_point"] <= high:
        return f"got zero_point {config.options['zero_point']}, expected {low} to {high} for {config.dtype.value}"
    return ""
