"""Convolutions and linear layers in training, with the batch norm that conversion folds into them.

Where statistics follow the batch, the weight is rounded as it will be once the batch norm is folded into it, and then
scaled back, so that the batch norm may do its work on the layer's output (Krishnamoorthi, Quantizing deep convolutional
networks, 2018, section 3.2.2, and PyTorch's ConvBn modules)::

    factor = gamma / sqrt(running variance + eps)
    y = batch_norm(conv(x, fake_quant(weight * factor) / factor) + bias)

Once they are frozen the layer is what it will be when converted::

    y = conv(x, fake_quant(weight * factor)) + (bias - running mean) * factor + beta
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.ir import Array, Node
from qtool.ops import attrs_of
from qtool.ops.registry import VjpCall
from qtool.passes.fold_bn import folded
from qtool.quantize.qat.fake_quant import FakeQuant
from qtool.quantize.qat.layers import (
    Optional,
    Phase,
    State,
    norm_arrays,
    normalize,
    normalize_grad,
    present,
    rows,
    uses_batch,
    without_activation,
)
from qtool.quantize.qat.operators import Normalized
from qtool.quantize.qat.prepare import BatchNorm, Source


@dataclass(frozen=True)
class _Pass:
    """What a forward pass leaves for backward."""

    x: Array
    whole: Array
    """The weight before it was rounded, batch norm folded in."""
    used: Array
    """The weight that x met."""
    bias: Array | None
    sums: Array
    """The bare convolution."""
    found: Normalized | None
    before: Array
    """What the activation got."""
    out: Array
    rounded: bool


class Weighted:
    """act(norm(x . weight + bias) + residual)."""

    def __init__(self, node: Node, source: Source, fake_quant: FakeQuant | None, state: State) -> None:
        self.node = node
        self.source = source
        self.fake_quant = fake_quant
        self._attrs = attrs_of(node)
        self._bare = without_activation(self._attrs)
        self._state = state
        norm = source.norm
        names = (source.weight, source.bias, *((norm.weight, norm.bias) if norm else ()))
        self.names = frozenset(filter(None, names))

    def folded(self) -> tuple[Array, Array | None]:
        """Weight and bias of the converted layer, before the weight is rounded."""
        weight, bias = self._own()
        if self.source.norm is None:
            return weight, bias
        return folded(weight, bias, self.source.norm.norm(norm_arrays(self.source.norm, self._state)))

    def forward(self, given: Optional, phase: Phase) -> tuple[tuple[Array, ...], Any]:
        norm = self.source.norm
        batch = norm is not None and uses_batch(norm, self._state, phase)
        whole, bias = self.folded()
        rounded = self._rounded(whole, phase)
        used = rounded
        if batch:
            bias = self._own()[1]
            used = self._scaled_back(rounded)
        x, operators = present(given[0]), self._state.operators
        (sums,) = operators.run(self.node.op, self._bare, (x, used, bias))
        found = normalize(sums, norm, self._state) if batch and norm is not None else None
        before = sums if found is None else found.y
        if len(given) > 3 and given[3] is not None:
            before = before + given[3]
        out = operators.activate(before, self._attrs.activation, self._attrs.clamp)
        kept = _Pass(x, whole, used, bias, sums, found, before, out, self.fake_quant is not None and phase.fake_quant)
        return (out,), kept if phase.training else None

    def backward(self, saved: Any, grads: Optional, needed: tuple[bool, ...]) -> Optional:
        kept: _Pass = saved
        operators, norm = self._state.operators, self.source.norm
        d_sum = operators.activate_grad(
            (kept.before, kept.out), present(grads[0]), self._attrs.activation, self._attrs.clamp
        )
        d_residual = d_sum if len(needed) > 3 and needed[3] else None
        if kept.found is not None and norm is not None:
            d_sum = normalize_grad(kept.sums, d_sum, kept.found, norm, self._state)
        trains = not self.names.isdisjoint(self._state.trainable)
        call = VjpCall(
            self._bare,
            (kept.x, kept.used, kept.bias),
            (kept.sums,),
            (d_sum,),
            (needed[0], trains, trains and kept.bias is not None),
        )
        dx, d_weight, d_bias = operators.vjp(self.node.op, call)
        if trains and d_weight is not None:
            self._add(kept, d_weight, d_bias)
        return (dx, None, None, d_residual)[: len(needed)]

    def _own(self) -> tuple[Array, Array | None]:
        parameters = self._state.parameters
        return parameters[self.source.weight], parameters[self.source.bias] if self.source.bias else None

    def _rounded(self, whole: Array, phase: Phase) -> Array:
        if self.fake_quant is None or not phase.fake_quant:
            return whole
        if phase.observe or not self.fake_quant.ready:
            self.fake_quant.observe(whole, self._state.operators)
        return self.fake_quant.forward(whole, self._state.operators)

    def _scaled_back(self, rounded: Array) -> Array:
        """The rounded weight over the factor; a channel that the batch norm takes away is not rounded."""
        factor = self._factor()
        gone = factor == 0
        own = self._own()[0]
        if self.fake_quant is None:
            return own
        scaled = rounded / rows(np.where(gone, np.float32(1), factor), rounded)
        return np.where(rows(gone, own), own, scaled) if gone.any() else scaled

    def _factor(self) -> Array:
        assert self.source.norm is not None
        return self.source.norm.norm(norm_arrays(self.source.norm, self._state)).factor

    def _add(self, kept: _Pass, d_used: Array, d_bias: Array | None) -> None:
        """Derivatives by weight, bias and batch norm from those by the weight and bias that were used."""
        norm = self.source.norm
        if norm is None:
            self._state.add_gradient(self.source.weight, self._through(kept, d_used))
            self._state.add_gradient(self.source.bias, d_bias)
        elif kept.found is None:
            self._add_frozen(norm, self._through(kept, d_used), present(d_bias))
        else:
            self._state.add_gradient(self.source.bias, d_bias)
            self._add_scaled_back(norm, kept, d_used)

    def _add_frozen(self, norm: BatchNorm, d_whole: Array, d_bias: Array) -> None:
        """Of a layer that works with the folded weight and bias."""
        own, bias = self._own()
        parts = norm.norm(norm_arrays(norm, self._state))
        shift = (np.float32(0) if bias is None else bias) - parts.mean
        d_factor = (d_whole * own).sum(axis=_inner(own)) + d_bias * shift
        self._state.add_gradient(self.source.weight, d_whole * rows(parts.factor, own))
        self._state.add_gradient(self.source.bias, d_bias * parts.factor)
        self._state.add_gradient(norm.weight, d_factor * parts.inverse_std)
        self._state.add_gradient(norm.bias, d_bias)

    def _add_scaled_back(self, norm: BatchNorm, kept: _Pass, d_used: Array) -> None:
        """Of a weight that was rounded with the batch norm's factor on it, which was then taken off again."""
        if self.fake_quant is None:
            self._state.add_gradient(self.source.weight, d_used)
            return
        own = self._own()[0]
        parts = norm.norm(norm_arrays(norm, self._state))
        gone = parts.factor == 0
        safe = np.where(gone, np.float32(1), parts.factor)
        d_whole = self._through(kept, d_used / rows(safe, own))
        d_factor = (d_whole * own).sum(axis=_inner(own)) - (d_used * kept.used).sum(axis=_inner(own)) / safe
        d_own = np.where(rows(gone, own), d_used, d_whole * rows(parts.factor, own))
        self._state.add_gradient(self.source.weight, d_own)
        self._state.add_gradient(norm.weight, np.where(gone, np.float32(0), d_factor) * parts.inverse_std)

    def _through(self, kept: _Pass, d_rounded: Array) -> Array:
        """Back through the rounding of the weight."""
        if self.fake_quant is None or not kept.rounded:
            return d_rounded
        scale = scale_name(self.node.inputs[1])
        if scale in self._state.trainable:
            gradient = self.fake_quant.scale_grad(kept.whole, d_rounded, self._state.operators)
            self._state.add_gradient(scale, gradient)
        return self.fake_quant.backward(kept.whole, d_rounded, self._state.operators)


def _inner(weight: Array) -> tuple[int, ...]:
    """All axes but that of the output channels."""
    return tuple(range(1, weight.ndim))


def scale_name(value: str) -> str:
    """What a learnt scale is called among the parameters."""
    return f"{value}:scale"
