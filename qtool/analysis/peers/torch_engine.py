"""PyTorch on the CPU: traced and frozen; quantized by FX for the engine x86, or dynamically."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtool.analysis.peers.job import Job, Run, Way
from qtool.errors import EngineError
from qtool.ir import Array

ENGINE = "x86"


def ways(job: Job, folder: Path) -> list[Way]:  # noqa: ARG001 (a graph goes to PyTorch without a file)
    """As a module, traced and frozen, and optimized for inference, each where PyTorch can."""
    what = "float32" if not job.quantized else "quantize_dynamic" if job.dynamic else f"FX {ENGINE}"
    return [
        Way(f"{what}, traced, frozen, optimized", lambda: _runner(job, _frozen(job, optimize=True))),
        Way(f"{what}, traced, frozen", lambda: _runner(job, _frozen(job, optimize=False))),
        Way(what, lambda: _runner(job, _module(job))),
    ]


def _torch(threads: int) -> Any:
    # Read when its OpenMP is loaded: threads that wait for their turn must leave the cores to whoever's turn it is.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)
    return torch


def _module(job: Job) -> Any:
    """The module that stands for the job: float, or quantized by PyTorch itself."""
    torch = _torch(job.threads)
    if job.real is None:
        raise EngineError("PyTorch quantizes models itself: give the float model as well")
    from qtool.analysis.peers.torch_module import module_of

    module = module_of(job.real)
    if not job.quantized:
        return module
    torch.backends.quantized.engine = ENGINE
    if job.dynamic:
        return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU})
    return _by_fx(job, torch, module)


def _by_fx(job: Job, torch: Any, module: Any) -> Any:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(module, get_default_qconfig_mapping(ENGINE), _tensors(torch, job, job.feeds))
    with torch.inference_mode():
        for feeds in job.calibration():
            prepared(*_tensors(torch, job, feeds))
    return convert_fx(prepared)


def _frozen(job: Job, *, optimize: bool) -> Any:
    torch, module = _torch(job.threads), _module(job)
    with torch.no_grad():
        traced = torch.jit.trace(module, _tensors(torch, job, job.feeds), check_trace=False)
        frozen = torch.jit.freeze(traced.eval())
        return torch.jit.optimize_for_inference(frozen) if optimize else frozen


def _tensors(torch: Any, job: Job, feeds: Mapping[str, Array]) -> tuple[Any, ...]:
    return tuple(torch.from_numpy(feeds[name]) for name in job.graph.inputs)


def _runner(job: Job, module: Any) -> Run:
    torch = _torch(job.threads)

    def run(feeds: Mapping[str, Array]) -> Sequence[Any]:
        with torch.inference_mode():
            found = module(*_tensors(torch, job, feeds))
        return [tensor.numpy() for tensor in (found if isinstance(found, tuple) else (found,))]

    return run
