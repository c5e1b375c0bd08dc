"""Takes the mean error that rounding a layer's weights makes out of its output, by way of its bias.

Rounded weights Wq give E[Wq x] instead of E[W x]; the difference (W - Wq) E[x] of each output channel is a constant
once the mean of the inputs is known, and goes into the bias. It matters where a channel has few weights, as depthwise
convolutions do, whose errors do not average out (Nagel et al., Data-free quantization through weight equalization and
bias correction, 2019, section 4.2; the means are measured here, on the calibration data).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtool.ir import Array, Graph, Node, QParams, constant, remake
from qtool.quantize.prepare import Prepared

CORRECTED = ("conv1d", "conv2d", "linear")
Means = Mapping[str, NDArray[np.float64]]
"""Value name -> its mean a channel."""


def corrected_layers(prepared: Prepared) -> tuple[Node, ...]:
    """The static layers whose qconfig asks for it."""
    return tuple(
        node
        for node in prepared.graph.nodes
        if node.op in CORRECTED and node.name in prepared.static and prepared.qconfigs[node.name].bias_correction
    )


class ChannelMeans:
    """Sums up each layer's input a channel, in float64, batch by batch."""

    def __init__(self, prepared: Prepared) -> None:
        self.axes = {node.inputs[0]: _channel_axis(prepared.graph, node) for node in corrected_layers(prepared)}
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts = dict.fromkeys(self.axes, 0)

    def observe(self, name: str, x: Array) -> None:
        """A batch of a value; those of other layers are passed over."""
        if name not in self.axes:
            return
        axis = self.axes[name] % x.ndim
        total = np.sum(x, axis=tuple(n for n in range(x.ndim) if n != axis), dtype=np.float64)
        self._sums[name] = self._sums.get(name, np.zeros_like(total)) + total
        self._counts[name] += x.size // x.shape[axis]

    def means(self) -> Means:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def correct_biases(prepared: Prepared, weights: Mapping[str, QParams], means: Means) -> Graph:
    """The float graph with other biases; a layer that has none gets one."""
    graph = prepared.graph
    layers = {node.name: _corrected(graph, node, weights, means) for node in corrected_layers(prepared)}
    found = {name: layer for name, layer in layers.items() if layer is not None}
    if not found:
        return graph
    arrays = {layer.bias_name: layer.bias for layer in found.values()}
    nodes = [found[node.name].node if node.name in found else node for node in graph.nodes]
    return remake(graph, nodes, values=[constant(n, a) for n, a in arrays.items()], initializers=arrays)


@dataclass(frozen=True)
class _Layer:
    node: Node
    bias_name: str
    bias: Array


def _corrected(graph: Graph, node: Node, weights: Mapping[str, QParams], means: Means) -> _Layer | None:
    """The layer with its new bias; None where something it needs is no constant or was not seen."""
    weight_name, bias_name = node.inputs[1], (*node.inputs, "")[2]
    weight, mean = graph.initializers.get(weight_name), means.get(node.inputs[0])
    if (
        weight is None
        or mean is None
        or weight_name not in weights
        or (bias_name and bias_name not in graph.initializers)
    ):
        return None
    qparams = weights[weight_name]
    error = weight.astype(np.float64) - qparams.dequantize(qparams.quantize(weight))
    shift = _times_mean(error.reshape(*error.shape[:2], -1).sum(axis=2), mean)
    old = graph.initializers[bias_name] if bias_name else np.zeros(len(weight), np.float32)
    name = _free_name(graph, f"{bias_name or f'{node.name}.bias'}.corrected")
    inputs = (*node.inputs[:2], name, *node.inputs[3:])
    return _Layer(replace(node, inputs=inputs), name, (old + shift).astype(np.float32))


def _times_mean(error: Array, mean: Array) -> Array:
    """error (O, I / groups) times the mean of the inputs (I) that each output sees."""
    groups = len(mean) // error.shape[1]
    seen = mean.reshape(groups, -1).repeat(len(error) // groups, axis=0)
    return np.asarray((error * seen).sum(axis=1))


def _channel_axis(graph: Graph, node: Node) -> int:
    return len(graph.values[node.inputs[0]].shape) - 1 if node.op == "linear" else 1


def _free_name(graph: Graph, name: str) -> str:
    while name in graph.values:
        name = f"{name}_"
    return name
