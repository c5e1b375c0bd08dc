"""PyTorch's search for the range that quantizes a histogram with the least squared error, many candidates at a time.

``HistogramObserver._non_linear_param_search`` (torch/ao/quantization/observer.py, after caffe2's norm_minimization.cc)
narrows the range from its ends by quantiles and stops at the first step that makes the error grow. Its steps do not
depend on the errors, so that candidates can be made ahead and their errors computed together: same numbers, some
hundred times faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qtool.quantize.float32 import Float32, total

LEVELS = 256
"""Steps of the quantized range; PyTorch keeps 256 with reduce_range too."""

_STEP = 1e-5
_TOGETHER = 16
_TINY = np.float32(1e-30)  # below, PyTorch's own bin widths underflow; any range then has its scale at eps

Bins = NDArray[np.int64]


def narrow(histogram: Float32, low: np.float32, high: np.float32) -> tuple[np.float32, np.float32]:
    """The range inside ``low`` .. ``high`` to quantize; ``histogram`` holds the weights of its equal bins."""
    bins = np.float32(histogram.size)
    with np.errstate(over="ignore"):
        reach = high - low
    if not _TINY <= reach < np.inf:
        return low, high
    start, end = _best(histogram, low, high)
    width = reach / bins
    return low + width * np.float32(start), low + width * np.float32(end + 1)


def _best(histogram: Float32, low: np.float32, high: np.float32) -> tuple[int, int]:
    """The last candidate before the error grows."""
    best, least = (0, histogram.size - 1), np.float32(np.inf)
    path = _candidates(histogram)
    while batch := list(islice(path, _TOGETHER)):
        starts, ends = np.array(batch).T
        errors = squared_errors(histogram, float(high) - float(low), starts, ends)
        grows = np.flatnonzero(errors > np.append(least, errors[:-1]))
        if grows.size:
            return best if grows[0] == 0 else batch[grows[0] - 1]
        best, least = batch[-1], errors[-1]
    return best


@cache
def _quantiles() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lower and upper quantiles after k steps, added up one by one as the loop in PyTorch does."""
    steps = np.full(round(1 / _STEP) + 2, _STEP)
    steps[0] = 0.0
    return np.cumsum(steps), np.cumsum(np.concatenate([[1.0], -steps[1:]]))


def _candidates(histogram: Float32) -> Iterator[tuple[int, int]]:
    """First and last bin of each range that PyTorch's loop looks at, in order."""
    cumulative = np.cumsum(histogram, dtype=np.float64).astype(np.float32)
    mass = float(total(histogram))
    alphas, betas = _quantiles()
    lower, upper = (alphas * mass).astype(np.float32), (betas * mass).astype(np.float32)
    upwards = np.ascontiguousarray(upper[::-1])
    start, end, i, j = 0, histogram.size - 1, 0, 0
    while start < end and alphas[i] < betas[j]:
        left = min(max(int(np.searchsorted(cumulative, lower[i + 1], "left")), start), end)
        right = min(max(int(np.searchsorted(cumulative, upper[j + 1], "right")) - 1, start), end)
        if left - start > end - right:
            start, i = left, i + 1
        elif right < end:
            end, j = right, j + 1
        else:
            # PyTorch's loop moves nothing until the upper quantile falls below the last bin: go there at once.
            j = upper.size - int(np.searchsorted(upwards, cumulative[end], "left")) - 1
            continue
        yield start, end


def squared_errors(histogram: Float32, reach: float, starts: Bins, ends: Bins) -> Float32:
    """Squared error of quantizing the histogram with each range of bins (``_compute_quantization_error``).

    ``reach`` is the width of the whole histogram; ``starts`` and ``ends`` have shape (k,), and so has the result. The
    values in a bin are taken as spread evenly, those outside the range as clipped.
    """
    bins = histogram.size
    bin_width = reach / bins
    width = np.float32(bin_width)
    steps = (bin_width * (ends - starts + 1) / LEVELS)[:, None]
    step, half = steps.astype(np.float32), (steps / 2).astype(np.float32)
    with np.errstate(all="ignore"):
        begin = (np.arange(bins) - starts[:, None]).astype(np.float32) * width
        end = begin + width
        first, last = _step_of(begin, step), _step_of(end, step)
        density = histogram / width
        error = _norm(begin - (first + np.float32(0.5)) * step, half, density)
        error += (last - first - np.float32(1)) * _norm(-half, half, density)
        error += _norm(-half, end - (last * step + half), density)
        return total(error)


def _step_of(position: Float32, step: Float32) -> Float32:
    """floor(position / step), clamped to the steps there are; the quotient is exact enough in float64."""
    quotient = np.floor(np.divide(position, step, dtype=np.float64))
    return np.clip(quotient, 0, LEVELS - 1).astype(np.float32)


def _norm(begin: Float32, end: Float32, density: Float32) -> Float32:
    """density * integral of x**2 from ``begin`` to ``end``, multiplied in PyTorch's order."""
    cubes = end * end * end - begin * begin * begin
    return np.asarray(density * (cubes / np.float32(3)), np.float32)
