"""The latency of models in float32 and int8, interleaved, as a whole and operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from qtool.analysis.cost import cost_of
from qtool.analysis.evaluate import EngineOptions
from qtool.analysis.latency import Timing, random_feeds, time_interleaved
from qtool.engine.session import Session
from qtool.engine.shapes import concrete_shapes
from qtool.ir import Array, Graph
from qtool.quantize.api import quantize
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_default_qconfig
from qtool.recipe.schema import Backend, Mode, ObserverConfig, QConfig

SCHEMA = "qtool.bench/1"
CALIBRATION_BATCHES = 2
JOIN = " + "
"""What a session's profile puts between the names of nodes that run as one."""


@dataclass(frozen=True)
class BenchOptions:
    """What is run and for how long: ``seconds`` are those of each contender."""

    backend: Backend = Backend.FBGEMM
    batch: int = 1
    seconds: float = 1.0
    warmup: int = 5
    per_op: bool = False


@dataclass(frozen=True)
class Contender:
    """One model of a comparison. ``source`` is the file, or "quantized here"."""

    source: str
    precision: str
    graph: Graph


@dataclass(frozen=True)
class OperatorRow:
    """What nodes that run as one took: the least time of several runs.

    ``share`` is that of all operators, ``gops`` 1e9 operations a second (a multiply-accumulate counts two; 0 for
    operators that do none), ``bytes`` what has to be read and written at least.
    """

    layer: str
    op: str
    kernel: str
    ms: float
    share: float
    gops: float
    bytes: int


@dataclass(frozen=True)
class BenchRow:
    """Latencies of one contender. ``speedup`` is the median of the first float contender over this one's."""

    source: str
    precision: str
    backend: str
    isa: str
    min_ms: float
    median_ms: float
    p90_ms: float
    runs: int
    speedup: float | None
    gops: float
    fallbacks: Mapping[str, str]
    operators: tuple[OperatorRow, ...] = ()


@dataclass(frozen=True)
class BenchResult:
    """All contenders of one model, run in turns."""

    model: str
    batch: int
    threads: int
    rows: tuple[BenchRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def contenders(models: Sequence[tuple[str, Graph]], backend: Backend, engine: EngineOptions) -> list[list[Contender]]:
    """The models, given as (source, graph), sorted into groups that are to be run in turns: those of one graph's name.

    A float model that comes without a quantized one gets one: the backend's default qconfig, calibrated on a few random
    inputs. That is right for timing and for nothing else.
    """
    groups: dict[str, list[Contender]] = {}
    for source, graph in models:
        precision = "int8" if graph.is_quantized else "float32"
        groups.setdefault(graph.name, []).append(Contender(source, precision, graph))
    for group in groups.values():
        group.sort(key=lambda contender: contender.precision)
        if all(contender.precision == "float32" for contender in group):
            quantized = quantize_quickly(group[0].graph, backend, engine)
            group.append(Contender("quantized here", "int8", quantized))
    return list(groups.values())


def quantize_quickly(graph: Graph, backend: Backend, engine: EngineOptions = EngineOptions()) -> Graph:
    """The graph in int8, calibrated on a few random inputs with min_max observers."""
    default = get_default_qconfig(backend)
    activation = default.activation
    quick = ObserverConfig("min_max", activation.dtype, activation.scheme, activation.reduce_range)
    batches = (random_feeds(graph, seed=seed) for seed in range(CALIBRATION_BATCHES))
    options = PrepareOptions(Mode.STATIC, backend)
    qconfigs = {"": QConfig(quick, default.weight, default.single_rounding)}
    return quantize(graph, qconfigs, batches, options, threads=engine.threads).graph


def run_bench(
    group: Sequence[Contender],
    options: BenchOptions,
    engine: EngineOptions = EngineOptions(),
    progress: Callable[[int], None] | None = None,
) -> BenchResult:
    """Times the contenders of one model; random inputs, seed 0. ``progress`` gets per cent.

    DataError where a model does not take the batch.
    """
    sessions = [engine.session(contender.graph) for contender in group]
    feeds = [random_feeds(contender.graph, options.batch) for contender in group]
    runs = [_runner(session, given) for session, given in zip(sessions, feeds, strict=True)]
    timings = time_interleaved(
        runs,
        seconds=options.seconds,
        warmup=options.warmup,
        progress=None if progress is None else lambda share: progress(round(100 * share)),
    )
    base = next((t.median for c, t in zip(group, timings, strict=True) if c.precision == "float32"), None)
    rows = []
    for contender, session, timing, given in zip(group, sessions, timings, feeds, strict=True):
        row = _row(contender, session, timing, given)
        rounds = max(1, min(50, int(options.seconds / timing.minimum)))
        operators = profile_operators(session, given, rounds) if options.per_op else ()
        rows.append(replace(row, speedup=base / timing.median if base else None, operators=operators))
    return BenchResult(group[0].graph.name, options.batch, engine.threads, tuple(rows))


def profile_operators(session: Session, feeds: Mapping[str, Array], rounds: int = 10) -> tuple[OperatorRow, ...]:
    """What each operator takes, in the order in which they run: the least of several rounds."""
    best: dict[str, float] = {}
    kernels: dict[str, dict[str, None]] = {}
    for _ in range(rounds):
        taken: dict[str, float] = {}
        for node, kernel, seconds in session.profile(feeds):
            taken[node] = taken.get(node, 0.0) + seconds  # a layer's own change of layout counts as the layer
            kernels.setdefault(node, {})[kernel] = None
        best = {node: min(seconds, best.get(node, seconds)) for node, seconds in taken.items()}
    total = sum(best.values()) or 1.0
    shapes = concrete_shapes(session.graph, {name: array.shape for name, array in feeds.items()})
    return tuple(
        _operator(session.graph, name, seconds, ", ".join(kernels[name]), shapes, total)
        for name, seconds in best.items()
    )


def _operator(
    graph: Graph, name: str, seconds: float, kernel: str, shapes: Mapping[str, tuple[int, ...]], total: float
) -> OperatorRow:
    members = set(name.split(JOIN))
    nodes = [node for node in graph.nodes if node.name in members]
    cost = cost_of(graph, nodes, shapes)
    rate = 2e-9 * cost.macs / seconds if seconds else 0.0
    ops = JOIN.join(node.op for node in nodes) or "layout"
    return OperatorRow(name, ops, kernel, 1e3 * seconds, seconds / total, rate, cost.bytes)


def _runner(session: Session, feeds: Mapping[str, Array]) -> Callable[[], object]:
    return lambda: session.run(feeds)


def _row(contender: Contender, session: Session, timing: Timing, feeds: Mapping[str, Array]) -> BenchRow:
    shapes = concrete_shapes(session.graph, {name: array.shape for name, array in feeds.items()})
    return BenchRow(
        contender.source,
        contender.precision,
        contender.graph.backend,
        session.isa or "NumPy",
        1e3 * timing.minimum,
        1e3 * timing.median,
        1e3 * timing.p90,
        len(timing.seconds),
        None,
        2e-9 * cost_of(session.graph, session.graph.nodes, shapes).macs / timing.median,
        dict(session.fallbacks),
    )


def slowest(rows: Iterable[OperatorRow], most: int) -> list[OperatorRow]:
    """The rows that took longest, first; all of them for 0."""
    ordered = sorted(rows, key=lambda row: -row.ms)
    return ordered[:most] if most else ordered
