"""Recipe files -> Recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qtool.ops import all_ops
from qtool.recipe.document import CALIBRATION, METRICS, RECIPE
from qtool.recipe.items import Item
from qtool.recipe.match import REGEX, TYPE, compiled
from qtool.recipe.overrides import apply_overrides
from qtool.recipe.presets import default_for
from qtool.recipe.qconfigs import plain_qconfig, read_qconfig
from qtool.recipe.schema import (
    Audio,
    Backend,
    Colour,
    DataConfig,
    Gates,
    LatencyConfig,
    Layout,
    Mode,
    Noise,
    Preprocess,
    Recipe,
    Rule,
    Stubs,
)
from qtool.recipe.suggest import did_you_mean
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
        calibration=_data(values.get("calibration"), item, "calibration"),
        evaluation=_data(values.get("evaluation"), item, "evaluation"),
        latency=LatencyConfig(**values["latency"]) if "latency" in values else None,
        gates=Gates(**values.get("gates", {})),
        report_json=values.get("report", {}).get("json"),
        resolved=_resolved(item, mode, backend, rules),
    )
    _check_together(recipe, item)
    return recipe


def _rules(item: Item | None, mode: Mode, backend: Backend) -> tuple[Rule, ...]:
    if item is None:
        return (Rule("", default_for(mode, backend), "default"),)
    return tuple(
        _rule(key, child, read_qconfig(child, _name(key), mode, backend)) for key, child in item.entries().items()
    )


def _rule(key: str, item: Item, qconfig: Any) -> Rule:
    if key.startswith(REGEX):
        compiled(key, item.where)
    elif key.startswith(TYPE) and key[len(TYPE) :] not in all_ops():
        item.fail(f"{_name(key)}: unknown operator{did_you_mean(key[len(TYPE) :], all_ops())}")
    return Rule(key, qconfig, item.where)


def _name(key: str) -> str:
    return f"qconfig_dict.{key}" if key else 'qconfig_dict.""'


def _stubs(value: Any) -> Stubs | None:
    return None if value == "auto" else Stubs(**value)


def data_config(plain: Mapping[str, Any], base: Path) -> DataConfig:
    """A data block that is not in a recipe, such as the one that a file records; RecipeError for what is none."""
    item = parse(json.dumps(plain), "data", base, lines=False)
    return _data_config(CALIBRATION.read(item, "data"), item, "data")


def _data(values: Mapping[str, Any] | None, recipe: Item, name: str) -> DataConfig | None:
    return None if values is None else _data_config(values, recipe.entries()[name], name)


def _data_config(values: Mapping[str, Any], item: Item, name: str) -> DataConfig:
    preprocess = None
    if "preprocess" in values:
        preprocess = _preprocess(values["preprocess"], item.entries()["preprocess"], f"{name}.preprocess")
    audio = Audio(**values["audio"]) if "audio" in values else None
    metric = METRICS[0] if name == "evaluation" else ""
    defaults = {"metric": metric, **({"batch_size": 1} if "carry" in values else {})}
    config = DataConfig(**{**defaults, **values, "preprocess": preprocess, "audio": audio})
    if preprocess is not None and preprocess.noise is not None:
        _check_noise(config, preprocess, item, name)
    return config


def _check_noise(config: DataConfig, preprocess: Preprocess, item: Item, name: str) -> None:
    if config.labels is not None:
        item.entries()["labels"].fail(f"{name}.labels: 'noise' makes the clean pictures the targets; leave labels out")
    plain = preprocess.range == (0, 1) and not any(preprocess.mean) and all(number == 1 for number in preprocess.std)
    if config.metric == "psnr" and not plain:
        item.entries()["preprocess"].fail(
            f"{name}.preprocess: psnr is of pictures in 0..1; leave out range, mean and std, or measure mse or sqnr"
        )


def _preprocess(values: Mapping[str, Any], item: Item, name: str) -> Preprocess:
    colour, layout = Colour(values.get("colour", Colour.RGB.value)), Layout(values.get("layout", Layout.NCHW.value))
    noise = Noise(**values["noise"]) if "noise" in values else None
    found = Preprocess(**{**values, "colour": colour, "layout": layout, "noise": noise})
    for key, numbers in (("mean", found.mean), ("std", found.std)):
        if len(numbers) not in (1, found.channels):
            item.entries()[key].fail(
                f"{name}.{key}: got {len(numbers)} numbers, expected one for all channels or "
                f"{found.channels} for 'colour: {colour.value}'"
            )
    return found


def _check_together(recipe: Recipe, item: Item) -> None:
    """What no single key is wrong in."""
    if recipe.model_file is not None and recipe.model_file.resolve() == recipe.output.resolve():
        item.entries()["output"].fail("output: is the model itself, which would be overwritten")
    modes = [rule.qconfig.mode or recipe.mode for rule in recipe.rules if rule.qconfig is not None]
    calibrated = next((mode for mode in modes if mode is not Mode.DYNAMIC), None)
    if calibrated is not None and recipe.calibration is None:
        item.fail(f"calibration is missing: mode {calibrated.value} needs data to observe")
    gates = item.entries().get("gates", item)
    for key in ("max_accuracy_drop", "min_metric", "max_metric"):
        if getattr(recipe.gates, key) is not None and recipe.evaluation is None:
            gates.fail(f"gates.{key} needs an evaluation block")
    if recipe.gates.min_speedup is not None and recipe.latency is None:
        gates.fail("gates.min_speedup needs a latency block")
    if all(rule.qconfig is None for rule in recipe.rules):
        item.entries()["qconfig_dict"].fail("qconfig_dict: every rule is null, so that nothing would be quantized")


def _resolved(item: Item, mode: Mode, backend: Backend, rules: Sequence[Rule]) -> Mapping[str, Any]:
    """The recipe as written, with overrides, presets and the defaults that choose numbers written out."""
    plain = {key: value for key, value in item.plain().items() if value is not None}
    plain["mode"], plain["backend"] = mode.value, backend.value
    plain["qconfig_dict"] = {rule.key: plain_qconfig(rule.qconfig) for rule in rules}
    return MappingProxyType(plain)
