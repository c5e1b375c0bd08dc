"""The Numeric Suite on one graph: where, and how much, a quantized model departs from its float one.

Three views, as PyTorch's Numeric Suite has them: ``weights`` (no data needed), ``outputs`` (both models on the same
data, the error of all layers so far) and ``shadow`` (each quantized layer beside its float twin on the quantized
model's own input, the error of this layer alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qtool.engine.session import Session

from qtool.analysis.shadow import shadow_graph
from qtool.analysis.signal import Signal
from qtool.errors import ModelError
from qtool.ir import Array, Graph
from qtool.ops import get
from qtool.passes import Fusion, float_names, fuse, lower_qdq, quantized_name

SCHEMA = "qtool.compare/1"


@dataclass(frozen=True)
class LayerError:
    """One layer in one view: signal to quantization noise in dB (inf when equal), largest error, and cosine."""

    layer: str
    op: str
    sqnr_db: float
    max_error: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """The three views, each with its worst layer first, and what to change in the recipe."""

    weights: tuple[LayerError, ...]
    outputs: tuple[LayerError, ...]
    shadow: tuple[LayerError, ...]
    advice: tuple[str, ...]
    samples: int
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pair:
    """The fused float graph and the int8 graph, whose values correspond by name."""

    fused: Graph
    quantized: Graph

    @staticmethod
    def of(float_graph: Graph, quant_graph: Graph) -> Pair:
        """Repeats on the float graph the fusion that the quantized file records; ModelError where they do not fit."""
        if float_graph.is_quantized or not quant_graph.is_quantized:
            raise ModelError(
                f"expected a float and a quantized model, in this order; got '{float_graph.name}', which is"
                f" {_kind(float_graph)}, and '{quant_graph.name}', which is {_kind(quant_graph)}"
            )
        fused = fuse(float_graph, Fusion.from_json(quant_graph.meta.get("fusion")))
        lowered = lower_qdq(quant_graph)
        missing = [name for name in float_names(lowered).values() if name not in fused.values]
        if missing:
            raise ModelError(f"'{quant_graph.name}' was not made from this float model: it has no value '{missing[0]}'")
        return Pair(fused, lowered)


def _kind(graph: Graph) -> str:
    return f"quantized ({graph.backend})" if graph.is_quantized else "float"


def compare_weights(pair: Pair) -> tuple[LayerError, ...]:
    """Float against dequantized weights, worst first."""
    rows = []
    for node in pair.quantized.nodes:
        position = get(node.op).weight
        value = pair.quantized.values[node.inputs[position]] if position is not None else None
        if value is None or value.qparams is None or value.name not in pair.quantized.initializers:
            continue
        signal = Signal()
        real = pair.fused.initializers[float_names(pair.quantized)[value.name]]
        signal.add(real, value.qparams.dequantize(pair.quantized.initializers[value.name]))
        rows.append(_row(node.scope or node.name, node.op, signal))
    return _worst_first(rows)


def compare(
    float_graph: Graph,
    quant_graph: Graph,
    batches: Iterable[Mapping[str, Array]] = (),
    *,
    threads: int = 1,
    isa: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """All views; ``outputs`` and ``shadow`` are empty where there are no batches. Activations are kept for one batch
    only."""
    pair = Pair.of(float_graph, quant_graph)
    twins = {name: real for name, real in float_names(pair.quantized).items() if _is_activation(pair, name)}
    shadows = shadow_graph(pair.fused, pair.quantized)
    float_session = Session(pair.fused.with_outputs(tuple(dict.fromkeys(twins.values()))), threads=threads, isa=isa)
    shadow_session = Session(shadows.graph, threads=threads, isa=isa)
    outputs = {name: Signal() for name in twins}
    shadow = {name: Signal() for name in shadows.twins}
    samples = 0
    for feeds in batches:
        real, quantized = float_session.run(feeds), shadow_session.run(feeds)
        for name, signal in outputs.items():
            signal.add(real[twins[name]], _real(pair.quantized, name, quantized[name]))
        for name, signal in shadow.items():
            signal.add(quantized[shadows.twins[name]], _real(pair.quantized, name, quantized[name]))
        samples += len(next(iter(feeds.values())))
        if progress is not None:
            progress(samples)
    views = (
        compare_weights(pair),
        _worst_first([_value_row(pair, name, signal) for name, signal in outputs.items() if samples]),
        _worst_first([_value_row(pair, name, signal) for name, signal in shadow.items() if samples]),
    )
    return Comparison(*views, advise(pair, *views), samples)


def _is_activation(pair: Pair, name: str) -> bool:
    return name in pair.quantized.producers and float_names(pair.quantized)[name] not in pair.fused.inputs


def _real(graph: Graph, name: str, stored: Array) -> Array:
    qparams = graph.values[name].qparams
    assert qparams is not None
    return qparams.dequantize(stored)


def _row(layer: str, op: str, signal: Signal) -> LayerError:
    return LayerError(layer, op, signal.sqnr_db, signal.max_error, signal.cosine)


def _value_row(pair: Pair, name: str, signal: Signal) -> LayerError:
    node = pair.quantized.producers[name]
    return _row(node.scope or node.name, node.op, signal)


def _worst_first(rows: Iterable[LayerError]) -> tuple[LayerError, ...]:
    return tuple(sorted(rows, key=lambda row: row.sqnr_db))


POOR_DB = 20.0
"""Below some 20 dB (a tenth of the signal's amplitude is noise) a layer is worth a remark."""


def advise(
    pair: Pair, weights: tuple[LayerError, ...], outputs: tuple[LayerError, ...], shadow: tuple[LayerError, ...]
) -> tuple[str, ...]:
    """What to change in the recipe, from the worst layers of each view."""
    advice = []
    coarse = [row for row in weights if row.sqnr_db < POOR_DB and _per_tensor(pair, row.layer)]
    if coarse:
        advice.append(
            f"weights of {_names(coarse)} lose much with one scale a tensor: in qconfig_dict give them"
            " weight: {observer: per_channel_min_max, scheme: per_channel_symmetric}"
        )
    poor = [row for row in shadow if row.sqnr_db < POOR_DB and row not in coarse]
    if poor:
        advice.append(
            f"activations of {_names(poor)} are quantized coarsely: try the preset accurate, another observer"
            " (mse, percentile), or reduce_range: false"
        )
        advice.append(f"or leave the worst in float: qconfig_dict: {{{poor[0].layer}: null}}")
    if not advice and outputs and outputs[0].sqnr_db < POOR_DB:
        advice.append(f"no layer is bad alone, errors add up to {outputs[0].layer}: try the preset accurate")
    return tuple(advice)


def _per_tensor(pair: Pair, layer: str) -> bool:
    for node in pair.quantized.nodes:
        position = get(node.op).weight
        if (node.scope or node.name) == layer and position is not None:
            qparams = pair.quantized.values[node.inputs[position]].qparams
            return qparams is not None and qparams.axis is None
    return False


def _names(rows: Iterable[LayerError], most: int = 4) -> str:
    names = list(dict.fromkeys(row.layer for row in rows))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


__all__ = ["Comparison", "LayerError", "Pair", "compare", "compare_weights", "quantized_name"]
