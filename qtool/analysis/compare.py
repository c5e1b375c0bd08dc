"""The Numeric Suite on one graph: where, and how much, a quantized model departs from its float one.

Three views, as PyTorch's Numeric Suite has them: ``weights`` (no data needed), ``outputs`` (both models on the same
data, the error of all layers so far) and ``shadow`` (each quantized layer beside its float twin on the quantized
model's own input, the error of this layer alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qtool.analysis.advice import Advice, LayerError, advise, worst_of
from qtool.analysis.shadow import layer_twin
from qtool.analysis.shadows import Shadows, error_row
from qtool.analysis.signal import Signal, pieces
from qtool.engine.session import Session
from qtool.errors import ModelError
from qtool.ir import Array, Graph, Node, QParams, all_bodies, bodies_by_path, body_path
from qtool.ir.pieces import row_pieces
from qtool.ops import get
from qtool.passes import Fusion, float_names, fuse, lower_qdq
from qtool.passes.equalize import META, equalize
from qtool.quantize.data_state import State, run_step

__all__ = ["Advice", "Comparison", "LayerError", "Pair", "compare", "compare_weights"]

SCHEMA = "qtool.compare/1"
NOTHING = 1e-10
"""A channel with less than this share of the largest one's power is as good as not there."""


@dataclass(frozen=True)
class Comparison:
    """The three views, each with its worst layer first, and what to change in the recipe.

    ``model`` has a row for each output of the whole model. ``agreement`` is the share of samples for which both models
    choose the same class, where the first output is (samples, classes). ``samples`` is 0 where there were no data, and
    only ``weights`` is filled then.

    ``bodies`` are those of control flow, whose layers are named with their paths and have no rows in ``outputs``: the
    two models may run them at other times, or more often.
    """

    weights: tuple[LayerError, ...]
    outputs: tuple[LayerError, ...]
    shadow: tuple[LayerError, ...]
    model: tuple[LayerError, ...]
    advice: tuple[Advice, ...]
    samples: int
    agreement: float | None = None
    bodies: tuple[str, ...] = ()
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        return {"schema": plain.pop("schema"), **plain}


@dataclass(frozen=True)
class Pair:
    """The fused float graph and the int8 graph, whose values correspond by name."""

    fused: Graph
    quantized: Graph

    @staticmethod
    def of(float_graph: Graph, quant_graph: Graph) -> Pair:
        """Repeats on the float graph what the quantized file records: equalizing and fusing. ModelError where they do
        not fit."""
        if float_graph.is_quantized or not quant_graph.is_quantized:
            raise ModelError(
                f"expected a float and a quantized model, in this order; got '{float_graph.name}', which is"
                f" {_kind(float_graph)}, and '{quant_graph.name}', which is {_kind(quant_graph)}"
            )
        if META in quant_graph.meta:
            float_graph = equalize(float_graph)
        pair = Pair(fuse(float_graph, Fusion.from_json(quant_graph.meta.get("fusion"))), lower_qdq(quant_graph))
        difference = _difference(pair)
        if difference:
            raise ModelError(f"'{quant_graph.name}' was not made from this float model: {difference}")
        return pair

    def bodies(self) -> dict[str, Pair]:
        """Those of the bodies of control flow that both have, by path."""
        inner = bodies_by_path(self.fused)
        found = bodies_by_path(self.quantized).items()
        return {path: Pair(inner[path], body) for path, body in found if path in inner}


def _kind(graph: Graph) -> str:
    return f"quantized ({graph.backend})" if graph.is_quantized else "float"


