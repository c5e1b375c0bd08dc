"""The straight line from a recipe to a quantized model and its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qtool.analysis.evaluate import EngineOptions
from qtool.errors import DataError, RecipeError
from qtool.ir import Array
from qtool.ir.npz import file_bytes, save
from qtool.pipeline.check import Checked, check_recipe
from qtool.pipeline.measure import find_advice, measure_accuracies, measure_float_bytes, measure_latency
from qtool.pipeline.models import load_model
from qtool.pipeline.stages import Stage
from qtool.pipeline.train import TrainingOptions, outcome, train, train_recipe
from qtool.quantize.calibrate import Calibrated, calibrate
from qtool.quantize.convert import convert
from qtool.quantize.data import Fingerprint
from qtool.quantize.data_state import Stream
from qtool.recipe.schema import Mode, Recipe
from qtool.report.build import Measured, build_report
from qtool.report.provenance import provenance_of
from qtool.report.text import write_report
from qtool.report.types import Report, Size

__all__ = [
    "Checked",
    "Stage",
    "TrainingOptions",
    "check_recipe",
    "load_model",
    "quantize_recipe",
    "train_recipe",
    "write_report",
]


def quantize_recipe(
    recipe: Recipe, stage: Stage, engine: EngineOptions = EngineOptions(), training: TrainingOptions = TrainingOptions()
) -> Report:
    """Loads, fuses, prepares, calibrates, converts, evaluates and saves as the recipe says.

    Data and outputs are opened or tried before the long work starts, and the quantized model is written last, once
    everything has been measured: an error or an interruption before leaves nothing behind. The recipe says with how
    many threads latency is measured.
    """
    if recipe.mode is Mode.FLOAT:
        raise RecipeError(f"{recipe.path}: mode float trains and does not quantize; use qtool train")
    checked = check_recipe(recipe, engine)
    trained = train(checked, recipe, stage, engine, training)
    calibrated, data_hash = trained.calibrated if trained else _calibrate(checked, stage, engine)
    quantized = convert(calibrated, debug=recipe.debug, meta=provenance_of(recipe, calibrated, data_hash))
    graphs = (trained.graph if trained and recipe.head else checked.graph, quantized)
    size = Size(measure_float_bytes(recipe, checked.graph), file_bytes(quantized))
    accuracy = measure_accuracies(recipe, graphs, checked.evaluation, stage, engine)
    latency, kernels = measure_latency(recipe, graphs, stage, engine)
    advice = find_advice(recipe, graphs, accuracy, stage, engine)
    result = outcome(trained, quantized, checked, stage, engine) if trained else None
    measured = Measured(size, accuracy, latency, kernels, advice, result)
    report = build_report(recipe, calibrated, quantized, measured)
    save(quantized, recipe.output)
    if recipe.report_json is not None:
        write_report(report, recipe.report_json)
    return report


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
