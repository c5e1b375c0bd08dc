"""The straight line from a recipe to a quantized model and its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from qtool import zoo
from qtool.analysis.advice import Advice
from qtool.analysis.bench import profile_operators
from qtool.analysis.compare import compare
from qtool.analysis.evaluate import EngineOptions, against_first, measure_accuracy
from qtool.analysis.latency import random_feeds, time_interleaved
from qtool.analysis.metrics import find_metric
from qtool.engine.lowering.groups import JOIN
from qtool.engine.session import Session
from qtool.errors import DataError, ModelError, RecipeError
from qtool.frontends.onnx import import_onnx
from qtool.frontends.pth import read_state_dict
from qtool.frontends.torch import load_pt2
from qtool.ir import Array, Graph
from qtool.ir.files import atomic_write, check_writable
from qtool.ir.npz import file_bytes, load, save
from qtool.ops.check import check_types
from qtool.passes import simplify
from qtool.quantize.calibrate import Calibrated, calibrate
from qtool.quantize.convert import convert
from qtool.quantize.data import Dataset, Fingerprint, open_data
from qtool.quantize.data_state import Stream
from qtool.quantize.prepare import Prepared, PrepareOptions, prepare
from qtool.recipe.schema import ZOO, Mode, Recipe, ZooModel
from qtool.report.build import Measured, build_report
from qtool.report.provenance import provenance_of
from qtool.report.text import report_json
from qtool.report.types import FLOAT_OUTPUTS, LABELS, Accuracy, Latency, Report, Size

Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for a stage with a total; gives the function that is told how much is done."""

PROFILE_ROUNDS = 3
RATES, MUCH_LOST = ("top1", "top5"), 0.01
"""A loss of accuracy that is looked into: a point of a rate."""
COMPARED = (8, 2)
"""Samples a batch, and batches, that are compared for that."""


def load_model(spec: str | os.PathLike[str] | ZooModel, weights: Path | None = None) -> Graph:
    """The graph of a file, or of ``zoo:NAME`` with the state dict ``weights``, else random ones of seed 0.

    ModelError for anything else.
    """
    if isinstance(spec, ZooModel):
        state = None if spec.weights is None else read_state_dict(spec.weights)
        return zoo.build(spec.name, state)
    text = os.fspath(spec)
    if text.startswith(ZOO):
        return load_model(ZooModel(text[len(ZOO) :], weights))
    if weights is not None:
        raise ModelError(f"{text}: {weights} is for a model of the zoo, such as zoo:resnet18")
    if text.endswith(".onnx"):
        return simplify(import_onnx(text))
    if text.endswith(".pt2"):
        return simplify(load_pt2(text))
    graph = load(text)
    try:
        check_types(graph)
    except ModelError as error:
        raise ModelError(f"{text}: {error}") from error
    return graph


def quantize_recipe(recipe: Recipe, stage: Stage, engine: EngineOptions = EngineOptions()) -> Report:
    """Loads, fuses, prepares, calibrates, converts, evaluates and saves as the recipe says.

    Data and outputs are opened or tried before the long work starts, and the quantized model is written last, once
    everything has been measured: an error or an interruption before leaves nothing behind. The recipe says with how
    many threads latency is measured.
    """
    checked = check_recipe(recipe)
    calibrated, data_hash = _calibrate(checked, stage, engine)
    quantized = convert(calibrated, debug=recipe.debug, meta=provenance_of(recipe, calibrated, data_hash))
    graphs = (checked.graph, quantized)
    size = Size(_float_bytes(recipe, checked.graph), file_bytes(quantized))
    accuracy = _accuracy(recipe, graphs, checked.evaluation, stage, engine)
    latency, kernels = _latency(recipe, graphs, stage, engine)
    advice = _advice(recipe, graphs, accuracy, stage, engine)
    measured = Measured(size, accuracy, latency, kernels, advice)
    report = build_report(recipe, calibrated, quantized, measured)
    save(quantized, recipe.output)
    if recipe.report_json is not None:
        write_report(report, recipe.report_json)
    return report


@dataclass(frozen=True)
class Checked:
    """All that can be known of a recipe without running its model."""

    graph: Graph
    prepared: Prepared
    calibration: Dataset | None
    evaluation: Dataset | None


def check_recipe(recipe: Recipe) -> Checked:
    """Loads the model, opens the data, applies the rules, and asks whether the outputs can be written."""
    if recipe.mode is Mode.QAT:
        raise RecipeError("mode: qat is not available in this version; expected static or dynamic")
    _check_outputs(recipe)
    graph = load_model(recipe.model)
    if graph.is_quantized:
        raise ModelError(f"{recipe.model} is quantized already (backend {graph.backend}); give the float model")
    prepared = prepare(graph, recipe.rules, PrepareOptions(recipe.mode, recipe.backend, recipe.fuse, recipe.stubs))
    calibration, evaluation = (
        open_data(config, graph) if config is not None else None for config in (recipe.calibration, recipe.evaluation)
    )
    if evaluation is not None and recipe.evaluation is not None and find_metric(recipe.evaluation.metric).labels:
        evaluation.require_labels(recipe.evaluation.metric)
    return Checked(graph, prepared, calibration, evaluation)


def _check_outputs(recipe: Recipe) -> None:
    """RecipeError where a result would overwrite what the recipe reads, OutputError where one cannot be written."""
    data = [config.data for config in (recipe.calibration, recipe.evaluation) if config is not None]
    read = {os.path.realpath(path) for path in (recipe.path, recipe.model_file, *data) if path is not None}
    for key, path in (("output", recipe.output), ("report.json", recipe.report_json)):
        if path is None:
            continue
        if os.path.realpath(path) in read:
            raise RecipeError(f"{recipe.path}: {key}: {path} is read by this recipe and would be overwritten")
        read.add(os.path.realpath(path))
        check_writable(path)


def write_report(report: Report, path: Path) -> None:
    """The report as a JSON file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(report_json(report).encode())


def _calibrate(checked: Checked, stage: Stage, engine: EngineOptions) -> tuple[Calibrated, str]:
    """Runs calibration; gives the hash of the data that was used ("" where nothing is observed)."""
    if not checked.prepared.needs_data:
        return calibrate(checked.prepared, ()), ""
    data, hashed = checked.calibration, Fingerprint()
    if data is None:
        raise DataError("static quantization needs calibration data: add 'calibration: {data: FILE}' to the recipe")

    def batches() -> Iterator[Mapping[str, Array]]:
        for feeds in data.feeds():
            hashed.update(data.read_of(feeds))
            yield feeds

    with stage("calibrate", data.samples) as progress:
        stream = Stream(batches(), data.carry)
        calibrated = calibrate(checked.prepared, stream, threads=engine.threads, isa=engine.isa, progress=progress)
    return calibrated, hashed.hexdigest()


def _float_bytes(recipe: Recipe, graph: Graph) -> int:
    """The size of the float model's file; of one that is not a file of ours, as if it were."""
    if isinstance(recipe.model, Path) and recipe.model.suffix == ".npz" and recipe.model.is_file():
        return recipe.model.stat().st_size
    return file_bytes(graph)


def _accuracy(
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


def _advice(
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


def _latency(
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
