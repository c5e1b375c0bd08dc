"""Sources made of others: several one after another, and some samples of one in an order of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array
from qtool.quantize.data_sources import Cursor, PackedSource, Source, spooled
from qtool.recipe.schema import DataConfig

Numbers = range | Array
"""Which samples of a source: a range, or int64 numbers in any order."""


@dataclass(frozen=True)
class JoinedSource:
    """Several sources one after another, with samples of one shape and type. Only one file is open at a time."""

    parts: tuple[Source, ...]

    @property
    def where(self) -> str:
        return self.parts[0].where + (f" and {len(self.parts) - 1} more files" if len(self.parts) > 1 else "")

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def open(self) -> Cursor:
        return _JoinedCursor(self.parts)


def joined(parts: Sequence[Source]) -> Source:
    """The parts as one source; DataError that names the first part which differs from the one before it."""
    for part in parts:
        if not part.shape:
            raise DataError(f"{part.where} is a single number; expected an array of samples")
        if (part.dtype, part.shape[1:]) != (parts[0].dtype, parts[0].shape[1:]):
            raise DataError(
                f"{part.where} has samples of {part.dtype.name} {part.shape[1:]}; "
                f"expected {parts[0].dtype.name} {parts[0].shape[1:]} as in {parts[0].where}"
            )
    return parts[0] if len(parts) == 1 else JoinedSource(tuple(parts))


def starts_of(source: Source, numbers: Numbers) -> tuple[int, ...]:
    """The places among ``numbers`` at which they or a file begin. DataError where they have an order of their own."""
    if not isinstance(numbers, range):
        raise DataError(f"{source.where}: 'carry' needs the samples in their order; leave 'shuffle' out")
    parts = source.parts if isinstance(source, JoinedSource) else ()
    starts = accumulate(part.shape[0] for part in parts[:-1])
    return (0, *(start - numbers.start for start in starts if start in numbers[1:]))


class _JoinedCursor:
    def __init__(self, parts: tuple[Source, ...]) -> None:
        self._parts = parts
        self._index = 0
        self._left = parts[0].shape[0]
        self._cursor = parts[0].open()
        self._spooled: Array | None = None

    def take(self, count: int) -> Array:
        self._skip_finished_parts()
        if count <= self._left:
            self._left -= count
            return self._cursor.take(count)
        # Copied part by part, as each array that is kept would keep its file open.
        part = self._parts[0]
        taken = np.empty((count, *part.shape[1:]), part.dtype)
        filled = 0
        while filled < count:
            self._skip_finished_parts()
            step = min(count - filled, self._left)
            taken[filled : filled + step] = self._cursor.take(step)
            self._left -= step
            filled += step
        return taken

    def skip(self, count: int) -> None:
        while count:
            self._skip_finished_parts()
            step = min(count, self._left)
            self._cursor.skip(step)
            self._left -= step
            count -= step

    def pick(self, numbers: Array) -> Array:
        if any(isinstance(part, PackedSource) for part in self._parts):
            # Each of them would be decompressed again for every batch.
            self._spooled = spooled(JoinedSource(self._parts)) if self._spooled is None else self._spooled
            return np.ascontiguousarray(self._spooled[numbers])
        ends = np.cumsum([part.shape[0] for part in self._parts])
        owners = np.searchsorted(ends, numbers, side="right")
        picked = np.empty((len(numbers), *self._parts[0].shape[1:]), self._parts[0].dtype)
        for owner in np.unique(owners):
            part, mine = self._parts[owner], owners == owner
            with closing(part.open()) as cursor:
                picked[mine] = cursor.pick(numbers[mine] - (ends[owner] - part.shape[0]))
        return picked

    def _skip_finished_parts(self) -> None:
        while self._left == 0:
            self._cursor.close()
            self._index += 1
            self._left = self._parts[self._index].shape[0]
            self._cursor = self._parts[self._index].open()

    def close(self) -> None:
        self._spooled = None
        self._cursor.close()


# --------------------------------------------------------------------------------------------------------------- chosen


def chosen_numbers(config: DataConfig, total: int) -> Numbers:
    """The samples that ``shuffle`` and ``samples`` ask for, of ``total`` that there are, in their order.

    A seed gives the same order on every machine. DataError where the range reaches beyond the data.
    """
    start, stop = config.samples or (0, None)
    last = total if stop is None else stop
    if last > total or start >= last:
        spelt = f"[{start}, {'null' if stop is None else stop}]"
        raise DataError(f"{config.data}: 'samples: {spelt}' reaches beyond the {total} samples that there are")
    if config.shuffle is None:
        return range(start, last)
    # Of the raw bits NumPy promises that they stay as they are, and of no distribution drawn from them.
    keys = np.random.PCG64(config.shuffle).random_raw(total)
    return np.argsort(keys, kind="stable")[start:last].astype(np.int64)


@dataclass(frozen=True, eq=False)
class ChosenSource:
    """Samples of a source, by their numbers."""

    source: Source
    numbers: Numbers

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.numbers), *self.source.shape[1:])

    def open(self) -> Cursor:
        cursor = self.source.open()
        if isinstance(self.numbers, range):
            cursor.skip(self.numbers.start)
            return cursor
        return _ChosenCursor(cursor, self.numbers)


class _ChosenCursor:
    def __init__(self, cursor: Cursor, numbers: Array) -> None:
        self._cursor, self._numbers, self._at = cursor, numbers, 0

    def take(self, count: int) -> Array:
        self._at += count
        return self._cursor.pick(self._numbers[self._at - count : self._at])

    def skip(self, count: int) -> None:
        self._at += count

    def pick(self, numbers: Array) -> Array:
        return self._cursor.pick(self._numbers[numbers])

    def close(self) -> None:
        self._cursor.close()
