"""Runs the float graph on calibration data with observers on: Prepared -> Calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from qtool.errors import QtoolError, QuantizationError
from qtool.ir import Array, Node, QParams, body_path
from qtool.ir.pieces import all_finite
from qtool.ops import get
from qtool.ops.registry import dynamic_twin
from qtool.quantize.bias_correction import Means
from qtool.quantize.bias_range import fit_biases
from qtool.quantize.data_state import State
from qtool.quantize.observation import Machine, Observation
from qtool.quantize.observers import Observer, make_observer
from qtool.quantize.prepare import Prepared, left_in_float, quantized_weights
from qtool.recipe.observers import OBSERVERS
from qtool.recipe.schema import ObserverConfig, Scheme

Progress = Callable[[int], None]
"""Called after each batch with the number of samples seen so far."""


NEVER_RUN = "its body was never run in calibration"


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
    bodies: Mapping[str, Calibrated] = field(default_factory=dict)
    """The same of each body of control flow, by its path as in ``Prepared``; warnings are in the outermost one too."""


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
    a batch once it is observed. A body of control flow that no batch reaches is left in float, with a warning. Dynamic
    mode needs no batches. A ``data_state.Stream`` of batches is for models with state, which is carried from batch to
    batch. Raises DataError for NaN or Inf (naming the layer) and QuantizationError where there was nothing to observe.
    """
    check_parameters(prepared)
    seen, samples = None, 0
    if prepared.needs_data:
        seen = Observation(prepared, Machine(threads, isa), tuple(State.of(batches).carry))
        samples = _observe(seen, batches, progress)
    calibrated = replace(_calibrated(prepared, seen), samples=samples)
    if not calibrated.prepared.quantized:
        raise QuantizationError(f"nothing is left to quantize: {'; '.join(calibrated.warnings)}")
    return calibrated


def _calibrated(prepared: Prepared, seen: Observation | None) -> Calibrated:
    """The parameters of a graph and of its bodies, those that have not run being left in float."""
    activations, ranges = _activation_qparams(prepared, seen.observers if seen else [None] * len(prepared.groups))
    weights = _weight_qparams(prepared)
    warnings = [*_warnings(prepared, activations), *_weight_warnings(prepared, weights)]
    weights, overflows = fit_biases(prepared, activations, weights)
    warnings += overflows
    bodies: dict[str, Calibrated] = {}
    for path, body in prepared.bodies.items():
        inner = seen.bodies[path] if seen else None
        if inner is not None and not inner.runs and body.needs_data:
            warnings.append(_never_run(prepared, path, body))
            bodies[path] = _calibrated(left_in_float(body, NEVER_RUN), None)
        else:
            bodies[path] = _calibrated(body, inner)
        warnings += (f"{path}: {text}" for text in bodies[path].warnings)
    found = {path: body.prepared for path, body in bodies.items()}
    return Calibrated(
        replace(prepared, bodies=MappingProxyType(found)),
        MappingProxyType(activations),
        MappingProxyType(weights),
        MappingProxyType(ranges),
        0,
        tuple(warnings),
        seen.means.means() if seen else {},
        MappingProxyType(bodies),
    )


def _never_run(prepared: Prepared, path: str, body: Prepared) -> str:
    node, name = next(
        (node, name) for node in prepared.graph.nodes for name in node.graphs if body_path(node.name, name) == path
    )
    left = len(body.quantized) - len(left_in_float(body, NEVER_RUN).quantized)
    count = f"{left} layers stay" if left > 1 else "1 layer stays"
    return (
        f"{node.op} '{node.name}': its body '{name}' was never run in calibration, so {count} in float there:"
        " calibrate with data that reach it"
    )


def check_parameters(prepared: Prepared) -> None:
    """NaN or infinity in a weight would come out of every layer behind it: it is named here, before anything runs."""
    for body in prepared.bodies.values():
        check_parameters(body)
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


def _observe(seen: Observation, batches: Iterable[Mapping[str, Array]], progress: Progress | None) -> int:
    """Runs all batches; gives the number of samples in them."""
    samples, state = 0, State.of(batches)
    for batch in batches:
        feeds = state.feeds(batch)
        state.keep(seen.run(feeds))
        samples += next((len(array) for array in feeds.values() if np.ndim(array)), 1)
        if progress is not None:
            progress(samples)
    if samples == 0:
        raise QuantizationError("there is no calibration data: static quantization needs at least one batch")
    return samples


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
                observer = make_observer(*weight_observer(prepared.qconfigs[node.name].weight, node))
                try:
                    observer.observe(prepared.graph.initializers[name])
                except QtoolError as error:
                    raise QuantizationError(f"weight '{name}' of {node.op} '{node.name}': {error}") from error
                found[name] = observer.qparams()
    return found


def weight_observer(config: ObserverConfig, node: Node) -> tuple[ObserverConfig, int]:
    """The observer of a node's weights, and the axis of its channels. Weights of recurrent layers are (directions,
    gates * hidden, inputs): what is one scale for a weight elsewhere is one a direction here, and what is one a channel
    is one a gate's unit."""
    twin, counterpart = dynamic_twin(node.op), OBSERVERS[config.observer].counterpart
    if twin is None or not twin.weights:
        return config, get(node.op).channel_axis
    if config.scheme.per_channel or not counterpart:
        return config, 1
    return replace(config, observer=counterpart, scheme=Scheme.PER_CHANNEL_SYMMETRIC), 0


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
