"""PyTorch's histogram observer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtool.quantize import float32, search
from qtool.quantize.observer import Observer
from qtool.quantize.qparams import Float32
from qtool.recipe.schema import ObserverConfig

BINS = 2048
UPSAMPLE_RATE = 16


class HistogramObserver(Observer):
    """Weights of equal bins over the range seen so far, narrowed to the range of least squared error at the end.

    PyTorch 2.13's ``HistogramObserver``, bit for bit: the bins are float32 and are spread anew, ``upsample_rate`` parts
    each, whenever a batch widens the range, so that the result depends on the order and size of the batches.
    """

    def __init__(self, config: ObserverConfig, channel_axis: int = 0) -> None:
        super().__init__(config, channel_axis)
        self._bins = int(config.options.get("bins", BINS))
        self._upsample_rate = int(config.options.get("upsample_rate", UPSAMPLE_RATE))
        self._weights: Float32 | None = None
        self._low = self._high = np.float32(0)

    def range(self) -> tuple[Float32, Float32]:
        self.min_max()  # raises where nothing was observed
        assert self._weights is not None
        low, high = search.narrow(self._weights, self._low, self._high)
        return np.array([low], np.float32), np.array([high], np.float32)

    def _update(self, x: Float32, low: Float32, high: Float32) -> None:
        if self._weights is None:
            self._weights, self._low, self._high = self._count(x, low[0], high[0]), low[0], high[0]
            return
        new_low, new_high = min(self._low, low[0]), max(self._high, high[0])
        self._weights = self._count(x, new_low, new_high) + self._spread(self._weights, new_low, new_high)
        self._low, self._high = new_low, new_high

    def _count(self, x: Float32, low: np.float32, high: np.float32) -> Float32:
        if low == high:  # one value: torch.histc widens the range by 1 to both sides of it
            counts = np.zeros(self._bins, np.float32)
            counts[self._bins // 2] = x.size
            return counts
        return self.loops.histogram(x, self._bins, low, high).astype(np.float32)

    def _spread(self, weights: Float32, low: np.float32, high: np.float32) -> Float32:
        """The weights so far in the bins of the new range (``_combine_histograms``, ``_upscale_histogram``)."""
        if low == self._low and high == self._high:
            return weights
        if self._low == self._high:
            return self._count(np.array([self._low]), low, high) * float32.total(weights)
        parts = self._bins * self._upsample_rate
        fine = np.repeat(weights, self._upsample_rate) / np.float32(self._upsample_rate)
        half = np.float32(0.5) * ((self._high - self._low) / np.float32(parts))
        middles = float32.linspace(self._low, self._high, parts + 1)[:-1] + half
        edges = float32.linspace(low, high, self._bins + 1)
        bins = np.clip(_last_not_above(edges, middles), 0, self._bins - 1)
        spread = np.zeros(self._bins, np.float32)
        np.add.at(spread, bins, fine)  # adds in order, in float32, as torch.bincount does
        return spread


def _last_not_above(edges: Float32, values: Float32) -> NDArray[np.intp]:
    """Index of the last edge that is not above each value (``torch.bucketize(right=True) - 1``).

    Where the range is narrow and far from zero, float32 edges may step back by a bit in the middle. A plain binary
    search is then done as torch does it, since NumPy's uses what it found for the value before.
    """
    if bool(np.all(edges[:-1] <= edges[1:])):
        return np.asarray(np.searchsorted(edges, values, "right") - 1, np.intp)
    start = np.zeros(values.shape, np.intp)
    end = np.full(values.shape, edges.size, np.intp)
    for _ in range(edges.size.bit_length()):
        middle = np.minimum(start + (end - start) // 2, edges.size - 1)
        right = (start < end) & (edges[middle] <= values)
        end = np.where(right | (start >= end), end, middle)
        start = np.where(right, middle + 1, start)
    return start - 1
