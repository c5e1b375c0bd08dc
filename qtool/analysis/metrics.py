"""What outputs are judged by: accumulators that take batches and give one frozen result.

``top1`` and ``top5`` compare outputs with class labels; ``mse``, ``psnr``, ``cosine``, ``sqnr`` and ``max_error``
compare them with arrays of the same shape: float targets, or another model's outputs. ``perplexity`` and its
logarithms judge scores of the next token. A metric of one's own is named as ``module:function``.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qtool.analysis.signal import Signal
from qtool.errors import DataError, RecipeError
from qtool.ir import Array
from qtool.quantize.data import UNSCORED


@dataclass(frozen=True)
class MetricResult:
    """A metric over ``n`` samples, in ``unit`` ("" for a plain number; rates are 0..1); ``outputs`` has it by output
    where several were measured, of which ``value`` is the worst."""

    name: str
    value: float
    n: int
    unit: str
    higher_is_better: bool
    outputs: Mapping[str, float] = field(default_factory=dict)


class Accumulator(Protocol):
    """Takes batches; holds a few numbers however many there are."""

    def add(self, outputs: Array, targets: Array) -> None:
        """One batch, samples along the first axis. DataError for shapes or types that do not fit."""

    @property
    def value(self) -> float:
        """The metric so far."""


@dataclass(frozen=True)
class MetricSpec:
    """One metric. ``labels`` tells whether its targets are class numbers; else they are arrays like the outputs."""

    name: str
    make: Callable[[], Accumulator]
    labels: bool
    unit: str
    higher_is_better: bool
    text: str
    check: Callable[[str, Array, Array], None] | None = None
    """What is asked of a batch's arrays; None asks for labels of one axis less, or targets of the same shape."""


class Metric:
    """A metric being measured. Example: ``m = make_metric("top1"); m.add(outputs, labels); m.result().value``"""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self._accumulator = spec.make()
        self._samples = 0

    def add(self, outputs: Array, targets: Array) -> None:
        """Takes one batch: outputs (n, ...) and labels (n, ...) of one axis less, or targets of the same shape."""
        check = self.spec.check or (_check_labels if self.spec.labels else _check_targets)
        check(self.spec.name, outputs, targets)
        self._accumulator.add(outputs, targets)
        self._samples += len(outputs)

    def result(self) -> MetricResult:
        """The metric of all batches so far; DataError if there were none."""
        if self._samples == 0:
            raise DataError(f"{self.spec.name} of no samples: there are no data to measure it on")
        spec = self.spec
        return MetricResult(spec.name, self._accumulator.value, self._samples, spec.unit, spec.higher_is_better)


class TopK:
    """Share of labels whose class is among the ``k`` with the highest scores (along the last axis).

    Of equal scores the class with the lower number comes first, as in ``argmax``. A row with NaN counts as wrong.
    """

    def __init__(self, k: int) -> None:
        self._k, self._right, self._count = k, 0, 0

    def add(self, outputs: Array, targets: Array) -> None:
        classes = outputs.shape[-1]
        if classes < self._k:
            raise DataError(f"top{self._k} needs at least {self._k} classes; the outputs have shape {outputs.shape}")
        scores, labels = outputs.reshape(-1, classes), targets.reshape(-1)
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise DataError(f"labels run from {labels.min()} to {labels.max()}; expected 0..{classes - 1}")
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        before = (scores > own) | ((scores == own) & (np.arange(classes) < labels[:, None]))
        right = (np.count_nonzero(before, axis=1) < self._k) & ~np.isnan(scores).any(axis=1)
        self._right += int(np.count_nonzero(right))
        self._count += labels.size

    @property
    def value(self) -> float:
        return self._right / self._count


class MeanSquaredError:
    """Mean over all elements of (output - target)^2, summed in float64."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, outputs: Array, targets: Array) -> None:
        error = _errors(outputs, targets).ravel()
        self._sum += float(error @ error)
        self._count += error.size

    @property
    def value(self) -> float:
        return self._sum / self._count


class PeakSignalToNoise:
    """Mean over samples of 10 log10(peak^2 / mse), as denoising is judged; ``peak`` is that of pictures in 0..1.

    Infinite as soon as one sample is exact.
    """

    def __init__(self, peak: float = 1.0) -> None:
        self._peak, self._sum, self._count = peak, 0.0, 0

    def add(self, outputs: Array, targets: Array) -> None:
        mse = np.mean(np.square(_errors(outputs, targets).reshape(len(outputs), -1)), axis=1)
        with np.errstate(divide="ignore"):
            self._sum += float(np.sum(10.0 * np.log10(self._peak**2 / mse)))
        self._count += len(outputs)

    @property
    def value(self) -> float:
        return self._sum / self._count


class Likeness:
    """Cosine, or signal to quantization noise in dB, over all elements of all batches: 20 log10(|target| / |error|).

    The second is ``compute_error`` of PyTorch's Numeric Suite.
    """

    def __init__(self, read: Callable[[Signal], float]) -> None:
        self._signal, self._read = Signal(), read

    def add(self, outputs: Array, targets: Array) -> None:
        self._signal.add(targets, outputs)

    @property
    def value(self) -> float:
        return self._read(self._signal)


class MaxError:
    """The largest absolute difference of any element."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, outputs: Array, targets: Array) -> None:
        self.value = float(np.maximum(self.value, np.abs(_errors(outputs, targets)).max(initial=0.0)))  # keeps NaN


