"""What every observer shares: checks of the data, the extremes seen, and what to warn of."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from qtool.errors import DataError, QuantizationError
from qtool.ir import Array, QParams
from qtool.quantize.loops import Loops
from qtool.quantize.qparams import Float32, choose_qparams, representable
from qtool.recipe.schema import ObserverConfig

COVERED = 0.5
"""Below this share of the range seen, an observer's choice is called saturated."""


class Flag(enum.Enum):
    """What a caller should warn of, with the layer's name."""

    SCALE_AT_EPS = "scale at eps"
    """The range is so small that the scale is the smallest allowed one."""
    CONSTANT = "constant"
    """Only one value was ever seen."""
    SATURATED = "saturated"
    """Less than half of the range seen can be represented."""


class Observer(ABC):
    """Watches one tensor, batch by batch, in bounded memory, and then chooses its scale and zero point."""

    trainable = False
    """Whether it serves in training: extremes are all it needs, and ``state`` can be kept and set again."""

    loops = Loops()
    """What it runs over tensors with."""

    def __init__(self, config: ObserverConfig, channel_axis: int = 0) -> None:
        self.config = config
        self.axis = channel_axis if config.scheme.per_channel else None
        self._seen: tuple[Float32, Float32] | None = None

    def observe(self, x: Array) -> None:
        """Takes in one batch, float32 of any shape; an empty one changes nothing.

        DataError for NaN or Inf, which names the counts only: the caller knows the layer.
        """
        x = np.asarray(x, np.float32)
        if x.size == 0:
            return
        self.take(x, *self._extremes(x))

    def take(self, x: Float32, low: Float32, high: Float32) -> None:
        """As ``observe``, of a batch that is not empty and whose extremes are known already."""
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise DataError(_count_non_finite(x))
        if self._seen is None:
            self._seen = (low, high)
        elif self._seen[0].shape != low.shape:
            raise DataError(f"got a batch with {low.size} channels, expected {self._seen[0].size} as before")
        else:
            self._seen = (np.minimum(self._seen[0], low), np.maximum(self._seen[1], high))
        self._update(x, low, high)

    @property
    def observed(self) -> bool:
        """Whether there is enough to choose parameters from."""
        return self._seen is not None

    def qparams(self) -> QParams:
        """The scale and zero point chosen; QuantizationError where nothing was observed."""
        low, high = self.range()
        return choose_qparams(low, high, self.config, self.axis)

    def min_max(self) -> tuple[Float32, Float32]:
        """The smallest and the largest value seen, of shape (1,) or (C,); QuantizationError where nothing was."""
        if self._seen is None:
            raise QuantizationError(f"the observer '{self.config.observer}' has seen no data")
        return self._seen

    def flags(self) -> Mapping[Flag, int]:
        """What to warn of, with the number of channels (1 per tensor) it is true of."""
        if self._seen is None:
            return {}
        low, high = self._seen
        qparams = self.qparams()
        lowest, highest = representable(qparams, self.config)
        with np.errstate(over="ignore"):
            covered = np.minimum(high, highest) - np.maximum(low, lowest)
            saturated = covered < np.float32(COVERED) * (high - low)
        found = {
            Flag.SCALE_AT_EPS: self._at_eps(qparams),
            Flag.CONSTANT: int((low == high).sum()),
            Flag.SATURATED: int(saturated.sum()),
        }
        return {flag: count for flag, count in found.items() if count}

    def state(self) -> dict[str, Array]:
        """What it has learnt, of an observer that is ``trainable``; empty where it has seen nothing."""
        return {} if self._seen is None else {"low": self._seen[0], "high": self._seen[1]}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on from a ``state``."""
        self._seen = (state["low"], state["high"]) if state else None

    @abstractmethod
    def range(self) -> tuple[Float32, Float32]:
        """The range to be quantized, of shape (1,) or (C,); QuantizationError where nothing was observed."""

    @abstractmethod
    def _update(self, x: Float32, low: Float32, high: Float32) -> None:
        """Takes in a batch that is finite and not empty; ``low`` and ``high`` are its extremes."""

    def _at_eps(self, qparams: QParams) -> int:
        return int((qparams.scale <= np.float32(self.config.eps)).sum())

    def _extremes(self, x: Float32) -> tuple[Float32, Float32]:
        if self.axis is None:
            return self.loops.extremes(x)
        if not -x.ndim <= self.axis < x.ndim:
            raise QuantizationError(f"channel axis {self.axis} does not exist in a tensor of shape {x.shape}")
        rows = np.moveaxis(x, self.axis, 0).reshape(x.shape[self.axis], -1)
        return rows.min(axis=1), rows.max(axis=1)


def _count_non_finite(x: Float32) -> str:
    nan, inf = int(np.isnan(x).sum()), int(np.isinf(x).sum())
    return f"{nan} NaN and {inf} infinite values among {x.size}; expected finite numbers"
