"""A prepared graph in training: forward, backward, and the parameters that an optimizer changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qtool.ir import Array, DType, Node, QParams
from qtool.ops import get
from qtool.quantize.calibrate import weight_observer
from qtool.quantize.prepare import quantized_weights
from qtool.quantize.qat.emulate import emulate
from qtool.quantize.qat.fake_quant import FakeQuant
from qtool.quantize.qat.layers import BatchNormLayer, Layer, Phase, Plain, State
from qtool.quantize.qat.operators import Operators
from qtool.quantize.qat.prepare import PARAMETERS, QatPrepared, Source, batch_norm_of
from qtool.quantize.qat.weighted import Weighted, scale_name

WEIGHTED = ("conv1d", "conv2d", "linear", "conv_transpose1d", "conv_transpose2d")


@dataclass(frozen=True)
class ModelOptions:
    """What of a recipe the model itself uses: which nodes train, and whether scales are learnt (LSQ)."""

    trains: Callable[[Node], bool] = lambda node: True  # noqa: ARG005 - all of them
    learn_scales: bool = False


@dataclass(frozen=True)
class _Done:
    """A layer that has run."""

    layer: Layer
    saved: Any


class QatModel:
    """The layers of a prepared graph with their parameters, running statistics and fake quantizers.

    ``parameters`` and ``statistics`` are changed in place: the former by an optimizer, the latter by ``forward``.
    """

    def __init__(self, source: QatPrepared, operators: Operators, options: ModelOptions = ModelOptions()) -> None:
        self.source = source
        self.graph = source.graph
        self.operators = operators
        self._learn = options.learn_scales
        arrays = source.float_graph.initializers
        statistics = _statistics(source)
        parameters = {name: arrays[name].copy() for name in _parameter_names(source) if name not in statistics}
        self.state = State(operators, parameters, {name: arrays[name].copy() for name in statistics}, frozenset())
        self.quantizers = _activation_quantizers(source)
        self.weight_quantizers: dict[str, FakeQuant] = {}
        self.layers = [self._layer(node) for node in self.graph.nodes]
        trained = (layer.names for layer in self.layers if options.trains(layer.node))
        self.state.trainable = frozenset().union(*trained)
        self._needs = self._values_with_gradient()
        self._done: list[_Done] = []
        self._raw: dict[str, Array] = {}
        self._rounded: dict[str, Array] = {}

    @property
    def parameters(self) -> dict[str, Array]:
        return self.state.parameters

    # ---- forward ------------------------------------------------------------------------------------------------

    def forward(self, feeds: Mapping[str, Array], phase: Phase) -> dict[str, Array]:
        """The outputs of a batch. QuantizationError, naming the layer, for NaN or infinity in what is observed."""
        self._done, self._raw, self._rounded = [], {}, {}
        last = {} if phase.training else self._last_uses()
        for name in self.graph.inputs:
            self._raw[name] = feeds[name]
            self._quantize(name, phase, None)
        for index, layer in enumerate(self.layers):
            given = tuple(self._read(layer.node, name) for name in layer.node.inputs)
            outputs, saved = layer.forward(given, phase)
            for name, array in zip(layer.node.outputs, outputs, strict=True):
                self._raw[name] = array
                self._quantize(name, phase, layer)
            if phase.training:
                self._done.append(_Done(layer, saved))
            for name in last.get(index, ()):
                self._raw.pop(name, None)
                self._rounded.pop(name, None)
        if phase.fake_quant and phase.training and any(name not in self.parameters for name in self.scales):
            self.adopt_scales()
        return {name: self._output(name, phase) for name in self.graph.outputs}

    def not_finite(self) -> str:
        """The first layer whose output in the last forward pass of training holds NaN or infinity; "" for none."""
        for done in self._done:
            if any(not np.isfinite(self._raw[name]).all() for name in done.layer.node.outputs):
                return done.layer.node.scope or done.layer.node.name
        return ""

    def _quantize(self, name: str, phase: Phase, layer: Layer | None) -> None:
        quantizer = self.quantizers.get(name)
        if quantizer is None or not phase.fake_quant:
            return
        raw = self._raw[name]
        if phase.observe or not quantizer.ready:
            quantizer.observe(raw, self.operators)
        if phase.exact and layer is not None and layer.node.name in self.source.prepared.static:
            self._rounded[name] = self._emulate(layer)[layer.node.outputs.index(name)]
        else:
            self._rounded[name] = quantizer.forward(raw, self.operators)

    def _emulate(self, layer: Layer) -> tuple[Array, ...]:
        """The numbers that the converted layer makes of the same inputs."""
        node, constants = layer.node, {**self.graph.initializers, **self.parameters}
        qparams = {
            name: self.quantizers[name].grid.qparams
            for name in (*node.inputs, *node.outputs)
            if name in self.quantizers
        }
        if isinstance(layer, Weighted):
            stored, weight = self.weight(layer)
            constants[node.inputs[1]], qparams[node.inputs[1]] = stored, weight
            bias = layer.folded()[1]
            if bias is not None:
                constants[node.inputs[2]] = bias
        arrays = {name: constants[name] if name in constants else self._rounded[name] for name in node.inputs if name}
        return emulate(node, arrays, qparams, self.source.prepared.options.backend.value)

    def weight(self, layer: Weighted) -> tuple[Array, QParams]:
        """The integers of a layer's weight as it is now."""
        assert layer.fake_quant is not None
        grid = layer.fake_quant.grid
        return np.clip(grid.qparams.quantize(layer.folded()[0]), grid.low, grid.high), grid.qparams

    def _read(self, node: Node, name: str) -> Array | None:
        if not name or name not in self._raw:
            return None
        return self._rounded[name] if name in self._rounded and self._reads_rounded(node, name) else self._raw[name]

    def _reads_rounded(self, node: Node, name: str) -> bool:
        """A static layer reads what is quantized; one in float only what a static layer made, as when converted."""
        producer = self.graph.producers.get(name)
        static = self.source.prepared.static
        return node.name in static or (producer is not None and producer.name in static)

    def _output(self, name: str, phase: Phase) -> Array:
        if not phase.fake_quant or name not in self._rounded or not self._is_rounded_output(name):
            return self._raw[name]
        return self._rounded[name]

    def _is_rounded_output(self, name: str) -> bool:
        producer = self.graph.producers.get(name)
        return name in self.quantizers and producer is not None and producer.name in self.source.prepared.static

    def _last_uses(self) -> dict[int, list[str]]:
        """After which layer each value is no longer needed."""
        last: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            last.update(dict.fromkeys((*filter(None, node.inputs), *node.outputs), index))
        found: dict[int, list[str]] = {}
        for name, index in last.items():
            if name not in self.graph.outputs:
                found.setdefault(index, []).append(name)
        return found

    # ---- backward -----------------------------------------------------------------------------------------------

    def backward(self, grads: Mapping[str, Array]) -> dict[str, Array]:
        """Derivatives by every trained parameter, from those by the outputs of the last forward pass of training.

        ModelError, naming the layer, where an operator on the way has no derivative.
        """
        self.state.gradients = {}
        raw: dict[str, Array] = {}
        rounded: dict[str, Array] = {}
        for name, gradient in grads.items():
            into = rounded if name in self._rounded and self._is_rounded_output(name) else raw
            into[name] = gradient
        for done in reversed(self._done):
            node = done.layer.node
            found = tuple(self._gradient(name, raw, rounded) for name in node.outputs)
            if all(gradient is None for gradient in found):
                continue
            needed = tuple(bool(name) and name in self._needs for name in node.inputs)
            for name, by_input in zip(node.inputs, done.layer.backward(done.saved, found, needed), strict=True):
                if by_input is not None and name in self._needs:
                    into = rounded if name in self._rounded and self._reads_rounded(node, name) else raw
                    into[name] = into[name] + by_input if name in into else by_input
        for name in self.graph.inputs:
            self._gradient(name, raw, rounded)
        return self.state.gradients

    def _gradient(self, name: str, raw: dict[str, Array], rounded: dict[str, Array]) -> Array | None:
        """The derivative by a value before it was rounded."""
        direct, through = raw.pop(name, None), rounded.pop(name, None)
        if through is None:
            return direct
        quantizer, x = self.quantizers[name], self._raw[name]
        scale = scale_name(self._group[name])
        if scale in self.state.trainable:
            self.state.add_gradient(scale, quantizer.scale_grad(x, through, self.operators))
        passed = quantizer.backward(x, through, self.operators)
        return passed if direct is None else direct + passed

    def _values_with_gradient(self) -> frozenset[str]:
        """Values that a parameter has a part in; all that are rounded where scales are learnt."""
        found = set(self.quantizers) if self._learn else set[str]()
        for layer in self.layers:
            own = not layer.names.isdisjoint(self.state.trainable)
            if own or not found.isdisjoint(layer.node.inputs):
                floats = (name for name in layer.node.outputs if self.graph.values[name].dtype is DType.FLOAT32)
                found.update(floats)
        return frozenset(found)

    # ---- parts --------------------------------------------------------------------------------------------------

    @cached_property
    def _group(self) -> Mapping[str, str]:
        """The first value of the group that each value shares its quantizer with."""
        groups = self.source.prepared.groups
        return {name: group.values[0] for group in groups for name in group.values}

    @property
    def scales(self) -> Mapping[str, FakeQuant]:
        """What has a scale to be learnt, by the name of that parameter."""
        if not self._learn:
            return {}
        found = {scale_name(self._group[name]): quantizer for name, quantizer in self.quantizers.items()}
        found |= {scale_name(name): quantizer for name, quantizer in self.weight_quantizers.items()}
        return {name: quantizer for name, quantizer in found.items() if not quantizer.is_fixed}

    def adopt_scales(self) -> None:
        """Makes parameters of the scales of all that has seen a batch."""
        for name, quantizer in self.scales.items():
            if quantizer.ready:
                self.parameters[name] = quantizer.learn_scale()
                self.state.trainable |= {name}

    def refresh(self) -> None:
        """To be called when the optimizer has changed parameters."""
        for quantizer in (*self.quantizers.values(), *self.weight_quantizers.values()):
            quantizer.refresh()

    def _layer(self, node: Node) -> Layer:
        source = self.source.sources.get(node.name)
        weights = quantized_weights(self.source.prepared, node)
        if node.op in WEIGHTED and (source is not None or weights or node.inputs[1] in self.parameters):
            found = source or Source(node.inputs[1], (*node.inputs, "")[2], None)
            quantizer = self._weight_quantizer(node) if weights else None
            return Weighted(node, found, quantizer, self.state)
        if node.op == "batch_norm" and all(
            name in self.source.float_graph.initializers for name in node.inputs[1:] if name
        ):
            return BatchNormLayer(node, batch_norm_of(node), self.state)
        return Plain(node, self.graph.initializers, self.state)

    def _weight_quantizer(self, node: Node) -> FakeQuant:
        name = node.inputs[1]
        if name not in self.weight_quantizers:
            config, axis = weight_observer(self.source.prepared.qconfigs[node.name].weight, node)
            where = f"weight '{name}' of {node.op} '{node.name}'"
            self.weight_quantizers[name] = FakeQuant(config, where, axis, is_weight=True)
        return self.weight_quantizers[name]


