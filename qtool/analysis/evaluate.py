"""Accuracy of models, side by side over the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.analysis.metrics import MetricResult, MetricSpec, make_metric
from qtool.engine.session import Session
from qtool.errors import DataError
from qtool.ir import Array, Graph
from qtool.passes import optimize
from qtool.quantize.data import Dataset, open_data
from qtool.recipe.schema import DataConfig


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
    """The metric of the first output of each session, or of input - output for a residual, over the same batches.

    Targets are the data's labels. Where a metric compares arrays and the labels are class numbers, or missing, the
    targets are the outputs of the first session. DataError where labels are needed and missing.
    """
    meters = [make_metric(metric) for _ in sessions]
    spec = meters[0].spec
    if spec.labels:
        data.require_labels(metric)
    elif len(sessions) == 1 and not _has_targets(data):
        raise DataError(
            f"{data.path}: {metric} compares with float targets, of which there are none, or with a first model"
        )
    done = 0
    for feeds, labels in data.batches():
        outputs = [_prediction(session, feeds, data.residual) for session in sessions]
        targets = _targets(spec, outputs[0], labels)
        for meter, output in zip(meters, outputs, strict=True):
            meter.add(output, targets)
        done += len(outputs[0])
        if progress is not None:
            progress(done)
    return tuple(meter.result() for meter in meters)


def _has_targets(data: Dataset) -> bool:
    return data.labels is not None and data.labels.dtype.kind == "f"


def _targets(spec: MetricSpec, first: Array, labels: Array | None) -> Array:
    """What the outputs of a batch are compared with."""
    if labels is None or (not spec.labels and np.issubdtype(labels.dtype, np.integer)):
        return first
    return labels


def _prediction(session: Session, feeds: Mapping[str, Array], residual: bool) -> Array:
    """The first output; where it is a residual, the first input without it."""
    output = session.run(feeds)[session.graph.outputs[0]]
    if not residual:
        return output
    x = feeds[session.graph.inputs[0]]
    if x.shape != output.shape:
        raise DataError(
            f"residual: the model's input has shape {x.shape} and its output {output.shape}; expected the same"
        )
    return np.subtract(x, output)


def open_for_all(config: DataConfig, graphs: Sequence[Graph]) -> Dataset:
    """Opens data that several models are to be run on; DataError where one of them takes other inputs."""
    opened = [open_data(config, graph) for graph in graphs]
    for graph, data in zip(graphs, opened, strict=True):
        if data.columns.keys() != opened[0].columns.keys() or data.batch_size != opened[0].batch_size:
            raise DataError(
                f"the models take different inputs: '{graphs[0].name}' has {', '.join(graphs[0].inputs)} in batches of"
                f" {opened[0].batch_size}, '{graph.name}' {', '.join(graph.inputs)} in batches of {data.batch_size}"
            )
    return opened[0]
