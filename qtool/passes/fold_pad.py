"""A pad of zeros before a convolution or an average pool is padding that the layer can do itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtool.ir import Attr, Graph, Node, remake
from qtool.ops import attrs_of
from qtool.ops.shape import pad_pairs

CONVS = ("conv1d", "conv2d")
POOLS = ("avg_pool1d", "avg_pool2d")
MODES = {"reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def fold_pad(graph: Graph) -> Graph:
    """``conv(pad(x))`` becomes ``conv(x)`` with more padding, for zeros, and for the modes a convolution has itself;
    ``avg_pool(pad(x))`` for zeros that the pool counts."""
    replaced: dict[str, Node | None] = {}
    for layer in graph.nodes:
        pad = graph.producers.get(layer.inputs[0]) if layer.inputs else None
        if pad is None or pad.op != "pad" or pad.name in replaced:
            continue
        attrs = _layer_attrs(graph, pad, layer)
        if attrs is not None:
            replaced[pad.name] = None
            replaced[layer.name] = replace(
                layer, inputs=(pad.inputs[0], *layer.inputs[1:]), attrs={**layer.attrs, **attrs}
            )
    if not replaced:
        return graph
    return remake(graph, (kept for node in graph.nodes if (kept := replaced.get(node.name, node)) is not None))


def _layer_attrs(graph: Graph, pad: Node, layer: Node) -> dict[str, Attr] | None:
    """The attributes that change; None where the layer cannot take the pad over."""
    attrs: Any = attrs_of(pad)
    rank = len(graph.values[pad.inputs[0]].shape)
    spatial = ((0, 0),) * (rank - len(pad_pairs(attrs))) + pad_pairs(attrs)
    outer, inner = spatial[:2], spatial[2:]
    if any(map(any, outer)) or min(map(min, inner), default=-1) < 0:
        return None
    if graph.sole_consumer(pad.outputs[0]) is not layer or graph.values[pad.outputs[0]].qparams is not None:
        return None
    if layer.op in CONVS:
        return _conv_attrs(attrs, attrs_of(layer), inner)
    return _pool_attrs(attrs, attrs_of(layer), inner) if layer.op in POOLS else None


def _conv_attrs(pad: Any, conv: Any, pairs: tuple[tuple[int, int], ...]) -> dict[str, Attr] | None:
    unpadded = not any(map(any, conv.padding))
    if pad.mode == "constant":
        if pad.value != 0.0 or (conv.padding_mode != "zeros" and not unpadded):
            return None
        padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(conv.padding, pairs, strict=True))
        return {"padding": padding, "padding_mode": "zeros"}
    return {"padding": pairs, "padding_mode": MODES[pad.mode]} if unpadded and pad.mode in MODES else None


def _pool_attrs(pad: Any, pool: Any, pairs: tuple[tuple[int, int], ...]) -> dict[str, Attr] | None:
    """A pool that counts its padding, and whose windows all begin inside of what it then pads."""
    if pad.mode != "constant" or pad.value != 0.0 or pool.ceil_mode:
        return None
    if any(map(any, pool.padding)) and not pool.count_include_pad:
        return None
    padding = tuple((a + c, b + d) for (a, b), (c, d) in zip(pool.padding, pairs, strict=True))
    if any(max(pair) >= kernel for pair, kernel in zip(padding, pool.kernel_size, strict=True)):
        return None
    return {"padding": padding, "count_include_pad": True}
