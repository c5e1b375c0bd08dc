"""The learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qtool.recipe.training import Schedule, ScheduleConfig


@dataclass(frozen=True)
class Rates:
    """The rate of each step of a training, steps and epochs counted from 0.

    - ``step`` is PyTorch's ``StepLR``, stepped after every epoch: base * gamma ** (epoch // step_epochs), where epochs
      count from the beginning of training.
    - ``cosine`` is its ``CosineAnnealingLR``, stepped after every batch: base * (1 + cos(pi t / T)) / 2, where T is the
      number of steps behind the warm-up and t counts these. It would be 0 in the step after the last one.
    - The warm-up of W steps is its ``LinearLR`` from 1 / (W + 1), stepped after every batch: it rises from 0, in the
      step before the first one, to the base rate in the step behind it.
    """

    config: ScheduleConfig
    base: float
    epochs: int
    steps_per_epoch: int

    @property
    def warmup_steps(self) -> int:
        return round(self.config.warmup_epochs * self.steps_per_epoch)

    def at(self, step: int) -> float:
        """The rate of that step."""
        warmup = self.warmup_steps
        if step < warmup:
            return self._main(step) * (step + 1) / (warmup + 1)
        return self._main(step)

    def _main(self, step: int) -> float:
        if self.config.name is Schedule.STEP:
            return self.base * self.config.gamma ** (step // self.steps_per_epoch // self.config.step_epochs)
        if self.config.name is Schedule.COSINE:
            done = max(0, step - self.warmup_steps)
            total = self.epochs * self.steps_per_epoch - self.warmup_steps
            return self.base * (1 + math.cos(math.pi * done / total)) / 2 if done else self.base
        return self.base
