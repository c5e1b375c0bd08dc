"""LSTM, GRU and RNN layers, in float and quantized at run time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qtool.engine.lowering.accumulate import Fields, optional
from qtool.engine.lowering.groups import INFINITY, Group
from qtool.engine.lowering.layout import Layout
from qtool.engine.lowering.segment import Segment, Source, Unsupported
from qtool.engine.requantize import Arithmetic
from qtool.ir import Array, Node, QParams
from qtool.native import Kind, abi
from qtool.ops import attrs_of

KINDS = {"lstm": abi.Recurrent.LSTM, "gru": abi.Recurrent.GRU, "rnn": abi.Recurrent.RNN}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
USUAL = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
LENGTHS, HIDDEN, MEMORY, PEEPHOLES = 4, 5, 6, 7
"""Positions of the inputs that may be left out."""


def lower_recurrent(segment: Segment, group: Group) -> None:
    """One native operator; its outputs lie in one buffer, and those that are read are copied out of it."""
    source, node = segment.source, group.host
    attrs = attrs_of(node)
    kind = node.op.removesuffix("_dynamic")
    steps, batch, features = segment.shape(node.inputs[0])
    if attrs.layout:
        steps, batch = batch, steps
    lengths = optional(node, LENGTHS)
    names = [name for name in (node.inputs[0], *(optional(node, p) for p in (LENGTHS, HIDDEN, MEMORY))) if name]
    source.need_float(*(name for name in names if name != lengths), *filter(None, node.outputs))
    fields: Fields = {
        "kind": KINDS[kind],
        "time": steps,
        "batch": batch,
        "in_features": features,
        "hidden": attrs.hidden_size,
        "directions": attrs.directions,
        "reverse": int(attrs.direction == "reverse"),
        "batch_first": attrs.layout,
        "relu": _relu(attrs, kind),
        "input_forget": int(kind == "lstm" and attrs.input_forget),
        "linear_before_reset": int(kind == "gru" and attrs.linear_before_reset),
        "lengths_bytes": _length_bytes(source, lengths),
        "initial_h": int(bool(optional(node, HIDDEN))),
        "initial_c": int(bool(optional(node, MEMORY))),
        "clip": INFINITY if attrs.clip is None else attrs.clip,
        "peephole": _parameter(source, optional(node, PEEPHOLES)),
        "bias": _parameter(source, optional(node, 3)),
        **_weights(source, node, attrs, GATES[kind] * attrs.hidden_size),
    }
    reads = tuple(segment.read(name, Layout.PLAIN) for name in names)
    count = _floats(fields, GATES[kind])
    whole = segment.buffer(4 * count)
    segment.emit(Kind.RECURRENT, reads, whole, abi.make(abi.RecurrentArgs, **fields))
    start = 0
    for out in node.outputs:
        size = 4 * math.prod(segment.shape(out)) if out else 4 * attrs.directions * batch * attrs.hidden_size
        if out:
            segment.later(out, Layout.PLAIN, _part(segment, whole, start, size))
        start += size


def _part(segment: Segment, whole: int, start: int, size: int) -> Any:
    """What copies a range of bytes out of a buffer."""

    def copy() -> int:
        target = segment.buffer(size)
        args = abi.make(abi.CopyArgs, rows=1, row_bytes=size, in_offset=start)
        segment.emit(Kind.COPY, (whole,), target, args)
        return target

    return copy


def _floats(fields: Fields, gates: int) -> int:
    """Of the operator's output, as ``qt_recurrent_args`` says."""
    rows: int = fields["time"] * fields["batch"]
    state: int = fields["batch"] * fields["hidden"]
    lasts = 2 if fields["kind"] == abi.Recurrent.LSTM else 1
    outputs: int = (fields["time"] + lasts) * fields["directions"] * state
    masked: int = rows * fields["in_features"] if fields["lengths_bytes"] and fields.get("dynamic") else 0
    work: int = 6 * state + (1 + fields["time"]) * state * gates
    return outputs + work + masked


def _relu(attrs: Any, kind: str) -> int:
    """Whether an RNN's function is relu; Unsupported where the functions are not the usual ones."""
    names = tuple(name.lower() for name in attrs.activations)
    if names and set(names) == {"relu"} and kind == "rnn":
        return 1
    if names and names != USUAL[kind] * attrs.directions:
        raise Unsupported(f"activations {', '.join(attrs.activations)}")
    return 0


def _length_bytes(source: Source, name: str) -> int:
    if not name:
        return 0
    item = source.value(name).dtype.numpy
    if item.kind != "i" or item.itemsize not in (4, 8):
        raise Unsupported(f"sequence lengths of {item.name}")
    return int(item.itemsize)


def _parameter(source: Source, name: str) -> Array | None:
    if not name:
        return None
    source.need_float(name)
    return np.ascontiguousarray(source.constant(name, "parameter"))


def _weights(source: Source, node: Node, attrs: Any, units: int) -> Fields:
    """The weights, and what their being quantized brings along."""
    w, r = node.inputs[1:3]
    fields: Fields = {"w": source.constant(w, "weight"), "r": source.constant(r, "weight")}
    if not node.op.endswith("_dynamic"):
        source.need_float(w, r)
        return fields
    for name, weight in (("w_scale", w), ("r_scale", r)):
        qparams = source.qparams(weight)
        if qparams is None or qparams.zero_point.any():
            raise Unsupported("the weight is not quantized symmetrically")
        fields[name] = _scales(qparams, attrs.directions, units)
    flags = {"reduce_range": int(attrs.reduce_range), "row_wise": int(attrs.row_wise)}
    return {**fields, **flags, "dynamic": 1, "fused": int(source.arithmetic is Arithmetic.FLOAT_BIAS)}


def _scales(qparams: QParams, directions: int, units: int) -> Array:
    """(directions, units): parameters run along the directions (axis 0), along the units (axis 1), or not at all."""
    scale = qparams.scale[:, None] if qparams.axis == 0 else qparams.scale
    return np.ascontiguousarray(np.broadcast_to(scale, (directions, units)), np.float32)
