"""The nodes of a graph in training: each has a forward and a backward over arrays, and knows its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array, Node
from qtool.ops import attrs_of, get
from qtool.ops.registry import VjpCall
from qtool.quantize.qat.operators import Normalized, Operators
from qtool.quantize.qat.prepare import PARAMETERS, BatchNorm

MOMENTUM = np.float32(0.1)
"""Share of a batch in the running statistics of a batch norm, as in PyTorch."""

Optional = tuple[Array | None, ...]


@dataclass(frozen=True)
class Phase:
    """How a forward pass is meant.

    ``training`` keeps what backward needs. Batch norms use the batch's statistics unless ``freeze_bn``; ranges follow
    the batch if ``observe``; ``fake_quant`` rounds, in ``exact`` with the integer arithmetic of the converted model.
    """

    training: bool
    freeze_bn: bool
    observe: bool
    fake_quant: bool
    exact: bool = False


@dataclass
class State:
    """All that training changes: parameters and running statistics by name; and what backward finds."""

    operators: Operators
    parameters: dict[str, Array]
    statistics: dict[str, Array]
    trainable: frozenset[str]
    """The parameters that are trained."""
    gradients: dict[str, Array] = field(default_factory=dict)

    def add_gradient(self, name: str, gradient: Array | None) -> None:
        """Adds to the derivative by a parameter; one that is not trained has none."""
        if gradient is not None and name in self.trainable:
            known = self.gradients.get(name)
            self.gradients[name] = gradient if known is None else known + gradient

    def array(self, name: str) -> Array:
        """A parameter or a running statistic."""
        return self.parameters[name] if name in self.parameters else self.statistics[name]


class Layer(Protocol):
    """One node. ``given`` has an array for each input that is an activation, None elsewhere."""

    node: Node
    names: frozenset[str]
    """Its parameters."""

    def forward(self, given: Optional, phase: Phase) -> tuple[tuple[Array, ...], Any]:
        """The outputs, and what backward needs."""

    def backward(self, saved: Any, grads: Optional, needed: tuple[bool, ...]) -> Optional:
        """Derivatives by the activations that are needed; those by parameters go to the state."""


class Plain:
    """Any operator, by its record: its constants are parameters where PyTorch has parameters."""

    def __init__(self, node: Node, constants: Mapping[str, Array], state: State) -> None:
        self.node = node
        self._attrs = attrs_of(node)
        self._state = state
        self._constants = constants
        self._at = parameter_positions(node, state)
        self.names = frozenset(node.inputs[position] for position in self._at)

    def forward(self, given: Optional, phase: Phase) -> tuple[tuple[Array, ...], Any]:  # noqa: ARG002 - always the same
        arrays = tuple(
            array if array is not None or not name else self._constant(name)
            for array, name in zip(given, self.node.inputs, strict=True)
        )
        outputs = self._state.operators.run(self.node.op, self._attrs, arrays)
        return outputs, (arrays, outputs)

    def backward(self, saved: Any, grads: Optional, needed: tuple[bool, ...]) -> Optional:
        arrays, outputs = saved
        wanted = tuple(
            need or (position in self._at and self.node.inputs[position] in self._state.trainable)
            for position, need in enumerate(needed)
        )
        try:
            found = self._state.operators.vjp(self.node.op, VjpCall(self._attrs, arrays, outputs, grads, wanted))
        except ModelError as error:
            raise ModelError(f"layer '{self.node.scope or self.node.name}': {error}") from error
        for position in self._at:
            self._state.add_gradient(self.node.inputs[position], found[position])
        return found

    def _constant(self, name: str) -> Array:
        return self._state.parameters[name] if name in self.names else self._constants[name]


def parameter_positions(node: Node, state: State) -> tuple[int, ...]:
    """Where a node has parameters: inputs that PyTorch's modules have as such, and that are constants here."""
    formal = get(node.op).inputs
    return tuple(
        position
        for position, name in enumerate(node.inputs)
        if name in state.parameters and formal[min(position, len(formal) - 1)].rstrip("?*") in PARAMETERS
    )


