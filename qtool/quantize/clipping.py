"""Observers that may leave outliers out, all from one order-independent histogram; here the simplest, by percentile."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from qtool.native.statistics import Counts
from qtool.quantize.dyadic import HALF, DyadicHistogram
from qtool.quantize.observer import Observer
from qtool.quantize.qparams import Float32
from qtool.recipe.schema import ObserverConfig

PERCENTILE = 99.99


class ClippingObserver(Observer):
    """Keeps a histogram; a subclass chooses the range from it. The result does not depend on how data is batched."""

    def __init__(self, config: ObserverConfig, channel_axis: int = 0) -> None:
        super().__init__(config, channel_axis)
        self._histogram = DyadicHistogram()

    def range(self) -> tuple[Float32, Float32]:
        lowest, highest = (float(extreme[0]) for extreme in self.min_max())
        low, high = self._choose(lowest, highest) if lowest < highest else (lowest, highest)
        return np.array([max(low, lowest)], np.float32), np.array([min(high, highest)], np.float32)

    def _update(self, x: Float32, low: Float32, high: Float32) -> None:
        self._histogram.add(x, np.maximum(-low, high)[0], self.loops)

    @abstractmethod
    def _choose(self, lowest: float, highest: float) -> tuple[float, float]:
        """The range to quantize, from the histogram and the extremes seen; the caller keeps it within these."""


class PercentileObserver(ClippingObserver):
    """Leaves out (100 - ``percentile``) percent of the values, counted in bins and linearly inside one.

    In a symmetric scheme they are the largest magnitudes, otherwise half of them lie at either end (as in ONNX
    Runtime's ``PercentileCalibrater``).
    """

    def __init__(self, config: ObserverConfig, channel_axis: int = 0) -> None:
        super().__init__(config, channel_axis)
        self._outside = 1.0 - float(config.options.get("percentile", PERCENTILE)) / 100.0

    def _choose(self, lowest: float, highest: float) -> tuple[float, float]:  # noqa: ARG002 - the counts say it all
        width = self._histogram.width
        if self.config.scheme.symmetric:
            reach = _quantile(self._histogram.magnitudes(), 1.0 - self._outside) * width
            return -reach, reach
        low = _quantile(self._histogram.counts, self._outside / 2)
        high = _quantile(self._histogram.counts, 1.0 - self._outside / 2)
        return (low - HALF) * width, (high - HALF) * width


def _quantile(counts: Counts, share: float) -> float:
    """Where the given share of the counts lies below, in bins from the start."""
    below = np.cumsum(counts)
    wanted = share * float(below[-1])
    k = int(np.searchsorted(below, wanted, "left"))
    return k + (wanted - float(below[k] - counts[k])) / max(float(counts[k]), 1.0)
