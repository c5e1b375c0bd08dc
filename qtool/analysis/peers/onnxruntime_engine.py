"""ONNX Runtime on the CPU: float, the graph's own QDQ file, and its own dynamic quantization."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtool.analysis.peers.job import Job, Run, Way
from qtool.ir import Array


def ways(job: Job, folder: Path) -> list[Way]:
    """The graph as it is exported; where it is dynamic also what ``quantize_dynamic`` makes of the float graph."""
    how = "float32" if not job.quantized else "dynamic, exported" if job.dynamic else "QDQ"
    found = [Way(how, lambda: _session(job, job.file(folder)))]
    if job.dynamic and job.real is not None:
        found.append(Way("quantize_dynamic", lambda: _session(job, _quantized(job, folder))))
    return found


def _quantized(job: Job, folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / "dynamic.onnx"
    with _quiet_logging():
        quantize_dynamic(job.float_file(folder), target, per_channel=True, weight_type=QuantType.QInt8)
    return target


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """It advises on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _session(job: Job, path: Path) -> Run:
    """Every optimization; inputs go by position, since the graph may call them differently."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that wait for their next turn by spinning would take the cores of whoever's turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(feeds: Mapping[str, Array]) -> Sequence[Any]:
        found: Sequence[Any] = session.run(
            None, {name: feeds[own] for name, own in zip(names, job.graph.inputs, strict=True)}
        )
        return found

    return run
