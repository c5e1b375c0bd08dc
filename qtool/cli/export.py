"""``qtool export``: a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.common import ModelArgument, Shared, load_models, shared_options, weights_option


@click.command("export")
@click.argument("model", type=ModelArgument())
@click.argument("output", type=click.Path(path_type=Path), metavar="OUTPUT.onnx")
@click.option(
    "--opset", type=click.IntRange(1), metavar="N", help="ONNX operator set; 17 if not given, newer where needed."
)
@weights_option
@shared_options
def command(shared: Shared, model: str, output: Path, opset: int | None, weights: Path | None) -> None:
    """Write a model, float or quantized, as an ONNX file that other engines run. MODEL is a file or zoo:NAME.

    A quantized model becomes a QDQ model: int8 weights, and QuantizeLinear and DequantizeLinear around the layers. The
    file is checked with full shape inference before it is written. Weights of more than 2 GB go to OUTPUT.onnx.data.

    \b
    Examples:
      qtool export quant.npz quant.onnx
      qtool export zoo:resnet18 resnet18.onnx --opset 18
    """
    from qtool.exporters import export_onnx
    from qtool.ir.files import check_writable

    check_writable(output)
    (graph,) = load_models([model], weights)
    done = export_onnx(graph, output, opset)
    kind = f"int8, backend {graph.backend}" if graph.is_quantized else "float32"
    if shared.json:
        plain = {"model": graph.name, "kind": kind, "output": str(output), "opset": done.opset, "nodes": done.nodes}
        data = str(done.data) if done.data else None
        shared.emit({"schema": "qtool.export/1", **plain, "bytes": done.bytes, "external_data": data})
        return
    from qtool.cli.render import line, megabytes

    beside = f" with {done.data.name}" if done.data else ""
    text = f"{output}{beside}: {graph.name}, {kind}, opset {done.opset}, {done.nodes} nodes, {megabytes(done.bytes)}"
    shared.show(line(text))
