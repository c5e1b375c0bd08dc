"""Gathers what the stages of a run found into one report."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qtool import native
from qtool.analysis.advice import Advice
from qtool.analysis.compare import Pair, compare_weights
from qtool.engine.overflow import check_accumulators
from qtool.ir import Graph, Node, bodies_by_path, body_path
from qtool.ops import get
from qtool.ops.registry import dynamic_twin
from qtool.passes import lower_qdq, quantized_name
from qtool.passes.equalize import META, counts_of
from qtool.quantize.calibrate import Calibrated
from qtool.recipe.schema import Recipe
from qtool.report.types import Accuracy, Equalized, Fallback, Gate, Latency, Layer, Report, RuleRow, Size, Training

REFERENCE = "reference"
"""What a session's profile calls the kernel of a node that runs on the NumPy reference."""


@dataclass(frozen=True)
class Measured:
    """What the run measured of both models."""

    size: Size
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    """The kernel that each node of the quantized model runs on, where its latency was measured."""
    advice: tuple[Advice, ...] = ()
    training: Training | None = None


def build_report(recipe: Recipe, calibrated: Calibrated, quantized: Graph, measured: Measured) -> Report:
    """The report of one run of ``qtool quantize``."""
    prepared, lowered = calibrated.prepared, lower_qdq(quantized)
    return Report(
        model=str(recipe.model),
        output=str(recipe.output),
        mode=recipe.mode.value,
        backend=recipe.backend.value,
        size=measured.size,
        accuracy=measured.accuracy,
        latency=measured.latency,
        layers=_layers(calibrated, lowered, measured.kernels),
        fallbacks=tuple(Fallback(f.node, f.op, f.reason) for f in prepared.all_fallbacks),
        rules=tuple(RuleRow(row.key, row.where, row.count, row.modules) for row in prepared.matches.table),
        warnings=(*calibrated.warnings, *check_accumulators(lowered), *_engine_warnings(measured)),
        gates=_gates(recipe, measured),
        advice=measured.advice,
        training=measured.training,
        equalized=Equalized(*counts_of(prepared.graph)) if recipe.equalize else None,
        provenance=provenance(quantized),
    )


def provenance(quantized: Graph) -> Mapping[str, Any]:
    """Where the numbers come from: what the file records, and the host."""
    kept = {key: value for key, value in quantized.meta.items() if key not in ("fusion", META)}
    return {**kept, "host": {"machine": platform.machine(), "system": platform.system(), "numpy": np.__version__}}


def _engine_warnings(measured: Measured) -> list[str]:
    """What makes the latency less than it could be."""
    if measured.latency is None:
        return []
    if not native.available():
        return [f"latency is that of the NumPy reference, which is slow: {native.why_not()}"]
    slow = sorted(node for node, kernel in measured.kernels.items() if kernel == REFERENCE)
    some = ", ".join(slow[:4]) + (f" and {len(slow) - 4} more" if len(slow) > 4 else "")
    return [f"{some}: no native kernel, so the NumPy reference runs there (same numbers, slow)"] if slow else []


def _layers(calibrated: Calibrated, lowered: Graph, kernels: Mapping[str, str]) -> tuple[Layer, ...]:
    errors = {row.layer: row.sqnr_db for row in compare_weights(Pair(calibrated.prepared.graph, lowered))}
    rows = _rows(calibrated, lowered)
    return tuple(replace(row, sqnr_db=errors.get(row.name), kernel=kernels.get(row.name, "")) for row in rows)


def _rows(calibrated: Calibrated, lowered: Graph) -> Iterator[Layer]:
    """A row for each node but those of control flow, then those of the bodies."""
    for node in calibrated.prepared.graph.nodes:
        if not node.graphs:
            yield _layer(calibrated, lowered, node)
    bodies = bodies_by_path(lowered)
    for path, body in calibrated.bodies.items():
        if path in bodies:
            yield from (replace(row, name=body_path(path, row.name)) for row in _rows(body, bodies[path]))


def _layer(calibrated: Calibrated, lowered: Graph, node: Node) -> Layer:
    out = node.outputs[0]
    qparams, seen = calibrated.activations.get(out), calibrated.ranges.get(out)
    if node.name not in calibrated.prepared.qconfigs:
        return Layer(node.name, node.op, "float32", _weight_bytes(lowered, node, quantized=False))
    return Layer(
        node.name,
        node.op,
        "int8 dynamic" if node.name in calibrated.prepared.dynamic else "int8",
        _weight_bytes(lowered, node, quantized=True),
        scale=float(qparams.scale[0]) if qparams else None,
        zero_point=int(qparams.zero_point[0]) if qparams else None,
        low=seen.low if seen else None,
        high=seen.high if seen else None,
    )


def _weight_bytes(lowered: Graph, node: Node, *, quantized: bool) -> int:
    """Of all weights of a layer; recurrent ones have two, and a small table of embeddings its scales and offsets."""
    made = lowered.producers.get(node.outputs[0])
    if made is not None and made.op == "embedding_rows":
        return sum(lowered.initializers[name].nbytes for name in made.inputs[1:])
    twin = dynamic_twin(node.op)
    spec = twin if twin is not None and twin.weights else get(node.op)
    positions = spec.weights or (() if spec.weight is None else (spec.weight,))
    names = [node.inputs[position] for position in positions if position < len(node.inputs)]
    arrays = (lowered.initializers.get(quantized_name(name) if quantized else name) for name in names)
    return sum(array.nbytes for array in arrays if array is not None)


def _gates(recipe: Recipe, measured: Measured) -> tuple[Gate, ...]:
    """Every gate the recipe sets; one that could not be measured counts as missed."""
    limits = recipe.gates
    found = []
    if limits.max_accuracy_drop is not None:
        drop = measured.accuracy.drop if measured.accuracy else None
        passed = drop is not None and drop <= limits.max_accuracy_drop
        found.append(Gate("max_accuracy_drop", limits.max_accuracy_drop, drop, passed))
    metric = measured.accuracy.quant if measured.accuracy else None
    if limits.min_metric is not None:
        found.append(Gate("min_metric", limits.min_metric, metric, metric is not None and metric >= limits.min_metric))
    if limits.max_metric is not None:
        found.append(Gate("max_metric", limits.max_metric, metric, metric is not None and metric <= limits.max_metric))
    if limits.min_size_ratio is not None:
        ratio = measured.size.ratio
        found.append(Gate("min_size_ratio", limits.min_size_ratio, ratio, ratio >= limits.min_size_ratio))
    if limits.min_speedup is not None:
        speedup = measured.latency.speedup if measured.latency else None
        passed = speedup is not None and speedup >= limits.min_speedup
        found.append(Gate("min_speedup", limits.min_speedup, speedup, passed))
    return tuple(found)
