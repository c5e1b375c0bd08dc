"""Reports as tables; functions give renderables and print nothing, so that tests can look at them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtool.report.types import Report

SHOWN_MODULES = 4


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Table:
    """A plain table; the columns in ``numeric`` are right-aligned."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for position, column in enumerate(columns):
        made.add_column(column, justify="right" if position in numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def megabytes(count: int) -> str:
    """Bytes for people, in decimal units as file managers have them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if abs(value) < float("inf") else "exact" if value > 0 else "lost"


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def report(result: Report, *, verbose: bool = False) -> RenderableType:
    """The report of ``qtool quantize``."""
    parts: list[RenderableType] = [_summary(result)]
    if verbose:
        parts += ["", _layers(result)]
    parts += ["", _rules(result)]
    if result.fallbacks:
        parts += ["", _fallbacks(result)]
    if result.gates:
        parts += ["", _gates(result)]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    parts += ["", Text(f"written: {result.output}")]
    return Group(*parts)


def _summary(result: Report) -> Table:
    quantized = sum(layer.precision != "float32" for layer in result.layers)
    size = result.size
    rows: list[Sequence[object]] = [
        ("size", megabytes(size.float_bytes), megabytes(size.quant_bytes), f"{size.ratio:.2f} times smaller")
    ]
    if (accuracy := result.accuracy) is not None:
        low = f"{accuracy.drop:+.4g} lost of {accuracy.n} samples"
        rows.append((accuracy.metric, number(accuracy.float), number(accuracy.quant), low))
    if (latency := result.latency) is not None:
        detail = f"{latency.speedup:.2f} times faster ({latency.threads} thread, batch {latency.batch}, {latency.isa})"
        rows.append(("latency", f"{latency.float_ms:.3f} ms", f"{latency.quant_ms:.3f} ms", detail))
    title = f"{result.model}: {result.mode}, {result.backend}, {quantized} of {len(result.layers)} layers in int8"
    return table(title, ("", "float32", "int8", ""), rows, numeric=(1, 2))


def _layers(result: Report) -> Table:
    rows = [
        (
            layer.name,
            layer.op,
            layer.precision,
            megabytes(layer.weight_bytes) if layer.weight_bytes else "-",
            decibels(layer.sqnr_db),
            f"{number(layer.low)} .. {number(layer.high)}" if layer.low is not None else "-",
            number(layer.scale),
            "-" if layer.zero_point is None else layer.zero_point,
        )
        for layer in result.layers
    ]
    columns = ("layer", "operator", "runs in", "weights", "SQNR dB", "observed", "scale", "zero point")
    return table("layers", columns, rows, numeric=(3, 4, 6, 7))


def _rules(result: Report) -> Table:
    rows = rule_rows((rule.key, rule.where, rule.matched, rule.modules) for rule in result.rules)
    return table("rules", ("rule", "layers", "which", "from"), rows, numeric=(1,))


def rule_rows(rules: Iterable[tuple[str, str, int, Sequence[str]]]) -> list[tuple[object, ...]]:
    """Rows (rule, layers, which, from) of rules given as (key, where, count, modules)."""
    return [(key or '""', count, _some(modules), where) for key, where, count, modules in rules]


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_MODULES
    return ", ".join(names[:SHOWN_MODULES]) + (f" and {more} more" if more > 0 else "")


def _fallbacks(result: Report) -> Table:
    rows = [(fallback.name, fallback.op, fallback.reason) for fallback in result.fallbacks]
    return table("in float", ("layer", "operator", "why"), rows)


def _gates(result: Report) -> Table:
    rows = [
        (gate.name, number(gate.limit), number(gate.value), "passed" if gate.passed else "MISSED")
        for gate in result.gates
    ]
    return table("gates", ("gate", "limit", "measured", ""), rows, numeric=(1, 2))
