"""``qtool quantize``: from a recipe to a quantized model and its report."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.common import EXIT_GATE, Shared, shared_options


@click.command("quantize")
@click.option(
    "--recipe", "-r", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The recipe, a YAML file."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe, such as --set backend=qnnpack; may be repeated.",
)
@click.pass_context
@shared_options
def command(shared: Shared, ctx: click.Context, recipe: Path, overrides: tuple[str, ...]) -> None:
    """Quantize a model as a recipe says, and report size, accuracy and latency.

    \b
    Examples:
      qtool quantize --recipe configs/static.yaml
      qtool quantize -r configs/static.yaml --set backend=qnnpack --set output=/tmp/q.npz
      qtool quantize -r configs/static.yaml --json > report.json

    Exits with 3 when a gate of the recipe is missed.
    """
    from qtool.analysis.evaluate import EngineOptions
    from qtool.cli import render
    from qtool.pipeline import quantize_recipe
    from qtool.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    threads = shared.threads or (loaded.latency.threads if loaded.latency else 1)
    result = quantize_recipe(loaded, shared.progress, EngineOptions(threads, shared.isa))
    if shared.json:
        shared.emit(result.to_json())
    else:
        shared.console.print(render.report(result, verbose=shared.verbose))
    if not result.passed:
        missed = ", ".join(gate.name for gate in result.gates if not gate.passed)
        shared.log.print(f"missed: {missed}", style="red")
        ctx.exit(EXIT_GATE)