def _statistics(source: QatPrepared) -> frozenset[str]:
    """Running means and variances of batch norms."""
    graph = source.float_graph
    nodes = (node for node in graph.nodes if node.op == "batch_norm")
    return frozenset(name for node in nodes for name in node.inputs[1:3] if name in graph.initializers)


def _parameter_names(source: QatPrepared) -> list[str]:
    """Constants where PyTorch's modules have parameters."""
    graph = source.float_graph
    found: dict[str, None] = {}
    for node in graph.nodes:
        formal = get(node.op).inputs
        for position, name in enumerate(node.inputs):
            kind = formal[min(position, len(formal) - 1)].rstrip("?*")
            if name in graph.initializers and kind in PARAMETERS and graph.values[name].dtype is DType.FLOAT32:
                found[name] = None
    return list(found)


def _activation_quantizers(source: QatPrepared) -> dict[str, FakeQuant]:
    """One for each group of values, by every value in it."""
    made: dict[str, FakeQuant] = {}
    graph = source.graph
    for group in source.prepared.groups:
        first = group.values[0]
        producer = graph.producers.get(first)
        where = f"the output of {producer.op} '{producer.name}'" if producer else f"the input '{first}'"
        made.update(dict.fromkeys(group.values, FakeQuant(group.config, where, known=group.fixed)))
    return made
