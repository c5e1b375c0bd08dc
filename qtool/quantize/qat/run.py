"""A recipe's training from beginning to end: model, data, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qtool.errors import ModelError, RecipeError
from qtool.ir import Array, Graph, all_nodes
from qtool.passes.equalize import equalize
from qtool.quantize.observation import Machine
from qtool.quantize.prepare import PrepareOptions
from qtool.quantize.qat import snapshot
from qtool.quantize.qat.batches import TrainBatches
from qtool.quantize.qat.checkpoint import Checkpoint, check_settings, load_checkpoint, save_checkpoint, settings_of
from qtool.quantize.qat.head import replace_head
from qtool.quantize.qat.layers import Phase
from qtool.quantize.qat.model import ModelOptions, QatModel
from qtool.quantize.qat.native_operators import make_operators
from qtool.quantize.qat.prepare import prepare_qat, unfused
from qtool.quantize.qat.training import Epoch, Hooks, Progress, Trainer
from qtool.recipe.match import select
from qtool.recipe.schema import Mode, Recipe, TrainConfig
from qtool.recipe.training import Pattern

NOW, BEST, OPTIMIZER = "now", "best", "optimizer"
"""What the arrays of a checkpoint belong to: its state, that of the best epoch, and the optimizer's."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C in training; the text says what is kept, and how to go on."""


def training_config(recipe: Recipe) -> TrainConfig:
    """The ``train`` block, which recipes of these modes have."""
    if recipe.train is None:
        raise RecipeError(f"mode {recipe.mode.value} needs a train block")
    return recipe.train


def build_model(graph: Graph, recipe: Recipe, machine: Machine = Machine()) -> QatModel:
    """The model that a recipe trains.

    With a new head only that head trains, unless ``train.layers`` says otherwise. RecipeError for a pattern that
    matches nothing, ModelError for a head that does not fit, QuantizationError for what cannot be trained or quantized.
    A recipe that equalizes trains the equalized graph.
    """
    config = training_config(recipe)
    patterns = config.layers
    if recipe.head is not None:
        before = graph
        graph = replace_head(graph, recipe.head, config.seed)
        patterns = patterns or (Pattern(_replaced(before, graph)),)
    if recipe.equalize:
        graph = equalize(graph)
    trains = select(patterns, all_nodes(graph))
    options = PrepareOptions(recipe.mode, recipe.backend, recipe.fuse, recipe.stubs)
    source = unfused(graph) if recipe.mode is Mode.FLOAT else prepare_qat(graph, recipe.rules, options)
    chosen = ModelOptions(lambda node: node.name in trains, config.learn_scales)
    return QatModel(source, make_operators(machine.threads, machine.isa), chosen)


def _replaced(before: Graph, after: Graph) -> str:
    """The layer that has a new weight."""
    for node in after.nodes:
        weights = [name for name in node.inputs if name in after.initializers]
        if any(before.initializers.get(name) is not after.initializers[name] for name in weights):
            return node.name
    raise ModelError("the new head is nowhere in the graph")


class Training:
    """One training: ``resume`` goes on where a checkpoint was written, ``run`` trains what is left."""

    def __init__(self, model: QatModel, recipe: Recipe, data: TrainBatches, loaded: Graph, hooks: Hooks) -> None:
        """``loaded`` is the float model as the recipe names it."""
        self._recipe = recipe
        self._settings = settings_of(recipe, loaded)
        self._data = data
        self.model = model
        self.trainer = Trainer(model, training_config(recipe), data, hooks, fake_quant=recipe.mode is Mode.QAT)

    @property
    def checkpoint(self) -> Path | None:
        return training_config(self._recipe).checkpoint

    def observe(self, batches: Iterable[Mapping[str, Array]]) -> None:
        """Sets the ranges by calibration data, before the first step."""
        phase = Phase(training=False, freeze_bn=True, observe=True, fake_quant=True)
        for feeds in batches:
            self.model.forward(feeds, phase)

    def resume(self) -> int:
        """Goes on from the checkpoint; gives the number of epochs that are done. ModelError or RecipeError where there
        is none, or one of another training."""
        path = self.checkpoint
        if path is None or not path.is_file():
            raise RecipeError(f"--resume: there is no checkpoint at {path}; train without it first")
        found = load_checkpoint(path)
        check_settings(found, self._settings, path)
        try:
            snapshot.put(self.model, _part(found.arrays, NOW))
            self.trainer.optimizer.restore(_part(found.arrays, OPTIMIZER), self.model.parameters)
            self.trainer.progress = _progress(found)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return found.epoch

    def run(self) -> Progress:
        """Trains to the end, with a checkpoint after each epoch. Ctrl-C raises TrainingInterrupted."""
        try:
            return self.trainer.run(after_epoch=self._save)
        except KeyboardInterrupt:
            raise TrainingInterrupted(self._told()) from None

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        progress, model = self.trainer.progress, self.model
        arrays = _named(NOW, snapshot.take(model)) | _named(BEST, progress.best_state)
        arrays |= _named(OPTIMIZER, self.trainer.optimizer.state())
        best = None if progress.best is None else progress.history[progress.best].loss
        record: dict[str, Any] = {
            "history": [asdict(epoch) for epoch in progress.history],
            "best": progress.best,
            "samples": progress.samples,
        }
        step = progress.done * self._data.steps_per_epoch
        save_checkpoint(Checkpoint(arrays, progress.done, step, best, self._settings, record), self.checkpoint)

    def _told(self) -> str:
        progress = self.trainer.progress
        where = f"interrupted in epoch {progress.done + 1} of {training_config(self._recipe).epochs}"
        if not progress.done or progress.best is None or self.checkpoint is None:
            return f"{where}: no epoch was finished, so nothing is kept"
        return (
            f"{where}: the first {progress.done} and the best of them (epoch {progress.best + 1}) are kept in"
            f" {self.checkpoint}; go on with --resume"
        )


def _named(kind: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{kind}/{name}": array for name, array in arrays.items()}


def _part(arrays: Mapping[str, Array], kind: str) -> dict[str, Array]:
    start = f"{kind}/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def _progress(found: Checkpoint) -> Progress:
    """ModelError for a record that says something else."""
    try:
        record: Any = found.record
        history = [Epoch(**epoch) for epoch in record["history"]]
        best = int(record["best"])
        if len(history) != found.epoch or not 0 <= best < len(history):
            raise ValueError
        return Progress(history, best, _part(found.arrays, BEST), int(record["samples"]))
    except (KeyError, TypeError, ValueError):
        raise ModelError("its record of epochs is broken; train anew") from None
