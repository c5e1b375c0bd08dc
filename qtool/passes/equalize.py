"""Layers whose channels have weights of very different size, made even: cross-layer equalization.

Nagel et al., Data-free quantization through weight equalization and bias correction, 2019 (arXiv:1906.04721).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from qtool.errors import ModelError
from qtool.ir import Array, Graph, Json, Node, bodies_by_path, body_path, with_bodies
from qtool.passes.equalize_chains import Chain, find_chains, layer_table, reach_of

META = "equalize"
"""The entry of ``Graph.meta`` that says that, and how much, a graph was equalized."""
SWEEPS = 40
"""Over all chains, each of which changes what its neighbours see; MobileNetV1 takes ten."""
SMALL = 1e-3
"""A change of all factors that ends the sweeps."""
LARGE = 2.0
"""Medians from which on a channel's weights are too large. Making all channels alike, as the paper does, rescales seven
times as many of MobileNetV1, brings more of them near their clamp, and serves int8 less."""
LARGEST = 2.0**20
"""Of a channel's whole factor, and one through it of the smallest: far from where float32 ends."""


def equalize(graph: Graph) -> Graph:
    """Rescales channels between layers so that each layer's channels have weights of about the same size.

    ``layer(act(bn(layer(x))))`` stays that, with factors a > 0 a channel: the first batch norm's weight and bias (or,
    without one, the first layer's rows and bias) times a, the second layer's weights that read the channel through a.
    ``act`` is nothing, relu, or a clamp from 0 that the channel does not reach, neither before nor after (as its batch
    norm tells; without one such chains are left alone). What the graph computes stays the same but for rounding, and
    for clamps where a value is much further from its mean than the batch norm has it.

    Left alone: values and parameters with other readers, layers with a residual, weights that are no float constants,
    batch norms without weight. Bodies of control flow are rewritten too. ``meta["equalize"]`` of the result counts
    layers and channels that were rescaled; a graph that has it comes back as it is. ModelError for a quantized graph.
    """
    if graph.is_quantized:
        raise ModelError(f"'{graph.name}' is quantized already (backend {graph.backend}); equalize the float model")
    if META in graph.meta:
        return graph
    counts = _Counts()
    made = _equalized(graph, counts)
    record: Json = {"layers": counts.layers, "channels": counts.channels}
    return replace(made, meta=MappingProxyType({**graph.meta, META: record}))


def counts_of(graph: Graph) -> tuple[int, int]:
    """How many layers and channels were rescaled, as an equalized graph tells; (0, 0) for any other."""
    record = graph.meta.get(META)
    found = [record.get(key) for key in ("layers", "channels")] if isinstance(record, dict) else []
    layers, channels = (value if isinstance(value, int) else 0 for value in (*found, 0, 0)[:2])
    return layers, channels


def rescaled_layers(graph: Graph) -> frozenset[str]:
    """Names of the layers whose channels ``equalize`` would rescale on either side, in bodies with their path."""
    chains = find_chains(graph)
    scaled = _Scaled(graph, chains)
    scaled.settle()
    changed = (chain for chain, factors in zip(chains, scaled.factors, strict=True) if np.any(factors != 1))
    names = {layer.name for chain in changed for layer in (chain.producer, chain.consumer)}
    inner = ((path, rescaled_layers(body)) for path, body in bodies_by_path(graph).items())
    return frozenset(names.union(body_path(path, name) for path, found in inner for name in found))


@dataclass
class _Counts:
    layers: int = 0
    channels: int = 0


def _equalized(graph: Graph, counts: _Counts) -> Graph:
    chains = find_chains(graph)
    if chains:
        scaled = _Scaled(graph, chains)
        scaled.settle()
        arrays = scaled.arrays()
        changed = [int(np.sum(factors != 1)) for factors in scaled.factors]
        counts.layers += sum(count > 0 for count in changed)
        counts.channels += sum(changed)
        graph = replace(graph, initializers=MappingProxyType({**graph.initializers, **arrays}))
    return with_bodies(graph, lambda body, _: _equalized(body, counts))


