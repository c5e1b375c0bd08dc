"""Derivatives of the recurrent layers: back-propagation through time, with what PyTorch's layers have.

Everything that only ONNX has (other activations, ``clip``, ``input_forget``, peepholes, a GRU whose reset gate comes
before the product) is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array
from qtool.ops.activation import sigmoid
from qtool.ops.registry import Vjp, VjpCall
from qtool.ops.vjp import Gradients, at_least_float32, grad_of, gradients

States = tuple[Array, ...]


@dataclass(frozen=True)
class Step:
    """What one step leaves for the way back: the states before it, and the cell's own arrays."""

    before: States
    kept: tuple[Array, ...]


Forward = Callable[[Array, Array, States], tuple[States, tuple[Array, ...]]]
"""(x . w' + bias of w, h . r' + bias of r, states) -> new states, what ``Backward`` needs."""
Backward = Callable[[Step, States], tuple[Array, Array, States]]
"""(step, derivatives by the new states) -> those by the two products, and by the old states but through h . r'."""


@dataclass(frozen=True)
class Cell:
    gates: int
    states: int
    forward: Forward
    backward: Backward


def _lstm_forward(by_x: Array, by_h: Array, states: States) -> tuple[States, tuple[Array, ...]]:
    i, o, f, c = np.split(by_x + by_h, 4, -1)
    i, o, f, c = sigmoid(i), sigmoid(o), sigmoid(f), np.tanh(c)
    memory = f * states[1] + i * c
    seen = np.tanh(memory)
    return (o * seen, memory), (i, o, f, c, seen)


def _lstm_backward(step: Step, grads: States) -> tuple[Array, Array, States]:
    i, o, f, c, seen = step.kept
    by_h, by_memory = grads
    by_memory = by_memory + by_h * o * (1 - seen * seen)
    parts = (
        by_memory * c * i * (1 - i),
        by_h * seen * o * (1 - o),
        by_memory * step.before[1] * f * (1 - f),
        by_memory * i * (1 - c * c),
    )
    before = np.concatenate(parts, -1)
    return before, before, (np.zeros_like(by_h), by_memory * f)


def _gru_forward(by_x: Array, by_h: Array, states: States) -> tuple[States, tuple[Array, ...]]:
    (zx, rx, nx), (zh, rh, nh) = np.split(by_x, 3, -1), np.split(by_h, 3, -1)
    z, r = sigmoid(zx + zh), sigmoid(rx + rh)
    n = np.tanh(nx + r * nh)
    return ((1 - z) * n + z * states[0],), (z, r, n, nh)


def _gru_backward(step: Step, grads: States) -> tuple[Array, Array, States]:
    z, r, n, nh = step.kept
    (grad,) = grads
    by_n = grad * (1 - z) * (1 - n * n)
    by_z = grad * (step.before[0] - n) * z * (1 - z)
    by_r = by_n * nh * r * (1 - r)
    return np.concatenate([by_z, by_r, by_n], -1), np.concatenate([by_z, by_r, by_n * r], -1), (grad * z,)


def _rnn(forward: Callable[[Array], Any], slope: Callable[[Array], Any]) -> Cell:
    """``slope`` is the function's derivative, from its result."""

    def step(by_x: Array, by_h: Array, _: States) -> tuple[States, tuple[Array, ...]]:
        new = np.asarray(forward(by_x + by_h))
        return (new,), (new,)

    def back(step: Step, grads: States) -> tuple[Array, Array, States]:
        before = np.asarray(grads[0] * slope(step.kept[0]))
        return before, before, (np.zeros_like(grads[0]),)

    return Cell(1, 1, step, back)


LSTM = Cell(4, 2, _lstm_forward, _lstm_backward)
GRU = Cell(3, 1, _gru_forward, _gru_backward)
RNNS = {"tanh": _rnn(np.tanh, lambda y: 1 - y * y), "relu": _rnn(lambda x: np.maximum(x, 0), lambda y: y > 0)}


def _refuse(got: str, expected: str) -> None:
    raise ModelError(f"got {got}, expected {expected}: the derivative is that of PyTorch's layer")


def _check(call: VjpCall, usual: tuple[str, ...]) -> None:
    attrs = call.attrs
    names = tuple(name.lower() for name in attrs.activations)
    if names not in ((), usual * attrs.directions):
        _refuse(f"activations {attrs.activations}", f"{usual}")
    if attrs.clip is not None:
        _refuse(f"clip {attrs.clip}", "None")


def _lstm_cell(call: VjpCall) -> Cell:
    _check(call, ("sigmoid", "tanh", "tanh"))
    if call.attrs.input_forget:
        _refuse("input_forget True", "False")
    if len(call.inputs) > 7 and call.inputs[7] is not None:
        _refuse("peepholes p", "none")
    return LSTM


def _gru_cell(call: VjpCall) -> Cell:
    _check(call, ("sigmoid", "tanh"))
    if not call.attrs.linear_before_reset:
        _refuse("linear_before_reset False", "True")
    return GRU


def _rnn_cell(call: VjpCall) -> Cell:
    name = call.attrs.activations[0].lower() if call.attrs.activations else "tanh"
    _check(call, (name if name in RNNS else "tanh",))
    return RNNS[name]


