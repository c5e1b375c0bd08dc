"""A trained model -> Calibrated, which is converted as one that was calibrated is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from qtool.ir import Array, Graph
from qtool.quantize.bias_range import fit_biases
from qtool.quantize.calibrate import Calibrated, Range
from qtool.quantize.prepare import Prepared
from qtool.quantize.qat.fake_quant import FakeQuant
from qtool.quantize.qat.layers import BatchNormLayer
from qtool.quantize.qat.model import QatModel
from qtool.quantize.qat.weighted import Weighted


def calibrated_of(model: QatModel, samples: int) -> Calibrated:
    """The fused graph with the trained parameters, and the scales that training ended with.

    Where a bias would not fit QNNPACK's 32 bits, weight scales grow as they do without training, and the model in
    training takes them over, so that it goes on giving what the converted one gives. QuantizationError for a tensor
    that training never reached.
    """
    prepared = _with_parameters(model)
    activations = {name: quantizer.grid.qparams for name, quantizer in model.quantizers.items()}
    found = {name: quantizer.grid.qparams for name, quantizer in model.weight_quantizers.items()}
    weights, warnings = fit_biases(prepared, activations, found)
    for name, qparams in weights.items():
        if qparams is not found[name]:
            model.weight_quantizers[name].adopt(qparams)
    return Calibrated(
        prepared,
        MappingProxyType(activations),
        MappingProxyType(weights),
        MappingProxyType(_ranges(model.quantizers)),
        samples,
        warnings,
    )


def float_graph(model: QatModel) -> Graph:
    """The graph as it was loaded, with the trained parameters and running statistics."""
    graph = model.source.float_graph
    arrays = {**graph.initializers, **_present(graph, model.parameters), **model.state.statistics}
    return replace(graph, initializers=MappingProxyType(arrays))


def _present(graph: Graph, parameters: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in parameters.items() if name in graph.initializers}


def _with_parameters(model: QatModel) -> Prepared:
    """What was prepared, of the trained graph. Training has done what bias correction is for."""
    prepared = model.source.prepared
    arrays = {**prepared.graph.initializers, **_present(prepared.graph, model.parameters)}
    for layer in model.layers:
        if isinstance(layer, Weighted):
            weight, bias = layer.folded()
            arrays[layer.node.inputs[1]] = weight
            if bias is not None:
                arrays[layer.node.inputs[2]] = bias
        elif isinstance(layer, BatchNormLayer):
            arrays.update({name: model.state.array(name) for name in layer.node.inputs[1:] if name})
    graph = replace(prepared.graph, initializers=MappingProxyType(arrays))
    qconfigs = {name: replace(config, bias_correction=False) for name, config in prepared.qconfigs.items()}
    return replace(prepared, graph=graph, qconfigs=MappingProxyType(qconfigs))


def _ranges(quantizers: Mapping[str, FakeQuant]) -> dict[str, Range]:
    seen = ((name, quantizer.range) for name, quantizer in quantizers.items())
    return {name: Range(*found) for name, found in seen if found is not None}
