"""Recurrent layers, named and defined as ONNX has them: order of the gates, directions, layout, sequence lengths.

Shapes, with layout 0: x (time, batch, inputs), w (directions, gates * hidden, inputs), r (directions, gates * hidden,
hidden), b (directions, 2 * gates * hidden) with the biases of w first; y (time, directions, batch, hidden) and the last
states (directions, batch, hidden). Layout 1 has the batch first everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qtool.ir import Array, Dim, Shape, TensorType
from qtool.ops.activation import sigmoid
from qtool.ops.dims import need_float, need_integers, need_rank, need_shape
from qtool.ops.recurrent_vjp import gru_vjp, lstm_vjp, rnn_vjp
from qtool.ops.registry import Attrs, OpSpec, register, require
from qtool.ops.unary import softplus

Types = tuple[TensorType, ...]
Function = Callable[[Array, float, float], Array]

FUNCTIONS: Mapping[str, tuple[Function, float, float]] = {
    "relu": (lambda x, _, __: np.maximum(x, 0), 0, 0),
    "tanh": (lambda x, _, __: np.tanh(x), 0, 0),
    "sigmoid": (lambda x, _, __: sigmoid(x), 0, 0),
    "affine": (lambda x, alpha, beta: alpha * x + beta, 1, 0),
    "leakyrelu": (lambda x, alpha, _: np.where(x >= 0, x, alpha * x), 0.01, 0),
    "thresholdedrelu": (lambda x, alpha, _: np.where(x >= alpha, x, 0), 1, 0),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), 1, 1),
    "hardsigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), 0.2, 0.5),
    "elu": (lambda x, alpha, _: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))), 1, 0),
    "softsign": (lambda x, _, __: x / (1 + np.abs(x)), 0, 0),
    "softplus": (lambda x, _, __: softplus(x), 0, 0),
}
"""The function, and its default alpha and beta."""


@dataclass(frozen=True)
class RecurrentAttrs(Attrs):
    """``activations`` names one function a gate kind and direction; () means the usual ones."""

    hidden_size: int
    direction: Literal["forward", "reverse", "bidirectional"] = "forward"
    layout: int = 0
    activations: tuple[str, ...] = ()
    activation_alpha: tuple[float, ...] = ()
    activation_beta: tuple[float, ...] = ()
    clip: float | None = None

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1


@dataclass(frozen=True)
class LstmAttrs(RecurrentAttrs):
    """Gates: input, output, forget, cell; with ``input_forget`` the forget gate is 1 minus the input gate."""

    input_forget: bool = False


@dataclass(frozen=True)
class GruAttrs(RecurrentAttrs):
    """Gates: update, reset, hidden; ``linear_before_reset`` is what PyTorch does."""

    linear_before_reset: bool = False


class Gates:
    """The functions of one direction, in the order f, g, h, each with its own alpha and beta."""

    def __init__(self, attrs: RecurrentAttrs, direction: int, usual: Sequence[str]) -> None:
        names = [name.lower() for name in attrs.activations] or list(usual) * attrs.directions
        alphas, betas = list(attrs.activation_alpha), list(attrs.activation_beta)
        bound: list[Callable[[Array], Array]] = []
        for name in names:
            function, alpha, beta = FUNCTIONS[name]
            takes_alpha, takes_beta = name in _TAKE_ALPHA, name in _TAKE_BETA
            alpha = alphas.pop(0) if alphas and takes_alpha else alpha
            beta = betas.pop(0) if betas and takes_beta else beta
            bound.append(lambda x, f=function, a=alpha, b=beta: np.asarray(f(x, a, b), x.dtype))  # type: ignore[misc]
        self.functions = bound[direction * len(usual) : (direction + 1) * len(usual)]
        self._clip = attrs.clip

    def clip(self, x: Array) -> Array:
        return x if self._clip is None else np.clip(x, -self._clip, self._clip)


_TAKE_ALPHA = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
_TAKE_BETA = ("affine", "scaledtanh", "hardsigmoid")
Cell = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]
"""(x . w' + bias of w for one step, states) -> new states; the first state is the output."""


def _infer(
    attrs: RecurrentAttrs, gates: int, functions: int, x: TensorType, w: TensorType, r: TensorType
) -> tuple[Shape, Shape]:
    """The shapes of y and of a last state."""
    hidden, directions = attrs.hidden_size, attrs.directions
    require(hidden >= 1, f"hidden_size {hidden}", "at least 1")
    require(attrs.layout in (0, 1), f"layout {attrs.layout}", "0 or 1")
    require(attrs.clip is None or attrs.clip >= 0, f"clip {attrs.clip}", "at least 0")
    wanted = functions * directions
    known = all(name.lower() in FUNCTIONS for name in attrs.activations)
    fits = known and len(attrs.activations) in (0, wanted)
    require(fits, f"activations {attrs.activations}", f"{wanted} of {', '.join(FUNCTIONS)}")
    need_rank("x", x, 3, "(time, batch, inputs), or with layout 1 (batch, time, inputs)")
    time, batch = (x.shape[1], x.shape[0]) if attrs.layout else (x.shape[0], x.shape[1])
    need_shape("w", w, (directions, gates * hidden, x.shape[2]))
    need_shape("r", r, (directions, gates * hidden, hidden))
    if attrs.layout:
        return (batch, time, directions, hidden), (batch, directions, hidden)
    return (time, directions, batch, hidden), (directions, batch, hidden)


def _type(gates: int, functions: int, states: int) -> Callable[..., Types]:
    def infer(
        attrs: RecurrentAttrs, x: TensorType, w: TensorType, r: TensorType, *optional: TensorType | None
    ) -> Types:
        b, lengths, h, c, p = (*optional, None, None, None, None, None)[:5]
        need_float(x=x, w=w, r=r, b=b, initial_h=h, initial_c=c, p=p)
        need_integers(sequence_lens=lengths)
        whole, last = _infer(attrs, gates, functions, x, w, r)
        batch: Dim = last[0] if attrs.layout else last[1]
        need_shape("b", b, (attrs.directions, 2 * gates * attrs.hidden_size))
        need_shape("sequence_lens", lengths, (batch,))
        need_shape("initial_h", h, last)
        need_shape("initial_c", c, last)
        need_shape("p", p, (attrs.directions, 3 * attrs.hidden_size))
        return (TensorType(x.dtype, whole), *(TensorType(x.dtype, last),) * states)

    return infer


@dataclass(frozen=True)
class Problem:
    """The inputs with time first and one entry a direction."""

    x: Array
    w: Array
    r: Array
    b: Array
    lengths: Array
    states: tuple[Array, ...]
    p: Array


def _problem(
    attrs: RecurrentAttrs, gates: int, inputs: Sequence[Array | None], starts: Sequence[Array | None], p: Array | None
) -> Problem:
    x, w, r, b, lengths = inputs
    assert x is not None  # inference holds that the first three are there
    assert w is not None
    assert r is not None
    x = np.swapaxes(x, 0, 1) if attrs.layout else x
    time, batch = x.shape[:2]
    directions, hidden = attrs.directions, attrs.hidden_size
    zeros = np.zeros((directions, batch, hidden), x.dtype)
    first = [zeros if s is None else np.swapaxes(s, 0, 1) if attrs.layout else s for s in starts]
    return Problem(
        x,
        w,
        r,
        np.zeros((directions, 2 * gates * hidden), x.dtype) if b is None else b,
        np.full(batch, time) if lengths is None else lengths,
        tuple(first),
        np.zeros((directions, 3 * hidden), x.dtype) if p is None else p,
    )


def _run(attrs: RecurrentAttrs, problem: Problem, cell_of: Callable[[int], Cell]) -> tuple[Array, ...]:
    outputs, lasts = [], []
    for direction in range(attrs.directions):
        backwards = attrs.direction == "reverse" or direction == 1
        states = tuple(state[direction] for state in problem.states)
        y, last = _run_direction(problem, direction, backwards, states, cell_of(direction))
        outputs.append(y)
        lasts.append(last)
    whole = np.stack(outputs, 1)  # (time, directions, batch, hidden)
    finals = [np.stack(each) for each in zip(*lasts, strict=True)]
    if attrs.layout:
        return (whole.transpose(2, 0, 1, 3), *(np.swapaxes(final, 0, 1) for final in finals))
    return (whole, *finals)


def _run_direction(
    problem: Problem, direction: int, backwards: bool, states: tuple[Array, ...], cell: Cell
) -> tuple[Array, tuple[Array, ...]]:
    """A sample's states stop changing at the end of its sequence, behind which its output is 0.

    Backwards, each sample begins at the end of its own sequence.
    """
    half = problem.b.shape[1] // 2
    gates = np.matmul(problem.x, problem.w[direction].T) + problem.b[direction, :half]
    y = np.zeros((len(gates), *states[0].shape), states[0].dtype)
    steps = range(len(gates))
    for step in reversed(steps) if backwards else steps:
        running = (step < problem.lengths)[:, None]
        states = tuple(np.where(running, new, old) for new, old in zip(cell(gates[step], states), states, strict=True))
        y[step] = np.where(running, states[0], 0)
    return y, states


def lstm(attrs: LstmAttrs, *inputs: Array | None) -> tuple[Array, ...]:
    padded = (*inputs, *[None] * (8 - len(inputs)))
    problem = _problem(attrs, 4, padded[:5], padded[5:7], padded[7])

    def cell_of(direction: int) -> Cell:
        functions = Gates(attrs, direction, ("sigmoid", "tanh", "tanh"))
        f, g, h = functions.functions
        r, bias = problem.r[direction], np.split(problem.b[direction], 2)[1]
        peep_i, peep_o, peep_f = np.split(problem.p[direction], 3)

        def cell(gates: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            hidden, memory = states
            i, o, forget, c = np.split(gates + hidden @ r.T + bias, 4, -1)
            i = f(functions.clip(i + peep_i * memory))
            forget = 1 - i if attrs.input_forget else f(functions.clip(forget + peep_f * memory))
            memory = forget * memory + i * g(functions.clip(c))
            return f(functions.clip(o + peep_o * memory)) * h(functions.clip(memory)), memory

        return cell

    return _run(attrs, problem, cell_of)


def gru(attrs: GruAttrs, *inputs: Array | None) -> tuple[Array, ...]:
    padded = (*inputs, *[None] * (6 - len(inputs)))
    problem = _problem(attrs, 3, padded[:5], padded[5:6], None)

    def cell_of(direction: int) -> Cell:
        functions = Gates(attrs, direction, ("sigmoid", "tanh"))
        f, g = functions.functions
        rz, rr, rh = np.split(problem.r[direction], 3)
        bz, br, bh = np.split(np.split(problem.b[direction], 2)[1], 3)

        def cell(gates: Array, states: tuple[Array, ...]) -> tuple[Array, ...]:
            (hidden,) = states
            z, r, new = np.split(gates, 3, -1)
            z = f(functions.clip(z + hidden @ rz.T + bz))
            r = f(functions.clip(r + hidden @ rr.T + br))
            inner = r * (hidden @ rh.T + bh) if attrs.linear_before_reset else (r * hidden) @ rh.T + bh
            return ((1 - z) * g(functions.clip(new + inner)) + z * hidden,)

        return cell

    return _run(attrs, problem, cell_of)


def rnn(attrs: RecurrentAttrs, *inputs: Array | None) -> tuple[Array, ...]:
    padded = (*inputs, *[None] * (6 - len(inputs)))
    problem = _problem(attrs, 1, padded[:5], padded[5:6], None)

    def cell_of(direction: int) -> Cell:
        functions = Gates(attrs, direction, ("tanh",))
        (f,) = functions.functions
        r, bias = problem.r[direction], np.split(problem.b[direction], 2)[1]
        return lambda gates, states: (f(functions.clip(gates + states[0] @ r.T + bias)),)

    return _run(attrs, problem, cell_of)


INPUTS = ("x", "w", "r", "b?", "sequence_lens?", "initial_h?")
STARTS = (*INPUTS, "initial_c?", "p?")
register(OpSpec("lstm", LstmAttrs, STARTS, _type(4, 3, 2), lstm, onnx=("LSTM",), kernel="lstm", vjp=lstm_vjp))
register(OpSpec("gru", GruAttrs, INPUTS, _type(3, 2, 1), gru, onnx=("GRU",), kernel="gru", vjp=gru_vjp))
register(OpSpec("rnn", RecurrentAttrs, INPUTS, _type(1, 1, 1), rnn, onnx=("RNN",), kernel="rnn", vjp=rnn_vjp))
