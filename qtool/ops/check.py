"""Checks a graph against the operator records: verify's structural rules know nothing of operators."""

from __future__ import annotations

import numpy as np

from qtool.errors import ModelError
from qtool.ir import DType, Graph, Node, QParams, Shape, Value
from qtool.ops.dims import is_unknown, spell
from qtool.ops.registry import OpSpec, QuantRule, get, infer_node

BACKENDS = ("fbgemm", "x86", "onednn", "qnnpack")
STORAGE = (DType.INT8, DType.UINT8)
REQUANTIZES = frozenset(
    {
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "avg_pool1d",
        "avg_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "mean",
        "cat",
    }
)
"""Same-as-input operators that can nevertheless bring their result to parameters of the output's own: those that
compute, and ``cat``, whose inputs may differ. The others only move stored integers."""


def keeps_parameters(op: str) -> bool:
    """Whether the output of a quantized ``op`` must have the very parameters of its input."""
    return get(op).rule is QuantRule.SAME_AS_INPUT and op not in REQUANTIZES


def check_types(graph: Graph) -> None:
    """Holds that every node is known and its attributes parse, that the recorded types are the inferred ones, and that
    quantized values are used as the operators' rules allow. Raises ModelError naming the node or value."""
    for value in graph.values.values():
        if value.qparams is not None:
            _check_qparams(value, value.qparams)
    for node in graph.nodes:
        for name, body in node.graphs.items():
            try:
                check_types(body)
            except ModelError as error:
                raise _fail(node, f"body '{name}': {error}") from error
        _check_inferred(graph, node)
        _check_quantized(graph, node)


def _fail(node: Node, problem: str) -> ModelError:
    return ModelError(f"{node.op} '{node.name}': {problem}")


def _check_inferred(graph: Graph, node: Node) -> None:
    inferred = infer_node(node, [graph.type_of(name) if name else None for name in node.inputs])
    if len(inferred) != len(node.outputs):
        raise _fail(node, f"got {len(node.outputs)} outputs, expected {len(inferred)}")
    for name, expected in zip(node.outputs, inferred, strict=True):
        recorded = graph.values[name].type
        if recorded.dtype is not expected.dtype or not _agree(recorded.shape, expected.shape):
            got = f"got {recorded.dtype.value} {spell(recorded.shape)} recorded for '{name}'"
            raise _fail(node, f"{got}, expected {expected.dtype.value} {spell(expected.shape)}")


def _agree(recorded: Shape, inferred: Shape) -> bool:
    """Whether the shapes are equal, but for sizes that only a run can tell: one side may know more than the other."""
    pairs = zip(recorded, inferred, strict=False)
    return len(recorded) == len(inferred) and all(a == b or is_unknown(a) or is_unknown(b) for a, b in pairs)


def _check_qparams(value: Value, qparams: QParams) -> None:
    where = f"value '{value.name}'"
    if value.dtype is not qparams.dtype or qparams.dtype not in STORAGE:
        got = f"got storage {value.dtype.value} and parameters of {qparams.dtype.value}"
        raise ModelError(f"{where}: {got}, expected int8 or uint8 for both")
    count: int | str = 1
    if qparams.axis is not None:
        if not 0 <= qparams.axis < len(value.shape):
            raise ModelError(
                f"{where}: got quantization axis {qparams.axis}, expected one of shape {spell(value.shape)}"
            )
        count = value.shape[qparams.axis]
    for name, array in (("scales", qparams.scale), ("zero points", qparams.zero_point)):
        if array.shape != (count,):
            raise ModelError(f"{where}: got {name} of shape {array.shape}, expected ({count},)")
    low, high = qparams.limits
    if not (np.isfinite(qparams.scale).all() and (qparams.scale > 0).all()):
        raise ModelError(f"{where}: got a scale that is not a positive number")
    if (qparams.zero_point < low).any() or (qparams.zero_point > high).any():
        raise ModelError(f"{where}: got a zero point outside of {low} to {high}")


