"""LSTM, GRU and RNN layers whose activations are quantized at run time: PyTorch's order of operations.

As ``quantize_dynamic`` has it on nn.LSTM and nn.GRU (ATen/native/RNN.cpp, ``QuantizedCellParamsDynamic``): the input of
all steps is quantized at once, each direction's hidden state anew at every step for the whole batch; both products are
``linear_dynamic`` with a bias of their own, and the gates are computed in float32.

Gate order and attributes are ONNX's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.engine.dynamic import Rounding, finish_rows, quantize_rows
from qtool.engine.int8 import EXACT_FLOAT32, Operand
from qtool.engine.requantize import Arithmetic, Floats
from qtool.errors import DataError, EngineError
from qtool.ir import Array
from qtool.ops.recurrent import Gates

LARGEST = 255
"""No quantized activation is further than this from its zero point."""


@dataclass(frozen=True)
class Weight:
    """One direction's weight (inputs, gates * hidden) as float32 or float64 integers, such that sums are exact."""

    integers: Array
    scale: Floats
    bias: Floats | None

    def columns(self, part: slice) -> Weight:
        scale = self.scale if self.scale.size == 1 else self.scale[part]
        return Weight(self.integers[:, part], scale, None if self.bias is None else self.bias[part])


def _weights(operand: Operand, biases: Array | None) -> list[Weight]:
    """Of each direction, from (directions, gates * hidden, inputs)."""
    params = operand.params
    largest = int(np.abs(operand.array.astype(np.int16)).max(initial=0))
    exact = largest * LARGEST * operand.array.shape[2] < EXACT_FLOAT32
    found = []
    for direction, stored in enumerate(operand.array):
        integers = np.ascontiguousarray(stored.T, np.float32 if exact else np.float64)
        scale = params.scale if params.axis != 0 else params.scale[direction : direction + 1]
        found.append(Weight(integers, scale, None if biases is None else biases[direction]))
    return found


@dataclass(frozen=True)
class Step:
    """What a cell needs in one direction."""

    rounding: Rounding
    attrs: Any
    weight: Weight
    gates: Gates
    peepholes: Sequence[Array]
    """Of the input, output and forget gate, (hidden,) each."""

    def product(self, h: Array, part: slice = slice(None)) -> Floats:
        return product(self.rounding, h, self.weight if part == slice(None) else self.weight.columns(part))


def product(rounding: Rounding, x: Array, weight: Weight) -> Floats:
    """(rows, inputs) -> (rows, outputs), as ``linear_dynamic``."""
    if not np.isfinite(x).all():
        raise DataError("its input or hidden state holds NaN or infinity, which cannot be quantized")
    centred, scale = quantize_rows(np.asarray(x, np.float32), rounding.reduce_range, rounding.row_wise)
    sums = np.matmul(centred.astype(weight.integers.dtype), weight.integers)
    return finish_rows(rounding.arithmetic, sums.astype(np.float32), scale * weight.scale, weight.bias)


States = tuple[Array, ...]
"""(batch, hidden): the output, and for LSTM the cell."""


def _lstm(step: Step, projected: Array, states: States) -> States:
    hidden, memory = states
    (f, g, h), clip = step.gates.functions, step.gates.clip
    peep_i, peep_o, peep_f = step.peepholes
    i, o, forget, new = np.split(step.product(hidden) + projected, 4, axis=-1)
    i = f(clip(i + peep_i * memory))
    forget = 1 - i if step.attrs.input_forget else f(clip(forget + peep_f * memory))
    memory = forget * memory + i * g(clip(new))
    return f(clip(o + peep_o * memory)) * h(clip(memory)), memory


def _gru(step: Step, projected: Array, states: States) -> States:
    (hidden,) = states
    (f, g), clip, n = step.gates.functions, step.gates.clip, states[0].shape[1]
    if step.attrs.linear_before_reset:
        z, r, inner = np.split(step.product(hidden), 3, axis=-1)
        z, r = f(clip(z + projected[:, :n])), f(clip(r + projected[:, n : 2 * n]))
        inner = inner * r
    else:
        both = f(clip(step.product(hidden, slice(0, 2 * n)) + projected[:, : 2 * n]))
        z, r = np.split(both, 2, axis=-1)
        inner = step.product(r * hidden, slice(2 * n, 3 * n))
    new = g(clip(projected[:, 2 * n :] + inner))
    return ((hidden - new) * z + new,)


def _rnn(step: Step, projected: Array, states: States) -> States:
    return (step.gates.functions[0](step.gates.clip(step.product(states[0]) + projected)),)