def _difference(pair: Pair) -> str:
    """The first thing that the float graph does not have as the quantized one needs it; "" where they fit."""
    fused, quantized = pair.fused, pair.quantized
    if quantized.inputs != fused.inputs or quantized.outputs != fused.outputs:
        return "its inputs and outputs have other names"
    for name, real in float_names(quantized).items():
        if real not in fused.values:
            return f"that has no value '{real}'"
        if fused.values[real].shape != quantized.values[name].shape:
            return f"'{real}' has shape {fused.values[real].shape} there, and {quantized.values[name].shape} here"
        if (real in fused.initializers) != (name in quantized.initializers):
            return f"'{real}' is a constant in one of them only"
    for node in quantized.nodes:
        twin = layer_twin(fused, quantized, node)
        dynamic = get(node.op).dynamic_of
        if twin is not None and twin.op != (dynamic or node.op):
            return f"'{node.name}' is {twin.op} there, and {node.op} here"
        int8 = dynamic or quantized.values[node.outputs[0]].qparams is not None
        if twin is None and int8 and node.op != "quantize":
            return f"that has no layer '{node.name}'"
    bodies = pair.bodies()
    missing = bodies_by_path(quantized).keys() - bodies.keys()
    if missing:
        return f"that has no body '{min(missing)}'"
    found = ((path, _difference(body)) for path, body in bodies.items())
    return next((f"in {path}: {difference}" for path, difference in found if difference), "")


def compare_weights(pair: Pair) -> tuple[LayerError, ...]:
    """Float against dequantized weights, worst first, those in bodies of control flow too."""
    rows = []
    for node in pair.quantized.nodes:
        signal, channels, axis = Signal(), [], 1 if get(node.op).weights else get(node.op).channel_axis
        for value in quantized_weights(pair.quantized, node):
            qparams = pair.quantized.values[value].qparams
            assert qparams is not None
            real = pair.fused.initializers[float_names(pair.quantized)[value]]
            channels.append(_add_weight(signal, real, pair.quantized.initializers[value], qparams, axis))
        if channels:
            rows.append(replace(error_row(node, signal), channels_db=min(channels)))
    for path, body in pair.bodies().items():
        rows += (replace(row, layer=body_path(path, row.layer)) for row in compare_weights(body))
    return _worst_first(rows)


def _add_weight(signal: Signal, real: Array, stored: Array, qparams: QParams, axis: int) -> float:
    """Adds a weight to the signal; gives the ratio in dB that a tenth of its channels does not reach.

    Channels of next to nothing are not counted. A piece at a time: a weight may take as much memory as there is.
    """
    power, error = np.zeros(real.shape[axis]), np.zeros(real.shape[axis])
    for rows in row_pieces(real.shape):
        noisy = qparams.of_rows(rows).dequantize(stored[rows])
        signal.add(real[rows], noisy)
        at = rows if axis == 0 else slice(None)
        power[at] += _squares(real[rows], axis)
        error[at] += _squares(noisy - real[rows], axis)
    counted = power > NOTHING * power.max(initial=0.0)
    with np.errstate(divide="ignore"):  # a channel that is exact has no error
        ratios = 10.0 * np.log10(power[counted] / error[counted])
    return float(np.quantile(ratios, 0.1, method="lower")) if ratios.size else math.inf


def _squares(x: Array, axis: int) -> Array:
    """The sum of squares of each channel."""
    wide = np.square(np.asarray(x, np.float64))
    return np.asarray(np.moveaxis(wide, axis, 0).reshape(x.shape[axis], -1).sum(axis=1))


def quantized_weights(graph: Graph, node: Node) -> tuple[str, ...]:
    """Names of the int8 weights of a node; recurrent layers have two."""
    spec = get(node.op)
    positions = spec.weights or (() if spec.weight is None else (spec.weight,))
    names = (node.inputs[position] for position in positions if position < len(node.inputs))
    return tuple(name for name in names if name in graph.initializers and graph.values[name].qparams is not None)


