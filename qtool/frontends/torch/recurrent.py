"""LSTM, GRU and RNN: a node a layer, with ONNX's gate order and layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qtool.frontends.torch.call import Call, Convert
from qtool.frontends.torch.layers import owner_of
from qtool.frontends.torch.values import Known, Unsupported, constant_of
from qtool.ir import Array, Attr

GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""Where ONNX's gates are among torch's: these are input, forget, cell, output and reset, update, new; ONNX has input,
output, forget, cell and update, reset, new."""


@dataclass(frozen=True)
class Layers:
    """What all layers of one module share."""

    op: str
    activation: str
    count: int
    directions: int
    biases: bool

    @property
    def outputs(self) -> int:
        return 3 if self.op == "lstm" else 2


def recurrent(op: str, activation: str = "") -> Convert:
    """The whole module: (output, h_n) or (output, h_n, c_n), every layer a node of its own."""

    def convert(call: Call) -> Sequence[Known]:
        if "batch_sizes" in call.args:
            raise Unsupported("it reads packed sequences; pass padded ones")
        if call.get("train", False) and call.get("dropout", 0.0):
            raise Unsupported("it was exported in training mode: call module.eval() first")
        directions = 2 if call.get("bidirectional", False) else 1
        layers = Layers(op, activation, call.integer("num_layers"), directions, bool(call.args["has_biases"]))
        return _stack(call, layers)

    return convert


def _stack(call: Call, layers: Layers) -> list[Known]:
    states = call.args["hx"]
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    x, single = call.x("input"), call.x("input").rank == 2
    if single:
        x = call.helper("unsqueeze", [x], dim=1)
        states = [call.helper("unsqueeze", [state], dim=1) for state in states]
    batch_first = bool(call.get("batch_first", False)) and not single
    if batch_first:
        x = call.helper("transpose", [x], dim0=0, dim1=1)
    finals: list[list[Known]] = []
    for index in range(layers.count):
        x, last = _layer(call, layers, index, x, states)
        finals.append(last)
    if batch_first:
        x = call.helper("transpose", [x], dim0=0, dim1=1)
    results = [x, *(_joined(call, [last[i] for last in finals]) for i in range(layers.outputs - 1))]
    return [call.helper("squeeze", [y], dim=(1,)) for y in results] if single else results


def _joined(call: Call, parts: list[Known]) -> Known:
    return parts[0] if len(parts) == 1 else call.helper("cat", parts, dim=0)


def _layer(call: Call, layers: Layers, index: int, x: Known, states: list[Known]) -> tuple[Known, list[Known]]:
    """(seq, batch, features) -> (seq, batch, directions * hidden), and the last states (directions, batch, hidden)."""
    inputs, hidden = _parameters(call, layers, index)
    initial = [_initial(call, layers, index, state) for state in states]
    attrs: dict[str, Attr] = {"hidden_size": hidden}
    if layers.directions == 2:
        attrs["direction"] = "bidirectional"
    if layers.op == "gru":
        attrs["linear_before_reset"] = True
    if layers.activation:
        attrs["activations"] = (layers.activation,) * layers.directions
    y, *last = call.emit_all(layers.op, [x, *inputs, None, *initial], layers.outputs, **attrs)
    if layers.directions == 1:
        return call.helper("squeeze", [y], dim=(1,)), last
    turned = call.helper("permute", [y], dims=(0, 2, 1, 3))
    return call.reshape(turned, [*x.shape[:2], 2 * hidden], emit=False), last


def _initial(call: Call, layers: Layers, index: int, state: Known) -> Known | None:
    """This layer's part of (layers * directions, batch, hidden); None where it is zeros."""
    if state.is_zero:
        return None
    if layers.count == 1:
        return state
    start = index * layers.directions
    return call.helper("slice", [state], dim=0, start=start, end=start + layers.directions)


def _parameters(call: Call, layers: Layers, index: int) -> tuple[list[Known | None], int]:
    """Weights, recurrent weights and biases of one layer, both directions together; and the hidden size."""
    params = call.args["params"]
    each = 4 if layers.biases else 2
    if len(params) != each * layers.count * layers.directions:
        raise Unsupported("it projects its hidden state (proj_size)")
    start = index * layers.directions * each
    sides = [params[start + side * each : start + (side + 1) * each] for side in range(layers.directions)]
    arrays = [[_array(known) for known in side] for side in sides]
    path = owner_of(sides[0][0]) or call.place.scope
    hints = [".".join(filter(None, (path, f"{name}_l{index}"))) for name in ("weight", "recurrent", "bias")]
    gates = GATES[layers.op]
    found: list[Known | None] = [
        constant_of(np.stack([_in_order(side[i], gates) for side in arrays]), hints[i]) for i in (0, 1)
    ]
    if layers.biases:
        biases = [np.concatenate([_in_order(side[i], gates) for i in (2, 3)]) for side in arrays]
        found.append(constant_of(np.stack(biases), hints[2]))
    else:
        found.append(None)
    return found, arrays[0][1].shape[1]


def _array(known: Known) -> Array:
    if known.array is None:
        raise Unsupported("its weights are computed from the input")
    return known.array


def _in_order(array: Array, gates: Sequence[int]) -> Array:
    parts = np.split(array, len(gates))
    return np.concatenate([parts[gate] for gate in gates])
