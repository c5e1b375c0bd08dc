"""Results as tables; functions give renderables and print nothing, so that tests can look at them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os.path import normpath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtool.analysis.advice import Advice
from qtool.cli.common import printable
from qtool.report.types import FLOAT_OUTPUTS, Accuracy, Equalized, Latency, Report, Training, TrainReport

SHOWN_MODULES, SHOWN_OPERATORS = 4, 3
RATES = ("top1", "top5")
"""Metrics that are shares, and read best in per cent."""

Row = Sequence[object]


def table(title: str, columns: Sequence[str], rows: Iterable[Row], numeric: Sequence[int] = ()) -> RenderableType:
    """A plain table below its title; the columns in ``numeric`` are right-aligned and never broken."""
    made = Table(box=None, pad_edge=False, show_header=any(columns), header_style="bold")
    for position, column in enumerate(columns):
        if position in numeric:
            made.add_column(column, justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(str(cell))) for cell in row))
    return Group(line(title, "bold"), made)


def line(text: str, style: str = "") -> Text:
    """A line of text as it is; no markup is read out of it."""
    return Text(printable(text), style=style)


def megabytes(count: int) -> str:
    """Bytes for people, in decimal units as file managers have them."""
    if count >= 1e6:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"


def decibels(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    return f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "lost"


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def times(ratio: float, more: str, less: str) -> str:
    """1.5 -> "1.50 times faster"; 0.5 -> "2.00 times slower"."""
    return f"{ratio:.2f} times {more}" if ratio >= 1 else f"{1 / ratio:.2f} times {less}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def report(result: Report, *, verbose: bool = False) -> RenderableType:
    """The report of ``qtool quantize``."""
    parts: list[RenderableType] = [_summary(result)]
    if verbose:
        parts += ["", _layers(result)]
    if result.training is not None:
        parts += ["", epochs(result.training.epochs, result.training.best), line(_agreement(result.training))]
    if result.equalized is not None:
        parts += ["", line(_equalized(result.equalized))]
    parts += ["", _rules(result)]
    if result.fallbacks:
        parts += ["", _fallbacks(result)]
    if result.gates:
        parts += ["", _gates(result)]
    if result.advice:
        parts += ["", line("what to change in the recipe", "bold"), *advice_lines(result.advice)]
    if result.warnings:
        parts += ["", *(line(f"warning: {warning}", "yellow") for warning in result.warnings)]
    parts += ["", line(f"written: {normpath(result.output)}")]
    return Group(*parts)


def advice_lines(advice: Sequence[Advice]) -> list[RenderableType]:
    """What is wrong with which layers, and the rules that mend it as a recipe has them."""
    lines = []
    for item in advice:
        where = f"{some(item.layers)}: " if item.layers else ""
        lines.append(line(f"{where}{item.text}", "yellow"))
        if item.qconfig_dict:
            lines.append(line("  qconfig_dict:"))
            lines += [line(f"    {_key(key)}: {_yaml(value)}") for key, value in item.qconfig_dict.items()]
        lines += [line(f"  {key}: {_yaml(value)}") for key, value in item.recipe.items()]
    return list(lines)


def _key(key: str) -> str:
    """A rule's key, quoted where YAML would read something else."""
    return key if key.replace(".", "").replace("_", "").isalnum() and not key[0].isdigit() else json.dumps(key)


