"""Accuracy and latency of models, side by side over the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qtool.analysis.metrics import MetricResult, make_metric
from qtool.engine.session import Session
from qtool.ir import Array, Graph
from qtool.passes import optimize
from qtool.quantize.data import Dataset


@dataclass(frozen=True)
class EngineOptions:
    """How sessions run: number of threads, and instruction set (None is the best there is)."""

    threads: int = 1
    isa: str | None = None

    def session(self, graph: Graph) -> Session:
        """A session of the graph, with every fusion that is free for a float graph."""
        return Session(optimize(graph), threads=self.threads, isa=self.isa)


def measure_accuracy(
    sessions: Sequence[Session], data: Dataset, metric: str, progress: Callable[[int], None] | None = None
) -> tuple[MetricResult, ...]:
    """The metric of the first output of each session, over the same batches.

    Targets are the data's labels; where there are none, and the metric compares arrays, those are the outputs of the
    first session. DataError where labels are needed and missing.
    """
    meters = [make_metric(metric) for _ in sessions]
    if meters[0].spec.labels:
        data.require_labels(metric)
    done = 0
    for feeds, labels in data.batches():
        outputs = [_first_output(session, feeds) for session in sessions]
        for meter, output in zip(meters, outputs, strict=True):
            meter.add(output, outputs[0] if labels is None else labels)
        done += len(outputs[0])
        if progress is not None:
            progress(done)
    return tuple(meter.result() for meter in meters)


def _first_output(session: Session, feeds: Mapping[str, Array]) -> Array:
    outputs = session.run(feeds)
    return outputs[session.graph.outputs[0]]
