"""Accuracy and latency of a float model and its quantized one, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qtool.analysis.latency import Timing, random_feeds, time_interleaved
from qtool.engine.session import Session
from qtool.ir import Array, Graph
from qtool.passes import optimize


@dataclass(frozen=True)
class EngineOptions:
    """How sessions run: number of threads, and instruction set (None is the best there is)."""

    threads: int = 1
    isa: str | None = None

    def session(self, graph: Graph) -> Session:
        """A session of the graph with every fusion that is free."""
        return Session(optimize(graph), threads=self.threads, isa=self.isa)


def time_pair(
    a: Session,
    b: Session,
    feeds: Mapping[str, Array],
    *,
    seconds: float,
    warmup: int,
    progress: Callable[[float], None] | None = None,
) -> tuple[Timing, Timing]:
    """Both sessions on the same input, interleaved round by round."""
    first, second = time_interleaved(
        [lambda: a.run(feeds), lambda: b.run(feeds)], seconds=seconds, warmup=warmup, progress=progress
    )
    return first, second


__all__ = ["EngineOptions", "random_feeds", "time_pair"]
