"""How far one stream of numbers is from another, accumulated batch by batch."""

from __future__ import annotations

import math

import numpy as np

from qtool.ir import Array


class Signal:
    """Sums of squares and products of a reference and a noisy copy, in float64."""

    def __init__(self) -> None:
        self._reference = self._noisy = self._product = self._noise = 0.0
        self.max_error = 0.0

    def add(self, reference: Array, noisy: Array) -> None:
        """Takes two arrays of one shape."""
        a, b = reference.astype(np.float64).ravel(), noisy.astype(np.float64).ravel()
        with np.errstate(invalid="ignore"):  # the difference of two infinities is NaN, and shows in the result
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
