"""Other engines to be measured against; each is imported when it is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtool.errors import EngineError, MissingExtraError
from qtool.ir import Array, Graph

PEERS = ("onnxruntime",)

Run = Callable[[Mapping[str, Array]], Sequence[Any]]
"""Runs a model on arrays by the names of the graph's inputs; gives its outputs in order."""


def open_peer(name: str, graph: Graph, threads: int, source: str = "") -> Run:
    """The model, made ready in another engine.

    ``source`` is where the graph came from: an ``.onnx`` file is given to the engine as it stands, any other graph as
    what ``qtool export`` makes of it, which is QDQ for a quantized one. EngineError where the engine does not take it,
    MissingExtraError where it is not installed.
    """
    if name not in PEERS:
        raise EngineError(f"got the engine {name!r}, expected one of {', '.join(PEERS)}")
    if source.endswith(".onnx"):
        return _onnxruntime(Path(source), graph, threads)
    from qtool.exporters import export_onnx

    with tempfile.TemporaryDirectory(prefix="qtool-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(graph, path)
        return _onnxruntime(path, graph, threads)


def _onnxruntime(path: Path, graph: Graph, threads: int) -> Run:
    """The CPU provider with every optimization; inputs go by position, since the graph may call them differently."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "peers", "--peer onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that wait for their next turn by spinning would take the cores of whoever's turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with _its_errors(graph):
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(feeds: Mapping[str, Array]) -> Sequence[Any]:
        with _its_errors(graph):
            found: Sequence[Any] = session.run(
                None, {name: feeds[own] for name, own in zip(names, graph.inputs, strict=True)}
            )
            return found

    return run


@contextmanager
def _its_errors(graph: Graph) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of its own exceptions only some are public
        raise EngineError(f"onnxruntime does not run '{graph.name}': {str(error).partition(chr(10))[0]}") from error
