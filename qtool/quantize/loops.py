"""The loops over a tensor's numbers that observers need: in NumPy, which defines them, and in native code."""

from __future__ import annotations

import numpy as np

from qtool import native
from qtool.native.statistics import Counts, Statistics
from qtool.quantize import float32
from qtool.quantize.float32 import CHUNK
from qtool.quantize.qparams import Float32

_MOST = np.iinfo(np.uint32).max  # numbers that native code counts


class Loops:
    """In NumPy."""

    def extremes(self, x: Float32) -> tuple[Float32, Float32]:
        """The smallest and the largest number of an array that has some, (1,) each; NaN where there is one."""
        return x.min().reshape(1), x.max().reshape(1)

    def histogram(self, x: Float32, bins: int, low: np.float32, high: np.float32) -> Counts:
        """As ``float32.histogram``."""
        return float32.histogram(x, bins, low, high)

    def dyadic(self, x: Float32, bins: int, factor: np.float32) -> Counts:
        """Counts of finite numbers in ``bins`` bins about zero, each 1 / ``factor`` wide, which is a power of two.

        The bin is floor(x * factor) + bins // 2 in float32, and must be one of them.
        """
        found = np.zeros(bins, np.int64)
        work, index = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int32)
        flat = x.ravel(order="K")
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            place, bin_of = work[: part.size], index[: part.size]
            np.multiply(part, factor, out=place)
            np.floor(place, out=place)
            np.copyto(bin_of, place, casting="unsafe")
            np.add(bin_of, bins // 2, out=bin_of)
            found += np.bincount(bin_of, minlength=bins)
        return found


class NativeLoops(Loops):
    """In native code, with the same results; in NumPy what that does not do, or what is too short for it."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def extremes(self, x: Float32) -> tuple[Float32, Float32]:
        low, high = self._statistics.min_max(_in_memory(x))
        return np.array([low], np.float32), np.array([high], np.float32)

    def histogram(self, x: Float32, bins: int, low: np.float32, high: np.float32) -> Counts:
        if float32.bins_overflow(bins, low, high) or x.size > _MOST:
            return super().histogram(x, bins, low, high)
        return self._statistics.histogram(_in_memory(x), bins, low, high)

    def dyadic(self, x: Float32, bins: int, factor: np.float32) -> Counts:
        if not CHUNK < x.size <= _MOST:
            return super().dyadic(x, bins, factor)
        return self._statistics.dyadic(_in_memory(x), bins, factor)


def make_loops(threads: int, isa: str | None) -> Loops:
    """Native ones where there is the library."""
    return NativeLoops(Statistics(threads, isa)) if native.available() else Loops()


def _in_memory(x: Float32) -> Float32:
    """The numbers as they lie in memory: their order does not matter here. A copy only where others lie between."""
    return np.ascontiguousarray(x.ravel(order="K"))
