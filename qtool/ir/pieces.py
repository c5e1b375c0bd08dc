"""Large arrays worked on piece by piece, so that temporary copies take a small part of their memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 16
"""Elements of a piece: few enough that its copies stay in the cache."""


def row_pieces(shape: Sequence[int]) -> Iterator[slice]:
    """Stretches of the first axis of about ``PIECE`` elements, and of one row at least; an empty one for none."""
    step = max(1, PIECE // max(1, math.prod(shape[1:])))
    for start in range(0, max(1, shape[0]), step):
        yield slice(start, min(start + step, shape[0]))


def all_finite(array: NDArray[Any]) -> bool:
    """Whether there is no NaN and no infinity in an array."""
    rows = array.reshape(1) if array.ndim == 0 else array
    return all(bool(np.isfinite(rows[piece]).all()) for piece in row_pieces(rows.shape))
