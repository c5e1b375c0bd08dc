"""Which data a command runs on: a recipe's, what the options say, or both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qtool.recipe.schema import DataConfig

recipe_option = click.option(
    "--recipe",
    "-r",
    type=click.Path(path_type=Path),
    metavar="RECIPE",
    help="Data as the evaluation block of this recipe says (else calibration), but for what other options change.",
)


def data_config(recipe: Path | None, **given: Any) -> DataConfig:
    """The data block of a recipe, with the ``given`` options (by its fields' names; None is not given) in its place."""
    from qtool.errors import RecipeError
    from qtool.recipe.load import load_recipe
    from qtool.recipe.schema import DataConfig

    changes = {key: value for key, value in given.items() if value is not None}
    if recipe is None:
        return DataConfig(**changes)
    loaded = load_recipe(recipe)
    config = loaded.evaluation or loaded.calibration
    if config is None:
        raise RecipeError(f"{recipe}: there is neither an evaluation nor a calibration block, so it tells of no data")
    return replace(config, **changes)
