"""``qtool bench``: latency of models in float32 and int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import BACKENDS, ModelArgument, Shared, load_models, qtool_version, shared_options, weights_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qtool.analysis.bench import BenchResult, BenchRow

DEFAULTS = ("zoo:resnet18", "zoo:mobilenet_v2")
PEERS = ("onnxruntime", "openvino", "torch")


@click.command("bench")
@click.argument("models", nargs=-1, metavar="[MODEL]...", type=ModelArgument())
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="fbgemm",
    show_default=True,
    help="The int8 arithmetic of models that are quantized here.",
)
@click.option(
    "--mode",
    type=click.Choice(("static", "dynamic")),
    help="How models are quantized here; the zoo's models of sequences dynamic, all others static if not given.",
)
@click.option("--batch", type=click.IntRange(1, 1 << 20), default=1, show_default=True, help="Samples an inference.")
@click.option(
    "--seconds", type=click.FloatRange(0, 3600, min_open=True), default=2.0, show_default=True, help="For each row."
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(PEERS),
    help="Run the same models there too, in turns; needs the extra peers.",
)
@click.option("--per-op", is_flag=True, help="Time, rate and share of the peak of every operator too.")
@click.option("--top", type=click.IntRange(0), default=15, show_default=True, help="Operators shown; 0 for all.")
@weights_option
@shared_options
def command(
    shared: Shared, models: tuple[str, ...], backend: str, top: int, weights: Path | None, **options: Any
) -> None:
    """Measure the latency of models in float32 and int8, in turns; zoo:resnet18 and zoo:mobilenet_v2 if none is given.

    A float MODEL is also quantized, by default with the backend's default qconfig, calibrated on random inputs: right
    for timing, and for nothing else. Models of one name, such as a float file and what was quantized from it, are run
    in turns. Inputs are random; sizes other than the batch that are only known at run time are 128.

    With --peer, other engines run the same models in the same turns, each by the fastest of its own ways: ONNX Runtime
    from an ONNX file (QDQ), dynamic models also by its quantize_dynamic; OpenVINO quantized by NNCF, or from the QDQ
    file; PyTorch by FX for the engine x86 or by quantize_dynamic, traced and frozen where it can be. "of peer" is
    qtool's least time over the peer's, "10-90 %" the spread of that ratio from round to round. Turns on several threads
    are 10 ms apart: some engines' threads go on looking for work that long, on the CPU of the next one's.

    With --per-op the machine's peak in int8 and float32 is measured as well, as by qtool doctor --ceilings, and each
    operator that multiplies is held against it; convolutions by Winograd's algorithm may show more than 100 %.

    \b
    Examples:
      qtool bench --backend qnnpack
      qtool bench float.npz quant.npz --threads 2 --batch 16
      qtool bench zoo:resnet18 --per-op
      qtool bench model.onnx --peer onnxruntime
      qtool bench zoo:lstm_lm mlp.npz --mode dynamic
      qtool bench zoo:resnet18 --peer onnxruntime --peer openvino --peer torch
    """
    from qtool.analysis.bench import SCHEMA, BenchOptions, contenders, run_bench
    from qtool.recipe.schema import Backend, Mode

    with shared.progress("load"):
        loaded = list(zip(models or DEFAULTS, load_models(models or DEFAULTS, weights), strict=True))
    wanted = BenchOptions(
        Backend(backend), options["batch"], options["seconds"], per_op=options["per_op"], peers=options["peers"]
    )
    engine, results, mode = shared.engine, [], Mode(options["mode"]) if options["mode"] else None
    for group in contenders(loaded, wanted.backend, engine, mode):
        with shared.progress(f"time {group[0].graph.name}", 100) as progress:
            result = run_bench(group, wanted, engine, progress)
        results.append(result)
        if not shared.json:
            shared.show(*_tables(result, top))
    if shared.json:
        machine = {"qtool": qtool_version(), "seconds": wanted.seconds, "backend": backend}
        shared.emit({"schema": SCHEMA, **machine, "models": [result.to_json() for result in results]})


def _tables(result: BenchResult, top: int) -> list[RenderableType]:
    from qtool.cli.render import line, plural, some, table

    columns: tuple[str, ...] = ("", "min ms", "median ms", "p90 ms", "GOP/s", "speed-up", "of peer", "10-90 %", "model")
    title = f"{result.model}: {plural(result.threads, 'thread')}, batch {result.batch}, {result.rows[0].isa}"
    cells = [_cells(row) for row in result.rows]
    if all(row.engine == "qtool" for row in result.rows):
        columns, cells = (*columns[:6], columns[8]), [(*row[:6], row[8]) for row in cells]
    parts: list[RenderableType] = [table(title, columns, cells, numeric=range(1, len(columns) - 1)), ""]
    peers = {
        f"{row.engine}: {row.version}" if row.version != row.engine else row.engine: None
        for row in result.rows
        if row.version
    }
    parts += [*(line(text) for text in peers), *([""] if peers else [])]
    for row in result.rows:
        if row.fallbacks and row.isa != "NumPy":
            text = f"{row.precision}: {some(tuple(row.fallbacks))}: no native kernel, so the NumPy reference runs there"
            parts += [line(text, "yellow"), ""]
        problems = [row.error] if row.error else [f"{row.engine} {row.precision}, not as {note}" for note in row.notes]
        if problems:
            parts += [*(line(text, "yellow") for text in problems), ""]
        if row.operators:
            parts += [_operators(row, top), ""]
    return parts


def _cells(row: BenchRow) -> tuple[object, ...]:
    name = f"{row.precision} {row.backend if row.engine == 'qtool' else row.engine}".rstrip()
    times = ["-" if ms is None else f"{ms:.3f}" for ms in (row.min_ms, row.median_ms, row.p90_ms)]
    gops, speedup = "-" if row.gops is None else f"{row.gops:.1f}", "-" if row.speedup is None else f"{row.speedup:.2f}"
    ratio = (
        ("-", "-") if row.ratio is None else (f"{row.ratio.minimum:.2f}", f"{row.ratio.p10:.2f}-{row.ratio.p90:.2f}")
    )
    return name, *times, gops, speedup, *ratio, row.how or ("does not run" if row.error else row.source)


def _operators(row: BenchRow, top: int) -> RenderableType:
    from qtool.analysis.bench import slowest
    from qtool.cli.render import megabytes, table

    shown = slowest(row.operators, top)
    cells = [
        (
            operator.layer,
            operator.op,
            f"{operator.ms:.4f}",
            f"{100 * operator.share:.1f}",
            f"{operator.gops:.1f}" if operator.gops else "-",
            "-" if operator.peak is None else f"{100 * operator.peak:.0f}",
            megabytes(operator.bytes),
            operator.kernel,
        )
        for operator in shown
    ]
    count = len(row.operators)
    title = f"{row.precision}, operators" + (f": the slowest {len(shown)} of {count}" if len(shown) < count else "")
    columns = ("layer", "operator", "ms", "%", "GOP/s", "% of peak", "bytes", "kernel")
    return table(title, columns, cells, numeric=(2, 3, 4, 5, 6))