def compare(
    float_graph: Graph,
    quant_graph: Graph,
    batches: Iterable[Mapping[str, Array]] = (),
    *,
    threads: int = 1,
    isa: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """All views; without batches ``weights`` only.

    ``batches`` are arrays by input name, samples along the first axis. Activations are kept for one batch only.
    A ``data_state.Stream`` is for models with state, of which each carries its own. Raises ModelError where the
    quantized graph was not made from the float one, DataError for batches that do not fit.
    """
    pair = Pair.of(float_graph, quant_graph)
    suite = _Suite(pair, (State.of(batches), State.of(batches)), threads, isa)
    for feeds in batches:
        suite.add(feeds)
        if progress is not None:
            progress(suite.samples)
    weights = compare_weights(pair)
    outputs, shadow, model = suite.rows() if suite.samples else ((), (), ())
    advice = advise(pair.quantized, weights, outputs, shadow, float_graph)
    bodies = tuple(all_bodies(pair.quantized))
    return Comparison(weights, outputs, shadow, model, advice, suite.samples, suite.agreement, bodies)


class _Suite:
    """Runs both models batch by batch and adds up the errors."""

    def __init__(self, pair: Pair, states: tuple[State, State], threads: int, isa: str | None) -> None:
        self._pair, self._states = pair, states
        self._twins = _activation_twins(pair)
        self._shadows = Shadows(pair.fused, pair.quantized, threads, isa)
        reals = tuple(dict.fromkeys([*self._twins.values(), *pair.fused.outputs]))
        shadowed = self._shadows.graph
        floats = [name for name in self._twins if name not in shadowed.outputs]
        graph = shadowed.with_outputs((*shadowed.outputs, *floats))
        self._float = Session(pair.fused.with_outputs(reals), threads=threads, isa=isa)
        self._quantized = Session(graph, threads=threads, isa=isa, run_body=self._shadows.run_body)
        self._outputs = {name: Signal() for name in self._twins}
        self._model = {name: Signal() for name in pair.quantized.outputs}
        self._agreed = self._judged = 0
        self.samples = 0

    def add(self, feeds: Mapping[str, Array]) -> None:
        sessions = zip((self._float, self._quantized), self._states, strict=True)
        real, stored = (run_step(session, state, feeds) for session, state in sessions)
        for name, signal in self._outputs.items():
            qparams = self._pair.quantized.values[name].qparams
            for a, b in pieces(real[self._twins[name]], stored[name]):
                signal.add(a, b if qparams is None else qparams.dequantize(b))
        self._shadows.add(stored)
        for name, signal in self._model.items():
            signal.add(real[name], stored[name])
        self._judge(real[self._pair.fused.outputs[0]], stored[self._pair.fused.outputs[0]])
        self.samples += len(next(iter(feeds.values())))

    def rows(self) -> tuple[tuple[LayerError, ...], tuple[LayerError, ...], tuple[LayerError, ...]]:
        """outputs, shadow and model."""
        producers = self._pair.quantized.producers
        outputs = [error_row(producers[name], signal) for name, signal in self._outputs.items()]
        model = [error_row(producers[name], signal, name) for name, signal in self._model.items() if name in producers]
        return _worst_first(outputs), _worst_first(self._shadows.rows()), tuple(model)

    @property
    def agreement(self) -> float | None:
        return self._agreed / self._judged if self._judged else None

    def _judge(self, real: Array, quantized: Array) -> None:
        if real.ndim == 2 and real.shape[1] > 1:
            self._agreed += int(np.count_nonzero(real.argmax(axis=1) == quantized.argmax(axis=1)))
            self._judged += len(real)


def _activation_twins(pair: Pair) -> dict[str, str]:
    """Each value that a layer of the int8 graph makes -> the float graph's value it stands for."""
    reals = float_names(pair.quantized)
    made = [out for node in pair.quantized.nodes if node.op != "dequantize" for out in node.outputs]
    return {name: reals.get(name, name) for name in made if reals.get(name, name) in pair.fused.values}


def _worst_first(rows: Iterable[LayerError]) -> tuple[LayerError, ...]:
    return tuple(sorted(rows, key=worst_of))
