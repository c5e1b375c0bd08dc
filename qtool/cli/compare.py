"""``qtool compare``: the Numeric Suite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import ModelArgument, Shared, load_models, shared_options, weights_option
from qtool.cli.data import data_config, recipe_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qtool.analysis.compare import Comparison, LayerError
    from qtool.ir import Graph
    from qtool.recipe.schema import DataConfig

BATCH, BATCHES = 8, 8
"""Activations of all layers are held for one batch, so that batches are small."""


@click.command("compare")
@click.argument("float_model", metavar="FLOAT", type=ModelArgument())
@click.argument("quant_model", metavar="QUANT", type=click.Path(path_type=Path))
@recipe_option
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="An .npz, .npy, or a folder of them.")
@click.option("--split", help="The part of the data to use.")
@click.option("--batch-size", type=click.IntRange(1), default=BATCH, show_default=True, help="Samples a batch.")
@click.option("--batches", type=click.IntRange(1), default=BATCHES, show_default=True, help="Number of batches.")
@click.option("--weights-only", is_flag=True, help="Compare weights only; no data are needed.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Layers a table shows; 0 for all.")
@weights_option
@shared_options
def command(shared: Shared, float_model: str, quant_model: Path, top: int, weights: Path | None, **data: Any) -> None:
    """Compare a quantized model with its float one, layer by layer, the worst first; say what to change.

    \b
    weights  float against int8 weights; a tenth of the channels is below "channels dB"
    outputs  each layer in both models on the same data: the error of all layers so far
    shadow   each int8 layer beside its float twin on the same input: its error alone,
             what of it its output's rounding does, and the share of values cut off

    Ratios are signal to quantization noise in dB: 20 is a tenth of the amplitude, 40 a hundredth.

    Without --data and --recipe the calibration data that QUANT records are used if they are still there, else random
    inputs.

    \b
    Examples:
      qtool compare float.npz quant.npz
      qtool compare float.npz quant.npz --data images.npz --split test --batches 16
      qtool compare float.npz quant.npz --weights-only --top 0
      qtool compare vad.onnx vad.int8.npz --recipe vad.yaml --data speech.wav
    """
    from qtool.analysis.compare import compare

    real, quant = load_models([float_model, str(quant_model)], weights)
    graphs = real, quant
    batches, source, total = _batches(graphs, quant_model, data)
    with shared.progress("compare", total) as progress:
        engine = shared.engine
        found = compare(*graphs, batches, threads=engine.threads, isa=engine.isa, progress=progress)
    if shared.json:
        models = {"float": str(float_model), "quantized": str(quant_model), "data": source}
        plain = found.to_json()
        shared.emit({"schema": plain.pop("schema"), **models, **plain})
    else:
        shared.show(*_tables(found, source, top))


def _batches(
    graphs: tuple[Graph, Graph], quant_model: Path, options: Mapping[str, Any]
) -> tuple[Iterable[Mapping[str, Any]], str, int]:
    """The batches, where they come from, and how many samples they hold."""
    from qtool.quantize.data import open_data
    from qtool.report.provenance import recorded_calibration

    if options["weights_only"]:
        if options["data"] is not None:
            raise click.UsageError("--weights-only uses no --data")
        return (), "none", 0
    named = options["data"] is not None or options["recipe"] is not None
    if named:
        config: DataConfig | None = data_config(options["recipe"], data=options["data"], split=options["split"])
    elif options["split"]:
        raise click.UsageError("--split says which part of --data to use; give --data too")
    else:
        config = recorded_calibration(graphs[1], quant_model)
    if config is None:
        return _random(graphs[0], options), "random inputs, seed 0", options["batch_size"] * options["batches"]
    data = open_data(config.limited(options["batch_size"], options["batches"]), graphs[0])
    split = f" ({config.split})" if config.split else ""
    kind = "" if named else ", the calibration data"
    return data.feeds(), f"{data.path}{split}{kind}", data.samples


def _random(graph: Graph, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    from qtool.analysis.latency import random_feeds

    for seed in range(options["batches"]):
        yield random_feeds(graph, options["batch_size"], seed)


def _tables(found: Comparison, source: str, top: int) -> list[RenderableType]:
    from qtool.cli.render import advice_lines, decibels, line, percent, plural

    parts: list[RenderableType] = [_weights(found.weights, top)]
    if found.samples:
        parts += ["", _errors("outputs", found.outputs, top), "", _shadows(found.shadow, top), ""]
        parts.append(line(f"data: {plural(found.samples, 'sample')} of {source}"))
        for row in found.model:
            parts.append(line(f"output '{row.layer}': {decibels(row.sqnr_db)} dB, cosine {row.cosine:.5f}"))
        if found.bodies:
            text = "no rows in outputs: the models may run them at other times"
            parts.append(line(f"layers in bodies of control flow have {text}"))
        if found.agreement is not None:
            parts.append(line(f"both models choose the same class for {percent(found.agreement)} of the samples"))
    parts += ["", *(advice_lines(found.advice) or [line("no layer is bad: there is nothing to change")])]
    return parts


def _weights(rows: Sequence[LayerError], top: int) -> RenderableType:
    from qtool.cli.render import decibels, number, table

    shown = rows[:top] if top else rows
    cells = [
        (r.layer, r.op, decibels(r.sqnr_db), number(r.max_error, 3), f"{r.cosine:.5f}", decibels(r.channels_db))
        for r in shown
    ]
    columns = ("layer", "operator", "SQNR dB", "max error", "cosine", "channels dB")
    return table(_title("weights", shown, rows), columns, cells, (2, 3, 4, 5))


def _errors(title: str, rows: Sequence[LayerError], top: int) -> RenderableType:
    from qtool.cli.render import decibels, number, table

    shown = rows[:top] if top else rows
    cells = [(r.layer, r.op, decibels(r.sqnr_db), number(r.max_error, 3), f"{r.cosine:.5f}") for r in shown]
    return table(_title(title, shown, rows), ("layer", "operator", "SQNR dB", "max error", "cosine"), cells, (2, 3, 4))


def _shadows(rows: Sequence[LayerError], top: int) -> RenderableType:
    from qtool.cli.render import decibels, number, percent, table

    shown = rows[:top] if top else rows
    cells = [
        (r.layer, r.op, decibels(r.sqnr_db), number(r.max_error, 3), decibels(r.rounding_db), percent(r.clipped))
        for r in shown
    ]
    columns = ("layer", "operator", "SQNR dB", "max error", "rounding dB", "cut off")
    return table(_title("shadow", shown, rows), columns, cells, (2, 3, 4, 5))


def _title(name: str, shown: Sequence[LayerError], rows: Sequence[LayerError]) -> str:
    return name if len(shown) == len(rows) else f"{name}: the worst {len(shown)} of {len(rows)}"
