"""The ``train`` and ``head`` blocks of a recipe -> TrainConfig, Head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtool.recipe.document_train import TRAIN_DATA
from qtool.recipe.items import Item
from qtool.recipe.load_data import read_data_config
from qtool.recipe.match import check_key, rule_name
from qtool.recipe.schema import Mode, Recipe, TrainConfig
from qtool.recipe.training import (
    Augment,
    Distance,
    FakeQuant,
    Head,
    Loss,
    LossConfig,
    Optimizer,
    OptimizerConfig,
    Pattern,
    Schedule,
    ScheduleConfig,
)

_EXAMPLE = "train: {data: FILE, split: train, epochs: 8}"
_OWNERS: Mapping[str, tuple[str, ...]] = {
    "momentum": ("optimizer", "sgd"),
    "nesterov": ("optimizer", "sgd"),
    "betas": ("optimizer", "adam", "adamw"),
    "step_epochs": ("schedule", "step"),
    "gamma": ("schedule", "step"),
    "label_smoothing": ("loss", "cross_entropy"),
    "temperature": ("loss", "distillation"),
    "distillation_loss": ("loss", "distillation"),
}
"""Keys that mean something only where another key has one of these values."""
_RATES = {Optimizer.SGD: 0.01, Optimizer.ADAM: 0.001, Optimizer.ADAMW: 0.001}


def read_training(values: Mapping[str, Any] | None, recipe: Item, output: Path, mode: Mode) -> TrainConfig | None:
    """The ``train`` block, or None where there is none; RecipeError for keys that do not go together."""
    if values is None:
        return None
    item = recipe.entries()["train"]
    data = {key: value for key, value in values.items() if key in TRAIN_DATA}
    epochs = values.get("epochs", TrainConfig.epochs)
    middle = None if mode is Mode.FLOAT else (epochs + 1) // 2
    found = TrainConfig(
        data=read_data_config(data, item, "train"),
        epochs=epochs,
        optimizer=_optimizer(values),
        schedule=_schedule(values),
        loss=_loss(values),
        augment=Augment(**values.get("augment", {})),
        seed=values.get("seed", TrainConfig.seed),
        freeze_bn_epoch=_or_never(item, values, "freeze_bn_epoch", middle),
        freeze_observer_epoch=_or_never(item, values, "freeze_observer_epoch", middle),
        layers=tuple(Pattern(key, child.where) for key, child in _layers(values, item)),
        fake_quant=FakeQuant(values.get("fake_quant", FakeQuant.FLOAT.value)),
        learn_scales=values.get("learn_scales", False),
        checkpoint=values.get("checkpoint", output.with_name(f"{output.stem}.ckpt.npz")),
    )
    _check_keys(found, values, item)
    return found


def read_head(values: Mapping[str, Any] | None, recipe: Item) -> Head | None:
    """The ``head`` block, or None where there is none."""
    return None if values is None else Head(**values, where=recipe.entries()["head"].where)


def check_training(recipe: Recipe, item: Item) -> None:
    """RecipeError where mode, training and rules do not go together."""
    if not recipe.mode.trains:
        for key in ("train", "head", "validation"):
            if getattr(recipe, key) is not None:
                item.entries()[key].fail(f"{key} is for mode: qat, and the mode is {recipe.mode.value}; leave it out")
        return
    if recipe.train is None:
        item.entries()["mode"].fail(f"mode {recipe.mode.value} needs a train block, such as '{_EXAMPLE}'")
    train = item.entries()["train"]
    if recipe.head is not None and recipe.train.loss.name is Loss.DISTILLATION:
        train.entries()["loss"].fail(
            "train.loss: distillation learns from the float model, whose new head knows nothing; use another loss"
        )
    for rule in recipe.rules:
        if rule.qconfig is not None and rule.qconfig.mode is Mode.DYNAMIC:
            item.entries()["qconfig_dict"].entries()[rule.key].fail(
                f"{rule_name(rule.key)}: dynamic layers are not trained; in mode qat a rule is static or null"
            )
    files = {"the model": recipe.model_file, "the output": recipe.output, "the data": recipe.train.data.data}
    for what, path in files.items():
        checkpoint = recipe.train.checkpoint
        if path is not None and checkpoint is not None and path.resolve() == checkpoint.resolve():
            train.entries().get("checkpoint", train).fail(f"train.checkpoint: is {what}, which would be overwritten")


def plain_training(config: TrainConfig) -> dict[str, Any]:
    """The defaults that choose numbers, as a recipe would write them; keys without meaning here are left out."""
    optimizer, schedule, loss = config.optimizer, config.schedule, config.loss
    plain = {
        "batch_size": config.data.batch_size,
        "epochs": config.epochs,
        "optimizer": optimizer.name.value,
        "rate": optimizer.rate,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "betas": list(optimizer.betas),
        "weight_decay": optimizer.weight_decay,
        "decay_norms": optimizer.decay_norms,
        "schedule": schedule.name.value,
        "step_epochs": schedule.step_epochs,
        "gamma": schedule.gamma,
        "warmup_epochs": schedule.warmup_epochs,
        "loss": loss.name.value,
        "label_smoothing": loss.label_smoothing,
        "temperature": loss.temperature,
        "distillation_loss": loss.distance.value,
        "seed": config.seed,
        "freeze_bn_epoch": config.freeze_bn_epoch,
        "freeze_observer_epoch": config.freeze_observer_epoch,
        "fake_quant": config.fake_quant.value,
        "learn_scales": config.learn_scales,
    }
    owned = {key for key, (owner, *words) in _OWNERS.items() if plain[owner] not in words}
    unused = owned | ({"temperature"} if loss.distance is Distance.MSE else set())
    return {key: value for key, value in plain.items() if key not in unused}


def _optimizer(values: Mapping[str, Any]) -> OptimizerConfig:
    name = Optimizer(values.get("optimizer", Optimizer.SGD.value))
    keys = ("momentum", "nesterov", "betas", "weight_decay", "decay_norms")
    given = {key: values[key] for key in keys if key in values}
    return OptimizerConfig(name, values.get("rate", _RATES[name]), **given)


def _schedule(values: Mapping[str, Any]) -> ScheduleConfig:
    given = {key: values[key] for key in ("step_epochs", "gamma", "warmup_epochs") if key in values}
    return ScheduleConfig(Schedule(values.get("schedule", Schedule.COSINE.value)), **given)


def _loss(values: Mapping[str, Any]) -> LossConfig:
    given = {key: values[key] for key in ("label_smoothing", "temperature") if key in values}
    found = LossConfig(Loss(values.get("loss", Loss.CROSS_ENTROPY.value)), **given)
    return replace(found, distance=Distance(values.get("distillation_loss", Distance.KL.value)))


def _or_never(item: Item, values: Mapping[str, Any], key: str, default: int | None) -> int | None:
    """Here a null is not a key that is left out."""
    if key in item.entries() and item.entries()[key].value is None:
        return None
    number: int | None = values.get(key, default)
    return number


def _layers(values: Mapping[str, Any], item: Item) -> list[tuple[str, Item]]:
    """The patterns that train, each with its place; RecipeError for one that cannot be meant."""
    if "layers" not in values:
        return []
    items = item.entries()["layers"].value
    assert isinstance(items, tuple)  # the table has read it as a list
    for number, (key, child) in enumerate(zip(values["layers"], items, strict=True)):
        check_key(key, child, f"train.layers[{number}]")
    return list(zip(values["layers"], items, strict=True))


def _check_keys(config: TrainConfig, values: Mapping[str, Any], item: Item) -> None:
    """What no single key is wrong in."""
    chosen = {
        "optimizer": config.optimizer.name.value,
        "schedule": config.schedule.name.value,
        "loss": config.loss.name.value,
    }
    for key, (owner, *words) in _OWNERS.items():
        if key in values and chosen[owner] not in words:
            meant = " or ".join(words)
            item.entries()[key].fail(f"train.{key} is for '{owner}: {meant}', and here it is '{chosen[owner]}'")
    if "temperature" in values and config.loss.distance is Distance.MSE:
        item.entries()["temperature"].fail("train.temperature is for 'distillation_loss: kl', and here it is 'mse'")
    if config.optimizer.nesterov and not config.optimizer.momentum:
        item.entries()["nesterov"].fail("train.nesterov needs a momentum above 0")
    if config.schedule.warmup_epochs > config.epochs:
        item.entries()["warmup_epochs"].fail(
            f"train.warmup_epochs: got {config.schedule.warmup_epochs:g}, expected at most the {config.epochs} epochs"
        )
