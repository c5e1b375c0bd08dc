"""Runs the float graph on calibration data with observers on: Prepared -> Calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from qtool.engine.session import Session
from qtool.errors import DataError, QtoolError, QuantizationError
from qtool.ir import Array, Node, QParams
from qtool.ir.pieces import all_finite
from qtool.ops import get
from qtool.ops.registry import dynamic_twin
from qtool.quantize.bias_correction import ChannelMeans, Means
from qtool.quantize.bias_range import fit_biases
from qtool.quantize.observers import Observer, make_observer
from qtool.quantize.prepare import Prepared, quantized_weights
from qtool.recipe.observers import OBSERVERS
from qtool.recipe.schema import ObserverConfig, Scheme

Progress = Callable[[int], None]
"""Called after each batch with the number of samples seen so far."""


@dataclass(frozen=True)
class Range:
    """What an observer saw of a value, for the report."""

    low: float
    high: float


@dataclass(frozen=True)
class Calibrated:
    """Scale and zero_point of every quantized activation and weight, by value name of the fused float graph."""

    prepared: Prepared
    activations: Mapping[str, QParams]
    weights: Mapping[str, QParams]
    ranges: Mapping[str, Range]
    samples: int
    warnings: tuple[str, ...]
    means: Means = field(default_factory=dict)
    """What the layers whose biases are to be corrected read, on average."""


def calibrate(
    prepared: Prepared,
    batches: Iterable[Mapping[str, Array]],
    *,
    threads: int = 1,
    isa: str | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Feeds the batches through the float graph and computes all quantization parameters.

    Activations are observed batch by batch in execution order, as PyTorch's observers see them, and nothing is kept of
    a batch once it is observed. Dynamic mode needs no batches. Raises DataError for NaN or Inf (naming the layer) and
    QuantizationError where there was nothing to observe.
    """
    _check_parameters(prepared)
    observers = [make_observer(group.config) if group.fixed is None else None for group in prepared.groups]
    by_value = {
        name: observer
        for group, observer in zip(prepared.groups, observers, strict=True)
        if observer is not None
        for name in group.values
    }
    samples, means = 0, ChannelMeans(prepared)
    if by_value:
        session = Session(prepared.graph.with_outputs(_computed(prepared, means)), threads=threads, isa=isa)
        samples = _observe(prepared, session, (by_value, means), batches, progress)
    activations, ranges = _activation_qparams(prepared, observers)
    weights = _weight_qparams(prepared)
    warnings = [*_warnings(prepared, activations), *_weight_warnings(prepared, weights)]
    weights, overflows = fit_biases(prepared, activations, weights)
    return Calibrated(
        prepared,
        MappingProxyType(activations),
        MappingProxyType(weights),
        MappingProxyType(ranges),
        samples,
        (*warnings, *overflows),
        means.means(),
    )


def _check_parameters(prepared: Prepared) -> None:
    """NaN or infinity in a weight would come out of every layer behind it: it is named here, before anything runs."""
    for node in prepared.graph.nodes:
        weights = quantized_weights(prepared, node)
        bias = get(node.op).bias if weights else None
        positions = weights if bias is None or bias >= len(node.inputs) else (*weights, bias)
        for name in (node.inputs[at] for at in positions):
            array = prepared.graph.initializers.get(name)
            if array is not None and not all_finite(array):
                count = array.size - np.count_nonzero(np.isfinite(array))
                raise QuantizationError(
                    f"'{name}' of {node.op} '{node.name}': {count} of {array.size} numbers are NaN or infinite"
                )


def _computed(prepared: Prepared, means: ChannelMeans) -> tuple[str, ...]:
    """The observed values that the session has to give (inputs are at hand already)."""
    wanted = dict.fromkeys((*prepared.observed, *means.axes))
    return tuple(name for name in wanted if name not in prepared.graph.inputs)


