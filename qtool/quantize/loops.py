"""The loops over a tensor's numbers that observers need: in NumPy, which defines them, and in native code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtool import native
from qtool.native.statistics import Statistics
from qtool.quantize import float32
from qtool.quantize.qparams import Float32


class Loops:
    """In NumPy."""

    def extremes(self, x: Float32) -> tuple[Float32, Float32]:
        """The smallest and the largest number of an array that has some, (1,) each; NaN where there is one."""
        return x.min().reshape(1), x.max().reshape(1)

    def histogram(self, x: Float32, bins: int, low: np.float32, high: np.float32) -> NDArray[np.int64]:
        """As ``float32.histogram``."""
        return float32.histogram(x, bins, low, high)


class NativeLoops(Loops):
    """In native code, with the same results; in NumPy what that does not do."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def extremes(self, x: Float32) -> tuple[Float32, Float32]:
        low, high = self._statistics.min_max(_in_memory(x))
        return np.array([low], np.float32), np.array([high], np.float32)

    def histogram(self, x: Float32, bins: int, low: np.float32, high: np.float32) -> NDArray[np.int64]:
        if float32.bins_overflow(bins, low, high) or x.size > np.iinfo(np.uint32).max:
            return super().histogram(x, bins, low, high)
        return self._statistics.histogram(_in_memory(x), bins, low, high)


def make_loops(threads: int, isa: str | None) -> Loops:
    """Native ones where there is the library."""
    return NativeLoops(Statistics(threads, isa)) if native.available() else Loops()


def _in_memory(x: Float32) -> Float32:
    """The numbers as they lie in memory: their order does not matter here. A copy only where others lie between."""
    return np.ascontiguousarray(x.ravel(order="K"))
