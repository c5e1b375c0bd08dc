"""Observers by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qtool.errors import QuantizationError
from qtool.quantize.clipping import PercentileObserver
from qtool.quantize.entropy import EntropyObserver
from qtool.quantize.histogram import HistogramObserver
from qtool.quantize.minmax import FixedObserver, MinMaxObserver, MovingAverageObserver, PlaceholderObserver
from qtool.quantize.mse import MseObserver
from qtool.quantize.observer import Flag, Observer
from qtool.recipe.observers import problem_with
from qtool.recipe.schema import ObserverConfig

__all__ = ["OBSERVERS", "Flag", "Observer", "make_observer"]

OBSERVERS: Mapping[str, type[Observer]] = MappingProxyType(
    {
        "min_max": MinMaxObserver,
        "moving_average_min_max": MovingAverageObserver,
        "per_channel_min_max": MinMaxObserver,
        "moving_average_per_channel_min_max": MovingAverageObserver,
        "histogram": HistogramObserver,
        "percentile": PercentileObserver,
        "entropy": EntropyObserver,
        "mse": MseObserver,
        "fixed": FixedObserver,
        "placeholder": PlaceholderObserver,
    }
)


def make_observer(config: ObserverConfig, channel_axis: int = 0) -> Observer:
    """A fresh observer; ``channel_axis`` is the axis of the tensor along which a per-channel scheme runs.

    QuantizationError for a configuration that makes no sense, as ``load_recipe`` finds it in a file.
    """
    problem = problem_with(config)
    if problem:
        raise QuantizationError(f"observer '{config.observer}': {problem}")
    return OBSERVERS[config.observer](config, channel_axis)
