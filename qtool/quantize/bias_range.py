"""Weight scales at which the biases fit into 32 bits.

QNNPACK adds a bias as an integer in steps of (input scale * weight scale). Where a channel's weights are all zero, or
as good as zero, its weight scale is at the observer's least, and such steps are so small that 32 bits cannot hold the
bias: PyTorch cuts it, and the sum may overflow. A larger scale mends it and costs next to nothing, since the weights
are that much smaller than the bias: rounding them is worth at most 2**-23 of the bias for each product of a channel
(TensorFlow Lite's AdjustWeightsForBiasScale does the same).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qtool.engine.requantize import INT32, Arithmetic, arithmetic_of
from qtool.ir import Array, Node, QParams
from qtool.ops import QuantRule, get
from qtool.quantize.prepare import Prepared

LARGEST = 2.0**30
"""Steps that such a bias gets: half of what there is. The products have the rest, and so has bias correction, which
moves a bias by less than they reach."""


def fit_biases(
    prepared: Prepared, activations: Mapping[str, QParams], weights: Mapping[str, QParams]
) -> tuple[dict[str, QParams], tuple[str, ...]]:
    """The parameters of all weights, with larger scales for channels whose bias would overflow, and a warning for each
    layer that has some. Where all biases fit, or are floats (every backend but QNNPACK), they are what they were.
    """
    fitted, warnings = dict(weights), list[str]()
    if arithmetic_of(prepared.options.backend.value) is not Arithmetic.INT_BIAS:
        return fitted, ()
    for node in prepared.graph.nodes:
        bias = _bias(prepared, node)
        if bias is None:
            continue
        name = node.inputs[1]
        weight, reach = fitted[name], _reach(prepared, node, fitted[name])
        largest = np.abs(bias.astype(np.float64)).reshape(-1, weight.scale.size).max(axis=0)
        steps = largest / float(activations[node.inputs[0]].scale[0])  # those of a weight scale of 1
        tight = steps / weight.scale + reach > INT32.max
        if tight.any():
            larger = np.maximum(steps / LARGEST, weight.scale)
            fitted[name] = replace(weight, scale=np.where(tight, larger, weight.scale).astype(np.float32))
            warnings.append(
                f"layer '{node.scope or node.name}': {np.count_nonzero(tight)} of {tight.size} weight scales were so"
                " small beside the bias that it would overflow 32 bits; they are larger now, unlike PyTorch's"
            )
    return fitted, tuple(warnings)


def _bias(prepared: Prepared, node: Node) -> Array | None:
    """The constant bias that a node adds to products of integers."""
    spec = get(node.op)
    if node.name not in prepared.static or spec.rule is not QuantRule.ACCUMULATE or spec.bias is None:
        return None
    return prepared.graph.initializers.get((*node.inputs, "", "")[spec.bias])


def _reach(prepared: Prepared, node: Node, qparams: QParams) -> NDArray[np.int64]:
    """What the products can sum up to at most, for each scale of the weight."""
    stored = qparams.quantize(prepared.graph.initializers[node.inputs[1]])
    steps = np.abs(stored, dtype=np.int16)
    axis = get(node.op).channel_axis
    channels = np.moveaxis(steps, axis, 0).reshape(steps.shape[axis], -1).sum(axis=1, dtype=np.int64)
    return np.asarray(255 * channels.reshape(-1, qparams.scale.size).max(axis=0))
