"""``qtool eval``: accuracy of models on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import ModelArgument, Shared, load_models, shared_options, weights_option
from qtool.cli.data import data_config, recipe_option

if TYPE_CHECKING:
    from qtool.analysis.metrics import MetricResult

METRICS = (
    *("top1", "top5", "mse", "psnr", "cosine", "sqnr", "max_error"),
    *("perplexity", "bits_per_character", "bits_per_word"),
)
"""The library's names, said again: help must not import what measures them."""


METRIC_HELP = f"What is measured: {', '.join(METRICS)}, or a function as module:function."


class MetricType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """One of the names, or a function as ``module:function``."""

    name = "metric"

    def get_metavar(self, *_: Any, **__: Any) -> str:
        return "METRIC"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if ":" in value else click.Choice(METRICS).convert(value, param, ctx)


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=ModelArgument())
@recipe_option
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="As in recipes.")
@click.option("--split", help="The part of the data to use.")
@click.option("--metric", type=MetricType(), help=f"{', '.join(METRICS)}, or module:function; top1 if not given.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a batch; 32 if not given.")
@click.option("--batches", type=click.IntRange(1), help="Number of batches; all if not given.")
@weights_option
@shared_options
def command(shared: Shared, models: tuple[str, ...], weights: Path | None, **options: Any) -> None:
    """Measure the accuracy of models, float or quantized, on the same labelled data, side by side.

    top1, top5, perplexity and the bits need class labels ('y'; those of -100 are not scored by the latter), and so
    does a function (outputs, labels) -> number of your own. The other metrics compare the first output with float
    targets; where there are none, with the outputs of the first model.

    \b
    Examples:
      qtool eval float.npz quant.npz --data images.npz --split test
      qtool eval float.npz quant.npz --data images.npz --metric sqnr
      qtool eval vad.onnx vad.int8.npz --recipe vad.yaml --data speech.wav
    """
    from qtool.analysis.evaluate import measure_accuracy, open_for_all

    if options["data"] is None and options["recipe"] is None:
        raise click.UsageError("give --data FILE, or --recipe for the data that a recipe names")
    config = data_config(**options)
    metric = config.metric or METRICS[0]
    graphs = load_models(models, weights)
    data = open_for_all(config, graphs)
    sessions = [shared.engine.session(graph) for graph in graphs]
    with shared.progress("evaluate", data.samples) as progress:
        results = measure_accuracy(sessions, data, metric, progress)
    if shared.json:
        rows = [
            {"model": model, "value": result.value, "outputs": result.outputs}
            for model, result in zip(models, results, strict=True)
        ]
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
