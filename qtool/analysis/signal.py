"""How far one stream of numbers is from another, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qtool.ir import Array

PIECE = 1 << 13
"""Elements that are worked on at a time: so few that their copies stay in the cache, that memory for those is not asked
of the system each time, and that BLAS starts no threads for their products. All three cost much more than the sums."""


def pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same stretches of arrays of one shape, flat."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, PIECE):
        yield tuple(array[start : start + PIECE] for array in flat)


class Signal:
    """Sums of squares and products of a reference and a noisy copy, in float64."""

    def __init__(self) -> None:
        self._reference = self._noisy = self._product = self._noise = 0.0
        self.max_error = 0.0

    def add(self, reference: Array, noisy: Array) -> None:
        """Takes two arrays of one shape."""
        for a, b in pieces(reference, noisy):
            self._add(a.astype(np.float64), b.astype(np.float64))

    def _add(self, a: Array, b: Array) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # the difference of two infinities is NaN, and shows
            error = a - b
            self._reference += float(a @ a)
            self._noisy += float(b @ b)
            self._product += float(a @ b)
            self._noise += float(error @ error)
        self.max_error = max(self.max_error, float(np.abs(error).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal power / noise power); inf for no noise, -inf for noise on a zero signal."""
        if self._noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self._reference / self._noise) if self._reference else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 where both are zero."""
        norm = math.sqrt(self._reference * self._noisy)
        return self._product / norm if norm else float(self._reference == self._noisy)
