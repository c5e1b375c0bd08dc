"""Accuracy of models, side by side over the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtool.analysis.metrics import Metric, MetricResult, find_metric, make_metric
from qtool.engine.session import Session
from qtool.errors import DataError
from qtool.ir import Array, Graph
from qtool.passes import optimize
from qtool.quantize.data import Dataset, open_data
from qtool.quantize.data_state import State, run_step
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
    """The metric of each session over the same batches, of input - output for a residual. Each carries its own state.

    Targets are the data's labels, for the first of the outputs that the data block names. Where ``against_first`` holds
    they are the outputs of the first session; of several outputs the result is the worst one's. DataError where labels
    are needed and missing.
    """
    alone = against_first(data, metric)
    if alone and len(sessions) == 1:
        raise DataError(
            f"{data.path}: {metric} compares with float targets, of which there are none, or with a first model"
        )
    positions = [sessions[0].graph.outputs.index(name) for name in (data.outputs if alone else data.outputs[:1])]
    runs = [
        _Run(session, State(data.carry), [make_metric(metric) for _ in positions], data.residual)
        for session in sessions
    ]
    done = 0
    for batch, labels in data.batches():
        outputs = [run.outputs(batch, positions) for run in runs]
        for run, got in zip(runs, outputs, strict=True):
            for meter, output, first in zip(run.meters, got, outputs[0], strict=True):
                meter.add(output, first if alone or labels is None else labels)
        done += len(next(iter(batch.values())))
        if progress is not None:
            progress(done)
    return tuple(run.result(positions) for run in runs)


def against_first(data: Dataset, metric: str) -> bool:
    """Whether outputs are compared with those of the first model: the metric compares arrays, and there are no targets
    (class numbers are none). DataError where the metric needs labels and there are none."""
    if find_metric(metric).labels:
        data.require_labels(metric)
        return False
    return data.labels is None or data.labels.dtype.kind != "f"


@dataclass(frozen=True)
class _Run:
    """One of the models, with a meter for each output that is measured."""

    session: Session
    state: State
    meters: Sequence[Metric]
    residual: bool = False

    def outputs(self, batch: Mapping[str, Array], positions: Sequence[int]) -> list[Array]:
        """What is judged; of a residual, the first input without it."""
        graph, outputs = self.session.graph, run_step(self.session, self.state, batch)
        found = [outputs[graph.outputs[position]] for position in positions]
        if not self.residual:
            return found
        x = batch[graph.inputs[0]]
        for output in found:
            if x.shape != output.shape:
                raise DataError(
                    f"residual: the model's input has shape {x.shape} and its output {output.shape}; expected the same"
                )
        return [np.subtract(x, output) for output in found]

    def result(self, positions: Sequence[int]) -> MetricResult:
        """The worst of the outputs, with all of them by name."""
        results = [meter.result() for meter in self.meters]
        values = np.array([result.value for result in results])
        order = np.where(np.isnan(values), -np.inf, values if results[0].higher_is_better else -values)
        names = [self.session.graph.outputs[position] for position in positions]
        worst = results[int(order.argmin())]
        return replace(worst, outputs={name: result.value for name, result in zip(names, results, strict=True)})


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
