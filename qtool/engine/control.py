"""Runs ``if``, ``loop`` and ``scan``: which body, and how often; the bodies are run by whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Graph, Node
from qtool.ops import attrs_of
from qtool.ops.control import BODY, ELSE, THEN, LoopAttrs, ScanAttrs, listed

RunBody = Callable[[Node, str, Mapping[str, Array]], Mapping[str, Array]]
"""Gives the outputs of a node's body of that name from what is fed to it."""
Arrays = tuple[Array, ...]


def run_control(node: Node, inputs: Sequence[Array | None], run: RunBody) -> Arrays:
    """The outputs of a node with bodies."""
    attrs = attrs_of(node)
    if node.op == "if":
        cond, *captured = inputs
        return _call(run, node, THEN if _truth(cond) else ELSE, captured)
    if node.op == "loop":
        return _loop(attrs, node, inputs, run)
    return _scan(attrs, node, [array for array in inputs if array is not None], run)


def _call(run: RunBody, node: Node, name: str, inputs: Sequence[Any]) -> Arrays:
    body = node.graphs[name]
    results = run(node, name, dict(zip(body.inputs, inputs, strict=True)))
    return tuple(results[name] for name in body.outputs)


def _truth(array: Array | None) -> bool:
    return True if array is None else bool(array.reshape(-1)[0])


def _loop(attrs: LoopAttrs, node: Node, inputs: Sequence[Array | None], run: RunBody) -> Arrays:
    """While the condition holds, ``trip_count`` times at most."""
    body = node.graphs[BODY]
    trips, cond, *values = inputs
    most = None if trips is None else int(trips.reshape(-1)[0])
    going, turn = _truth(cond), 0
    carried, captured = values[: attrs.carried], values[attrs.carried :]
    rows: list[Arrays] = []
    while going and (most is None or turn < most):
        feeds = (np.array(turn, np.int64), np.array(going), *carried, *captured)
        again, *made = _call(run, node, BODY, feeds)
        carried = list(made[: attrs.carried])
        rows.append(tuple(made[attrs.carried :]))
        going, turn = _truth(again), turn + 1
    names = body.outputs[attrs.carried + 1 :]
    stacked = (_stack(body, name, [row[i] for row in rows], 0) for i, name in enumerate(names))
    return (*(array for array in carried if array is not None), *stacked)


def _stack(body: Graph, name: str, elements: Sequence[Array], axis: int) -> Array:
    """The elements along a new axis; without any, sizes that are not known count 0."""
    if elements:
        if any(element.shape != elements[0].shape for element in elements):
            raise DataError(f"got '{name}' of the body in several shapes, expected one for all iterations")
        return np.stack(elements, axis)
    value = body.values[name]
    shape = [dim if isinstance(dim, int) else 0 for dim in value.shape]
    shape.insert(axis % (len(shape) + 1), 0)
    return np.zeros(shape, value.dtype.numpy)


def _scan(attrs: ScanAttrs, node: Node, values: Sequence[Array], run: RunBody) -> Arrays:
    """Once for each element of the sequences, which are as long as one another."""
    body, count = node.graphs[BODY], attrs.num_scan_inputs
    states, captured = list(values[: attrs.states]), values[attrs.states + count :]
    axes = listed("axes", attrs.scan_input_axes, count)
    directions = listed("directions", attrs.scan_input_directions, count)
    sequences = [
        _along(array, axis, direction)
        for array, axis, direction in zip(values[attrs.states : attrs.states + count], axes, directions, strict=True)
    ]
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1:
        raise DataError(f"got sequences of lengths {sorted(lengths)}, expected one length")
    rows: list[Arrays] = []
    for turn in range(lengths.pop()):
        made = _call(run, node, BODY, (*states, *(sequence[turn] for sequence in sequences), *captured))
        states = list(made[: attrs.states])
        rows.append(made[attrs.states :])
    names = body.outputs[attrs.states :]
    out_axes = listed("axes", attrs.scan_output_axes, len(names))
    backwards = listed("directions", attrs.scan_output_directions, len(names))
    outputs = []
    for i, name in enumerate(names):
        elements = [row[i] for row in rows]
        outputs.append(_stack(body, name, elements[::-1] if backwards[i] else elements, out_axes[i]))
    return (*states, *outputs)


def _along(array: Array, axis: int, direction: int) -> Array:
    moved = np.moveaxis(array, axis, 0)
    return moved[::-1] if direction else moved
