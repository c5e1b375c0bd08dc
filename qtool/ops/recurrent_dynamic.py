"""LSTM, GRU and RNN layers with 8-bit weights, whose activations are quantized at run time.

Inputs, outputs and attributes are those of ``lstm``, ``gru`` and ``rnn``. The weights of each direction have a scale of
their own (axis 0), or one a row (axis 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from qtool.ops.recurrent import GruAttrs, LstmAttrs, RecurrentAttrs
from qtool.ops.registry import OpSpec, get, register


@dataclass(frozen=True)
class RnnDynamicAttrs(RecurrentAttrs):
    """x is quantized as a whole, the hidden state step by step, to 8 bits (7 with ``reduce_range``); or both row by
    row with ``row_wise``."""

    reduce_range: bool = False
    row_wise: bool = False


@dataclass(frozen=True)
class LstmDynamicAttrs(LstmAttrs):
    """As ``RnnDynamicAttrs``."""

    reduce_range: bool = False
    row_wise: bool = False


@dataclass(frozen=True)
class GruDynamicAttrs(GruAttrs):
    """As ``RnnDynamicAttrs``."""

    reduce_range: bool = False
    row_wise: bool = False


for _kind, _attrs in (("lstm", LstmDynamicAttrs), ("gru", GruDynamicAttrs), ("rnn", RnnDynamicAttrs)):
    _float = get(_kind)
    register(
        OpSpec(
            name=f"{_kind}_dynamic",
            attrs=_attrs,
            inputs=_float.inputs,
            infer=_float.infer,
            reference=_float.reference,
            weights=(1, 2),
            dynamic_of=_kind,
            kernel=f"{_kind}_dynamic",
        )
    )
