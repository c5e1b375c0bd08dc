"""``qtool eval``: accuracy of models on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import ModelArgument, Shared, shared_options

if TYPE_CHECKING:
    from qtool.analysis.metrics import MetricResult

METRICS = ("top1", "top5", "mse", "psnr", "cosine", "sqnr")
"""The library's names, said again: help must not import what measures them."""


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=ModelArgument())
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE", help="As in recipes.")
@click.option("--split", default="", help="The part of the data to use.")
@click.option("--metric", type=click.Choice(METRICS), default="top1", show_default=True, help="What is measured.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples a batch.")
@click.option("--batches", type=click.IntRange(1), help="Number of batches; all if not given.")
@shared_options
def command(shared: Shared, models: tuple[str, ...], metric: str, **config: Any) -> None:
    """Measure the accuracy of models, float or quantized, on the same labelled data, side by side.

    top1 and top5 need class labels ('y'). The other metrics compare the first output with float targets; where there
    are none, with the output of the first model.

    \b
    Examples:
      qtool eval float.npz quant.npz --data images.npz --split test
      qtool eval float.npz quant.npz --data images.npz --metric sqnr
    """
    from qtool.analysis.evaluate import measure_accuracy, open_for_all
    from qtool.pipeline import load_model
    from qtool.recipe.schema import DataConfig

    graphs = [load_model(model) for model in models]
    data = open_for_all(DataConfig(**config), graphs)
    sessions = [shared.engine.session(graph) for graph in graphs]
    with shared.progress("evaluate", data.samples) as progress:
        results = measure_accuracy(sessions, data, metric, progress)
    if shared.json:
        rows = [{"model": model, "value": result.value} for model, result in zip(models, results, strict=True)]
        unit = {"metric": metric, "unit": results[0].unit, "n": results[0].n}
        shared.emit({"schema": "qtool.eval/1", "data": str(data.path), **unit, "models": rows})
    else:
        _show(shared, models, results)


def _show(shared: Shared, models: tuple[str, ...], results: tuple[MetricResult, ...]) -> None:
    from qtool.cli.render import RATES, number, percent, plural, table

    first = results[0]
    spell = percent if first.name in RATES else number
    rows: list[tuple[str, ...]] = [
        (model, spell(result.value), "" if result is first else spell(result.value - first.value))
        for model, result in zip(models, results, strict=True)
    ]
    unit = f" in {first.unit}" if first.unit else ""
    title = f"{first.name}{unit} of {plural(first.n, 'sample')}"
    columns: tuple[str, ...] = ("model", first.name, "against the first")
    if len(models) == 1:
        rows, columns = [row[:2] for row in rows], columns[:2]
    shared.show(table(title, columns, rows, numeric=(1, 2)))
