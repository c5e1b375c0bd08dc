"""One fake quantizer: an observer, the grid that follows from it, and rounding to it in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qtool.errors import QtoolError, QuantizationError
from qtool.ir import Array, QParams
from qtool.quantize.observers import make_observer
from qtool.quantize.qat.operators import Grid, Operators
from qtool.quantize.qparams import quant_limits
from qtool.recipe.schema import ObserverConfig

SCALE = "scale"
"""The name of a learnt scale in ``state``."""


class FakeQuant:
    """Rounds a tensor to the numbers that the converted model will have in its place.

    Scale and zero_point come from the observer, by the function that conversion uses too, or, where scales are learnt,
    from the optimizer once the observer has seen a first batch. Activations are clipped to the storage type, as the
    converted graph clips them; a weight to the limits of its qconfig (-8..7 for four bits).
    """

    def __init__(
        self,
        config: ObserverConfig,
        where: str,
        axis: int = 0,
        *,
        is_weight: bool = False,
        known: QParams | None = None,
    ) -> None:
        """``where`` names the tensor in messages; ``known`` are parameters that nothing changes."""
        self.where = where
        self.is_fixed = known is not None or config.observer == "fixed"
        self._observer = make_observer(config, axis)
        if not self._observer.trainable:
            raise QuantizationError(
                f"{where}: the observer '{config.observer}' cannot be used in training; expected min_max, "
                "moving_average_min_max, the same per channel, or fixed"
            )
        self._limits = quant_limits(config) if is_weight else None
        self._grid = None if known is None else self._grid_of(known)
        self._scale: Array | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a grid yet."""
        return self._grid is not None

    @property
    def grid(self) -> Grid:
        """QuantizationError, naming the tensor, where nothing was observed."""
        if self._grid is None:
            raise QuantizationError(f"{self.where} was never reached in training, so it has no scale")
        return self._grid

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest number seen, for the report."""
        if not self._observer.observed:
            return None
        low, high = self._observer.min_max()
        return float(low.min()), float(high.max())

    def observe(self, x: Array, operators: Operators) -> None:
        """Shows a batch to the observer. QuantizationError, naming the tensor, for NaN or infinity."""
        if x.size == 0:
            return
        try:
            self._observer.take(x, *operators.extremes(x, self._observer.axis))
            if self._scale is None and not (self.is_fixed and self.ready):
                self._grid = self._grid_of(self._observer.qparams())
        except QtoolError as error:
            raise QuantizationError(f"{self.where}: {error}") from error

    def forward(self, x: Array, operators: Operators) -> Array:
        """x rounded to the grid."""
        return operators.fake_quant(x, self.grid)

    def backward(self, x: Array, dy: Array, operators: Operators) -> Array:
        """The derivative by x."""
        return operators.fake_quant_grad(x, dy, self.grid)

    def adopt(self, qparams: QParams) -> None:
        """Takes over parameters that conversion had to change."""
        self._grid = self._grid_of(qparams)

    def learn_scale(self) -> Array:
        """The scale as a parameter of its own, which the observer no longer changes; to be updated in place, followed
        by ``refresh``."""
        if self._scale is None:
            self._scale = self.grid.qparams.scale.copy()
        return self._scale

    def refresh(self) -> None:
        """Takes over a scale that the optimizer has changed; one that is no longer positive stays at its least."""
        if self._scale is not None:
            np.maximum(self._scale, np.float32(self._observer.config.eps), out=self._scale)
            old = self.grid.qparams
            self._grid = self._grid_of(QParams(self._scale.copy(), old.zero_point, old.dtype, old.axis))

    def scale_grad(self, x: Array, dy: Array, operators: Operators) -> Array:
        """The derivative by a learnt scale, times 1 / sqrt(numbers a scale * largest step) (LSQ, section 2.2)."""
        grid = self.grid
        share = np.sqrt(x.size / grid.qparams.scale.size * max(grid.high, 1))
        return operators.scale_grad(x, dy, grid) / np.float32(share)

    def state(self) -> dict[str, Array]:
        """All that it has learnt."""
        learnt = {} if self._scale is None else {SCALE: self._scale, "zero_point": self.grid.qparams.zero_point}
        return {**self._observer.state(), **learnt}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Goes on from a ``state``."""
        seen = {key: array for key, array in state.items() if key not in (SCALE, "zero_point")}
        self._observer.restore(seen)
        self._scale = None
        if seen and not self.is_fixed:
            self._grid = self._grid_of(self._observer.qparams())
        if SCALE in state:
            old = self.grid.qparams
            self._scale = np.array(state[SCALE])
            self._grid = self._grid_of(QParams(self._scale.copy(), state["zero_point"], old.dtype, old.axis))

    def _grid_of(self, qparams: QParams) -> Grid:
        return Grid(qparams, *(self._limits or qparams.limits))
