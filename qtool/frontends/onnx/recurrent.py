"""LSTM, GRU and RNN: the operators keep ONNX's inputs and gate order."""

from __future__ import annotations

from collections.abc import Sequence

from qtool.errors import ModelError
from qtool.frontends.onnx.call import Call, Convert
from qtool.frontends.onnx.known import Known
from qtool.frontends.onnx.simple import attrs_for


def recurrent(op: str, outputs: int) -> Convert:
    """``hidden_size`` is that of the recurrent weights where the node does not say it."""

    def convert(call: Call) -> Sequence[Known]:
        hidden = call.attr("hidden_size") or call.x(2).shape[-1]
        if not isinstance(hidden, int):
            raise ModelError("its recurrent weights have an unknown size")
        attrs = {**attrs_for(call, op), "hidden_size": int(hidden)}
        if call.attr("activations") == call.defaults.get("activations"):
            attrs["activations"] = ()  # the default that ONNX lists has those of two directions
        return call.emit_all(op, call.inputs, outputs, **attrs)

    return convert
