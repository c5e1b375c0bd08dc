"""Reads ONNX models. The only importer of the ``onnx`` package, which is imported when a model is read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtool.errors import MissingExtraError, ModelError
from qtool.ir import Graph, with_bodies
from qtool.ir.verify import verify
from qtool.ops import check_types
from qtool.ops.check import BACKENDS

__all__ = ["import_model", "import_onnx"]


def import_onnx(path: str | os.PathLike[str]) -> Graph:
    """The graph of an ``.onnx`` file, opset 7 to the newest, its weights memory-mapped where they are external data.

    Sizes left open are symbols, the first of them ``"N"``; module names become scopes; what is computed from sizes and
    constants only is folded. ModelError for a file that is broken, or that uses operators qtool does not have, of which
    it lists all; MissingExtraError without the onnx package.
    """
    from qtool.frontends.onnx.reading import read_model
    from qtool.frontends.onnx.table import TABLE

    file = Path(path)
    model = read_model(file, TABLE)
    try:
        return import_model(model, file.parent)
    except MissingExtraError:
        raise
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def import_model(model: Any, folder: Path) -> Graph:
    """The graph of a ModelProto that was checked; ``folder`` is where its external data lie."""
    from qtool.frontends.onnx.importer import BROKEN, Importer
    from qtool.frontends.onnx.known import Unsupported
    from qtool.frontends.onnx.reading import opset_of

    importer = Importer(folder, opset_of(model))
    try:
        graph = recorded(importer.run(model.graph), model)
        verify(graph)
        check_types(graph)
    except Unsupported as error:
        raise ModelError(f"it is not supported: {error}") from error
    except (*BROKEN, RecursionError) as error:
        raise ModelError(f"it is broken: {type(error).__name__}: {str(error)[:200]}") from error
    return graph


def recorded(graph: Graph, model: Any) -> Graph:
    """The graph with the arithmetic that a model exported by qtool names, so that it gives the same bits again. A graph
    with quantized bodies has their arithmetic."""
    graph = with_bodies(graph, lambda body, _: recorded(body, model))
    inner = [body.backend for node in graph.nodes for body in node.graphs.values() if body.backend]
    graph = replace(graph, backend=graph.backend or next(iter(inner), ""))
    backend = next((prop.value for prop in model.metadata_props if prop.key == "qtool.backend"), "")
    return replace(graph, backend=backend) if graph.backend and backend in BACKENDS else graph
