"""The straight line from a recipe to a quantized model and its report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qtool import zoo
from qtool.analysis.evaluate import EngineOptions, measure_accuracy
from qtool.analysis.latency import random_feeds, time_interleaved
from qtool.errors import DataError, ModelError, RecipeError
from qtool.ir import Array, Graph, Json
from qtool.ir.files import atomic_write
from qtool.ir.npz import load, save
from qtool.quantize.calibrate import Calibrated, calibrate
from qtool.quantize.convert import convert
from qtool.quantize.data import Dataset, Fingerprint, open_data
from qtool.quantize.prepare import Prepared, PrepareOptions, prepare
from qtool.recipe.schema import Mode, Recipe
from qtool.report.build import Measured, build_report
from qtool.report.text import report_json
from qtool.report.types import Accuracy, Latency, Report, Size

Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for a stage with a total; gives the function that is told how much is done."""

ZOO = "zoo:"


def load_model(spec: str | os.PathLike[str]) -> Graph:
    """The graph of a file, or of ``zoo:NAME`` (random weights, seed 0). ModelError for anything else."""
    text = os.fspath(spec)
    if text.startswith(ZOO):
        return zoo.build(text[len(ZOO) :])
    return load(text)


def quantize_recipe(recipe: Recipe, stage: Stage, engine: EngineOptions = EngineOptions()) -> Report:
    """Loads, fuses, prepares, calibrates, converts, evaluates and saves as the recipe says.

    The quantized model is written last, once everything has been measured: an error or an interruption before leaves
    nothing behind. The recipe says with how many threads latency is measured.
    """
    graph = load_model(recipe.model)
    prepared = prepare(_float_only(graph, recipe), recipe.rules, options_of(recipe))
    data = open_data(recipe.evaluation, graph) if recipe.evaluation else None
    calibrated, data_hash = _calibrate(recipe, prepared, stage, engine)
    quantized = convert(calibrated, debug=recipe.debug, meta=_provenance(recipe, calibrated, data_hash))
    measured = Measured(
        _sizes(recipe, graph, quantized),
        _accuracy(recipe, (graph, quantized), data, stage, engine),
        _latency(recipe, (graph, quantized), stage, engine),
    )
    report = build_report(recipe, calibrated, quantized, measured)
    save(quantized, recipe.output)
    if recipe.report_json is not None:
        write_report(report, recipe.report_json)
    return report


def check_recipe(recipe: Recipe) -> Prepared:
    """Everything that can be known without running the model: rules, layers, and that the data fit."""
    graph = load_model(recipe.model)
    for config in (recipe.calibration, recipe.evaluation):
        if config is not None:
            open_data(config, graph)
    return prepare(_float_only(graph, recipe), recipe.rules, options_of(recipe))


def options_of(recipe: Recipe) -> PrepareOptions:
    """What of a recipe ``prepare`` uses besides the rules."""
    if recipe.mode is Mode.QAT:
        raise RecipeError("mode: qat is not available in this version; expected static or dynamic")
    return PrepareOptions(recipe.mode, recipe.backend, recipe.fuse, recipe.stubs)


def write_report(report: Report, path: Path) -> None:
    """The report as a JSON file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(report_json(report).encode())


def _float_only(graph: Graph, recipe: Recipe) -> Graph:
    if graph.is_quantized:
        raise ModelError(f"{recipe.model} is quantized already (backend {graph.backend}); give the float model")
    return graph


def _calibrate(recipe: Recipe, prepared: Prepared, stage: Stage, engine: EngineOptions) -> tuple[Calibrated, str]:
    """Runs calibration; gives the hash of the data that was used ("" in dynamic mode)."""
    if recipe.mode is Mode.DYNAMIC:
        return calibrate(prepared, ()), ""
    if recipe.calibration is None:
        raise DataError("static quantization needs calibration data: add 'calibration: {data: FILE}' to the recipe")
    data, hashed = open_data(recipe.calibration, prepared.graph), Fingerprint()

    def batches() -> Iterator[dict[str, Array]]:
        for feeds in data.feeds():
            hashed.update(feeds)
            yield feeds

    with stage("calibrate", data.samples) as progress:
        calibrated = calibrate(prepared, batches(), threads=engine.threads, isa=engine.isa, progress=progress)
    return calibrated, hashed.hexdigest()


def _provenance(recipe: Recipe, calibrated: Calibrated, data_hash: str) -> Mapping[str, Json]:
    try:
        installed = version("qtool")
    except PackageNotFoundError:  # a source tree that is not installed
        installed = "0+source"
    resolved: Json = dict(recipe.resolved)
    used: Json = {"sha256": data_hash, "samples": calibrated.samples} if data_hash else None
    return {"qtool": installed, "recipe": resolved, "calibration": used}


def _sizes(recipe: Recipe, graph: Graph, quantized: Graph) -> Size:
    """Sizes of both models as files; a float model that is not a file of ours is measured as if it were."""
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        path = Path(folder) / "model.npz"
        save(quantized, path)
        quant_bytes = path.stat().st_size
        if recipe.model.suffix == ".npz" and recipe.model.is_file():
            return Size(recipe.model.stat().st_size, quant_bytes)
        save(graph, path)
        return Size(path.stat().st_size, quant_bytes)


def _accuracy(
    recipe: Recipe, graphs: tuple[Graph, Graph], data: Dataset | None, stage: Stage, engine: EngineOptions
) -> Accuracy | None:
    if data is None or recipe.evaluation is None:
        return None
    sessions = [engine.session(graph) for graph in graphs]
    with stage("evaluate", data.samples) as progress:
        real, quant = measure_accuracy(sessions, data, recipe.evaluation.metric, progress)
    return Accuracy(real.name, real.value, quant.value, real.n, real.higher_is_better)


def _latency(recipe: Recipe, graphs: tuple[Graph, Graph], stage: Stage, engine: EngineOptions) -> Latency | None:
    if recipe.latency is None:
        return None
    config = recipe.latency
    options = replace(engine, threads=config.threads)
    real, quant = (options.session(graph) for graph in graphs)
    feeds = random_feeds(graphs[0], config.batch)
    with stage("time", 100) as progress:
        a, b = time_interleaved(
            [lambda: real.run(feeds), lambda: quant.run(feeds)],
            seconds=config.seconds,
            warmup=config.warmup,
            progress=lambda share: progress(round(100 * share)),
        )
    return Latency(
        float_ms=1e3 * a.median,
        quant_ms=1e3 * b.median,
        float_min_ms=1e3 * a.minimum,
        quant_min_ms=1e3 * b.minimum,
        threads=config.threads,
        batch=config.batch,
        isa=quant.isa,
        runs=len(a.seconds),
    )
