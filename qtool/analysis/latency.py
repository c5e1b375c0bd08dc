"""Times sessions against one another: interleaved round by round, so that a noisy machine is noisy for all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Dim, Graph

LEAST_ROUNDS = 5
SETTLING = 0.01
"""Seconds after which the threads of another engine, that go on looking for work for a while, have gone to sleep."""
OTHER_SIZE = 128
"""For a size of an input, not the batch, that is only known at run time: tokens, or pixels of a side."""


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted run of one contender, in order."""

    seconds: tuple[float, ...]

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def p90(self) -> float:
        return float(np.percentile(self.seconds, 90))


@dataclass(frozen=True)
class Ratio:
    """One contender's time over another's: that of the least times, and percentiles of the ratios round by round.

    The two of a round ran right after one another, so what slows the machine for a while is in both.
    """

    minimum: float
    median: float
    p10: float
    p90: float

    @staticmethod
    def of(own: Timing, other: Timing) -> Ratio:
        """``own`` over ``other``, which were timed in the same rounds."""
        rounds = np.array(own.seconds) / np.array(other.seconds)
        median, p10, p90 = (float(n) for n in np.percentile(rounds, (50, 10, 90)))
        return Ratio(own.minimum / other.minimum, median, p10, p90)


def time_interleaved(
    runs: Sequence[Callable[[], object]],
    *,
    seconds: float = 1.0,
    warmup: int = 5,
    settling: float = 0.0,
    progress: Callable[[float], None] | None = None,
) -> tuple[Timing, ...]:
    """Runs each contender once a round until ``seconds`` per contender have passed, and for at least five rounds.

    ``warmup`` rounds before are not counted. Before each run are ``settling`` seconds in which only this thread does
    anything, which stays awake. ``progress`` gets the share of the time that has passed.
    """
    for run in [run for _ in range(warmup) for run in runs]:
        run()
    samples: list[list[float]] = [[] for _ in runs]
    begin, budget = time.perf_counter(), seconds * len(runs)
    while (spent := time.perf_counter() - begin) < budget or len(samples[0]) < LEAST_ROUNDS:
        for run, taken in zip(runs, samples, strict=True):
            if settling:
                _wait(settling)
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        if progress is not None:
            progress(min(1.0, spent / budget) if budget else 1.0)
    return tuple(Timing(tuple(taken)) for taken in samples)


def settling_time(threads: int) -> float:
    """Seconds between turns of several engines that run on so many threads each."""
    return SETTLING if threads > 1 else 0.0


def _wait(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


BATCH = "N"
"""What graphs call the size of their batch, on whichever axis it is."""


def random_feeds(graph: Graph, batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """One set of inputs: standard normal floats, zeros for other types, which are indices.

    A size called ``N``, a first size that is only known at run time, and others of the same name, are ``batch``; the
    rest of those are 128. DataError where a model takes batches of another size.
    """
    values = [graph.values[name] for name in graph.inputs]
    symbols = {BATCH, *(value.shape[0] for value in values if value.shape)}
    for value in values:
        first = value.shape[0] if value.shape and BATCH not in value.shape else batch
        if batch != 1 and isinstance(first, int) and first != batch:
            raise DataError(f"input '{value.name}' takes batches of exactly {first}; {batch} were asked for")
    shapes = {v.name: tuple(_size(dim, batch if dim in symbols else OTHER_SIZE) for dim in v.shape) for v in values}
    return random_arrays({value.name: np.empty(shapes[value.name], value.dtype.numpy) for value in values}, seed)


def random_arrays(like: Mapping[str, Array], seed: int = 0) -> dict[str, Array]:
    """As ``random_feeds``, of the shapes and element types of other arrays."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(array.shape, np.float32) if array.dtype == np.float32 else np.zeros_like(array)
        for name, array in like.items()
    }


def _size(dim: Dim, unknown: int) -> int:
    return dim if isinstance(dim, int) else unknown
