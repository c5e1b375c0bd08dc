"""Where channels can be rescaled between two layers, and how far: for ``equalize``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, Graph, Node
from qtool.ops import attrs_of
from qtool.passes.clean import NO_OPS
from qtool.passes.fold_bn import FOLDABLE, can_fold, norm_of
from qtool.passes.fuse_activation import CLAMPS

SIGMAS = 6.0
"""Deviations from its mean that a channel is taken to reach; what is beyond may be cut by a clamp. With 6 the logits of
MobileNetV1 change by 0.15 % (the median of pictures, 4 % at most) and no class does; with 8 fewer channels may be
rescaled, and int8 is no better."""


@dataclass(frozen=True)
class Chain:
    """Two layers with nothing but a batch norm and activations between them, which nobody else reads.

    ``scaled`` are the parameters that a channel's factor multiplies, first axis channels: those of the batch norm, or
    weight and bias of the producer. ``high`` is where the activations cut, infinity for relu and for none.
    """

    producer: Node
    norm: Node | None
    high: float
    consumer: Node
    channels: int

    @property
    def scaled(self) -> tuple[str, ...]:
        """Names of what the factors multiply."""
        names = self.norm.inputs[3:5] if self.norm else self.producer.inputs[1:3]
        return tuple(filter(None, names))


@dataclass(frozen=True)
class Reach:
    """How far a chain's channels may be rescaled, each array (C,): ``most`` is the largest factor (infinity for any),
    and ``fixed`` tells those that must stay as they are."""

    most: Array
    fixed: Array


def find_chains(graph: Graph) -> tuple[Chain, ...]:
    """In the order of their producers."""
    return tuple(chain for node in graph.nodes if (chain := _chain_from(graph, node)) is not None)


def _chain_from(graph: Graph, layer: Node) -> Chain | None:
    if layer.op not in FOLDABLE or any(layer.inputs[3:]) or layer.inputs[1] not in graph.initializers:
        return None
    if attrs_of(layer).activation not in ("none", "relu"):
        return None
    norm = norm_behind(graph, layer)
    high = math.inf
    node = graph.sole_consumer((norm or layer).outputs[0])
    while node is not None and node.op not in FOLDABLE:
        limit = _limit(node)
        if limit is None:
            return None
        high = min(high, limit)
        node = graph.sole_consumer(node.outputs[0])
    if node is None or (norm is None and math.isfinite(high)):
        return None
    chain = Chain(layer, norm, high, node, graph.initializers[layer.inputs[1]].shape[0])
    return chain if _is_free(graph, chain) else None


def norm_behind(graph: Graph, layer: Node) -> Node | None:
    """The batch norm that fusing folds into the layer."""
    norm = graph.sole_consumer(layer.outputs[0])
    return norm if norm is not None and norm.op == "batch_norm" and can_fold(graph, layer, norm) else None


def _limit(node: Node) -> float | None:
    """Where an activation between the layers cuts; None where it does not keep factors (nor is one)."""
    if node.op == "relu" or node.op in NO_OPS:
        return math.inf
    if node.op not in CLAMPS:
        return None
    low, high = (0.0, 6.0) if node.op == "relu6" else (attrs_of(node).low, attrs_of(node).high)
    if low != 0 or not high > 0:
        return None
    return high if high < np.finfo(np.float32).max else math.inf


def _is_free(graph: Graph, chain: Chain) -> bool:
    """Whether the parameters are float constants that only this chain reads, and the channels lie on one axis."""
    made, read = chain.producer, chain.consumer
    owner = chain.norm or made
    value = read.inputs[0]
    rank = len(graph.values[value].shape)
    return (
        (chain.norm is None or bool((*chain.norm.inputs, "", "")[3]))
        and all(_is_own(graph, name, owner) for name in chain.scaled)
        and _is_own(graph, read.inputs[1], read)
        and all(graph.initializers[layer.inputs[1]].size for layer in (made, read))
        and read.inputs.count(value) == 1
        and _axis(made, rank) == _axis(read, rank)
    )


def _is_own(graph: Graph, name: str, reader: Node) -> bool:
    array = graph.initializers.get(name)
    return (
        array is not None
        and array.dtype.kind == "f"
        and graph.sole_consumer(name) is reader
        and reader.inputs.count(name) == 1
    )


def _axis(layer: Node, rank: int) -> int:
    return rank - 1 if layer.op == "linear" else 1


def layer_table(graph: Graph, layer: Node) -> Array:
    """The largest weight between each output and input channel, batch norm folded: (groups, O / groups, C / groups)."""
    weight = graph.initializers[layer.inputs[1]]
    table = np.abs(weight).reshape(*weight.shape[:2], -1).max(axis=2).astype(np.float64)
    norm = norm_behind(graph, layer)
    if norm is not None:
        with np.errstate(all="ignore"):
            table *= np.abs(norm_of(graph, norm).factor.astype(np.float64)).reshape(-1, 1)
    groups = 1 if layer.op == "linear" else attrs_of(layer).groups
    return np.asarray(table.reshape(groups, -1, table.shape[1]))


def reach_of(graph: Graph, chain: Chain) -> Reach:
    """Activations keep their largest range, whose scale all channels share, and clamps cut nothing that they did not.

    A batch norm tells the range: its bias is a channel's mean, and |weight| * sqrt(variance / (variance + eps)) its
    deviation. The range is that of before the activation, which PyTorch observes where it does not fuse relu6. Without
    a batch norm neither the largest bias nor the largest norm of a row of weights grows.
    """
    arrays = [graph.initializers[name].astype(np.float64) for name in chain.scaled]
    if chain.norm is None:
        rows = np.sqrt(np.square(arrays[0].reshape(chain.channels, -1)).sum(axis=1))
        parts = [rows, *map(np.abs, arrays[1:])]
        return Reach(np.minimum.reduce([_up_to(part, part.max()) for part in parts]), np.zeros(chain.channels, bool))
    variance = graph.initializers[chain.norm.inputs[2]].astype(np.float64)
    with np.errstate(all="ignore"):  # what is no variance gives NaN, and factors of 1
        spread = SIGMAS * np.abs(arrays[0]) * np.sqrt(variance / (variance + attrs_of(chain.norm).eps))
    bias = arrays[1] if len(arrays) > 1 else np.zeros(chain.channels)
    size, high = np.abs(bias) + spread, bias + spread
    return Reach(np.minimum(_up_to(size, size.max()), _up_to(high, chain.high)), high > chain.high)


def _up_to(sizes: Array, limit: float) -> Array:
    """The factor that makes each as large as the limit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sizes > 0, limit / sizes, np.inf)
