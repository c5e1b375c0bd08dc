"""Random numbers that are the same on every machine and for ever, each use of them a stream of its own.

Of the raw bits NumPy promises that they stay as they are, and of no distribution drawn from them. A stream is keyed by
the recipe's seed, its use, and where training is, so that one that is resumed goes on as if it had never stopped.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Use(enum.IntEnum):
    """Part of a key: what the numbers are for."""

    ORDER = 0
    AUGMENT = 1
    HEAD = 2


def raw(seed: int, use: Use, *place: int, count: int) -> NDArray[np.uint64]:
    """Random 64-bit numbers; ``place`` is such as (epoch, batch)."""
    return np.random.PCG64((seed, use, *place)).random_raw(count)


def uniform(seed: int, use: Use, *place: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), of 53 bits each."""
    return np.ldexp((raw(seed, use, *place, count=count) >> np.uint64(11)).astype(np.float64), -53)


def permutation(seed: int, use: Use, *place: int, count: int) -> NDArray[np.int64]:
    """The numbers from 0 to ``count`` - 1 in a random order."""
    return np.argsort(raw(seed, use, *place, count=count), kind="stable").astype(np.int64)
