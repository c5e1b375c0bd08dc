"""What is measured of both models: size, accuracy, latency, and what to change where much is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qtool.analysis.advice import Advice
from qtool.analysis.bench import profile_operators
from qtool.analysis.compare import compare
from qtool.analysis.evaluate import EngineOptions, against_first, measure_accuracy
from qtool.analysis.latency import random_feeds, time_interleaved
from qtool.engine.lowering.groups import JOIN
from qtool.engine.session import Session
from qtool.ir import Array, Graph
from qtool.ir.npz import file_bytes
from qtool.pipeline.stages import Stage
from qtool.quantize.data import Dataset, open_data
from qtool.recipe.schema import Recipe
from qtool.report.types import FLOAT_OUTPUTS, LABELS, Accuracy, Latency

PROFILE_ROUNDS = 3
RATES, MUCH_LOST = ("top1", "top5"), 0.01
"""A loss of accuracy that is looked into: a point of a rate."""
COMPARED = (8, 2)
"""Samples a batch, and batches, that are compared for that."""


def measure_float_bytes(recipe: Recipe, graph: Graph) -> int:
    """The size of the float model's file; of one that is not a file of ours, as if it were."""
    if isinstance(recipe.model, Path) and recipe.model.suffix == ".npz" and recipe.model.is_file():
        return recipe.model.stat().st_size
    return file_bytes(graph)


def measure_accuracies(
    recipe: Recipe, graphs: tuple[Graph, Graph], data: Dataset | None, stage: Stage, engine: EngineOptions
) -> Accuracy | None:
    if data is None or recipe.evaluation is None:
        return None
    sessions = [engine.session(graph) for graph in graphs]
    with stage("evaluate", data.samples) as progress:
        real, quant = measure_accuracy(sessions, data, recipe.evaluation.metric, progress)
    against = FLOAT_OUTPUTS if against_first(data, recipe.evaluation.metric) else LABELS
    values = (real.value, quant.value, real.n, real.higher_is_better)
    return Accuracy(real.name, *values, against, real.unit, quant.outputs)


def find_advice(
    recipe: Recipe, graphs: tuple[Graph, Graph], accuracy: Accuracy | None, stage: Stage, engine: EngineOptions
) -> tuple[Advice, ...]:
    """Where much accuracy is lost: which layers lose it, and what mends them."""
    config = recipe.calibration or recipe.evaluation
    if accuracy is None or config is None or accuracy.metric not in RATES or accuracy.drop <= MUCH_LOST:
        return ()
    data = open_data(config.limited(*COMPARED), graphs[0])
    with stage("compare", data.samples) as progress:
        found = compare(*graphs, data.feeds(), threads=engine.threads, isa=engine.isa, progress=progress)
    return found.advice


def measure_latency(
    recipe: Recipe, graphs: tuple[Graph, Graph], stage: Stage, engine: EngineOptions
) -> tuple[Latency | None, Mapping[str, str]]:
    """Times of both models, and the kernel that each node of the quantized one runs on."""
    if recipe.latency is None:
        return None, {}
    config = recipe.latency
    real, quant = (replace(engine, threads=config.threads).session(graph) for graph in graphs)
    feeds = _timed_feeds(recipe, graphs[0], config.batch)
    with stage("time", 100) as progress:
        a, b = time_interleaved(
            [lambda: real.run(feeds), lambda: quant.run(feeds)],
            seconds=config.seconds,
            warmup=config.warmup,
            progress=lambda share: progress(round(100 * share)),
        )
    latency = Latency(
        float_ms=1e3 * a.median,
        quant_ms=1e3 * b.median,
        float_min_ms=1e3 * a.minimum,
        quant_min_ms=1e3 * b.minimum,
        threads=config.threads,
        batch=config.batch,
        isa=quant.isa or "NumPy",
        runs=len(a.seconds),
    )
    return latency, _kernels(quant, feeds)


def _timed_feeds(recipe: Recipe, graph: Graph, batch: int) -> Mapping[str, Array]:
    """Random inputs, as times do not depend on numbers; data where some inputs are set, which may decide what runs."""
    for config in (recipe.evaluation, recipe.calibration):
        if config is not None and (config.constants or config.carry):
            return next(iter(open_data(replace(config, batch_size=batch, batches=1), graph).feeds()))
    return random_feeds(graph, batch)


def _kernels(session: Session, feeds: Mapping[str, Array]) -> dict[str, str]:
    rows = profile_operators(session, feeds, PROFILE_ROUNDS)
    return {node: row.kernel for row in rows for node in row.layer.split(JOIN)}
