"""Decides what is trained and what is rounded on the way: Graph + rules -> QatPrepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from qtool.errors import QuantizationError
from qtool.ir import Array, Graph, Node
from qtool.ops import attrs_of
from qtool.ops.check import check_types
from qtool.passes import Fusion, clean
from qtool.passes.fold_bn import Norm, can_fold, inverse_deviation
from qtool.quantize.calibrate import check_parameters
from qtool.quantize.prepare import Prepared, PrepareOptions, prepare
from qtool.recipe.match import Matches
from qtool.recipe.schema import Mode, Rule

PARAMETERS = ("weight", "bias", "scale", "slope", "w", "r", "b")
"""Formal inputs of operators that hold what is trained, where they are constants."""


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm that the fused graph has folded into a layer: names in the graph as it was loaded ("" where it has
    none), and its eps."""

    name: str
    mean: str
    variance: str
    weight: str
    bias: str
    eps: float

    def norm(self, arrays: Mapping[str, Array]) -> Norm:
        """The scale and shift that it is with these statistics and parameters."""
        mean, variance = arrays[self.mean], arrays[self.variance]
        weight = arrays[self.weight] if self.weight else np.ones_like(mean)
        bias = arrays[self.bias] if self.bias else np.zeros_like(mean)
        return Norm(mean, inverse_deviation(variance, self.eps), weight, bias)


@dataclass(frozen=True)
class Source:
    """What a layer of the fused graph was before: its own weight and bias ("" for none), and its batch norm if any."""

    weight: str
    bias: str
    norm: BatchNorm | None


@dataclass(frozen=True)
class QatPrepared:
    """What ``prepare`` decided on the fused graph, and where the parameters of its layers come from.

    ``float_graph`` is the graph as it was loaded, cleaned: its initializers are what is trained. ``sources`` has the
    layers of the fused graph whose parameters fusing has changed, by name.
    """

    prepared: Prepared
    float_graph: Graph
    sources: Mapping[str, Source]

    @property
    def graph(self) -> Graph:
        """The fused graph."""
        return self.prepared.graph


def prepare_qat(graph: Graph, rules: Sequence[Rule], options: PrepareOptions) -> QatPrepared:
    """As ``prepare``, with batch norms kept apart from their layers for training.

    QuantizationError for what cannot be trained: layers inside of control flow, NaN or infinity in weights, and what
    ``prepare`` refuses.
    """
    prepared = prepare(graph, rules, replace(options, mode=Mode.QAT))
    check_parameters(prepared)
    inner = [path for path, body in prepared.bodies.items() if body.quantized]
    if inner:
        raise QuantizationError(
            f"mode qat cannot train the layers in '{inner[0]}', which is inside of control flow; leave them in float by"
            f" a rule '{inner[0]}: null', or quantize with mode static"
        )
    return QatPrepared(prepared, *_sources(graph, prepared.graph))


def unfused(graph: Graph) -> QatPrepared:
    """For training in float: nothing is rounded, and every node stands for itself."""
    cleaned = clean(graph)
    check_types(cleaned)
    return QatPrepared(_nothing_quantized(cleaned), cleaned, MappingProxyType({}))


def _nothing_quantized(graph: Graph) -> Prepared:
    none = Matches(MappingProxyType({node.name: None for node in graph.nodes}), ())
    return Prepared(graph, Fusion("none"), PrepareOptions(Mode.QAT), MappingProxyType({}), (), (), none)


def _sources(loaded: Graph, fused: Graph) -> tuple[Graph, Mapping[str, Source]]:
    cleaned = clean(loaded)
    kept = {node.name for node in fused.nodes}
    sources: dict[str, Source] = {}
    for layer in cleaned.nodes:
        norm = cleaned.sole_consumer(layer.outputs[0])
        if norm is None or norm.op != "batch_norm" or norm.name in kept or not can_fold(cleaned, layer, norm):
            continue
        sources[layer.name] = Source(layer.inputs[1], (*layer.inputs, "")[2], batch_norm_of(norm))
    return cleaned, MappingProxyType(sources)


def batch_norm_of(node: Node) -> BatchNorm:
    """The names of a batch norm node's parameters and statistics."""
    mean, variance, weight, bias = (*node.inputs[1:], "", "")[:4]
    return BatchNorm(node.name, mean, variance, weight, bias, attrs_of(node).eps)
