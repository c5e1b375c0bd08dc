"""Other engines to be measured against, one file each; an engine is imported when it is asked for.

Each runs the model by its own best recipe: ``ways`` lists what it can do with a model, each is made and tried, and the
one that is fastest here counts.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qtool.analysis.latency import settling_time, time_interleaved
from qtool.analysis.peers.job import Job, Run, Way
from qtool.errors import EngineError, MissingExtraError

__all__ = ["PEERS", "Job", "Peer", "Run", "open_peer", "versions"]

PEERS = ("onnxruntime", "openvino", "torch")
PACKAGES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino", "nncf"), "torch": ("torch",)}
TRIAL_SECONDS, TRIAL_WARMUP = 0.2, 3


@dataclass(frozen=True)
class Peer:
    """A model ready to run in an engine. ``how`` is the way that was fastest, ``failed`` those that do not work."""

    how: str
    run: Run
    failed: tuple[str, ...] = ()


def open_peer(name: str, job: Job) -> Peer:
    """The model, made ready in another engine by whichever of its ways is fastest.

    EngineError where the engine takes it in no way, MissingExtraError where it is not installed.
    """
    if name not in PEERS:
        raise EngineError(f"got the engine {name!r}, expected one of {', '.join(PEERS)}")
    for package in PACKAGES[name]:
        if _version(package) is None:
            raise MissingExtraError(package, "peers", f"--peer {name}")
    with tempfile.TemporaryDirectory(prefix="qtool-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engines' own business: deprecations of each other, mostly
        engine = importlib.import_module(f"qtool.analysis.peers.{name}_engine")
        ways: list[Way] = engine.ways(job, Path(folder))
        return _fastest(name, job, ways)


def _fastest(name: str, job: Job, ways: list[Way]) -> Peer:
    opened: list[tuple[str, Run]] = []
    failed: list[str] = []
    for way in ways:
        try:
            run = way.open()
            run(job.feeds)
        except MissingExtraError:
            raise
        except Exception as error:  # of their own exceptions only some are public
            failed.append(f"{way.how}: {_first_line(error)}")
        else:
            opened.append((way.how, run))
    if not opened:
        raise EngineError(f"{name} does not run '{job.graph.name}': {'; '.join(failed)}")
    runs = [lambda run=run: run(job.feeds) for _, run in opened]  # type: ignore[misc]
    best = 0
    if len(opened) > 1:
        settling = settling_time(job.threads)
        times = time_interleaved(runs, seconds=TRIAL_SECONDS, warmup=TRIAL_WARMUP, settling=settling)
        best = min(range(len(opened)), key=lambda i: times[i].minimum)
    return Peer(*opened[best], tuple(failed))


def _first_line(error: Exception) -> str:
    """The first line that says something; OpenVINO's begin with where in its source they come from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return (telling[0] if telling else type(error).__name__)[:300]


def versions(name: str) -> str:
    """The packages of an engine with their versions; "" for one that is not installed."""
    found = [(package, _version(package)) for package in PACKAGES.get(name, ())]
    return ", ".join(f"{package} {number}" for package, number in found if number)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
