"""Gathers what the stages of a run found into one report."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.analysis.compare import Pair, compare_weights
from qtool.ir import Graph, Node
from qtool.ops import get
from qtool.passes import lower_qdq, quantized_name
from qtool.quantize.calibrate import Calibrated
from qtool.recipe.schema import Recipe
from qtool.report.types import Accuracy, Fallback, Gate, Latency, Layer, Report, RuleRow, Size


@dataclass(frozen=True)
class Measured:
    """What the run measured of both models."""

    size: Size
    accuracy: Accuracy | None = None
    latency: Latency | None = None


def build_report(recipe: Recipe, calibrated: Calibrated, quantized: Graph, measured: Measured) -> Report:
    """The report of one run of ``qtool quantize``."""
    prepared = calibrated.prepared
    return Report(
        model=str(recipe.model),
        output=str(recipe.output),
        mode=recipe.mode.value,
        backend=recipe.backend.value,
        size=measured.size,
        accuracy=measured.accuracy,
        latency=measured.latency,
        layers=_layers(calibrated, lower_qdq(quantized)),
        fallbacks=tuple(Fallback(f.node, f.op, f.reason) for f in prepared.fallbacks),
        rules=tuple(RuleRow(row.key, row.where, row.count, row.modules) for row in prepared.matches.table),
        warnings=calibrated.warnings,
        gates=_gates(recipe, measured),
        provenance=provenance(quantized),
    )


def provenance(quantized: Graph) -> Mapping[str, Any]:
    """Where the numbers come from: what the file records, and the host."""
    kept = {key: value for key, value in quantized.meta.items() if key != "fusion"}
    return {**kept, "host": {"machine": platform.machine(), "system": platform.system(), "numpy": np.__version__}}


def _layers(calibrated: Calibrated, lowered: Graph) -> tuple[Layer, ...]:
    errors = {row.layer: row.sqnr_db for row in compare_weights(Pair(calibrated.prepared.graph, lowered))}
    return tuple(_layer(calibrated, lowered, node, errors) for node in calibrated.prepared.graph.nodes)


def _layer(calibrated: Calibrated, lowered: Graph, node: Node, errors: Mapping[str, float]) -> Layer:
    name, out = node.scope or node.name, node.outputs[0]
    qparams, seen = calibrated.activations.get(out), calibrated.ranges.get(out)
    quantized = node.name in calibrated.prepared.qconfigs
    if not quantized:
        return Layer(name, node.op, "float32", _weight_bytes(lowered, node, quantized=False))
    return Layer(
        name,
        node.op,
        "int8" if qparams is not None else "int8 dynamic",
        _weight_bytes(lowered, node, quantized=True),
        errors.get(name),
        float(qparams.scale[0]) if qparams else None,
        int(qparams.zero_point[0]) if qparams else None,
        seen.low if seen else None,
        seen.high if seen else None,
    )


def _weight_bytes(lowered: Graph, node: Node, *, quantized: bool) -> int:
    position = get(node.op).weight
    if position is None or position >= len(node.inputs):
        return 0
    name = quantized_name(node.inputs[position]) if quantized else node.inputs[position]
    array = lowered.initializers.get(name)
    return array.nbytes if array is not None else 0


def _gates(recipe: Recipe, measured: Measured) -> tuple[Gate, ...]:
    """Every gate the recipe sets; one that could not be measured counts as missed."""
    limits = recipe.gates
    found = []
    if limits.max_accuracy_drop is not None:
        drop = measured.accuracy.drop if measured.accuracy else None
        passed = drop is not None and drop <= limits.max_accuracy_drop
        found.append(Gate("max_accuracy_drop", limits.max_accuracy_drop, drop, passed))
    if limits.min_size_ratio is not None:
        ratio = measured.size.ratio
        found.append(Gate("min_size_ratio", limits.min_size_ratio, ratio, ratio >= limits.min_size_ratio))
    if limits.min_speedup is not None:
        speedup = measured.latency.speedup if measured.latency else None
        passed = speedup is not None and speedup >= limits.min_speedup
        found.append(Gate("min_speedup", limits.min_speedup, speedup, passed))
    return tuple(found)
