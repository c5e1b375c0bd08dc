"""A histogram whose bins are powers of two wide: the same counts whatever the order and the size of the batches."""

from __future__ import annotations

import numpy as np

from qtool.native.statistics import Counts
from qtool.quantize.loops import Loops
from qtool.quantize.qparams import Float32

HALF_BITS = 13
HALF = 1 << HALF_BITS
"""Bins on each side of zero."""

_LOWEST = -100  # of the exponent: below, 2**(HALF_BITS - exponent) would leave float32


class DyadicHistogram:
    """Counts over -2**e .. 2**e in 2 * HALF equal bins; e grows with the data, which folds neighbouring bins exactly.

    The memory is that of the bins, however much is added.
    """

    def __init__(self) -> None:
        self.exponent = _LOWEST
        self.counts: Counts = np.zeros(2 * HALF, np.int64)

    @property
    def width(self) -> float:
        """Width of one bin."""
        return float(2.0 ** (self.exponent - HALF_BITS))

    def add(self, x: Float32, reach: np.float32, loops: Loops) -> None:
        """Counts finite numbers of any shape by ``loops``; ``reach`` is their largest magnitude."""
        exponent = max(int(np.frexp(reach)[1]), _LOWEST)
        if exponent > self.exponent:
            self.counts = _centred(fold(self.counts, min(exponent - self.exponent, HALF_BITS)))
            self.exponent = exponent
        self.counts += loops.dyadic(x, 2 * HALF, np.float32(2.0 ** (HALF_BITS - self.exponent)))

    def magnitudes(self) -> Counts:
        """Counts of |x| in HALF bins of the same width."""
        return self.counts[HALF:] + self.counts[HALF - 1 :: -1]


def fold(counts: Counts, times: int) -> Counts:
    """Halves the number of bins so many times by adding neighbours; zero must lie between two bins, or at an end."""
    return np.asarray(counts.reshape(-1, 1 << times).sum(axis=1))


def _centred(counts: Counts) -> Counts:
    full = np.zeros(2 * HALF, np.int64)
    start = HALF - counts.size // 2
    full[start : start + counts.size] = counts
    return full
