"""What a quantization run found out: frozen results, no printing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qtool.analysis.advice import Advice
from qtool.analysis.metrics import MetricResult

SCHEMA, TRAIN_SCHEMA = "qtool.report/1", "qtool.training/1"

LABELS, FLOAT_OUTPUTS = "labels", "float outputs"

Real = float
"""The built-in type, for the class below that has a field of that name (as the report's JSON does)."""


@dataclass(frozen=True)
class Size:
    """File sizes in bytes."""

    float_bytes: int
    quant_bytes: int

    @property
    def ratio(self) -> float:
        return self.float_bytes / self.quant_bytes


@dataclass(frozen=True)
class Accuracy:
    """A metric of both models over the same ``n`` samples. ``higher_is_better`` tells which way a drop goes, and
    ``against`` what outputs were compared with: labels (or targets), or the outputs of the float model."""

    metric: str
    float: Real
    quant: Real
    n: int
    higher_is_better: bool = True
    against: str = LABELS
    unit: str = ""
    outputs: Mapping[str, Real] = field(default_factory=dict)
    """The quantized model's metric by output; ``quant`` is the worst."""

    @property
    def drop(self) -> Real:
        """How much was lost, positive for worse, in the metric's own unit."""
        lost = self.float - self.quant
        return lost if self.higher_is_better else -lost


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference: median and minimum of interleaved runs of both models."""

    float_ms: float
    quant_ms: float
    float_min_ms: float
    quant_min_ms: float
    threads: int
    batch: int
    isa: str
    runs: int

    @property
    def speedup(self) -> float:
        return self.float_ms / self.quant_ms


@dataclass(frozen=True)
class Training:
    """What training came to. ``best`` is the index of the epoch that was converted, ``samples`` how many were seen.

    Then how far the converted model gives what the trained one gave, of ``compared`` samples: the share of output
    numbers that are the same, and of rows with the same largest one. ``exact``: the trained one computed with integers.
    """

    epochs: tuple[Mapping[str, Any], ...]
    best: int
    samples: int
    compared: int
    same_outputs: Real
    same_top1: Real
    exact: bool


@dataclass(frozen=True)
class Layer:
    """One layer of the quantized model. ``sqnr_db`` compares its weights with the float ones."""

    name: str
    op: str
    precision: str
    weight_bytes: int = 0
    sqnr_db: float | None = None
    scale: float | None = None
    zero_point: int | None = None
    low: float | None = None
    high: float | None = None
    kernel: str = ""


@dataclass(frozen=True)
class Fallback:
    """A layer that runs in float, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class RuleRow:
    """What one rule of the recipe matched."""

    key: str
    where: str
    matched: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """One limit of the recipe and what was measured."""

    name: str
    limit: float
    value: float | None
    passed: bool


@dataclass(frozen=True)
class Equalized:
    """How many channels were rescaled, and behind how many layers, where the recipe says ``equalize: true``."""

    layers: int
    channels: int


@dataclass(frozen=True)
class TrainReport:
    """What ``qtool train`` tells: the epochs, the index of the best one, and the metric of its model."""

    model: str
    output: str
    epochs: tuple[Mapping[str, Any], ...]
    best: int
    accuracy: MetricResult | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: str = TRAIN_SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": self.schema, **{k: v for k, v in asdict(self).items() if k != "schema"}}


@dataclass(frozen=True)
class Report:
    """Everything ``qtool quantize`` tells, in the order it is told."""

    model: str
    output: str
    mode: str
    backend: str
    size: Size
    accuracy: Accuracy | None
    latency: Latency | None
    layers: tuple[Layer, ...]
    fallbacks: tuple[Fallback, ...]
    rules: tuple[RuleRow, ...]
    warnings: tuple[str, ...]
    gates: tuple[Gate, ...] = ()
    advice: tuple[Advice, ...] = ()
    """What to change in the recipe, where more than a point of accuracy is lost."""
    training: Training | None = None
    equalized: Equalized | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the ratios that follow from the measurements."""
        plain = {"schema": self.schema, **{k: v for k, v in asdict(self).items() if k != "schema"}}
        plain["size"]["ratio"] = self.size.ratio
        if self.accuracy is not None:
            plain["accuracy"]["drop"] = self.accuracy.drop
        if self.latency is not None:
            plain["latency"]["speedup"] = self.latency.speedup
        return plain
