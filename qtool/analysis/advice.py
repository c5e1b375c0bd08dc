"""From the errors of layers to what to change in the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from qtool.ir import Graph, bodies_by_path
from qtool.ops import QuantRule, get
from qtool.passes import quantized_name
from qtool.passes.equalize import META, rescaled_layers
from qtool.recipe.presets import get_preset
from qtool.recipe.qconfigs import plain_qconfig

POOR_DB = 20.0
"""Below some 20 dB (a tenth of the signal's amplitude is noise) a layer is worth a remark."""
COARSE_WEIGHT_DB = 25.0
FOREIGN_DB = 3.0
"""Weights this far from the float model's are not its weights at all."""
CLIPPED = 1e-3
"""Share of values outside the range above which clipping is named as the cause."""
MOST_RULES = 8
CLAMPS: Mapping[str, tuple[float, float] | None] = {"relu6": (0.0, 6.0), "hardtanh": None, "clamp": None}
"""Bounds; None where the attributes have them."""


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
    """What is wrong with some layers, and rules for ``qconfig_dict`` (or another backend's preset) that mend it, or
    other keys of the recipe (``recipe``) that do."""

    layers: tuple[str, ...]
    text: str
    qconfig_dict: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


def advise(
    quantized: Graph,
    weights: Sequence[LayerError],
    outputs: Sequence[LayerError],
    shadow: Sequence[LayerError],
    source: Graph | None = None,
) -> tuple[Advice, ...]:
    """What to change, most important first; empty where nothing is bad. ``source`` is the float graph before anything
    was done to it, without which there is no advice to equalize it."""
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
        (_wide_clamps(quantized, outputs), "the range is that of before the clamp behind it, much too wide", CLAMPED),
    )
    advice = [_advice(quantized, rows, text, change) for rows, text, change in causes if rows]
    advice[1:1] = _equalizing(quantized, coarse, source)  # beside what else mends coarse weights, which is first
    if outputs and outputs[0].sqnr_db < POOR_DB:
        advice.append(_in_the_end(quantized, outputs[0], alone=not advice))
    return tuple(advice)


def _equalizing(quantized: Graph, coarse: Sequence[LayerError], source: Graph | None) -> list[Advice]:
    """The other way for weights with one scale: of the layers for which it is too coarse, those whose channels
    ``equalize`` evens out. Layers quantized at run time are left out, since it is not for recipes of mode dynamic."""
    static = [row.layer for row in coarse if not get(row.op).dynamic_of]
    if not static or source is None or META in quantized.meta:
        return []
    rescaled = rescaled_layers(source)
    layers = tuple(layer for layer in static if layer in rescaled)
    text = (
        "or keep the one scale and rescale channels between layers, so that none has weights much larger than the"
        " others; goes best with single_rounding and bias_correction"
    )
    return [Advice(layers, text, recipe={"equalize": True})] if layers else []


def _in_the_end(quantized: Graph, worst: LayerError, *, alone: bool) -> Advice:
    """What helps where errors add up."""
    if _is_accurate(quantized):
        text = "errors add up to this layer with the preset accurate too: leave in float what compare shows as worst"
        return Advice((worst.layer,), text, {_rule_key(quantized, worst): None})
    text = "no layer is bad by itself, but errors add up to this one" if alone else "or all at once"
    return Advice((worst.layer,) if alone else (), f"{text}: try the preset accurate", {"": "accurate"})


PER_CHANNEL = {"weight": {"observer": "per_channel_min_max", "scheme": "per_channel_symmetric"}}
WIDER = {"activation": {"observer": "min_max"}}
FINER = {"activation": {"observer": "mse", "reduce_range": False}}
CLAMPED = {"single_rounding": True}


def _advice(quantized: Graph, rows: Sequence[LayerError], text: str, change: Mapping[str, Any] | None) -> Advice:
    layers = tuple(dict.fromkeys(row.layer for row in rows))
    keys = dict.fromkeys(_rule_key(quantized, row) for row in rows)
    rules = dict.fromkeys(keys, change) if len(keys) <= MOST_RULES else {"": change or "accurate"}
    return Advice(layers, text, rules)


def _rule_key(quantized: Graph, row: LayerError) -> str:
    """The layer whose rule says how this row's output is observed.

    That is the one that makes the value, for a layer that only moves values the one that made them, and for a value
    that comes in from float its first reader.
    """
    home, start = _home(quantized, row.layer)
    layer, made = row.layer.removeprefix(start), home.producers
    node = next((n for n in home.nodes if n.name in (layer, quantized_name(layer))), None)
    while node is not None and get(node.op).rule is QuantRule.SAME_AS_INPUT and node.inputs[0] in made:
        node = made[node.inputs[0]]
    if node is None or node.op != "quantize":
        return row.layer if node is None else f"{start}{node.name}"
    readers = home.consumers[node.outputs[0]]
    return f"{start}{readers[0].name}" if readers else row.layer


def _home(graph: Graph, layer: str) -> tuple[Graph, str]:
    """The graph that a row's layer is in, perhaps a body of control flow, and the path that its name begins with."""
    for path, body in bodies_by_path(graph).items():
        if layer.startswith(f"{path}."):
            home, start = _home(body, layer.removeprefix(f"{path}."))
            return home, f"{path}.{start}"
    return graph, ""


def _wide_clamps(quantized: Graph, outputs: Sequence[LayerError]) -> list[LayerError]:
    """Layers that are followed by a clamp (relu6, hardtanh) to less than half of the range they are quantized for, as
    PyTorch observes it, where that leaves a poor result."""
    rows = {row.layer: row for row in outputs}
    found = []
    for node in quantized.nodes:
        host, qparams = quantized.producers.get(node.inputs[0]), quantized.values[node.outputs[0]].qparams
        if node.op not in CLAMPS or host is None or qparams is None or node.name not in rows:
            continue
        low, high = CLAMPS[node.op] or (node.attrs.get("low", 0.0), node.attrs.get("high", 0.0))
        wide = float(qparams.scale[0]) * 255 > 2 * (float(str(high)) - float(str(low)))
        if wide and host.name in rows and rows[node.name].sqnr_db < POOR_DB:
            found.append(rows[host.name])
    return found


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


def _rules(quantized: Graph) -> Mapping[str, Any]:
    """The rules that the file records, which may record anything."""
    recipe: Any = quantized.meta.get("recipe")
    rules = recipe.get("qconfig_dict") if isinstance(recipe, dict) else None
    return rules if isinstance(rules, dict) else {}


def _reduces_range(quantized: Graph) -> bool:
    """Whether activations have 7 bits anywhere."""
    activations = [rule.get("activation") for rule in _rules(quantized).values() if isinstance(rule, dict)]
    return any(isinstance(part, dict) and part.get("reduce_range") is True for part in activations)


def _is_accurate(quantized: Graph) -> bool:
    """Whether the recipe that the file records has the preset accurate for everything."""
    return _rules(quantized).get("") == plain_qconfig(get_preset("accurate"))


def _per_tensor(graph: Graph, layer: str) -> bool:
    home, start = _home(graph, layer)
    for node in home.nodes:
        position = get(node.op).weight
        if f"{start}{node.name}" == layer and position is not None:
            qparams = home.values[node.inputs[position]].qparams
            return qparams is not None and qparams.axis is None
    return False
