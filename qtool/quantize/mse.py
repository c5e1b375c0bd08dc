"""The mse observer: the range that quantizes what was seen with the least squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtool.quantize.clipping import ClippingObserver
from qtool.quantize.dyadic import HALF, fold
from qtool.quantize.qparams import Float32, choose_qparams, quant_limits
from qtool.recipe.schema import ObserverConfig

_FOLDS = 1  # 4096 bins a side are 16 to 32 a level
_COARSE = np.geomspace(1 / 1024, 1.0, 96)
_FINE = np.geomspace(_COARSE[-2], 1 / _COARSE[-2], 33)  # from one coarse step below to one above
_ROUNDS = 2
_TOGETHER = 32

Float64 = NDArray[np.float64]


class MseObserver(ClippingObserver):
    """Tries ranges inside the extremes seen, with the scheme's own rounding and clamping on the histogram.

    First both ends are drawn in together, then one after the other, each coarsely and then finely. PyTorch's histogram
    observer minimizes an estimate of the same error but stops at the first step that makes it grow.
    """

    def _choose(self, lowest: float, highest: float) -> tuple[float, float]:
        counts = fold(self._histogram.counts, _FOLDS)
        used = np.flatnonzero(counts)
        centres = (used - HALF / 2**_FOLDS + 0.5) * self._histogram.width * 2**_FOLDS
        values = np.clip(centres, lowest, highest).astype(np.float32)
        weights = (counts[used] / counts.sum()).astype(np.float32)
        best = widest = np.array([min(lowest, 0.0), max(highest, 0.0)])
        moves = [np.array([True, True])]
        if lowest < 0.0 < highest and not self.config.scheme.symmetric:
            moves += [np.array([True, False]), np.array([False, True])] * _ROUNDS
        for move in moves:
            for ratios in (_COARSE, _FINE):
                drawn_in = np.where(move, best * ratios[:, None], best)
                candidates = np.vstack([best, np.clip(drawn_in, *widest)])
                best = candidates[np.argmin(squared_errors(values, weights, candidates, self.config))]
        return float(best[0]), float(best[1])


def squared_errors(values: Float32, weights: Float32, ranges: Float64, config: ObserverConfig) -> Float64:
    """Mean squared error over weighted values, shape (n,), for each range (low, high), shape (k, 2): shape (k,)."""
    quant_min, quant_max = quant_limits(config)
    unit = np.abs(values).max()  # differences are squared in this unit, which neither overflows nor underflows
    errors = []
    for part in np.array_split(ranges.astype(np.float32), -(-len(ranges) // _TOGETHER)):
        chosen = choose_qparams(part[:, 0], part[:, 1], config)
        scale, zero_point = chosen.scale[:, None], chosen.zero_point[:, None].astype(np.float32)
        steps = values / scale  # all in this one array: to get new ones from the system takes longer than the sums
        np.rint(steps, out=steps)
        np.clip(steps, quant_min - zero_point, quant_max - zero_point, out=steps)
        steps *= scale
        steps -= values
        steps /= unit
        errors.append(np.square(steps, out=steps) @ weights)
    return np.concatenate(errors) * np.float64(unit) ** 2
