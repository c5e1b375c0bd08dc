"""``qtool run``: inference on arrays of files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import ModelArgument, Shared, load_models, shared_options, weights_option
from qtool.cli.data import data_config, recipe_option

if TYPE_CHECKING:
    from qtool.analysis.inference import OutputSummary
    from qtool.engine.session import Session
    from qtool.ir import Array

SUFFIXES = (".npz", ".npy")


@click.command("run")
@click.argument("model", type=ModelArgument())
@click.argument("data", required=False, type=click.Path(path_type=Path), metavar="[FILE.npz]")
@click.option(
    "--input",
    "-i",
    "inputs",
    multiple=True,
    metavar="NAME=FILE.npy",
    help="The whole of one input, in place of FILE.npz; once for each input.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="OUT.npz", help="Where the outputs go.")
@recipe_option
@click.option("--split", help="The part of FILE.npz to use.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a run of FILE.npz; 32 if not given.")
@click.option("--batches", type=click.IntRange(1), help="Number of batches of FILE.npz; all if not given.")
@weights_option
@shared_options
def command(
    shared: Shared,
    model: str,
    data: Path | None,
    inputs: tuple[str, ...],
    output: Path | None,
    weights: Path | None,
    **limits: Any,
) -> None:
    """Run a model, float or quantized, on arrays; write its outputs and print their shapes and ranges.

    FILE.npz holds an array for each input by its name, or 'x' for a model with one input, samples along the first axis;
    a folder or an .npy file are taken as in recipes. It is run batch by batch and the outputs are joined; of a state
    that a recipe carries from step to step, the last is kept.

    OUT.npz gets an array for each output by its name. An .npy file will do for a model with one output.

    \b
    Examples:
      qtool run quant.npz images.npz --split test -o logits.npz
      qtool run quant.npz --input x=image.npy -o logits.npy
      qtool run zoo:resnet18 --input x=image.npy
      qtool run vad.int8.npz speech.wav --recipe vad.yaml -o speech.npz
    """
    from qtool.analysis.inference import run_dataset, summarize, write_outputs
    from qtool.ir.files import check_writable
    from qtool.quantize.data import open_data

    if (data is None and limits["recipe"] is None) == (not inputs):
        raise click.UsageError("give either FILE.npz or --recipe, or --input NAME=FILE.npy for each input")
    (graph,) = load_models([model], weights)
    if output is not None:
        _check_output(output, len(graph.outputs))
        check_writable(output)
    session = shared.engine.session(graph)
    if inputs:
        outputs = _run_arrays(session, inputs)
    else:
        opened = open_data(data_config(data=data, **limits), graph)
        with shared.progress("run", opened.samples) as progress:
            outputs = run_dataset(session, opened, progress)
    if output is not None:
        write_outputs(outputs, output)
    _show(shared, model, output, summarize(outputs))


def _check_output(output: Path, count: int) -> None:
    if output.suffix not in SUFFIXES:
        raise click.UsageError(f"{output}: outputs are written as .npz, or .npy where there is one")
    if output.suffix == ".npy" and count > 1:
        raise click.UsageError(f"{output}: the model has {count} outputs, which need an .npz file")


def _run_arrays(session: Session, inputs: tuple[str, ...]) -> dict[str, Array]:
    from qtool.analysis.inference import read_arrays

    files: dict[str, Path] = {}
    for text in inputs:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise click.UsageError(f"--input {text}: expected NAME=FILE.npy")
        if name in files:
            raise click.UsageError(f"--input {text}: '{name}' is given twice")
        files[name] = Path(file)
    return session.run(read_arrays(files))


def _show(shared: Shared, model: str, output: Path | None, found: tuple[OutputSummary, ...]) -> None:
    written = None if output is None else str(output)
    if shared.json:
        rows = [asdict(row) for row in found]
        shared.emit({"schema": "qtool.run/1", "model": model, "output": written, "outputs": rows})
        return
    from qtool.cli.render import line, number, table

    cells = [
        (
            row.name,
            f"{row.dtype}[{', '.join(map(str, row.shape))}]",
            number(row.low),
            number(row.high),
            number(row.mean),
            "" if row.finite else "holds NaN or infinity",
        )
        for row in found
    ]
    shared.show(table("outputs", ("name", "shape", "low", "high", "mean", ""), cells, numeric=(2, 3, 4)))
    if written is not None:
        shared.show("", line(f"written: {written}"))
