"""All that can be known of a recipe before any long work starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qtool.analysis.evaluate import EngineOptions
from qtool.analysis.metrics import find_metric
from qtool.errors import ModelError, RecipeError
from qtool.ir import Graph
from qtool.ir.files import check_writable
from qtool.passes.equalize import equalize
from qtool.pipeline.models import load_model
from qtool.quantize.data import Dataset, open_data
from qtool.quantize.observation import Machine
from qtool.quantize.prepare import Prepared, PrepareOptions, prepare
from qtool.quantize.qat.model import QatModel
from qtool.quantize.qat.run import build_model
from qtool.recipe.schema import DataConfig, Recipe


@dataclass(frozen=True)
class Checked:
    """All that can be known of a recipe without running its model."""

    graph: Graph
    prepared: Prepared
    calibration: Dataset | None
    evaluation: Dataset | None
    validation: Dataset | None = None
    model: QatModel | None = None
    """Where the recipe trains; the data are for its graph, which a new head has changed."""


def check_recipe(recipe: Recipe, engine: EngineOptions = EngineOptions()) -> Checked:
    """Loads the model, opens the data, applies the rules, and asks whether the outputs can be written."""
    _check_outputs(recipe)
    graph = load_model(recipe.model)
    if graph.is_quantized:
        raise ModelError(f"{recipe.model} is quantized already (backend {graph.backend}); give the float model")
    if recipe.mode.trains:
        model = build_model(graph, recipe, Machine(engine.threads, engine.isa))
        prepared, fed = model.source.prepared, model.source.float_graph
    else:
        options = PrepareOptions(recipe.mode, recipe.backend, recipe.fuse, recipe.stubs)
        source = equalize(graph) if recipe.equalize else graph
        model, prepared, fed = None, prepare(source, recipe.rules, options), graph
    calibration, evaluation, validation = (
        _opened(config, fed) for config in (recipe.calibration, recipe.evaluation, recipe.validation)
    )
    return Checked(graph, prepared, calibration, evaluation, validation, model)


def _opened(config: DataConfig | None, graph: Graph) -> Dataset | None:
    """The data of a block; DataError where its metric needs labels and there are none."""
    if config is None:
        return None
    data = open_data(config, graph)
    if config.metric and find_metric(config.metric).labels:
        data.require_labels(config.metric)
    return data


def _check_outputs(recipe: Recipe) -> None:
    """RecipeError where a result would overwrite what the recipe reads, OutputError where one cannot be written."""
    train = recipe.train
    blocks = (recipe.calibration, recipe.evaluation, recipe.validation, train.data if train is not None else None)
    data = [config.data for config in blocks if config is not None]
    read = {os.path.realpath(path) for path in (recipe.path, recipe.model_file, *data) if path is not None}
    checkpoint = train.checkpoint if train is not None else None
    outputs = (("output", recipe.output), ("report.json", recipe.report_json), ("train.checkpoint", checkpoint))
    for key, path in outputs:
        if path is None:
            continue
        if os.path.realpath(path) in read:
            raise RecipeError(f"{recipe.path}: {key}: {path} is read by this recipe and would be overwritten")
        read.add(os.path.realpath(path))
        check_writable(path)
