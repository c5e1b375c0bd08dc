"""If, Loop and Scan: their bodies become closed graphs, to which everything they read from outside is handed in."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from typing import Any

from qtool.errors import ModelError
from qtool.frontends.onnx.body import Body
from qtool.frontends.onnx.call import Call
from qtool.frontends.onnx.known import Known, Skipped, Unsupported
from qtool.ir import Dim, DType, TensorType

Outputs = list[tuple[str, Known]]
_BRANCHES = ("then_branch", "else_branch")


def convert_if(call: Call) -> Sequence[Known]:
    """A condition that is known picks its branch now; else both branches stay, with the same inputs."""
    condition = call.x()
    protos = {name: call.attrs[name] for name in _BRANCHES}
    if condition.array is not None:
        chosen = protos["then_branch" if bool(condition.array.reshape(-1)[0]) else "else_branch"]
        return _inline(call, chosen)
    squeezes = [name for name, other in (_BRANCHES, _BRANCHES[::-1]) if _is_squeeze(protos[name], protos[other])]
    if squeezes:
        return _inline(call, protos[squeezes[0]])
    branches = {name: _body(call, proto, []) for name, proto in protos.items()}
    captured = list(dict.fromkeys(name for body, _ in branches.values() for name in body.captured))
    for body, _ in branches.values():
        for name in captured:
            body.capture(name)
    graphs = {name: body.finish(outputs, captured) for name, (body, outputs) in branches.items()}
    return call.body.emit("if", [condition, *_outer(call, captured)], {}, len(protos["then_branch"].output), graphs)


def _is_squeeze(proto: Any, other: Any) -> bool:
    """Whether this is how PyTorch writes ``x.squeeze(axis)`` for a size that it does not know: a Squeeze in one branch,
    x itself in the other. The rank has to be known here, so the size is taken to be 1; at run time another is an error.
    """
    ops, rest = ([node.op_type for node in p.node if node.op_type != "Constant"] for p in (proto, other))
    return ops == ["Squeeze"] and rest in ([], ["Identity"])


def convert_loop(call: Call) -> Sequence[Known]:
    """Values carried from one turn to the next keep their shape, or have sizes that are only known at run time."""
    proto = call.attrs["body"]
    carried = [call.x(position) for position in range(2, len(call.inputs))]
    types = [TensorType(known.dtype, known.shape) for known in carried]
    head = [TensorType(DType.INT64, ()), TensorType(DType.BOOL, ())]
    for _ in range(3):
        body, outputs = _body(call, proto, [*head, *types])
        turned = [known.type for _, known in outputs[1 : 1 + len(carried)]]
        merged = [_merged(a, b, f"?turn{i}") for i, (a, b) in enumerate(zip(types, turned, strict=True))]
        if merged == types:
            break
        types = merged
    captured = list(body.captured)
    graph = body.finish(outputs, captured)
    inputs = [call.get(0), call.get(1), *carried, *_outer(call, captured)]
    return call.body.emit("loop", inputs, {"carried": len(carried)}, len(outputs) - 1, {"body": graph})


def convert_scan(call: Call) -> Sequence[Known]:
    """The form of opset 9 and later."""
    if call.opset < 9:
        raise Unsupported("it has the form of opset 8; export with opset 9 or later")
    count = int(call.attrs["num_scan_inputs"])
    known = [call.x(position) for position in range(len(call.inputs))]
    states, scanned = known[: len(known) - count], known[len(known) - count :]
    axes = call.attr("scan_input_axes") or (0,) * count
    slices = [TensorType(k.dtype, _without(k, axis)) for k, axis in zip(scanned, axes, strict=True)]
    types = [TensorType(k.dtype, k.shape) for k in states]
    body, outputs = _body(call, call.attrs["body"], [*types, *slices])
    captured = list(body.captured)
    attrs: dict[str, Any] = {"num_scan_inputs": count, "states": len(states), "scan_input_axes": tuple(axes)}
    for name in ("scan_output_axes", "scan_input_directions", "scan_output_directions"):
        attrs[name] = tuple(call.attr(name) or ())
    inputs = [*known, *_outer(call, captured)]
    return call.body.emit("scan", inputs, attrs, len(outputs), {"body": body.finish(outputs, captured)})


def _without(known: Known, axis: int) -> tuple[Dim, ...]:
    if not -known.rank <= axis < known.rank:
        raise ModelError(f"got axis {axis} to scan of a tensor of rank {known.rank}")
    axis %= known.rank
    return (*known.shape[:axis], *known.shape[axis + 1 :])


def _inline(call: Call, proto: Any) -> Sequence[Known]:
    scope = call.importer.constants(proto, ChainMap({}, call.scope))
    outputs = call.importer.convert(proto, call.body, scope)
    return _whole(proto, outputs)[1]


def _body(call: Call, proto: Any, types: Sequence[TensorType]) -> tuple[Body, Outputs]:
    """The body converted, with inputs of these types."""
    if len(proto.input) != len(types):
        raise ModelError(f"its body has {len(proto.input)} inputs; expected {len(types)}")
    body = Body(proto.name or "body", call.body)
    scope = call.importer.constants(proto, ChainMap({}, call.scope))
    for info, type_ in zip(proto.input, types, strict=True):
        scope[info.name] = body.input(info.name, type_)
    outputs = call.importer.convert(proto, body, scope)
    return body, _whole(proto, outputs)[0]


def _whole(proto: Any, outputs: Outputs) -> tuple[Outputs, list[Known]]:
    if len(outputs) != len(proto.output):
        raise Skipped
    return outputs, [known for _, known in outputs]


def _outer(call: Call, captured: Sequence[str]) -> list[Known]:
    """The captured values as inputs of the node."""
    return [Known(call.body.values[name].type, name=name, home=call.body) for name in captured]


def _merged(a: TensorType, b: TensorType, prefix: str) -> TensorType:
    if a.dtype is not b.dtype or len(a.shape) != len(b.shape):
        raise Unsupported("a value carried from turn to turn changes its element type or rank")
    dims = tuple(m if m == n else f"{prefix}.{axis}" for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)))
    return TensorType(a.dtype, dims)