def _check_quantized(graph: Graph, node: Node) -> None:
    inputs = [graph.values[name].qparams if name else None for name in node.inputs]
    outputs = [graph.values[name].qparams for name in node.outputs]
    if node.op in ("quantize", "dequantize"):
        _check_border(node, inputs[0], outputs[0])
    elif get(node.op).dynamic_of:
        _check_dynamic(graph, node, inputs, outputs)
    elif any(outputs):
        _check_int8(graph, node, inputs, outputs)
    elif any(inputs):
        name = next(name for name, qparams in zip(node.inputs, inputs, strict=True) if qparams)
        raise _fail(node, f"got the quantized input '{name}' and a float output, expected a dequantize between them")


def _check_border(node: Node, source: QParams | None, target: QParams | None) -> None:
    quantizes = node.op == "quantize"
    if (source is None) is not quantizes or (target is None) is quantizes:
        expected = "a float input and a quantized output" if quantizes else "a quantized input and a float output"
        raise _fail(node, f"expected {expected}")


def _check_dynamic(graph: Graph, node: Node, inputs: list[QParams | None], outputs: list[QParams | None]) -> None:
    _check_backend(graph, node)
    spec = get(node.op)
    weights = spec.weights or (spec.weight,)
    if any(outputs) or any(qparams for position, qparams in enumerate(inputs) if position not in weights):
        raise _fail(node, "got a quantized input, output or bias, expected only the weight to be quantized")
    for position in weights:
        assert position is not None
        _check_weight(node, inputs[position], spec)


def _check_int8(graph: Graph, node: Node, inputs: list[QParams | None], outputs: list[QParams | None]) -> None:
    spec = get(node.op)
    _check_backend(graph, node)
    if spec.rule is None:
        raise _fail(node, "got a quantized output, but the operator has no int8 arithmetic")
    if not all(outputs):
        raise _fail(node, "got quantized and float outputs, expected one kind")
    accumulates = spec.rule is QuantRule.ACCUMULATE
    for position, (name, qparams) in enumerate(zip(node.inputs, inputs, strict=True)):
        if accumulates and position == spec.weight:
            _check_weight(node, qparams, spec)
        elif position == spec.bias:
            if qparams is not None:
                raise _fail(node, f"got the quantized bias '{name}', expected float32")
        elif qparams is None and name and name not in graph.initializers:
            raise _fail(node, f"got the float input '{name}' and a quantized output, expected a quantize between them")
    if inputs[0] is None and spec.rule is not QuantRule.FREE:
        raise _fail(node, f"got the float input '{node.inputs[0]}', expected a quantized one")
    _check_per_tensor(node, inputs, outputs, spec.weight if accumulates else None)
    if keeps_parameters(node.op) and any(out != inputs[0] for out in outputs):
        raise _fail(node, "got other quantization parameters for the output than for the input, expected the same")


def _check_per_tensor(
    node: Node, inputs: list[QParams | None], outputs: list[QParams | None], weight: int | None
) -> None:
    activations = [qparams for position, qparams in enumerate(inputs) if position != weight]
    if any(qparams is not None and qparams.axis is not None for qparams in (*activations, *outputs)):
        raise _fail(node, "got per-channel parameters of an activation, expected per-tensor ones")


def _check_weight(node: Node, qparams: QParams | None, spec: OpSpec) -> None:
    if qparams is None or qparams.dtype is not DType.INT8:
        raise _fail(node, "got a weight that is not int8, expected a quantized one of int8")
    if qparams.axis not in (None, spec.channel_axis, *((0, 1) if spec.weights else ())):
        raise _fail(node, f"got weight parameters along axis {qparams.axis}, expected axis {spec.channel_axis} or none")
    if qparams.zero_point.any():
        raise _fail(node, "got a weight with a zero point, expected symmetric quantization (zero point 0)")


def _check_backend(graph: Graph, node: Node) -> None:
    if graph.backend not in BACKENDS:
        raise _fail(node, f"got backend '{graph.backend}' for int8 arithmetic, expected one of {', '.join(BACKENDS)}")
