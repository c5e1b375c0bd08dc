"""``qtool train``: training in float, as a recipe of mode float says."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.common import Shared, overrides_option, recipe_file_option, shared_options


@click.command("train")
@recipe_file_option
@overrides_option("train.epochs=3")
@click.option("--resume", is_flag=True, help="Go on where the checkpoint was written.")
@shared_options
def command(shared: Shared, recipe: Path, overrides: tuple[str, ...], resume: bool) -> None:
    """Train a float model as a recipe says (mode: float), and measure it.

    \b
    Examples:
      qtool train --recipe train.yaml --threads 2
      qtool train -r train.yaml --set train.epochs=3 --set output=/tmp/short.npz
      qtool train -r train.yaml --resume

    Training that ends in an int8 model is mode qat of qtool quantize. A checkpoint is written after each epoch; Ctrl-C
    says how to go on.
    """
    from qtool.analysis.evaluate import EngineOptions
    from qtool.pipeline import TrainingOptions, train_recipe
    from qtool.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    engine = EngineOptions(shared.threads or 1, shared.isa)
    result = train_recipe(loaded, shared.progress, engine, TrainingOptions(shared.log, resume))
    if shared.json:
        shared.emit(result.to_json())
    else:
        from qtool.cli import render

        shared.show(render.trained(result))