class CrossEntropy:
    """Mean over tokens of -log softmax(scores)[token], in float64, as ``read`` gives it.

    Tokens that are ``UNSCORED`` do not count.
    """

    def __init__(self, read: Callable[[float], float]) -> None:
        self._read, self._sum, self._count = read, 0.0, 0

    def add(self, outputs: Array, targets: Array) -> None:
        classes = outputs.shape[-1]
        counted = targets.reshape(-1) != UNSCORED
        scores, labels = outputs.reshape(-1, classes)[counted].astype(np.float64), targets.reshape(-1)[counted]
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise DataError(f"labels run from {labels.min()} to {labels.max()}; expected 0..{classes - 1}")
        scores -= scores.max(axis=1, keepdims=True)
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        self._sum += float(np.log(np.exp(scores).sum(axis=1)).sum() - own.sum())
        self._count += labels.size

    @property
    def value(self) -> float:
        return self._read(self._sum / self._count) if self._count else math.nan


class Own:
    """The mean of what a function gives for each batch, weighted by the batches' samples."""

    def __init__(self, function: Callable[[Array, Array], float]) -> None:
        self._function, self._sum, self._count = function, 0.0, 0

    def add(self, outputs: Array, targets: Array) -> None:
        self._sum += float(self._function(outputs, targets)) * len(outputs)
        self._count += len(outputs)

    @property
    def value(self) -> float:
        return self._sum / self._count


def _bits(nats: float) -> float:
    return nats / math.log(2)


_SPECS = (
    MetricSpec("top1", lambda: TopK(1), True, "", True, "share of labels that have the highest score"),
    MetricSpec("top5", lambda: TopK(5), True, "", True, "share of labels among the five highest scores"),
    MetricSpec("mse", MeanSquaredError, False, "", False, "mean squared error"),
    MetricSpec("psnr", PeakSignalToNoise, False, "dB", True, "peak signal to noise, mean over samples, peak 1"),
    MetricSpec("cosine", lambda: Likeness(lambda s: s.cosine), False, "", True, "cosine of the angle between the two"),
    MetricSpec("sqnr", lambda: Likeness(lambda s: s.sqnr_db), False, "dB", True, "signal to quantization noise"),
    MetricSpec("max_error", MaxError, False, "", False, "largest absolute difference"),
    MetricSpec("perplexity", lambda: CrossEntropy(math.exp), True, "", False, "exp of the mean cross entropy a token"),
    MetricSpec("bits_per_character", lambda: CrossEntropy(_bits), True, "bits", False, "cross entropy of characters"),
    MetricSpec("bits_per_word", lambda: CrossEntropy(_bits), True, "bits", False, "cross entropy of words"),
)
METRICS: Mapping[str, MetricSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every metric by name."""


def make_metric(name: str) -> Metric:
    """A metric with nothing measured yet; RecipeError for a name that is none."""
    return Metric(find_metric(name))


def find_metric(name: str) -> MetricSpec:
    """A metric by name, or by ``module:function``; RecipeError for one that does not exist.

    The function takes a batch's outputs and labels (arrays, samples along the first axis) and gives one number, of
    which the mean over all samples is reported. More is better unless it has an attribute ``higher_is_better`` that is
    False.
    Modules are looked for where Python looks, and in the current folder.
    """
    if ":" in name:
        return _own_metric(name)
    if name not in METRICS:
        raise RecipeError(
            f"metric '{name}' is not known; expected one of {', '.join(METRICS)}, or a function as module:function"
        )
    return METRICS[name]


def _own_metric(name: str) -> MetricSpec:
    module, _, path = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module)
        for part in path.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"metric '{name}': {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise RecipeError(f"metric '{name}' is {type(function).__name__}, expected a function of outputs and labels")
    better = bool(getattr(function, "higher_is_better", True))
    return MetricSpec(name, lambda: Own(function), True, "", better, "a function of the user's", _check_own)


def _check_own(name: str, outputs: Array, labels: Array) -> None:
    if outputs.ndim == 0 or labels.ndim == 0 or len(outputs) != len(labels):
        raise DataError(f"{name}: labels of shape {labels.shape} for outputs of shape {outputs.shape}")


def _errors(outputs: Array, targets: Array) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # the difference of two infinities is NaN, and shows in the result
        return np.subtract(outputs, targets, dtype=np.float64)


def _check_labels(name: str, outputs: Array, labels: Array) -> None:
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name} compares with class numbers; the labels are {labels.dtype.name}")
    if outputs.ndim < 2 or labels.shape != outputs.shape[:-1]:
        raise DataError(f"{name}: labels of shape {labels.shape} for outputs of shape {outputs.shape}")


def _check_targets(name: str, outputs: Array, targets: Array) -> None:
    if outputs.shape != targets.shape or outputs.ndim == 0:
        raise DataError(f"{name}: targets of shape {targets.shape} for outputs of shape {outputs.shape}")
