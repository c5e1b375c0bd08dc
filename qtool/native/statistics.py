"""What observers and training ask of an array: its extremes, and how its numbers are spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtool.errors import EngineError
from qtool.native import abi
from qtool.native.operators import Floats, Operators, check_floats

_COUNTING_PLANS = 64  # that are kept; one has tables of 16 bytes a bin and thread

Counts = NDArray[np.int64]


class Statistics:
    """Threads and instruction set (None: the best of this CPU) are chosen once; EngineError without the native library.

    Arrays are float32 and C-contiguous. One object serves one thread of the program at a time.
    """

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        self._operators = Operators(threads, isa)
        self._counting = Operators(threads, isa, _COUNTING_PLANS)

    def min_max(self, x: Floats) -> tuple[float, float]:
        """The smallest and the largest number of an array that has some; (NaN, NaN) where there is a NaN."""
        check_floats("min_max x", x)
        low, high = self._min_max(x.reshape(1, -1))
        return float(low[0]), float(high[0])

    def min_max_channels(self, x: Floats) -> tuple[Floats, Floats]:
        """As ``min_max`` of each row of x [O, K]: ([O], [O])."""
        check_floats("min_max_channels x", x, rank=2)
        return self._min_max(x)

    def histogram(self, x: Floats, bins: int, low: np.float32, high: np.float32) -> Counts:
        """Counts of ``x``, all of it within ``low`` < ``high``, in equal bins; the last one is closed.

        The bin is int((x - low) * bins / (high - low)) in float32, as ``torch.histc`` finds it. EngineError where that
        overflows or where there are 2**32 numbers or more.
        """
        check_floats("histogram x", x)
        with np.errstate(over="ignore"):
            if not (low < high and np.isfinite((high - low) * np.float32(bins))):
                raise EngineError(f"histogram: got bins from {low} to {high}, expected a finite range in float32")
        return self._count(x, bins, np.array([low, high], np.float32), dyadic=0)

    def dyadic(self, x: Floats, bins: int, factor: np.float32) -> Counts:
        """Counts of ``x`` in ``bins`` bins about zero, each 1 / ``factor`` wide, which is a power of two.

        The bin is floor(x * factor) + bins // 2 in float32; numbers beyond are counted at the ends. EngineError where
        there are 2**32 numbers or more.
        """
        check_floats("dyadic x", x)
        return self._count(x, bins, np.array([factor], np.float32), dyadic=1)

    def _count(self, x: Floats, bins: int, given: Floats, dyadic: int) -> Counts:
        counts = np.empty(bins, np.int64)
        self._counting.run(
            abi.Kind.HISTOGRAM,
            (x.size, bins, dyadic),
            lambda: abi.make(abi.HistogramArgs, count=x.size, bins=bins, dyadic=dyadic),
            (x, given, counts),
        )
        return counts

    def _min_max(self, x: Floats) -> tuple[Floats, Floats]:
        if x.size == 0:
            raise EngineError(f"min_max: got no numbers (shape {x.shape}), expected at least one")
        rows, n = x.shape
        found = np.empty((2, rows), np.float32)
        self._operators.run(abi.Kind.TMIN_MAX, (rows, n), lambda: abi.make(abi.TquantArgs, rows=rows, n=n), (x, found))
        return found[0], found[1]
