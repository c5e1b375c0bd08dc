"""``qtool recipe``: help with writing recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import BACKENDS, Shared, overrides_option, shared_options

if TYPE_CHECKING:
    from qtool.pipeline import Checked


@click.group("recipe")
def command() -> None:
    """Check, start and document recipes.

    \b
    Examples:
      qtool recipe init --model model.npz --data data.npz > recipe.yaml
      qtool recipe check recipe.yaml
      qtool recipe presets
      qtool recipe schema > recipe.schema.json
    """


@command.command("check", short_help="Check a recipe against its model and data.")
@click.argument("recipe", type=click.Path(path_type=Path))
@overrides_option("backend=qnnpack")
@shared_options
def check(shared: Shared, recipe: Path, overrides: tuple[str, ...]) -> None:
    """Check a recipe against its model and data, and show which rule is for which layer. Nothing is quantized.

    \b
    Examples:
      qtool recipe check configs/static.yaml
      qtool recipe check configs/static.yaml --set 'qconfig_dict={"": accurate, fc: null}'
    """
    from qtool.pipeline import check_recipe
    from qtool.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides)
    checked = check_recipe(loaded)
    if shared.json:
        prepared = checked.prepared
        plain = {
            "schema": "qtool.recipe-check/1",
            "recipe": str(recipe),
            "resolved": dict(loaded.resolved),
            "quantized": sorted(prepared.quantized),
            "fallbacks": [{"layer": f.node, "op": f.op, "reason": f.reason} for f in prepared.all_fallbacks],
            "rules": [{"key": row.key, "where": row.where, "matched": row.count} for row in prepared.matches.table],
            "samples": {name: data.samples for name, data in _data(checked).items()},
        }
        shared.emit(plain)
    else:
        _show_check(shared, recipe, checked)


def _data(checked: Checked) -> dict[str, Any]:
    found = {"calibration": checked.calibration, "evaluation": checked.evaluation}
    return {name: data for name, data in found.items() if data is not None}


def _show_check(shared: Shared, recipe: Path, checked: Checked) -> None:
    from qtool.cli.render import RULE_COLUMNS, in_float, line, plural, rule_rows, table

    prepared = checked.prepared
    rules = [(row.key, row.where, row.count, row.modules) for row in prepared.matches.table]
    shared.show(table("rules", RULE_COLUMNS, rule_rows(rules), numeric=(1,)), "")
    fallbacks = prepared.all_fallbacks
    if fallbacks:
        shared.show(in_float((fallback.node, fallback.op, fallback.reason) for fallback in fallbacks), "")
    for name, data in _data(checked).items():
        shared.show(line(f"{name}: {plural(data.samples, 'sample')} of {data.path}"))
    count = len(prepared.quantized)
    shared.show(line(f"{recipe} is good: {count} of {count + len(fallbacks)} layers would be quantized"))


@command.command("init", short_help="Write a commented recipe to start from.")
@click.option("--model", default="model.npz", show_default=True, help="The float model.")
@click.option("--data", default="data.npz", show_default=True, help="Calibration and evaluation data.")
@click.option("--result", default="model.int8.npz", show_default=True, help="Where the quantized model will go.")
@click.option("--backend", type=click.Choice(BACKENDS), default="fbgemm", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Standard output if not given.")
def init(model: str, data: str, result: str, backend: str, output: Path | None) -> None:
    """Write a commented recipe to start from; it proposes the preset accurate.

    \b
    Example:
      qtool recipe init --model resnet.npz --data images.npz -o recipe.yaml
    """
    from qtool.ir.files import atomic_write
    from qtool.recipe.schema import Backend
    from qtool.recipe.template import recipe_template

    text = recipe_template(model, result, data, Backend(backend))
    if output is None:
        click.echo(text, nl=False)
        return
    if output.exists():
        raise click.UsageError(f"{output} is there already; remove it or give another name")
    with atomic_write(output) as file:
        file.write(text.encode())
    click.echo(f"{output}: adapt it, then: qtool recipe check {output}", err=True)


@command.command("schema", short_help="Print the JSON schema of recipes.")
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    \b
    Example:
      qtool recipe schema > recipe.schema.json
    """
    from qtool.recipe.jsonschema import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))


@command.command("presets", short_help="List the presets that a qconfig can name.")
@shared_options
def presets(shared: Shared) -> None:
    """List the presets that a qconfig can name, and what each does; with -v what PyTorch calls them.

    \b
    Example:
      qtool recipe presets
    """
    from qtool.recipe.presets import PRESETS
    from qtool.recipe.qconfigs import plain_qconfig

    if shared.json:
        plain = {name: {"summary": p.summary, "qconfig": plain_qconfig(p.qconfig)} for name, p in PRESETS.items()}
        shared.emit({"schema": "qtool.presets/1", "presets": plain})
        return
    from qtool.cli.render import table

    rows = [(name, preset.summary, preset.source) for name, preset in PRESETS.items()]
    if shared.verbose:
        shared.show(table("presets", ("name", "what", "PyTorch's name"), rows))
    else:
        shared.show(table("presets", ("name", "what"), [row[:2] for row in rows]))
