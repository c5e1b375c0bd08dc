"""A constant added behind a layer without bias is its bias: exporters write linear layers of more than two axes so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qtool.ir import Array, Graph, Node
from qtool.ops import attrs_of
from qtool.passes.pattern import with_constants

LAYERS = ("linear", "linear_dynamic", "conv1d", "conv2d")


def fuse_bias(graph: Graph) -> Graph:
    """``add(linear(x, w), b)`` becomes ``linear(x, w, b)`` for a constant with one number a channel; so for conv.

    The node keeps the layer's name, the value the sum's.
    """
    replaced: dict[str, Node | None] = {}
    arrays: dict[str, Array] = {}
    for node in graph.nodes:
        layer = _layer_before(graph, node) if node.op == "add" else None
        if layer is None or layer.name in replaced or not _is_free(graph, layer, node):
            continue
        other = next(name for name in node.inputs if name != layer.outputs[0])
        bias = _vector(graph, layer, other)
        if bias is None:
            continue
        name = other if bias is graph.initializers[other] else _free_name(graph, f"{layer.name}.bias")
        arrays[name] = bias
        attrs = {**layer.attrs, "activation": attrs_of(node).activation}
        replaced[layer.name] = None
        replaced[node.name] = replace(layer, inputs=(*layer.inputs[:2], name), outputs=node.outputs, attrs=attrs)
    if not replaced:
        return graph
    nodes = [kept for node in graph.nodes if (kept := replaced.get(node.name, node)) is not None]
    return with_constants(graph, nodes, arrays)


def _layer_before(graph: Graph, add: Node) -> Node | None:
    layers = [graph.producers[name] for name in add.inputs if name in graph.producers]
    constants = [name for name in add.inputs if name in graph.initializers]
    return layers[0] if len(layers) == 1 and len(constants) == 1 and layers[0].op in LAYERS else None


def _is_free(graph: Graph, layer: Node, add: Node) -> bool:
    return (
        graph.sole_consumer(layer.outputs[0]) is add
        and not any(layer.inputs[2:])
        and attrs_of(layer).activation == "none"
        and graph.values[layer.outputs[0]].qparams is None
        and graph.values[add.outputs[0]].type == graph.values[layer.outputs[0]].type
    )


def _vector(graph: Graph, layer: Node, name: str) -> Array | None:
    """The constant as one number a channel; None where it is not."""
    array, outputs = graph.initializers[name], graph.values[layer.outputs[0]].shape
    axis = 1 if layer.op.startswith("conv") else len(outputs) - 1
    channels = outputs[axis]
    if graph.values[name].qparams is not None or array.dtype != np.float32 or array.size not in (1, channels):
        return None
    if array.size > 1 and array.ndim - (len(outputs) - axis) not in range(array.ndim):
        return None
    if array.size > 1 and array.shape[array.ndim - (len(outputs) - axis)] != channels:
        return None
    if array.shape == (channels,):
        return array
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (int(channels),)), np.float32)


def _free_name(graph: Graph, name: str) -> str:
    while name in graph.values:
        name = f"{name}_"
    return name