@dataclass(frozen=True)
class Kind:
    """A layer: its cell, its usual functions, and the number of its states."""

    cell: Callable[[Step, Array, States], States]
    usual: tuple[str, ...]
    states: int = 1


KINDS = {
    "lstm_dynamic": Kind(_lstm, ("sigmoid", "tanh", "tanh"), 2),
    "gru_dynamic": Kind(_gru, ("sigmoid", "tanh")),
    "rnn_dynamic": Kind(_rnn, ("tanh",)),
}


@dataclass(frozen=True)
class _Layer:
    """The inputs, steps first."""

    x: Array
    lengths: Array | None
    states: tuple[Array, ...]
    """(directions, batch, hidden) each."""


def recurrent(op: str, arithmetic: Arithmetic, attrs: Any, inputs: Sequence[Operand | None]) -> tuple[Array, ...]:
    """The outputs of a dynamic LSTM, GRU or RNN node: Y, Y_h and, for LSTM, Y_c, shaped as ONNX has them."""
    kind = KINDS[op]
    padded = [*inputs, *[None] * (8 - len(inputs))]
    x, w, r = padded[:3]
    if x is None or w is None or r is None:
        raise EngineError("expected an input and two weights")
    bias, lengths, h, c, p = (None if operand is None else operand.array for operand in padded[3:])
    layer = _arrange(attrs, x.array, lengths, (h, c)[: kind.states])
    halves = (None, None) if bias is None else np.split(bias, 2, axis=1)
    peepholes = np.zeros((attrs.directions, 3 * attrs.hidden_size), np.float32) if p is None else p
    rounding = Rounding(arithmetic, attrs.reduce_range, attrs.row_wise)
    outputs, lasts = [], []
    for direction, (own, hidden) in enumerate(zip(_weights(w, halves[0]), _weights(r, halves[1]), strict=True)):
        gates = Gates(attrs, direction, kind.usual)
        step = Step(rounding, attrs, hidden, gates, np.split(peepholes[direction], 3))
        y, last = _run(kind, layer, step, own, direction)
        outputs.append(y)
        lasts.append(last)
    whole, finals = np.stack(outputs, 1), [np.stack(each) for each in zip(*lasts, strict=True)]
    if attrs.layout:
        return (whole.transpose(2, 0, 1, 3), *(np.swapaxes(final, 0, 1) for final in finals))
    return (whole, *finals)


def _arrange(attrs: Any, x: Array, lengths: Array | None, starts: Sequence[Array | None]) -> _Layer:
    x = np.swapaxes(x, 0, 1) if attrs.layout else x
    if lengths is not None and lengths.size and (lengths.min() < 0 or lengths.max() > len(x)):
        raise DataError(f"got sequence lengths from {lengths.min()} to {lengths.max()}, expected 0 to {len(x)}")
    zeros = np.zeros((attrs.directions, x.shape[1], attrs.hidden_size), np.float32)
    first = (zeros if s is None else np.swapaxes(s, 0, 1) if attrs.layout else s for s in starts)
    return _Layer(x, lengths, tuple(first))


def _run(kind: Kind, layer: _Layer, step: Step, own: Weight, direction: int) -> tuple[Array, States]:
    """One direction: (steps, batch, hidden), and the last states. What lies behind a sequence's end is zero; backwards,
    each sequence begins at its own end."""
    steps, batch, features = layer.x.shape
    lengths = np.full(batch, steps) if layer.lengths is None else layer.lengths
    valid = np.arange(steps)[:, None] < lengths
    x = layer.x if valid.all() else np.where(valid[..., None], layer.x, np.float32(0))
    projected = product(step.rounding, x.reshape(-1, features), own).reshape(steps, batch, -1)
    states = tuple(state[direction] for state in layer.states)
    y = np.zeros((steps, *states[0].shape), np.float32)
    backwards = step.attrs.direction == "reverse" or direction == 1
    for t in reversed(range(steps)) if backwards else range(steps):
        states = _advance(kind, step, projected[t], states, valid[t])
        y[t] = states[0] if valid[t].all() else np.where(valid[t][:, None], states[0], np.float32(0))
    return y, states


def _advance(kind: Kind, step: Step, projected: Array, states: States, valid: Array) -> States:
    """One step. Sequences that do not run keep their states, and have no part in the range of the hidden ones: zero
    always lies within it."""
    if valid.all():
        return kind.cell(step, projected, states)
    running = valid[:, None]
    made = kind.cell(step, projected, (np.where(running, states[0], np.float32(0)), *states[1:]))
    return tuple(np.where(running, new, old) for new, old in zip(made, states, strict=True))
