"""``qtool quantize``: from a recipe to a quantized model and its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qtool.cli.common import EXIT_GATE, Shared, overrides_option, recipe_file_option, shared_options

if TYPE_CHECKING:
    from qtool.recipe.schema import Recipe


@click.command("quantize")
@recipe_file_option
@overrides_option("backend=qnnpack")
@click.option("--resume", is_flag=True, help="Go on with a training (mode qat) where its checkpoint was written.")
@click.pass_context
@shared_options
def command(shared: Shared, ctx: click.Context, recipe: Path, overrides: tuple[str, ...], resume: bool) -> None:
    """Quantize a model as a recipe says, and report size, accuracy and latency.

    \b
    Examples:
      qtool quantize --recipe configs/static.yaml
      qtool quantize -r configs/static.yaml --set backend=qnnpack --set output=/tmp/q.npz
      qtool quantize -r configs/static.yaml --json > report.json
      qtool quantize -r configs/qat.yaml --threads 2 --resume

    --threads is for everything, the latency included; without it latency is measured as the recipe says. -v lists
    every layer. Exits with 3 when a gate of the recipe is missed; the model is written all the same.
    """
    from qtool.analysis.evaluate import EngineOptions
    from qtool.pipeline import TrainingOptions, quantize_recipe
    from qtool.recipe.load import load_recipe

    loaded = _with_threads(load_recipe(recipe, overrides), shared.threads)
    threads = shared.threads or (loaded.latency.threads if loaded.latency else 1)
    if resume and loaded.train is None:
        raise click.UsageError("--resume is for recipes that train (mode: qat)")
    options = TrainingOptions(shared.log, resume)
    result = quantize_recipe(loaded, shared.progress, EngineOptions(threads, shared.isa), options)
    if shared.json:
        shared.emit(result.to_json())
    else:
        from qtool.cli import render

        shared.show(render.report(result, verbose=shared.verbose))
    if not result.passed:
        missed = ", ".join(gate.name for gate in result.gates if not gate.passed)
        click.secho(f"missed: {missed}", err=True, fg="red")
        ctx.exit(EXIT_GATE)


def _with_threads(recipe: Recipe, threads: int | None) -> Recipe:
    """The recipe with the command line's number of threads in place of its own."""
    if threads is None or recipe.latency is None:
        return recipe
    return replace(recipe, latency=replace(recipe.latency, threads=threads))