def _observe(
    prepared: Prepared,
    session: Session,
    into: tuple[Mapping[str, Observer], ChannelMeans],
    batches: Iterable[Mapping[str, Array]],
    progress: Progress | None,
) -> int:
    samples, (observers, means) = 0, into
    for feeds in batches:
        outputs = session.run(feeds)
        for name in means.axes:
            means.observe(name, feeds[name] if name in feeds else outputs[name])
        for name in prepared.observed:
            _observe_value(prepared, observers[name], name, feeds[name] if name in feeds else outputs.pop(name))
        samples += len(next(iter(feeds.values())))
        if progress is not None:
            progress(samples)
    if samples == 0:
        raise QuantizationError("there is no calibration data: static quantization needs at least one batch")
    return samples


def _observe_value(prepared: Prepared, observer: Observer, name: str, x: Array) -> None:
    try:
        observer.observe(x)
    except QtoolError as error:
        producer = prepared.graph.producers.get(name)
        where = f"the output of {producer.op} '{producer.name}'" if producer else f"the input '{name}'"
        raise DataError(f"calibration of {where}: {error}") from error


def _activation_qparams(
    prepared: Prepared, observers: Iterable[Observer | None]
) -> tuple[dict[str, QParams], dict[str, Range]]:
    qparams: dict[str, QParams] = {}
    ranges: dict[str, Range] = {}
    for group, observer in zip(prepared.groups, observers, strict=True):
        if observer is None:
            assert group.fixed is not None
            found = group.fixed
        else:
            found = observer.qparams()
            low, high = observer.min_max()
            ranges.update({name: Range(float(np.min(low)), float(np.max(high))) for name in group.values})
        qparams.update(dict.fromkeys(group.values, found))
    return qparams, ranges


def _weight_qparams(prepared: Prepared) -> dict[str, QParams]:
    """Parameters of every weight that is quantized, from the observer of the first node that uses it."""
    found: dict[str, QParams] = {}
    for node in prepared.graph.nodes:
        for position in quantized_weights(prepared, node):
            name = node.inputs[position]
            if name not in found:
                observer = _weight_observer(prepared.qconfigs[node.name].weight, node)
                try:
                    observer.observe(prepared.graph.initializers[name])
                except QtoolError as error:
                    raise QuantizationError(f"weight '{name}' of {node.op} '{node.name}': {error}") from error
                found[name] = observer.qparams()
    return found


def _weight_observer(config: ObserverConfig, node: Node) -> Observer:
    """The observer of a node's weights. Those of recurrent layers are (directions, gates * hidden, inputs): what is one
    scale for a weight elsewhere is one a direction here, and what is one a channel is one a gate's unit."""
    twin, counterpart = dynamic_twin(node.op), OBSERVERS[config.observer].counterpart
    if twin is None or not twin.weights:
        return make_observer(config, get(node.op).channel_axis)
    if config.scheme.per_channel or not counterpart:
        return make_observer(config, 1)
    return make_observer(replace(config, observer=counterpart, scheme=Scheme.PER_CHANNEL_SYMMETRIC), 0)


def _warnings(prepared: Prepared, activations: Mapping[str, QParams]) -> Iterable[str]:
    for group in prepared.groups:
        if group.fixed is None and float(activations[group.values[0]].scale[0]) <= group.config.eps:
            yield (
                f"'{group.values[0]}' was zero or constant in all calibration data (scale at its least,"
                f" {group.config.eps:g}): other data will saturate; calibrate with data that reaches this layer"
            )


def _weight_warnings(prepared: Prepared, weights: Mapping[str, QParams]) -> Iterable[str]:
    for name, qparams in weights.items():
        eps = min(config.weight.eps for config in prepared.qconfigs.values())
        dead = int(np.count_nonzero(qparams.scale <= eps))
        if dead:
            yield f"weight '{name}': {dead} of {qparams.scale.size} channels are all zero, or nearly"
