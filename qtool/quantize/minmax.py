"""Observers that keep extremes only, and those that need no data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qtool.errors import QuantizationError
from qtool.ir import Array, QParams
from qtool.quantize.observer import Observer
from qtool.quantize.qparams import STORAGE, Float32, representable
from qtool.recipe.schema import ObserverConfig

AVERAGING_CONSTANT = 0.01


class MinMaxObserver(Observer):
    """Running extremes, per tensor or per channel by the scheme (PyTorch ``MinMaxObserver``, ``PerChannel...``)."""

    trainable = True

    def range(self) -> tuple[Float32, Float32]:
        return self.min_max()

    def _update(self, x: Float32, low: Float32, high: Float32) -> None:
        """The base class keeps the extremes."""


class MovingAverageObserver(Observer):
    """Exponential average of each batch's extremes, per tensor or per channel (PyTorch ``MovingAverage...``).

    The first batch sets the average a, later ones move it: a + averaging_constant * (extreme - a), in float32.
    """

    trainable = True

    def __init__(self, config: ObserverConfig, channel_axis: int = 0) -> None:
        super().__init__(config, channel_axis)
        self._constant = np.float32(config.options.get("averaging_constant", AVERAGING_CONSTANT))
        self._average: tuple[Float32, Float32] | None = None

    def range(self) -> tuple[Float32, Float32]:
        return self._average or self.min_max()

    def state(self) -> dict[str, Array]:
        if self._average is None:
            return {}
        return {**super().state(), "average_low": self._average[0], "average_high": self._average[1]}

    def restore(self, state: Mapping[str, Array]) -> None:
        super().restore(state)
        self._average = (state["average_low"], state["average_high"]) if state else None

    def _update(self, x: Float32, low: Float32, high: Float32) -> None:  # noqa: ARG002 - extremes are enough
        if self._average is None:
            self._average = (low, high)
            return
        old_low, old_high = self._average
        self._average = (old_low + self._constant * (low - old_low), old_high + self._constant * (high - old_high))


class FixedObserver(Observer):
    """Parameters given in the recipe (PyTorch ``FixedQParamsObserver``); the data only feed the warnings."""

    trainable = True

    def __init__(self, config: ObserverConfig, channel_axis: int = 0) -> None:
        super().__init__(config, channel_axis)
        scale, zero_point = float(config.options["scale"]), int(config.options["zero_point"])
        self._qparams = QParams.per_tensor(scale, zero_point, STORAGE[config.dtype])

    @property
    def observed(self) -> bool:
        return True

    def qparams(self) -> QParams:
        return self._qparams

    def range(self) -> tuple[Float32, Float32]:
        return representable(self._qparams, self.config)

    def min_max(self) -> tuple[Float32, Float32]:
        return self._seen or self.range()

    def _update(self, x: Float32, low: Float32, high: Float32) -> None:
        """Nothing is learnt from data."""

    def _at_eps(self, qparams: QParams) -> int:  # noqa: ARG002 - the recipe chose this scale, eps has no part in it
        return 0


class PlaceholderObserver(Observer):
    """Stands where parameters are computed at run time, as for dynamic activations (PyTorch's of that name)."""

    @property
    def observed(self) -> bool:
        return True

    def range(self) -> tuple[Float32, Float32]:
        raise QuantizationError(
            "the observer 'placeholder' has no parameters before run time; it is for the activations of mode: dynamic"
        )

    def _update(self, x: Float32, low: Float32, high: Float32) -> None:
        """Nothing is learnt from data."""
