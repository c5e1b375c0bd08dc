"""``qtool inspect``: what a model file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import BACKENDS, ModelArgument, Shared, load_models, shared_options, weights_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from qtool.ir import Graph, Node


@click.command("inspect")
@click.argument("model", type=ModelArgument())
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="fbgemm",
    show_default=True,
    help="Whose default qconfig says what would be quantized.",
)
@weights_option
@shared_options
def command(shared: Shared, model: str, backend: str, weights: Path | None) -> None:
    """List a model's layers, shapes and sizes, and what would be quantized. MODEL is a file or zoo:NAME.

    MMACs are million multiply-accumulate operations for one sample, with 1 for sizes only known at run time;
    in a body of control flow, those of running it once.

    \b
    Examples:
      qtool inspect model.npz
      qtool inspect model.int8.npz
      qtool inspect zoo:mobilenet_v2 --json
    """
    (graph,) = load_models([model], weights)
    layers = _layers(graph, backend)
    if shared.json:
        shared.emit({"schema": "qtool.inspect/1", **_summary(graph, layers), "layers": layers})
    else:
        _show(shared, graph, layers)


def _layers(graph: Graph, backend: str) -> list[dict[str, Any]]:
    from qtool.engine.shapes import concrete_shapes, nominal_shapes

    states = {} if graph.is_quantized else _possibilities(graph, backend)
    return list(_rows(graph, concrete_shapes(graph, nominal_shapes(graph)), states))


def _rows(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], states: Mapping[str, str], path: str = ""
) -> Iterator[dict[str, Any]]:
    """A row for each node, followed by those of the bodies that it has."""
    from qtool.analysis.cost import macs_of
    from qtool.engine.shapes import shapes_within
    from qtool.ir import body_path

    for node in graph.nodes:
        name = body_path(path, node.name) if path else node.name
        yield {
            "name": name,
            "op": node.op,
            "shape": _shape(graph, node.outputs[0]),
            "bytes": sum(graph.initializers[name].nbytes for name in set(node.inputs) & graph.initializers.keys()),
            "macs": macs_of(node, shapes),
            "precision": states.get(name) or _precision(graph, node),
            **_parameters(graph, node),
        }
        for key, body in node.graphs.items():
            yield from _rows(body, shapes_within(node, body, shapes), states, body_path(name, key))


def _summary(graph: Graph, layers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": graph.name,
        "kind": f"int8, backend {graph.backend}" if graph.is_quantized else "float32",
        "bytes": graph.parameter_bytes(),
        "macs": sum(layer["macs"] for layer in layers),
        "inputs": {name: _shape(graph, name) for name in graph.inputs},
        "outputs": {name: _shape(graph, name) for name in graph.outputs},
        "meta": dict(graph.meta),
    }


def _show(shared: Shared, graph: Graph, layers: list[dict[str, Any]]) -> None:
    from qtool.cli.render import line, megabytes, number, plural, table

    rows: list[tuple[object, ...]] = [
        (
            row["name"],
            row["op"],
            _short(row["shape"]),
            megabytes(row["bytes"]) if row["bytes"] else "-",
            f"{row['macs'] / 1e6:.2f}" if row["macs"] else "-",
            row["precision"],
            number(row["scale"]),
            "-" if row["zero_point"] is None else row["zero_point"],
        )
        for row in layers
    ]
    columns: tuple[str, ...] = ("layer", "operator", "output", "bytes", "MMACs", "runs in", "scale", "zero")
    if not graph.is_quantized:
        rows, columns = [row[:6] for row in rows], (*columns[:5], "would be")
    shared.show(table(graph.name or "model", columns, rows, numeric=(3, 4, 6, 7)), "")
    summary = _summary(graph, layers)
    for name in ("inputs", "outputs"):
        shared.show(line(f"{name}: {', '.join(f'{key} {value}' for key, value in summary[name].items())}"))
    size = f"{megabytes(summary['bytes'])} of constants, {summary['macs'] / 1e6:.2f} million MACs a sample"
    shared.show(line(f"{plural(len(layers), 'node')}, {size}, {summary['kind']}"))
    for text in _origin(graph):
        shared.show(line(text))


def _origin(graph: Graph) -> list[str]:
    """What the file records of how it was made; it may record anything."""
    recipe, used = graph.meta.get("recipe"), graph.meta.get("calibration")
    found = []
    if isinstance(recipe, dict):
        model = recipe.get("model")
        if isinstance(model, dict):
            model = f"zoo:{model.get('zoo')} with {model.get('weights')}"
        found.append(f"made by qtool {graph.meta.get('qtool')} from {model}, mode {recipe.get('mode')}")
    if isinstance(used, dict):
        digest = str(used.get("sha256"))[:16]
        found.append(f"calibrated on {used.get('samples')} samples of {used.get('data')}, sha256 {digest}...")
    return found


def _shape(graph: Graph, name: str) -> str:
    value = graph.values[name]
    return f"{value.dtype.value}[{', '.join(map(str, value.shape))}]"


def _short(shape: str) -> str:
    """float32[N, 3] -> [N,3], uint8[N, 3] -> u8[N,3]"""
    for long, short in (("float32", ""), ("float", "f"), ("uint", "u"), ("int", "i"), (", ", ",")):
        shape = shape.replace(long, short)
    return shape


def _precision(graph: Graph, node: Node) -> str:
    """How a node of a quantized model runs."""
    from qtool.ops import get

    if node.graphs:
        return "control flow"
    if get(node.op).dynamic_of:
        return "int8 dynamic"
    if node.op == "embedding_rows":
        return f"int{node.attrs.get('bits', 8)} rows"
    return "float32" if graph.values[node.outputs[0]].qparams is None else "int8"


def _parameters(graph: Graph, node: Node) -> dict[str, Any]:
    """Scale and zero point of the output."""
    qparams = graph.values[node.outputs[0]].qparams
    if qparams is None or qparams.axis is not None:
        return {"scale": None, "zero_point": None}
    return {"scale": float(qparams.scale[0]), "zero_point": int(qparams.zero_point[0])}


def _possibilities(graph: Graph, backend: str) -> dict[str, str]:
    """What static quantization with the backend's default qconfig would make of each node of a float model."""
    from qtool.errors import QuantizationError
    from qtool.ir import all_nodes
    from qtool.quantize.prepare import PrepareOptions, prepare
    from qtool.recipe.presets import get_default_qconfig
    from qtool.recipe.schema import Backend, Mode, Rule

    rules = [Rule("", get_default_qconfig(backend))]
    try:
        prepared = prepare(graph, rules, PrepareOptions(Mode.STATIC, Backend(backend)))
    except QuantizationError:
        return {}
    states = {located.name: "control flow" if located.node.graphs else "fused" for located in all_nodes(graph)}
    states.update(dict.fromkeys(prepared.quantized, "int8"))
    states.update({fallback.node: f"float32: {fallback.reason}" for fallback in prepared.all_fallbacks})
    return states
