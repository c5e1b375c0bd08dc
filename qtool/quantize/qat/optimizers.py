"""SGD, Adam and AdamW: PyTorch's formulas in PyTorch's order of operations (torch/optim, its single-tensor forms).

Everything is float32 and changed in place. Results differ from torch 2.13 by its fused multiply-adds alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array
from qtool.recipe.training import Optimizer, OptimizerConfig

MOMENTUM, MEAN, SQUARE, STEPS = "momentum", "mean", "square", "steps"


class Stepper(Protocol):
    """Changes parameters by the derivatives of a loss, and remembers what it needs to."""

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array], rate: float) -> None:
        """Changes the arrays of ``parameters`` (float32, writable) that have a gradient; ``rate`` is this step's."""

    def state(self) -> dict[str, Array]:
        """What is remembered, by ``KIND/PARAMETER``: the arrays themselves, to be written before the next step."""

    def restore(self, state: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
        """Takes over a copy of what ``state`` gave; ModelError where it is not of these parameters."""


def make_optimizer(config: OptimizerConfig, undecayed: Collection[str] = ()) -> Stepper:
    """The optimizer of a recipe. Parameters named in ``undecayed`` never decay, whatever the recipe says of others."""
    decay = Decay(config.weight_decay, config.decay_norms, frozenset(undecayed))
    return Sgd(config, decay) if config.name is Optimizer.SGD else Adam(config, decay)


@dataclass(frozen=True)
class Decay:
    """Which parameters are drawn towards zero, and how much."""

    amount: float = 0.0
    norms: bool = True
    """Whether parameters with one axis, or none, are."""
    undecayed: frozenset[str] = frozenset()

    def of(self, name: str, parameter: Array) -> float:
        return self.amount if name not in self.undecayed and (self.norms or parameter.ndim > 1) else 0.0


@dataclass
class Sgd:
    """``torch.optim.SGD`` without dampening: v = momentum v + g, which begins as g; p -= rate v (or g + momentum v)."""

    config: OptimizerConfig
    decay: Decay = Decay()
    _momentum: dict[str, Array] = field(default_factory=dict)

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array], rate: float) -> None:
        for name, grad in grads.items():
            parameter = parameters[name]
            change = self._smoothed(name, _decayed(grad, parameter, self.decay.of(name, parameter)))
            parameter -= np.float32(rate) * change

    def _smoothed(self, name: str, grad: Array) -> Array:
        factor = np.float32(self.config.momentum)
        if not factor:
            return grad
        if name in self._momentum:
            velocity = self._momentum[name]
            velocity *= factor
            velocity += grad
        else:
            velocity = self._momentum[name] = np.array(grad, np.float32)  # a copy, since gradients are not ours
        return grad + factor * velocity if self.config.nesterov else velocity

    def state(self) -> dict[str, Array]:
        return {f"{MOMENTUM}/{name}": array for name, array in self._momentum.items()}

    def restore(self, state: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
        self._momentum = _sorted_out(state, parameters, (MOMENTUM,))[MOMENTUM]


@dataclass
class Adam:
    """``torch.optim.Adam`` and ``AdamW`` (https://arxiv.org/abs/1412.6980, https://arxiv.org/abs/1711.05101): the
    averages of g and g² with the bias of their zeros taken out; AdamW takes the decay off the parameter directly."""

    config: OptimizerConfig
    decay: Decay = Decay()
    _mean: dict[str, Array] = field(default_factory=dict)
    _square: dict[str, Array] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)

    def step(self, parameters: Mapping[str, Array], grads: Mapping[str, Array], rate: float) -> None:
        for name, grad in grads.items():
            self._change(name, parameters[name], grad, rate)

    def _change(self, name: str, parameter: Array, grad: Array, rate: float) -> None:
        decay = self.decay.of(name, parameter)
        if self.config.name is Optimizer.ADAMW:
            parameter *= np.float32(1 - rate * decay)
        else:
            grad = _decayed(grad, parameter, decay)
        step = self._steps[name] = self._steps.get(name, 0) + 1
        mean, square = (each.setdefault(name, np.zeros_like(parameter)) for each in (self._mean, self._square))
        first, second = self.config.betas
        _lerp(mean, grad, 1 - first)
        square *= np.float32(second)
        square += np.float32(1 - second) * grad * grad
        spread = np.sqrt(square)
        spread /= np.float32((1 - second**step) ** 0.5)
        spread += np.float32(self.config.eps)
        parameter -= np.float32(rate / (1 - first**step)) * mean / spread

    def state(self) -> dict[str, Array]:
        kinds = ((MEAN, self._mean), (SQUARE, self._square))
        arrays = {f"{kind}/{name}": array for kind, each in kinds for name, array in each.items()}
        return arrays | {f"{STEPS}/{name}": np.array([count], np.int64) for name, count in self._steps.items()}

    def restore(self, state: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
        found = _sorted_out(state, parameters, (MEAN, SQUARE, STEPS))
        if not set(found[MEAN]) == set(found[SQUARE]) == set(found[STEPS]):
            raise ModelError("the optimizer's state has averages of some parameters only; start training anew")
        self._mean, self._square = found[MEAN], found[SQUARE]
        self._steps = {name: int(count[0]) for name, count in found[STEPS].items()}


def _decayed(grad: Array, parameter: Array, decay: float) -> Array:
    return grad + np.float32(decay) * parameter if decay else grad


def _lerp(start: Array, end: Array, weight: float) -> None:
    """``start.lerp_(end, weight)``: from the nearer end, as ATen/native/Lerp.h does."""
    if weight < 0.5:
        start += np.float32(weight) * (end - start)
    else:
        np.subtract(end, (end - start) * np.float32(1 - weight), out=start)


def _sorted_out(
    state: Mapping[str, Array], parameters: Mapping[str, Array], kinds: Collection[str]
) -> dict[str, dict[str, Array]]:
    """Copies of the arrays by kind and parameter, each checked against its parameter."""
    found: dict[str, dict[str, Array]] = {kind: {} for kind in kinds}
    for key, array in state.items():
        kind, _, name = key.partition("/")
        if kind not in found or name not in parameters:
            raise ModelError(f"the optimizer's state has {key!r}, and no parameter for it; start training anew")
        dtype, shape = (np.int64, (1,)) if kind == STEPS else (np.float32, parameters[name].shape)
        if array.dtype != dtype or array.shape != shape:
            got, expected = (
                f"{np.dtype(d).name} of shape {s}" for d, s in ((array.dtype, array.shape), (dtype, shape))
            )
            raise ModelError(f"the optimizer's state has {key!r} as {got}; expected {expected}")
        found[kind][name] = array.copy()
    return found