class _Scaled:
    """The chains of a graph with the factors that they have so far; nothing of the graph is changed."""

    def __init__(self, graph: Graph, chains: Sequence[Chain]) -> None:
        self._graph, self._chains = graph, chains
        layers = {node.name: node for chain in chains for node in (chain.producer, chain.consumer)}
        self._tables = {name: layer_table(graph, node) for name, node in layers.items()}
        self._reaches = [reach_of(graph, chain) for chain in chains]
        self.factors = [np.ones(chain.channels) for chain in chains]

    def settle(self) -> None:
        """Sweeps until the factors stay."""
        for _ in range(SWEEPS):
            before = [factors.copy() for factors in self.factors]
            for index in range(len(self._chains)):
                self._adjust(index)
            moved = (np.abs(np.log(a / b)).max(initial=0.0) for a, b in zip(self.factors, before, strict=True))
            if max(moved, default=0.0) < SMALL:
                break

    def _adjust(self, index: int) -> None:
        """One chain, as its neighbours are now."""
        chain, reach, factors = self._chains[index], self._reaches[index], self.factors[index]
        outputs = self._tables[chain.producer.name].max(axis=2).reshape(-1)
        inputs = self._tables[chain.consumer.name].max(axis=1).reshape(-1)
        wanted = factors * even(outputs, inputs)
        wanted = np.clip(np.minimum(wanted, reach.most), 1 / LARGEST, LARGEST)
        new = np.where(reach.fixed | ~np.isfinite(wanted), 1.0, wanted)
        self._scale(chain, new / factors)
        self.factors[index] = new

    def _scale(self, chain: Chain, by: Array) -> None:
        made, read = self._tables[chain.producer.name], self._tables[chain.consumer.name]
        made *= by.reshape(*made.shape[:2], 1)
        read /= by.reshape(read.shape[0], 1, read.shape[2])

    def arrays(self) -> Mapping[str, Array]:
        """The parameters that change, by name; with factors on both sides a weight is rounded once."""
        by: dict[str, Array] = {}
        for chain, factors in zip(self._chains, self.factors, strict=True):
            if np.any(factors != 1):
                for name in chain.scaled:
                    by[name] = by.get(name, 1.0) * self._along_outputs(name, factors)
                weight = chain.consumer.inputs[1]
                by[weight] = by.get(weight, 1.0) * self._along_inputs(chain.consumer, 1.0 / factors)
        arrays = self._graph.initializers
        return {name: (arrays[name] * scale).astype(arrays[name].dtype) for name, scale in by.items()}

    def _along_outputs(self, name: str, factors: Array) -> Array:
        return factors.reshape(-1, *[1] * (self._graph.initializers[name].ndim - 1))

    def _along_inputs(self, layer: Node, factors: Array) -> Array:
        """For a weight (O, C / groups, *kernel), whose rows of a group read the channels of that group."""
        weight = self._graph.initializers[layer.inputs[1]]
        groups = self._tables[layer.name].shape[0]
        rows = np.repeat(factors.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def even(outputs: Array, inputs: Array) -> Array:
    """The factor of each channel that brings down the side where its weights are large, as far as it is useful.

    ``outputs`` (C,) is the largest weight that makes a channel, ``inputs`` (C,) the largest that reads it, which are
    taken in units of their medians. The paper's factor sqrt(inputs / outputs) makes both sides the same; here it ends
    where the larger side comes down to ``LARGE``, and channels that are less on both sides stay as they are.
    """
    made, read = _relative(outputs), _relative(inputs)
    with np.errstate(all="ignore"):
        both = np.sqrt(read / made)
        grown, shrunk = np.fmin(both, np.maximum(read / LARGE, 1.0)), np.fmax(both, np.minimum(LARGE / made, 1.0))
        wanted = np.where(both > 1, grown, shrunk)
    return np.where(np.isfinite(wanted) & (wanted > 0), wanted, 1.0)


def _relative(sizes: Array) -> Array:
    """In units of the median of those that are there."""
    there = sizes[(sizes > 0) & np.isfinite(sizes)]
    return sizes / (np.median(there) if there.size else 1.0)
