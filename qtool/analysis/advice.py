"""From the errors of layers to what to change in the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from qtool.ir import Graph
from qtool.ops import QuantRule, get
from qtool.passes import quantized_name

POOR_DB = 20.0
"""Below some 20 dB (a tenth of the signal's amplitude is noise) a layer is worth a remark."""
COARSE_WEIGHT_DB = 25.0
FOREIGN_DB = 3.0
"""Weights this far from the float model's are not its weights at all."""
CLIPPED = 1e-3
"""Share of values outside the range above which clipping is named as the cause."""
MOST_RULES = 8


@dataclass(frozen=True)
class LayerError:
    """One layer in one view: signal to quantization noise in dB (inf when equal), largest error, and cosine.

    In the shadow view also what of it is the output's own doing: ``rounding_db`` is the ratio when nothing but the
    output were quantized, ``clipped`` the share of its values outside the range. In the weights view also
    ``channels_db``, which a tenth of the output channels does not reach: small channels may be lost beside large ones
    without a trace in the ratio of the whole.
    """

    layer: str
    op: str
    sqnr_db: float
    max_error: float
    cosine: float
    rounding_db: float | None = None
    clipped: float | None = None
    channels_db: float | None = None


@dataclass(frozen=True)
class Advice:
    """What is wrong with some layers, and rules for ``qconfig_dict`` (or another backend's preset) that mend it."""

    layers: tuple[str, ...]
    text: str
    qconfig_dict: Mapping[str, Any] = field(default_factory=dict)


def advise(
    quantized: Graph, weights: Sequence[LayerError], outputs: Sequence[LayerError], shadow: Sequence[LayerError]
) -> tuple[Advice, ...]:
    """What to change, most important first; empty where nothing is bad."""
    if weights and median(row.sqnr_db for row in weights) < FOREIGN_DB:
        text = "the weights have next to nothing in common: the quantized model was made from another checkpoint"
        return (Advice((), text),)
    coarse = [row for row in weights if worst_of(row) < COARSE_WEIGHT_DB and _per_tensor(quantized, row.layer)]
    known = {row.layer for row in coarse}
    poor = [row for row in shadow if row.sqnr_db < POOR_DB and row.layer not in known]
    clipped = [row for row in poor if _by_output(row) and (row.clipped or 0.0) > CLIPPED]
    rounded = [row for row in poor if _by_output(row) and row not in clipped]
    others = [row for row in poor if row not in clipped and row not in rounded]
    causes = (
        (coarse, "weights have one scale for all channels, too coarse for some of them", PER_CHANNEL),
        (clipped, "values are cut off: calibrate with data that reach further, or observe the extremes", WIDER),
        (rounded, _coarse_text(quantized), FINER),
        (others, "8 bits cost too much here: leave it in float", None),
    )
    advice = [_advice(quantized, rows, text, change) for rows, text, change in causes if rows]
    if not advice and outputs and outputs[0].sqnr_db < POOR_DB:
        text = f"no layer is bad by itself, but errors add up to '{outputs[0].layer}': try the preset accurate"
        advice.append(Advice((outputs[0].layer,), text, {"": "accurate"}))
    return tuple(advice)


PER_CHANNEL = {"weight": {"observer": "per_channel_min_max", "scheme": "per_channel_symmetric"}}
WIDER = {"activation": {"observer": "min_max"}}
FINER = {"activation": {"observer": "mse", "reduce_range": False}}


def _advice(quantized: Graph, rows: Sequence[LayerError], text: str, change: Mapping[str, Any] | None) -> Advice:
    layers = tuple(dict.fromkeys(row.layer for row in rows))
    keys = dict.fromkeys(_rule_key(quantized, row) for row in rows)
    rules = dict.fromkeys(keys, change) if len(keys) <= MOST_RULES else {"": change or "accurate"}
    return Advice(layers, text, rules)


def _rule_key(quantized: Graph, row: LayerError) -> str:
    """The layer itself; for a value that comes in from float its first reader, whose observer it has."""
    if row.op != "quantize":
        return row.layer
    readers = quantized.consumers.get(quantized_name(row.layer), ())
    return readers[0].name if readers else row.layer


def worst_of(row: LayerError) -> float:
    """What rows are sorted by. NaN, which is an overflow in one of the models, counts as the worst there is."""
    worst = row.sqnr_db if row.channels_db is None else min(row.sqnr_db, row.channels_db)
    return -math.inf if math.isnan(worst) else worst


def _by_output(row: LayerError) -> bool:
    """Whether at least half of the noise is there when nothing but the output is quantized, to a range of its own."""
    return (
        get(row.op).rule is not QuantRule.FIXED and row.rounding_db is not None and row.rounding_db < row.sqnr_db + 3.0
    )


def _coarse_text(quantized: Graph) -> str:
    text = "the range is wide for most of the values in it: choose it by least squared error"
    return f"{text}, with all 8 bits" if _reduces_range(quantized) else text


def _reduces_range(quantized: Graph) -> bool:
    """Whether the recipe that the file records uses 7 bits for activations anywhere."""
    recipe: Any = quantized.meta.get("recipe")
    rules = recipe.get("qconfig_dict") if isinstance(recipe, dict) else None
    qconfigs = rules.values() if isinstance(rules, dict) else ()
    activations = [qconfig.get("activation") for qconfig in qconfigs if isinstance(qconfig, dict)]
    return any(isinstance(part, dict) and part.get("reduce_range") is True for part in activations)


def _per_tensor(graph: Graph, layer: str) -> bool:
    for node in graph.nodes:
        position = get(node.op).weight
        if node.name == layer and position is not None:
            qparams = graph.values[node.inputs[position]].qparams
            return qparams is not None and qparams.axis is None
    return False
