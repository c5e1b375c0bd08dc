"""Inputs that data files do not hold: constants, and state that a model hands on from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from qtool.engine.session import Session
from qtool.errors import DataError
from qtool.ir import Array, Graph, Value
from qtool.ir.limits import shown
from qtool.recipe.schema import DataConfig


@dataclass(frozen=True)
class Stream:
    """Batches that follow one another in time, for a model with state.

    ``carry`` maps outputs of a step to the inputs of the next. The first batch of a stream holds these inputs too, as
    they are at its start (usually zeros); later ones leave them out. Each model that runs has its own ``State``.
    """

    batches: Iterable[Mapping[str, Array]]
    carry: Mapping[str, str]

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return iter(self.batches)


class State:
    """What one model carries."""

    def __init__(self, carry: Mapping[str, str]) -> None:
        self.carry = carry
        self._arrays: dict[str, Array] = {}

    @staticmethod
    def of(batches: Iterable[Mapping[str, Array]]) -> State:
        """The state that goes with a ``Stream``; with other batches, one that carries nothing."""
        return State(batches.carry if isinstance(batches, Stream) else {})

    def feeds(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The whole of a step's inputs, those of the batch first."""
        return {**batch, **{name: array for name, array in self._arrays.items() if name not in batch}}

    def keep(self, outputs: Mapping[str, Array]) -> None:
        """Takes what the next step is to be fed."""
        self._arrays = {name: outputs[output] for output, name in self.carry.items()}


def run_step(session: Session, state: State, batch: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of one batch, by a session and the state that goes with it."""
    outputs = session.run(state.feeds(batch))
    state.keep(outputs)
    return outputs


@dataclass(frozen=True)
class Extra:
    """The inputs that a recipe sets, beside those ``read`` from data."""

    read: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    constants: Mapping[str, tuple[Value, float]] = field(default_factory=lambda: MappingProxyType({}))
    carried: Mapping[str, tuple[Value, Value]] = field(default_factory=lambda: MappingProxyType({}))
    """Input name -> the input, and the output whose place it takes."""

    @property
    def carry(self) -> Mapping[str, str]:
        """Output -> the input that it becomes in the next step."""
        return {output.name: name for name, (_, output) in self.carried.items()}

    def feeds(self, batch: Mapping[str, Array], *, first: bool) -> dict[str, Array]:
        """What goes with a batch that was read; ``first`` at the start of a stream."""
        sizes = _sizes(batch, self.read)
        made = {
            name: np.full(_shape(value, value, sizes), number, value.dtype.numpy)
            for name, (value, number) in self.constants.items()
        }
        if first:
            for name, (value, output) in self.carried.items():
                made[name] = np.zeros(_shape(value, output, sizes), value.dtype.numpy)
        return made


def _sizes(batch: Mapping[str, Array], inputs: Mapping[str, Value]) -> dict[str, int]:
    return {
        size: got
        for name, array in batch.items()
        for size, got in zip(inputs[name].shape, array.shape, strict=True)
        if isinstance(size, str)
    }


def _shape(value: Value, output: Value, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input; where its own does not tell a size that of the output does, and 1 where neither does."""
    found = []
    for own, other in zip(value.shape, output.shape, strict=True):
        known = (size if isinstance(size, int) else sizes.get(size) for size in (own, other))
        found.append(next((size for size in known if size is not None), 1))
    return tuple(found)


def extra_inputs(config: DataConfig, graph: Graph) -> Extra:
    """The constants and the state of a recipe's data block; DataError where they do not fit the model."""
    inputs = {name: graph.values[name] for name in graph.inputs}
    constants = {
        name: (_named(name, inputs, "constants", "input"), number) for name, number in config.constants.items()
    }
    for value, number in constants.values():
        _check_constant(value, number)
    carried: dict[str, tuple[Value, Value]] = {}
    outputs = {name: graph.values[name] for name in graph.outputs}
    for output, name in config.carry.items():
        pair = _named(name, inputs, "carry", "input"), _named(output, outputs, "carry", "output")
        if name in carried or name in constants:
            raise DataError(f"carry: the input {shown(name)} is set twice")
        _check_pair(*pair)
        carried[name] = pair
    read = {name: value for name, value in inputs.items() if name not in constants and name not in carried}
    return Extra(read, constants, carried)


def measured_outputs(config: DataConfig, graph: Graph) -> tuple[str, ...]:
    """The outputs that an evaluation looks at: those asked for, or all that are not carried."""
    for name in config.outputs:
        _named(name, {output: graph.values[output] for output in graph.outputs}, "outputs", "output")
    free = tuple(name for name in graph.outputs if name not in config.carry)
    return config.outputs or free or graph.outputs


def _named(name: str, values: Mapping[str, Value], key: str, kind: str) -> Value:
    if name not in values:
        known = ", ".join(map(shown, values))
        raise DataError(f"{key}: the model has no {kind} {shown(name)}; its {kind}s are {known}")
    return values[name]


def _check_constant(value: Value, number: float) -> None:
    dtype = value.dtype.numpy
    if dtype.kind == "f":
        fits = abs(number) <= float(np.finfo(dtype.name).max)
    elif dtype.kind == "b":
        fits = number in (0, 1)
    else:
        fits = number == int(number) and np.iinfo(dtype.name).min <= number <= np.iinfo(dtype.name).max
    if not fits:
        raise DataError(f"constants: {number} does not fit the input {shown(value.name)}, which is {value.dtype.value}")


def _check_pair(value: Value, output: Value) -> None:
    """A step's output must be able to be the next one's input."""
    same = len(value.shape) == len(output.shape) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(value.shape, output.shape, strict=True)
    )
    if not same or value.dtype is not output.dtype:
        raise DataError(
            f"carry: the output {shown(output.name)} is {output.dtype.value} of shape {spelt(output)}; expected "
            f"{value.dtype.value} of shape {spelt(value)} for the input {shown(value.name)}"
        )


def spelt(value: Value) -> str:
    """A shape as messages show it."""
    return f"({', '.join(map(str, value.shape))})"
