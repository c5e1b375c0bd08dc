"""The loop: epochs of steps, freezing on the way, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qtool.errors import QuantizationError
from qtool.ir import Array
from qtool.quantize.qat import snapshot
from qtool.quantize.qat.batches import TrainBatches
from qtool.quantize.qat.layers import Phase
from qtool.quantize.qat.losses import loss_of
from qtool.quantize.qat.model import QatModel
from qtool.quantize.qat.optimizers import Stepper, make_optimizer
from qtool.quantize.qat.schedules import Rates
from qtool.recipe.schema import TrainConfig
from qtool.recipe.training import FakeQuant

Teacher = Callable[[Mapping[str, Array]], Array]
"""The float model's output for a batch."""
Judge = Callable[[QatModel], float]
"""How good a model is on data it is not trained on; more is better."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. ``accuracy`` is the share of right classes while it was trained, None without classes;
    ``score`` is the judge's, None without one."""

    number: int
    loss: float
    accuracy: float | None
    score: float | None
    rate: float
    seconds: float


@dataclass
class Progress:
    """How far training is: what a checkpoint holds."""

    history: list[Epoch] = field(default_factory=list)
    best: int | None = None
    """The number of the best epoch."""
    best_state: dict[str, Array] = field(default_factory=dict)
    samples: int = 0

    @property
    def done(self) -> int:
        """Epochs that are finished."""
        return len(self.history)


@dataclass(frozen=True)
class Hooks:
    """What the outside sees and adds: told after each step (samples of the epoch so far, mean loss, accuracy), after
    each epoch, and asked for targets and verdicts."""

    step: Callable[[int, float, float | None], None] = lambda done, loss, accuracy: None  # noqa: ARG005
    epoch: Callable[[Epoch], None] = lambda epoch: None  # noqa: ARG005
    teacher: Teacher | None = None
    judge: Judge | None = None


class Trainer:
    """Trains a model as a recipe says; ``fake_quant`` False trains it in float."""

    def __init__(
        self,
        model: QatModel,
        config: TrainConfig,
        data: TrainBatches,
        hooks: Hooks = Hooks(),
        *,
        fake_quant: bool = True,
    ) -> None:
        self.model = model
        self.config = config
        self.progress = Progress()
        self._data = data
        self._output = data.dataset.outputs[0]
        self._hooks = hooks
        self._fake_quant = fake_quant
        self.optimizer: Stepper = make_optimizer(config.optimizer, model.scales.keys())
        self._rates = Rates(config.schedule, config.optimizer.rate, config.epochs, data.steps_per_epoch)

    def run(self, after_epoch: Callable[[], None] = lambda: None) -> Progress:
        """All epochs that are left; leaves the model in the state of the best one.

        QuantizationError that names the layer where the loss is no longer a number. An interruption leaves
        ``progress`` as it was after the last whole epoch.
        """
        while self.progress.done < self.config.epochs:
            self._epoch(self.progress.done)
            after_epoch()
        if self.progress.best is not None:
            snapshot.put(self.model, self.progress.best_state)
        return self.progress

    def phase(self, epoch: int) -> Phase:
        """How the steps of an epoch run."""
        freeze_bn = _from(self.config.freeze_bn_epoch, epoch)
        exact = self.config.fake_quant is FakeQuant.EXACT and freeze_bn and self._fake_quant
        observe = not _from(self.config.freeze_observer_epoch, epoch)
        return Phase(True, freeze_bn, observe, self._fake_quant, exact)

    def _epoch(self, number: int) -> None:
        start, done, total, right, counted = time.perf_counter(), 0, 0.0, 0, 0
        phase, rate = self.phase(number), 0.0
        for index, (feeds, labels) in enumerate(self._data.epoch(number)):
            step = number * self._data.steps_per_epoch + index
            rate = self._rates.at(step)
            loss, output = self._step(feeds, labels, phase, rate)
            count = len(output)
            done, total = done + count, total + loss * count
            found = _right(output, labels)
            right, counted = right + found[0], counted + found[1]
            self._hooks.step(done, total / done, right / counted if counted else None)
        self.progress.samples += done
        score = self._hooks.judge(self.model) if self._hooks.judge is not None else None
        accuracy = right / counted if counted else None
        epoch = Epoch(number, total / max(done, 1), accuracy, score, rate, time.perf_counter() - start)
        self._keep_if_best(epoch)
        self.progress.history.append(epoch)
        self._hooks.epoch(epoch)

    def _step(self, feeds: Mapping[str, Array], labels: Array | None, phase: Phase, rate: float) -> tuple[float, Array]:
        outputs = self.model.forward(feeds, phase)
        output = outputs[self._output]
        teacher = self._hooks.teacher(feeds) if self._hooks.teacher is not None else None
        loss, gradient = loss_of(self.config.loss, output, labels, teacher)
        if not math.isfinite(loss):
            layer = self.model.not_finite()
            where = f"the output of layer '{layer}' holds NaN or infinity" if layer else "all layers are finite"
            raise QuantizationError(f"the loss is {loss}: {where}; a smaller rate, or a warm-up, may help")
        gradients = self.model.backward({self._output: gradient})
        self.optimizer.step(self.model.parameters, gradients, rate)
        self.model.refresh()
        return loss, output

    def _keep_if_best(self, epoch: Epoch) -> None:
        """By the judge, else by the loss; of losses only those count that were taken of the model as it converts."""
        best = self.progress.best
        known = None if best is None else self.progress.history[best]
        if known is None or self._better(epoch, known):
            self.progress.best = epoch.number
            self.progress.best_state = snapshot.take(self.model)

    def _better(self, epoch: Epoch, known: Epoch) -> bool:
        if epoch.score is not None and known.score is not None:
            return epoch.score >= known.score
        return self.phase(known.number) != self.phase(epoch.number) or epoch.loss <= known.loss


def _from(first: int | None, epoch: int) -> bool:
    return first is not None and epoch >= first


def _right(output: Array, labels: Array | None) -> tuple[int, int]:
    """How many samples are of the class with the largest output, of how many; (0, 0) where there are no classes."""
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != output.shape[:-1]:
        return 0, 0
    scored = labels >= 0
    return int(np.count_nonzero((output.argmax(axis=-1) == labels) & scored)), int(np.count_nonzero(scored))