@dataclass(frozen=True)
class Layer:
    """One direction: its arrays with time first, and the order of the steps."""

    cell: Cell
    x: Array
    w: Array
    r: Array
    biases: tuple[Array, Array]
    running: Array
    """(time, batch, 1): whether a sample's sequence still goes on."""
    order: range


@dataclass(frozen=True)
class LayerGrads:
    x: Array
    w: Array
    r: Array
    b: Array
    states: States


def _forward(layer: Layer, states: States) -> list[Step]:
    """The steps in their order; as the reference goes, where a sequence is over nothing changes."""
    by_x = np.matmul(layer.x, layer.w.T) + layer.biases[0]
    steps: list[Step] = []
    for time in layer.order:
        new, kept = layer.cell.forward(by_x[time], states[0] @ layer.r.T + layer.biases[1], states)
        steps.append(Step(states, kept))
        running = layer.running[time]
        states = tuple(np.where(running, after, before) for after, before in zip(new, states, strict=True))
    return steps


def _backward(layer: Layer, steps: list[Step], by_y: Array, by_last: States) -> LayerGrads:
    """``by_y`` (time, batch, hidden) and ``by_last`` are the derivatives by the outputs of this direction."""
    shape = (*by_y.shape[:2], layer.w.shape[0])
    products, recurrent = np.zeros(shape, by_y.dtype), np.zeros(shape, by_y.dtype)
    grads = by_last
    for time, step in zip(reversed(layer.order), reversed(steps), strict=True):
        running = layer.running[time]
        seen = (grads[0] + by_y[time], *grads[1:])
        by_x, by_h, old = layer.cell.backward(step, tuple(np.where(running, grad, 0) for grad in seen))
        products[time], recurrent[time] = by_x, by_h
        old = (old[0] + by_h @ layer.r, *old[1:])
        grads = tuple(np.where(running, new, grad) for new, grad in zip(old, grads, strict=True))
    hidden = np.zeros((*by_y.shape[:2], by_y.shape[2]), by_y.dtype)
    for time, step in zip(layer.order, steps, strict=True):
        hidden[time] = step.before[0]
    flat = products.reshape(-1, shape[2]), recurrent.reshape(-1, shape[2])
    return LayerGrads(
        np.matmul(products, layer.w),
        flat[0].T @ layer.x.reshape(-1, layer.x.shape[2]),
        flat[1].T @ hidden.reshape(-1, hidden.shape[2]),
        np.concatenate([each.sum(0) for each in flat]),
        grads,
    )


def _layer(call: VjpCall, cell: Cell, direction: int, x: Array) -> Layer:
    w, r, b, lengths = (*call.inputs[1:], None, None)[:4]
    assert w is not None
    assert r is not None
    time, batch, _ = x.shape
    bias = np.zeros(2 * cell.gates * call.attrs.hidden_size, x.dtype) if b is None else at_least_float32(b[direction])
    backwards = call.attrs.direction == "reverse" or direction == 1
    ends = np.full(batch, time) if lengths is None else lengths
    return Layer(
        cell,
        x,
        at_least_float32(w[direction]),
        at_least_float32(r[direction]),
        (bias[: bias.size // 2], bias[bias.size // 2 :]),
        (np.arange(time)[:, None] < ends)[:, :, None],
        range(time)[::-1] if backwards else range(time),
    )


def _timed(array: Array, batch_first: bool) -> Array:
    """With the first two axes changed over where the batch is first."""
    return np.swapaxes(array, 0, 1) if batch_first else array


def recurrent_vjp(cell_of: Callable[[VjpCall], Cell]) -> Vjp:
    def vjp(call: VjpCall) -> Gradients:
        cell, attrs, first = cell_of(call), call.attrs, bool(call.attrs.layout)
        x = call.inputs[0]
        assert x is not None
        x = at_least_float32(_timed(x, first))
        # (directions, time, batch, hidden)
        by_y = at_least_float32(grad_of(call).transpose((2, 1, 0, 3) if first else (1, 0, 2, 3)))
        by_last = [at_least_float32(_timed(grad_of(call, 1 + i), first)) for i in range(cell.states)]
        zeros = np.zeros((attrs.directions, x.shape[1], attrs.hidden_size), x.dtype)
        starts = [call.inputs[5 + i] if len(call.inputs) > 5 + i else None for i in range(cell.states)]
        states = [zeros if start is None else at_least_float32(_timed(start, first)) for start in starts]
        found: list[LayerGrads] = []
        for direction in range(attrs.directions):
            layer = _layer(call, cell, direction, x)
            steps = _forward(layer, tuple(state[direction] for state in states))
            last = tuple(grad[direction] for grad in by_last)
            found.append(_backward(layer, steps, by_y[direction], last))
        return gradients(
            call,
            lambda: _timed(np.sum([each.x for each in found], axis=0), first),
            lambda: np.stack([each.w for each in found]),
            lambda: np.stack([each.r for each in found]),
            lambda: np.stack([each.b for each in found]),
            None,
            *[lambda i=i: _timed(np.stack([each.states[i] for each in found]), first) for i in range(cell.states)],
        )

    return vjp


lstm_vjp, gru_vjp, rnn_vjp = (recurrent_vjp(cell_of) for cell_of in (_lstm_cell, _gru_cell, _rnn_cell))
