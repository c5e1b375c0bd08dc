"""If, Loop and Scan: their bodies become ONNX graphs, which read what is around them by name."""

from __future__ import annotations

from collections.abc import Mapping

from qtool.exporters.onnx.call import Call, Row
from qtool.exporters.onnx.direct import onnx_attrs


def _if(call: Call) -> tuple[str, ...]:
    captured = call.all_inputs()[1:]
    return call.emit_all("If", [call.x(0)], len(call.node.outputs), **_bodies(call, captured, 0))


def _loop(call: Call) -> tuple[str, ...]:
    own = 2 + int(call.attrs.carried)
    inputs = call.all_inputs()
    return call.emit_all("Loop", inputs[:own], len(call.node.outputs), **_bodies(call, inputs[own:], own))


def _scan(call: Call) -> tuple[str, ...]:
    own = int(call.attrs.states) + int(call.attrs.num_scan_inputs)
    inputs = call.all_inputs()
    attrs = onnx_attrs(call.attrs, {"states": ""})
    return call.emit_all("Scan", inputs[:own], len(call.node.outputs), **attrs, **_bodies(call, inputs[own:], own))


def _bodies(call: Call, captured: list[str], own: int) -> dict[str, object]:
    """The bodies as unfinished graphs; their inputs behind the first ``own`` are values around them."""
    return {key: call.body(key, body, own, captured) for key, body in call.node.graphs.items()}


CONTROL: Mapping[str, Row] = {"if": Row(_if), "loop": Row(_loop, 16), "scan": Row(_scan, 16)}
