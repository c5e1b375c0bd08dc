"""Times sessions against one another: interleaved round by round, so that a noisy machine is noisy for all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, Dim, DType, Graph

LEAST_ROUNDS = 5


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


def time_interleaved(
    runs: Sequence[Callable[[], object]],
    *,
    seconds: float = 1.0,
    warmup: int = 5,
    progress: Callable[[float], None] | None = None,
) -> tuple[Timing, ...]:
    """Runs each contender once a round until ``seconds`` per contender have passed, and for at least five rounds.

    ``warmup`` rounds before are not counted. ``progress`` gets the share of the time that has passed.
    """
    for run in [run for _ in range(warmup) for run in runs]:
        run()
    samples: list[list[float]] = [[] for _ in runs]
    begin, budget = time.perf_counter(), seconds * len(runs)
    while (spent := time.perf_counter() - begin) < budget or len(samples[0]) < LEAST_ROUNDS:
        for run, taken in zip(runs, samples, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        if progress is not None:
            progress(min(1.0, spent / budget) if budget else 1.0)
    return tuple(Timing(tuple(taken)) for taken in samples)


def ratio_spread(a: Timing, b: Timing) -> tuple[float, float, float]:
    """10 %, 50 % and 90 % quantile of a / b, round by round."""
    ratios = np.array(a.seconds) / np.array(b.seconds)
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return float(low), float(middle), float(high)


def random_feeds(graph: Graph, batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """One set of inputs: standard normal floats, zeros for other types; every symbolic size counts as the batch."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for name in graph.inputs:
        value = graph.values[name]
        shape = tuple(_size(dim, batch) for dim in value.shape)
        if value.dtype is DType.FLOAT32:
            feeds[name] = rng.standard_normal(shape, np.float32)
        else:
            feeds[name] = np.zeros(shape, value.dtype.numpy)
    return feeds


def _size(dim: Dim, batch: int) -> int:
    return dim if isinstance(dim, int) else batch
