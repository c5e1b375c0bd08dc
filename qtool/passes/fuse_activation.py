"""A clamp right after a layer costs nothing when the layer's own output stage does it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from qtool.ir import Attr, Graph, Node, remake
from qtool.ops import attrs_of

RELU_HOSTS = ("conv1d", "conv2d", "linear", "add", "mul")
CLAMP_HOSTS = ("conv1d", "conv2d", "linear")
CLAMPS = ("relu6", "hardtanh", "clamp")


def fuse_relu(graph: Graph, only: Collection[str] | None = None) -> Graph:
    """``relu(layer(x))`` becomes one node, for convolution, linear, add and mul; the value keeps the relu's name.

    Bits stay what PyTorch's fused modules give: the layer's output is only ever observed after the relu.
    ``only`` limits it to these relu nodes.
    """
    return _fuse(graph, ("relu",), RELU_HOSTS, only)


def fuse_clamp(graph: Graph, hosts: Collection[str]) -> Graph:
    """``relu6(conv(x))`` becomes one node where the convolution is among ``hosts``.

    The observer then sees the clamped range, so the scale is finer than PyTorch's, which observes before the clamp:
    only done where the recipe does not ask for PyTorch's bits.
    """
    only = {node.name for node in graph.nodes if node.op in CLAMPS and _host_of(graph, node) in hosts}
    return _fuse(graph, CLAMPS, CLAMP_HOSTS, only)


def _host_of(graph: Graph, node: Node) -> str:
    producer = graph.producers.get(node.inputs[0])
    return producer.name if producer else ""


def _fuse(graph: Graph, activations: tuple[str, ...], hosts: tuple[str, ...], only: Collection[str] | None) -> Graph:
    replaced: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op not in activations or (only is not None and node.name not in only):
            continue
        host = graph.producers.get(node.inputs[0])
        if host is None or host.name in replaced or not can_host(graph, host, node, hosts):
            continue
        attrs = {**host.attrs, **_fused_attrs(node)}
        replaced[host.name], replaced[node.name] = None, replace(host, outputs=node.outputs, attrs=attrs)
    if not replaced:
        return graph
    return remake(graph, (kept for n in graph.nodes if (kept := replaced.get(n.name, n)) is not None))


def can_host(graph: Graph, host: Node, activation: Node, hosts: Collection[str] = RELU_HOSTS) -> bool:
    """Whether the host's output stage can do this activation: nobody else reads the host, and it has none yet."""
    return (
        host.op in hosts
        and attrs_of(host).activation == "none"
        and graph.sole_consumer(host.outputs[0]) is activation
        and graph.values[host.outputs[0]].qparams is None
    )


def _fused_attrs(node: Node) -> dict[str, Attr]:
    attrs: Any = attrs_of(node)
    if node.op == "relu":
        return {"activation": "relu"}
    low, high = (0.0, 6.0) if node.op == "relu6" else (attrs.low, attrs.high)
    return {"activation": "clamp", "clamp": (low, high)}
