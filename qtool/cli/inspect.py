"""``qtool inspect``: what a model file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import Shared, shared_options

if TYPE_CHECKING:
    from qtool.ir import Graph, Node


@click.command("inspect")
@click.argument("model")
@shared_options
def command(shared: Shared, model: str) -> None:
    """List a model's layers, shapes and sizes, and what would be quantized. MODEL is a file or zoo:NAME.

    \b
    Examples:
      qtool inspect model.npz
      qtool inspect zoo:mobilenet_v2 --json
    """
    from qtool.cli.render import megabytes, table
    from qtool.pipeline import load_model

    graph = load_model(model)
    layers = [_layer(graph, node) for node in graph.nodes]
    if shared.json:
        shared.emit({"schema": "qtool.inspect/1", **_summary(graph), "layers": layers})
        return
    rows = [
        (row["name"], row["op"], row["shape"], megabytes(row["bytes"]) if row["bytes"] else "-", row["quantization"])
        for row in layers
    ]
    columns = ("layer", "operator", "output", "weights", "quantization" if graph.is_quantized else "would be")
    shared.console.print(table(graph.name, columns, rows, numeric=(3,)))
    summary = _summary(graph)
    for name in ("inputs", "outputs"):
        shared.console.print(f"{name}: {', '.join(f'{key} {value}' for key, value in summary[name].items())}")
    shared.console.print(f"{len(layers)} nodes, {megabytes(summary['bytes'])} of weights, {summary['kind']}")


def _summary(graph: Graph) -> dict[str, Any]:
    return {
        "model": graph.name,
        "kind": f"int8, backend {graph.backend}" if graph.is_quantized else "float32",
        "bytes": graph.parameter_bytes(),
        "inputs": {name: _shape(graph, name) for name in graph.inputs},
        "outputs": {name: _shape(graph, name) for name in graph.outputs},
    }


def _layer(graph: Graph, node: Node) -> dict[str, Any]:
    held = [graph.initializers[name].nbytes for name in node.inputs if name in graph.initializers]
    return {
        "name": node.name,
        "op": node.op,
        "shape": _shape(graph, node.outputs[0]),
        "bytes": sum(held),
        "quantization": _state(graph, node) if graph.is_quantized else _possibility(node),
    }


def _shape(graph: Graph, name: str) -> str:
    value = graph.values[name]
    return f"{value.dtype.value}[{', '.join(map(str, value.shape))}]"


def _state(graph: Graph, node: Node) -> str:
    qparams = graph.values[node.outputs[0]].qparams
    if qparams is None:
        return "dynamic" if node.op == "linear_dynamic" else "float32"
    per_channel = "" if qparams.axis is None else f" per channel {qparams.axis}"
    return f"{qparams.dtype.value}{per_channel}, scale {qparams.scale[0]:.4g}, zero point {qparams.zero_point[0]}"


def _possibility(node: Node) -> str:
    from qtool.ops import get

    rule = get(node.op).rule
    return f"int8 ({rule.value})" if rule is not None else "float32"
