"""Where the buffers of a plan lie in its arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """A buffer of ``bytes`` that is needed from step ``first`` to step ``last``, both included."""

    bytes: int
    first: int
    last: int

    def meets(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def place(lives: Sequence[Life]) -> tuple[list[int], int]:
    """An offset for each buffer, so that no two that live at once overlap, and the size of the arena.

    The largest first, each at the lowest place that is free for as long as it lives (greedy by size: Pisarchyk and Lee,
    Efficient memory management for deep neural net inference, 2020). Offsets are multiples of 64.
    """
    offsets = [0] * len(lives)
    placed: list[int] = []
    for index in sorted(range(len(lives)), key=lambda i: (-lives[i].bytes, lives[i].first, i)):
        neighbours = sorted((offsets[i], lives[i].bytes) for i in placed if lives[i].meets(lives[index]))
        offsets[index] = _lowest_gap(neighbours, lives[index].bytes)
        placed.append(index)
    ends = (offset + life.bytes for offset, life in zip(offsets, lives, strict=True))
    return offsets, _aligned(max(ends, default=0))


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The first offset with ``size`` free bytes behind it; ``taken`` holds (offset, bytes) by offset."""
    start = 0
    for offset, used in taken:
        if start + size <= offset:
            break
        start = max(start, _aligned(offset + used))
    return start


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
