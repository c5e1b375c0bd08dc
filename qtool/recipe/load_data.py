"""Blocks of data in a recipe -> DataConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtool.recipe.document import METRICS
from qtool.recipe.items import Item
from qtool.recipe.schema import Audio, Colour, DataConfig, Layout, Noise, Preprocess

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "evaluation": {"metric": METRICS[0]},
    "validation": {"metric": METRICS[0]},
    "train": {"batch_size": 64},
}
"""Where a block differs from other data."""


def read_data(values: Mapping[str, Any] | None, recipe: Item, name: str) -> DataConfig | None:
    """A block of a recipe, or None where there is none."""
    return None if values is None else read_data_config(values, recipe.entries()[name], name)


def read_data_config(values: Mapping[str, Any], item: Item, name: str) -> DataConfig:
    """A block that was checked, as its type; RecipeError for what no single key is wrong in."""
    preprocess = None
    if "preprocess" in values:
        preprocess = _preprocess(values["preprocess"], item.entries()["preprocess"], f"{name}.preprocess")
    audio = Audio(**values["audio"]) if "audio" in values else None
    defaults = {**_DEFAULTS.get(name, {}), **({"batch_size": 1} if "carry" in values else {})}
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
