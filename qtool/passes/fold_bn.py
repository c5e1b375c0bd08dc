"""Batch norm in inference is a scale and a shift a channel, which the layer before it can do with its own weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qtool.ir import Array, Graph, Node, constant, remake
from qtool.ops import attrs_of

FOLDABLE = ("conv1d", "conv2d", "linear")


def fold_batch_norm(graph: Graph, only: frozenset[str] | None = None) -> Graph:
    """Folds ``bn(conv(x))`` into ``conv(x)`` with other weights; ``only`` limits it to these batch_norm nodes.

    The node keeps the convolution's name and scope, the value keeps the batch norm's name. Left alone: a convolution
    that others read too, or has an activation already, and statistics that are not constants.
    """
    replaced: dict[str, Node | None] = {}
    arrays: dict[str, Array] = {}
    for bn in graph.nodes:
        if bn.op != "batch_norm" or (only is not None and bn.name not in only):
            continue
        layer = graph.producers.get(bn.inputs[0])
        if layer is None or not can_fold(graph, layer, bn):
            continue
        with np.errstate(all="ignore"):  # what is no variance shows as NaN or infinity in the weights
            folded, new = _fold(graph, layer, bn)
        replaced[layer.name], replaced[bn.name] = None, folded
        arrays.update(new)
    if not replaced:
        return graph
    nodes = [kept for node in graph.nodes if (kept := replaced.get(node.name, node)) is not None]
    return remake(graph, nodes, values=[constant(n, a) for n, a in arrays.items()], initializers=arrays)


def can_fold(graph: Graph, layer: Node, bn: Node) -> bool:
    """Whether this layer's weights can take over this batch norm."""
    parameters = (*layer.inputs[1:3], *bn.inputs[1:])
    return (
        layer.op in FOLDABLE
        and graph.sole_consumer(layer.outputs[0]) is bn
        and attrs_of(layer).activation == "none"
        and not any(layer.inputs[3:])
        and all(name in graph.initializers for name in parameters if name)
        and (layer.op != "linear" or len(graph.values[layer.outputs[0]].shape) == 2)
    )


@dataclass(frozen=True)
class Norm:
    """A batch norm as a scale and a shift a channel; every array of shape (C,)."""

    mean: Array
    inverse_std: Array
    weight: Array
    bias: Array

    @property
    def factor(self) -> Array:
        """What it multiplies a channel by."""
        return np.asarray(self.weight * self.inverse_std)


def inverse_deviation(variance: Array, eps: float) -> Array:
    """1 / sqrt(variance + eps), every operation rounded to the variance's type."""
    one = variance.dtype.type(1)
    return np.asarray((one / np.sqrt(variance + variance.dtype.type(eps))).astype(variance.dtype))


def folded(weight: Array, bias: Array | None, norm: Norm) -> tuple[Array, Array]:
    """Weight (channels first) and bias that do the batch norm too, in the order of
    torch.nn.utils.fusion.fuse_conv_bn_weights."""
    factor = norm.factor.reshape(-1, *[1] * (weight.ndim - 1))
    shift = (norm.mean.dtype.type(0) if bias is None else bias) - norm.mean
    return (
        (weight * factor).astype(weight.dtype),
        (shift * norm.inverse_std * norm.weight + norm.bias).astype(weight.dtype),
    )


def norm_of(graph: Graph, bn: Node) -> Norm:
    """The batch norm of a node whose parameters are constants."""
    mean, variance = (graph.initializers[name] for name in bn.inputs[1:3])
    optional = [graph.initializers[name] if name else None for name in (*bn.inputs[3:], "", "")[:2]]
    weight = optional[0] if optional[0] is not None else np.ones_like(mean)
    bias = optional[1] if optional[1] is not None else np.zeros_like(mean)
    return Norm(mean, inverse_deviation(variance, attrs_of(bn).eps), weight, bias)


def _fold(graph: Graph, layer: Node, bn: Node) -> tuple[Node, dict[str, Array]]:
    """The layer with new parameters, and these."""
    weight_name, bias_name = layer.inputs[1], (*layer.inputs, "")[2]
    bias = graph.initializers[bias_name] if bias_name else None
    weight, shift = folded(graph.initializers[weight_name], bias, norm_of(graph, bn))
    new_weight, new_bias = _free(graph, weight_name), _free(graph, bias_name or f"{layer.name}.bias")
    inputs = (layer.inputs[0], new_weight, new_bias)
    return replace(layer, inputs=inputs, outputs=bn.outputs), {new_weight: weight, new_bias: shift}


def _free(graph: Graph, name: str) -> str:
    """The name itself where its only reader is the layer folded, else a new one: a shared weight must not change."""
    shared = name in graph.values and len(graph.consumers[name]) > 1
    while shared or (name in graph.values and name not in graph.initializers):
        name, shared = f"{name}.folded", False
    return name
