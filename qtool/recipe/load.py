"""Recipe files -> Recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qtool.recipe.document import CALIBRATION, RECIPE
from qtool.recipe.items import Item
from qtool.recipe.load_data import read_data, read_data_config
from qtool.recipe.load_train import check_training, plain_training, read_head, read_training
from qtool.recipe.match import check_key, rule_name
from qtool.recipe.overrides import apply_overrides
from qtool.recipe.presets import default_for
from qtool.recipe.qconfigs import plain_qconfig, read_qconfig
from qtool.recipe.schema import (
    Backend,
    DataConfig,
    Gates,
    LatencyConfig,
    Mode,
    Recipe,
    Rule,
    Stubs,
    TrainConfig,
)
from qtool.recipe.yamlfile import parse, read_file


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies ``--set`` overrides (their syntax: qtool/recipe/overrides.py).

    RecipeError for whatever is wrong, with the file, the line and the nearest right spelling. Relative paths start at
    the recipe's folder. The files it names are not looked at.
    """
    path = Path(path)
    item = apply_overrides(read_file(path), overrides)
    values = RECIPE.read(item, "")
    mode = Mode(values.get("mode", Mode.STATIC.value))
    backend = Backend(values.get("backend", Backend.FBGEMM.value))
    rules = _rules(values.get("qconfig_dict"), mode, backend)
    train = read_training(values.get("train"), item, values["output"], mode)
    recipe = Recipe(
        path=path,
        model=values["model"],
        output=values["output"],
        mode=mode,
        backend=backend,
        rules=rules,
        debug=values.get("debug", False),
        fuse=values.get("fuse", "auto"),
        stubs=_stubs(values.get("stubs", "auto")),
        equalize=values.get("equalize", False),
        train=train,
        head=read_head(values.get("head"), item),
        validation=read_data(values.get("validation"), item, "validation"),
        calibration=read_data(values.get("calibration"), item, "calibration"),
        evaluation=read_data(values.get("evaluation"), item, "evaluation"),
        latency=LatencyConfig(**values["latency"]) if "latency" in values else None,
        gates=Gates(**values.get("gates", {})),
        report_json=values.get("report", {}).get("json"),
        resolved=_resolved(item, mode, backend, rules, train),
    )
    check_training(recipe, item)
    _check_together(recipe, item)
    return recipe


def _rules(item: Item | None, mode: Mode, backend: Backend) -> tuple[Rule, ...]:
    if item is None:
        return (Rule("", default_for(mode, backend), "default"),)
    return tuple(
        _rule(key, child, read_qconfig(child, rule_name(key), mode, backend)) for key, child in item.entries().items()
    )


def _rule(key: str, item: Item, qconfig: Any) -> Rule:
    check_key(key, item, rule_name(key))
    return Rule(key, qconfig, item.where)


def _stubs(value: Any) -> Stubs | None:
    return None if value == "auto" else Stubs(**value)


def data_config(plain: Mapping[str, Any], base: Path) -> DataConfig:
    """A data block that is not in a recipe, such as the one that a file records; RecipeError for what is none."""
    item = parse(json.dumps(plain), "data", base, lines=False)
    return read_data_config(CALIBRATION.read(item, "data"), item, "data")


def _check_together(recipe: Recipe, item: Item) -> None:
    """What no single key is wrong in."""
    if recipe.model_file is not None and recipe.model_file.resolve() == recipe.output.resolve():
        item.entries()["output"].fail("output: is the model itself, which would be overwritten")
    modes = [rule.qconfig.mode or recipe.mode for rule in recipe.rules if rule.qconfig is not None]
    # Training observes its own data.
    if Mode.STATIC in modes and recipe.train is None and recipe.calibration is None:
        item.fail("calibration is missing: mode static needs data to observe")
    if recipe.equalize and recipe.mode not in (Mode.STATIC, Mode.QAT):
        item.entries()["equalize"].fail(f"equalize: got mode {recipe.mode.value}, expected static or qat; leave it out")
    gates = item.entries().get("gates", item)
    for key in ("max_accuracy_drop", "min_metric", "max_metric"):
        if getattr(recipe.gates, key) is not None and recipe.evaluation is None:
            gates.fail(f"gates.{key} needs an evaluation block")
    if recipe.gates.min_speedup is not None and recipe.latency is None:
        gates.fail("gates.min_speedup needs a latency block")
    if all(rule.qconfig is None for rule in recipe.rules):
        item.entries()["qconfig_dict"].fail("qconfig_dict: every rule is null, so that nothing would be quantized")


def _resolved(
    item: Item, mode: Mode, backend: Backend, rules: Sequence[Rule], train: TrainConfig | None
) -> Mapping[str, Any]:
    """The recipe as written, with overrides, presets and the defaults that choose numbers written out."""
    plain = {key: value for key, value in item.plain().items() if value is not None}
    if train is not None:
        plain["train"] = {**plain["train"], **plain_training(train)}
    plain["mode"], plain["backend"] = mode.value, backend.value
    plain["qconfig_dict"] = {rule.key: plain_qconfig(rule.qconfig) for rule in rules}
    return MappingProxyType(plain)
