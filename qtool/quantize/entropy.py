"""The entropy observer: the range that changes the distribution least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtool.native.statistics import Counts
from qtool.quantize.clipping import ClippingObserver
from qtool.quantize.dyadic import HALF, fold
from qtool.quantize.qparams import quant_limits

_FINENESS = 16  # bins a level of the widest range, at most
_CANDIDATES = 128
_EMPTY = 1e-4  # counts that an empty quantized bin is given where the original has some


class EntropyObserver(ClippingObserver):
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the one seen.

    After S. Migacz, "8-bit inference with TensorRT" (GTC 2017). A range starts at zero where all values have one sign
    or the scheme is symmetric, and reaches equally far to both sides otherwise; values beyond it are added to its
    outermost bins. Zeros are left out: every scale represents them exactly.
    """

    def _choose(self, lowest: float, highest: float) -> tuple[float, float]:
        low, high = quant_limits(self.config)
        symmetric = self.config.scheme.symmetric
        levels = (high - low + 1) // 2 if symmetric else high - low + 1
        if symmetric or lowest >= 0.0 or highest <= 0.0:
            reach = _best_reach(_without_zeros(self._histogram.magnitudes(), 0), 0, levels)
        else:
            reach = _best_reach(_without_zeros(self._histogram.counts, HALF), HALF, levels)
        return -reach * self._histogram.width, reach * self._histogram.width


def _without_zeros(counts: Counts, zero: int) -> Counts:
    kept = counts.copy()
    kept[zero] = min(counts[zero], counts[zero + 1])
    return kept


def _best_reach(counts: Counts, zero: int, levels: int) -> int:
    """How many bins the best range goes to each side of index ``zero`` (to the right only, where that is 0)."""
    side = levels // 2 if zero else levels
    used = np.flatnonzero(counts)
    span = int(max(used[-1] + 1 - zero, zero - used[0]))
    times = max(0, (-(-span // (_FINENESS * side)) - 1).bit_length())
    counts, zero, span = fold(counts, times), zero >> times, -(-span >> times)
    sizes = np.unique(np.linspace(min(side, span), span, _CANDIDATES).astype(int))
    divergences = [_divergence(counts, max(zero - n, 0), zero + n, levels) for n in sizes]
    return int(sizes[np.argmin(divergences)]) << times


def _divergence(counts: Counts, start: int, end: int, levels: int) -> float:
    """Kullback-Leibler divergence of bins ``start`` .. ``end``, the rest added at the ends, from its quantized self.

    Infinite where nothing lies within: what lies beyond, all in the last bin, would seem to be kept perfectly.
    """
    inside = counts[start:end].astype(np.float64)
    if not inside.any():
        return np.inf
    original = inside.copy()
    original[0] += counts[:start].sum()
    original[-1] += counts[end:].sum()
    edges = np.arange(min(levels, inside.size) + 1) * inside.size // min(levels, inside.size)
    groups, widths = edges[:-1], edges[1:] - edges[:-1]
    filled = original > 0
    shared = np.add.reduceat(inside, groups) / np.maximum(np.add.reduceat(filled.astype(np.float64), groups), 1.0)
    quantized = np.repeat(shared, widths)[filled]
    return _relative_entropy(original[filled], np.maximum(quantized, _EMPTY))


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))
