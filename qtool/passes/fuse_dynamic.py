"""A linear layer that is quantized at run time, as ONNX Runtime writes it, is ``linear_dynamic``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qtool.ir import Array, DType, Graph, Node, QParams, constant, remake
from qtool.passes.pattern import Found, Op, Var, match, op

BACKEND = "fbgemm"
"""The arithmetic that such models are written for: float scales behind exact sums."""
SHIFT = 128

PRODUCT = Op("matmul_integer", (Var("q"), Var("w"), Var("zero")))
SHIFTED_PRODUCT = Op("matmul_integer", (Var("q"), Var("w"), Var("zero"), Var("w_zero")))
SCALES = op("mul", Var("scale"), Var("w_scale"))
LAYERS = [op("mul", op("cast", product), SCALES) for product in (PRODUCT, SHIFTED_PRODUCT)]


@dataclass(frozen=True)
class _Weight:
    array: Array
    qparams: QParams


def fuse_dynamic(graph: Graph) -> Graph:
    """``cast(matmul_integer(q, w)) * (scale * w_scale)`` of a ``dynamic_quantize_linear`` becomes ``linear_dynamic``.

    So it is for weights that are symmetric, int8 or uint8 around 128; the sums are then done by the int8 kernels. The
    activations' zero point may come out one lower or higher where its rounding is a tie.
    """
    nodes: list[Node] = []
    made: dict[str, _Weight] = {}
    for node in graph.nodes:
        layer = _layer(graph, node) if node.op == "mul" else None
        if layer is None:
            nodes.append(node)
            continue
        source, name, weight = layer
        while name in graph.values or made.get(name, weight).qparams != weight.qparams:
            name += "_"  # one weight with two scales
        made.setdefault(name, weight)
        nodes.append(replace(node, op="linear_dynamic", inputs=(source, name), attrs={"reduce_range": False}))
    if not made:
        return graph
    values = [constant(name, weight.array, weight.qparams) for name, weight in made.items()]
    arrays = {name: weight.array for name, weight in made.items()}
    return replace(remake(graph, nodes, values=values, initializers=arrays), backend=graph.backend or BACKEND)


def _layer(graph: Graph, node: Node) -> tuple[str, str, _Weight] | None:
    """The float input, the name of the new weight and the weight; None where the node is no such layer."""
    found = next((f for layer in LAYERS for f in _matches(graph, node, layer)), None)
    if found is None:
        return None
    quantizer = graph.producers[str(found["q"])]
    weight = _weight(graph, str(found["w"]), str(found.get("w_zero", "")), str(found["w_scale"]))
    outputs = graph.values[node.outputs[0]]
    if weight is None or outputs.dtype is not DType.FLOAT32:
        return None
    name = str(found["w"]).removesuffix("_quantized")
    return quantizer.inputs[0], f"{name}.q", weight


def _matches(graph: Graph, node: Node, layer: Op) -> Sequence[Found]:
    """What the pattern finds, with the scale of the input told from that of the weight."""
    found = match(graph, node.outputs[0], layer)
    if found is None:
        return ()
    producer = graph.producers.get(str(found["q"]))
    if producer is None or producer.op != "dynamic_quantize_linear":
        return ()
    parts = (str(found["q"]), str(found["scale"]), str(found["zero"]))
    swapped = {**found, "scale": found["w_scale"], "w_scale": found["scale"]}
    if parts == tuple(producer.outputs):
        return (found,)
    return (swapped,) if (parts[0], str(swapped["scale"]), parts[2]) == tuple(producer.outputs) else ()


def _weight(graph: Graph, name: str, zero: str, scale: str) -> _Weight | None:
    """The weight (inputs, outputs) turned around; None where it is no symmetric constant."""
    array, scales = graph.initializers.get(name), graph.initializers.get(scale)
    zeros = graph.initializers.get(zero) if zero else np.zeros(1, np.int32)
    if array is None or scales is None or zeros is None or array.ndim != 2 or scales.dtype != np.float32:
        return None
    shift = SHIFT if array.dtype == np.uint8 else 0
    if scales.size not in (1, array.shape[1]) or not (zeros == shift).all() or not (scales > 0).all():
        return None
    turned = np.ascontiguousarray((array.astype(np.int16) - shift).astype(np.int8).T)
    flat = np.array(scales.reshape(-1), np.float32)
    axis = None if flat.size == 1 else 0
    return _Weight(turned, QParams(flat, np.zeros(flat.shape, np.int32), DType.INT8, axis))