def _yaml(value: object) -> str:
    """A plain value in YAML's flow style."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _summary(result: Report) -> RenderableType:
    quantized = sum(layer.precision != "float32" for layer in result.layers)
    size = result.size
    saved = times(size.ratio, "smaller", "larger")
    rows: list[Row] = [("size", megabytes(size.float_bytes), megabytes(size.quant_bytes), saved)]
    if result.accuracy is not None:
        rows.append(_accuracy_row(result.accuracy))
    if result.latency is not None:
        rows.append(_latency_row(result.latency))
    share = f"{quantized} of {len(result.layers)} layers in int8"
    title = f"{normpath(result.model)}: {result.mode}, {result.backend}, {share}"
    return table(title, ("", "float32", "int8", ""), rows, numeric=(1, 2))


def _accuracy_row(accuracy: Accuracy) -> Row:
    if accuracy.against == FLOAT_OUTPUTS:
        what = f"against the float model's outputs, {plural(accuracy.n, 'sample')}"
        return accuracy.metric, "-", f"{number(accuracy.quant)} {accuracy.unit}".strip(), what
    drop = accuracy.drop
    if accuracy.metric in RATES:
        change = f"{abs(100 * drop):.2f} points {'gained' if drop < 0 else 'lost'} of {plural(accuracy.n, 'sample')}"
        return accuracy.metric, percent(accuracy.float), percent(accuracy.quant), change
    change = f"{number(abs(drop))} {'gained' if drop < 0 else 'lost'} of {plural(accuracy.n, 'sample')}"
    return accuracy.metric, number(accuracy.float), number(accuracy.quant), change


def _latency_row(latency: Latency) -> Row:
    how = f"{plural(latency.threads, 'thread')}, batch {latency.batch}, {latency.isa}"
    detail = f"{times(latency.speedup, 'faster', 'slower')} ({how})"
    return "latency", f"{latency.float_ms:.3f} ms", f"{latency.quant_ms:.3f} ms", detail


def epochs(rows: Sequence[Mapping[str, Any]], best: int | None) -> RenderableType:
    """The epochs of a training, the best one marked."""
    cells = [
        (
            row["number"] + 1,
            f"{row['loss']:.4f}",
            percent(row["accuracy"]),
            number(row["score"]),
            f"{row['rate']:.2g}",
            f"{row['seconds']:.1f}",
            "best" if row["number"] == best else "",
        )
        for row in rows
    ]
    return table("training", ("epoch", "loss", "right", "validation", "rate", "seconds", ""), cells, range(6))


def trained(result: TrainReport) -> RenderableType:
    """The report of ``qtool train``."""
    parts: list[RenderableType] = [epochs(result.epochs, result.best)]
    if result.accuracy is not None:
        found = result.accuracy
        value = percent(found.value) if found.name in RATES else f"{number(found.value)} {found.unit}".strip()
        parts += ["", line(f"{found.name}: {value} of {plural(found.n, 'sample')}")]
    return Group(*parts, "", line(f"written: {normpath(result.output)}"))


def _agreement(training: Training) -> str:
    how = "in integers" if training.exact else "in float"
    return (
        f"the int8 model gives the numbers of the trained one ({how}) for {percent(training.same_outputs)} of outputs"
        f" and its class for {percent(training.same_top1)} of {plural(training.compared, 'sample')}"
    )


def _equalized(found: Equalized) -> str:
    return f"equalized: {plural(found.channels, 'channel')} of {plural(found.layers, 'layer')} rescaled"


def _layers(result: Report) -> RenderableType:
    rows = [
        (
            layer.name,
            layer.op,
            layer.precision,
            megabytes(layer.weight_bytes) if layer.weight_bytes else "-",
            decibels(layer.sqnr_db),
            number(layer.low, 3),
            number(layer.high, 3),
            number(layer.scale),
            "-" if layer.zero_point is None else layer.zero_point,
            layer.kernel,
        )
        for layer in result.layers
    ]
    columns = ("layer", "operator", "runs in", "weights", "SQNR dB", "low", "high", "scale", "zero", "kernel")
    return table("layers", columns, rows, numeric=(3, 4, 5, 6, 7, 8))


def _rules(result: Report) -> RenderableType:
    rows = rule_rows((rule.key, rule.where, rule.matched, rule.modules) for rule in result.rules)
    return table("rules", RULE_COLUMNS, rows, numeric=(1,))


RULE_COLUMNS = ("rule", "layers", "which", "from")


def rule_rows(rules: Iterable[tuple[str, str, int, Sequence[str]]]) -> list[Row]:
    """Rows (rule, layers, which, from) of rules given as (key, where, count, modules)."""
    return [(key or '""', count, some(modules), where) for key, where, count, modules in rules]


def some(names: Sequence[str], most: int = SHOWN_MODULES) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _fallbacks(result: Report) -> RenderableType:
    return in_float((fallback.name, fallback.op, fallback.reason) for fallback in result.fallbacks)


def in_float(layers: Iterable[tuple[str, str, str]]) -> RenderableType:
    """The layers that stay in float, given as (name, operator, reason): a row for those of one reason."""
    names: dict[str, dict[str, None]] = {}
    ops: dict[str, dict[str, None]] = {}
    for name, op, reason in layers:
        names.setdefault(reason, {})[name] = None
        ops.setdefault(reason, {})[op] = None
    rows = [(len(names[why]), some(list(names[why])), some(list(ops[why]), SHOWN_OPERATORS), why) for why in names]
    return table("in float", ("layers", "which", "operators", "why"), rows, numeric=(0,))


def _gates(result: Report) -> RenderableType:
    rows = [
        (gate.name, number(gate.limit), number(gate.value), "passed" if gate.passed else "MISSED")
        for gate in result.gates
    ]
    return table("gates", ("gate", "limit", "measured", ""), rows, numeric=(1, 2))
