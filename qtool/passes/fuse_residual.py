"""A residual add can be done in the accumulator of the convolution before it, with one rounding instead of two."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from qtool.ir import Graph, Node, remake
from qtool.ops import attrs_of

HOSTS = ("conv1d", "conv2d", "linear")


def fuse_residual(graph: Graph, hosts: Collection[str]) -> Graph:
    """``add(conv(x), y)`` becomes ``conv(x, residual=y)``, with the add's own activation, where conv is in ``hosts``.

    The sum is then rounded once, as torch's ``quantized::conv2d_add`` does; where the recipe asks for the bits of two
    roundings, the nodes stay two. Of two candidates the later one is taken, so that the other is there in time.
    """
    order = {node.name: position for position, node in enumerate(graph.nodes)}
    replaced: dict[str, Node | None] = {}
    for add in graph.nodes:
        if add.op != "add" or len(set(add.inputs)) != 2:
            continue
        candidates = [p for name in add.inputs if (p := graph.producers.get(name)) and _can_take(graph, p, add, hosts)]
        candidates = [host for host in candidates if host.name not in replaced]
        if not candidates:
            continue
        host = max(candidates, key=lambda node: order[node.name])
        other = next(name for name in add.inputs if name != host.outputs[0])
        inputs = (*(*host.inputs, "")[:3], other)
        attrs = {**host.attrs, "activation": attrs_of(add).activation}
        replaced[host.name] = None
        replaced[add.name] = replace(host, inputs=inputs, outputs=add.outputs, attrs=attrs)
    if not replaced:
        return graph
    return remake(graph, (kept for node in graph.nodes if (kept := replaced.get(node.name, node)) is not None))


def _can_take(graph: Graph, host: Node, add: Node, hosts: Collection[str]) -> bool:
    shapes = {graph.values[name].shape for name in add.inputs}
    return (
        host.op in HOSTS
        and host.name in hosts
        and not any(host.inputs[3:])
        and attrs_of(host).activation == "none"
        and graph.sole_consumer(host.outputs[0]) is add
        and len(shapes) == 1
    )
