"""OpenVINO on the CPU: float, quantized by NNCF, and the graph's own QDQ file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtool.analysis.peers.job import Job, Run, Way
from qtool.ir import Array

RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence")
SUBSET = 300
"""NNCF takes at most so many samples; here there are far fewer."""


def ways(job: Job, folder: Path) -> list[Way]:
    """The graph as it is exported; where it is quantized also what NNCF makes of the float graph.

    OpenVINO quantizes nothing at run time here, so NNCF's static quantization stands beside dynamic models too.
    """
    how = "float32" if not job.quantized else "dynamic, exported" if job.dynamic else "QDQ"
    found = [Way(how, lambda: _compiled(job, _read(job, job.file(folder))))]
    if job.quantized and job.real is not None:
        how = "NNCF, recurrent layers in float32" if _recurrent(job) else "NNCF"
        found.append(Way(how, lambda: _compiled(job, _by_nncf(job, _read(job, job.float_file(folder))))))
    return found


def _recurrent(job: Job) -> bool:
    return any(node.op.partition("_")[0] in ("lstm", "gru", "rnn") for node in job.graph.nodes)


def _read(job: Job, path: Path) -> Any:
    """The model with the shapes it will be run with."""
    import openvino

    model = openvino.Core().read_model(str(path))
    shapes = [job.feeds[name].shape for name in job.graph.inputs]
    model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
    return model


def _by_nncf(job: Job, model: Any) -> Any:
    """Its performance preset; transformers are told apart, since NNCF treats their attention in a way of its own."""
    os.environ.setdefault("NNCF_CI", "1")  # it sends usage statistics otherwise
    import nncf

    nncf.set_log_level(logging.ERROR)
    samples = [[feeds[name] for name in job.graph.inputs] for feeds in job.calibration()]
    transformer = any(node.op == "softmax" for node in job.graph.nodes[:-1]) or job.dynamic
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=min(SUBSET, len(samples)),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            # OpenVINO's own recurrent layers do not take the quantized weights that NNCF gives them.
            ignored_scope=nncf.IgnoredScope(types=list(RECURRENT), validate=False) if _recurrent(job) else None,
        )


def _compiled(job: Job, model: Any) -> Run:
    """One stream for latency. Float models stay in float32, where the CPU has bfloat16 too."""
    import openvino
    import openvino.properties.hint as hints

    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if not job.quantized:
        config[hints.inference_precision()] = openvino.Type.f32
    compiled = openvino.Core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    ports, names = list(compiled.inputs), job.graph.inputs

    def run(feeds: Mapping[str, Array]) -> Sequence[Any]:
        found = request.infer(
            {port: feeds[name] for port, name in zip(ports, names, strict=True)}, share_inputs=True, share_outputs=True
        )
        return [found[port] for port in compiled.outputs]

    return run