class BatchNormLayer:
    """A batch norm that stands for itself."""

    def __init__(self, node: Node, norm: BatchNorm, state: State) -> None:
        self.node = node
        self._norm = norm
        self._state = state
        self.names = frozenset(name for name in (norm.weight, norm.bias) if name)

    def forward(self, given: Optional, phase: Phase) -> tuple[tuple[Array, ...], Any]:
        x = present(given[0])
        if uses_batch(self._norm, self._state, phase):
            found = normalize(x, self._norm, self._state)
            return (found.y,), (x, found)
        norm, shape = self._norm.norm(norm_arrays(self._norm, self._state)), _column(x)
        shift = norm.bias - norm.mean * norm.factor
        return (x * norm.factor.reshape(shape) + shift.reshape(shape),), (x, None)

    def backward(self, saved: Any, grads: Optional, needed: tuple[bool, ...]) -> Optional:
        x, found = saved
        dy = present(grads[0])
        if found is not None:
            return (normalize_grad(x, dy, found, self._norm, self._state), *(None,) * (len(needed) - 1))
        norm = self._norm.norm(norm_arrays(self._norm, self._state))
        axes = (0, *range(2, x.ndim))
        unit = (x - norm.mean.reshape(_column(x))) * norm.inverse_std.reshape(_column(x))
        self._state.add_gradient(self._norm.weight, (dy * unit).sum(axis=axes))
        self._state.add_gradient(self._norm.bias, dy.sum(axis=axes))
        return (dy * norm.factor.reshape(_column(x)), *(None,) * (len(needed) - 1))


def uses_batch(norm: BatchNorm, state: State, phase: Phase) -> bool:
    """Whether a batch norm is to use the batch's statistics: never where its layer is not trained."""
    trained = not {norm.weight, norm.bias}.isdisjoint(state.trainable) or not (norm.weight or norm.bias)
    return phase.training and not phase.freeze_bn and trained


def normalize(x: Array, norm: BatchNorm, state: State) -> Normalized:
    """By the batch's statistics, which move the running ones."""
    count = x.size // x.shape[1]
    parameters = norm.norm(norm_arrays(norm, state))
    found = state.operators.normalize(x, parameters.weight, parameters.bias, norm.eps)
    unbiased = found.variance * np.float32(count / max(count - 1, 1))
    for name, new in ((norm.mean, found.mean), (norm.variance, unbiased)):
        state.statistics[name] += MOMENTUM * (new - state.statistics[name])
    return found


def normalize_grad(x: Array, dy: Array, found: Normalized, norm: BatchNorm, state: State) -> Array:
    """The derivative by x; those by weight and bias go to the state."""
    weight = norm.norm(norm_arrays(norm, state)).weight
    dx, by_weight, by_bias = state.operators.normalize_grad(x, dy, found, weight)
    state.add_gradient(norm.weight, by_weight)
    state.add_gradient(norm.bias, by_bias)
    return dx


def norm_arrays(norm: BatchNorm, state: State) -> Mapping[str, Array]:
    """The parameters and running statistics of a batch norm, by name."""
    return {name: state.array(name) for name in (norm.mean, norm.variance, norm.weight, norm.bias) if name}


def _column(x: Array) -> tuple[int, ...]:
    return (1, -1, *[1] * (x.ndim - 2))


def present(array: Array | None) -> Array:
    """An array that an operator always has."""
    assert array is not None  # held by verification: a required input
    return array


def rows(factor: Array, weight: Array) -> Array:
    """An array of shape (O,) to be broadcast along axis 0 of a weight."""
    return factor.reshape(-1, *[1] * (weight.ndim - 1))


def without_activation(attrs: Any) -> Any:
    """The attributes of the bare sum of products."""
    return replace(attrs, activation="none", clamp=None)
