"""The latency of models in float32 and int8, interleaved, as a whole and operator by operator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qtool import native
from qtool.analysis.ceilings import Ceilings, measure_ceilings
from qtool.analysis.cost import Cost, Shapes, cost_of, macs_of
from qtool.analysis.evaluate import EngineOptions
from qtool.analysis.latency import Ratio, Timing, random_feeds, settling_time, time_interleaved
from qtool.analysis.peers import Job, open_peer, versions
from qtool.engine.lowering.groups import JOIN
from qtool.engine.session import Session
from qtool.engine.shapes import concrete_shapes, shapes_within
from qtool.errors import QtoolError
from qtool.ir import Array, Graph, Node, body_path
from qtool.quantize.api import quantize
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_default_dynamic_qconfig, get_default_qconfig
from qtool.recipe.schema import Backend, Mode, ObserverConfig

SCHEMA = "qtool.bench/2"
OURS = "qtool"
CALIBRATION_BATCHES = 2


@dataclass(frozen=True)
class BenchOptions:
    """What is run and for how long: ``seconds`` are those of each contender."""

    backend: Backend = Backend.FBGEMM
    batch: int = 1
    seconds: float = 1.0
    warmup: int = 5
    per_op: bool = False
    peers: tuple[str, ...] = ()
    """Other engines to run the same models in, see ``peers.PEERS``."""


@dataclass(frozen=True)
class Contender:
    """One model in one engine. ``source`` is the file, or "quantized here"; ``engine`` is "qtool" or a peer's name."""

    source: str
    precision: str
    graph: Graph
    engine: str = OURS


@dataclass(frozen=True)
class OperatorRow:
    """What nodes that run as one took: the least time of several runs.

    ``share`` is that of all operators, ``gops`` 1e9 operations a second (a multiply-accumulate counts two; 0 for
    operators that do none), ``bytes`` what has to be read and written at least. ``peak`` is the share of the machine's
    measured peak in int8 or float32; None for operators without products, and where no peak was measured. Winograd's
    algorithm multiplies less often than is counted, so that its share may be above 1.
    """

    layer: str
    op: str
    kernel: str
    ms: float
    share: float
    gops: float
    bytes: int
    peak: float | None = None


@dataclass(frozen=True)
class BenchRow:
    """Latencies of one contender. ``speedup`` is the median of the first float contender over this one's.

    ``how`` says what a peer made of the model and ``version`` which packages it is; ``ratio`` is qtool's time for the
    same model over the peer's. They are "" and None for qtool, and ``isa`` is "" for a peer. A peer that does not run
    the model has no times and ``error``; ``notes`` are of ways of the peer that failed where another worked.
    """

    source: str
    engine: str
    precision: str
    backend: str
    isa: str = ""
    min_ms: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    runs: int = 0
    speedup: float | None = None
    gops: float | None = None
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    operators: tuple[OperatorRow, ...] = ()
    how: str = ""
    version: str = ""
    ratio: Ratio | None = None
    error: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchResult:
    """All contenders of one model, run in turns."""

    model: str
    batch: int
    threads: int
    rows: tuple[BenchRow, ...]
    ceilings: Ceilings | None = None
    """What the machine can do at most, where operators were timed."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def contenders(
    models: Sequence[tuple[str, Graph]], backend: Backend, engine: EngineOptions, mode: Mode | None = None
) -> list[list[Contender]]:
    """The models, given as (source, graph), sorted into groups that are to be run in turns: those of one graph's name.

    A float model that comes without a quantized one gets one, in ``mode`` or in that which its own ``meta`` names (the
    zoo's models of sequences are dynamic): the backend's default qconfig, calibrated on a few random inputs. That is
    right for timing and for nothing else.
    """
    groups: dict[str, list[Contender]] = {}
    for source, graph in models:
        precision = "int8" if graph.is_quantized else "float32"
        groups.setdefault(graph.name, []).append(Contender(source, precision, graph))
    for group in groups.values():
        group.sort(key=lambda contender: contender.precision)
        if all(contender.precision == "float32" for contender in group):
            graph = group[0].graph
            usual = Mode.DYNAMIC if graph.meta.get("mode") == Mode.DYNAMIC.value else Mode.STATIC
            quantized = quantize_quickly(graph, backend, engine, mode or usual)
            group.append(Contender("quantized here", "int8", quantized))
    return list(groups.values())


def quantize_quickly(
    graph: Graph, backend: Backend, engine: EngineOptions = EngineOptions(), mode: Mode = Mode.STATIC
) -> Graph:
    """The graph in int8: calibrated on a few random inputs with min_max observers, or quantized at run time with one
    weight scale a channel."""
    if mode is Mode.DYNAMIC:
        return quantize(graph, {"": get_default_dynamic_qconfig(True)}, options=PrepareOptions(mode, backend)).graph
    default = get_default_qconfig(backend)
    activation = default.activation
    quick = ObserverConfig("min_max", activation.dtype, activation.scheme, activation.reduce_range)
    batches = (random_feeds(graph, seed=seed) for seed in range(CALIBRATION_BATCHES))
    options = PrepareOptions(Mode.STATIC, backend)
    qconfigs = {"": replace(default, activation=quick)}
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
    everyone = [*group, *(replace(contender, engine=peer) for peer in options.peers for contender in group)]
    real = next((contender.graph for contender in group if contender.precision == "float32"), None)
    opened = [_open(contender, real, options.batch, engine) for contender in everyone]
    running = [model for model in opened if model.run is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers, about themselves, at every run
        timings = time_interleaved(
            [model.run for model in running if model.run is not None],
            seconds=options.seconds,
            warmup=options.warmup,
            settling=settling_time(engine.threads) if options.peers else 0.0,
            progress=None if progress is None else lambda share: progress(round(100 * share)),
        )
    timed = dict(zip(map(id, running), timings, strict=True))
    base = next((timed[id(m)].median for m in running if m.contender.precision == "float32"), None)
    own = {id(model.contender.graph): timed[id(model)] for model in running if model.session}
    rows = []
    ceilings = measure_ceilings(engine.threads) if options.per_op and native.available() else None
    for model in opened:
        timing = timed.get(id(model))
        row = _row(model, timing, options, ceilings)
        if timing is not None:
            ratio = None if model.session else Ratio.of(own[id(model.contender.graph)], timing)
            row = replace(row, ratio=ratio, speedup=base / timing.median if base else None)
        rows.append(row)
    return BenchResult(group[0].graph.name, options.batch, engine.threads, tuple(rows), ceilings)


@dataclass(frozen=True)
class _Opened:
    """A contender ready to run; ``session`` is None for a peer, and ``run`` for one that does not run the model."""

    contender: Contender
    feeds: Mapping[str, Array]
    run: Callable[[], object] | None
    session: Session | None = None
    how: str = ""
    error: str = ""
    notes: tuple[str, ...] = ()


def _open(contender: Contender, real: Graph | None, batch: int, engine: EngineOptions) -> _Opened:
    feeds = random_feeds(contender.graph, batch)
    if contender.engine == OURS:
        session = engine.session(contender.graph)
        return _Opened(contender, feeds, lambda: session.run(feeds), session)
    job = Job(contender.graph, real, feeds, engine.threads, contender.source)
    try:
        peer = open_peer(contender.engine, job)
    except QtoolError as error:  # that of one engine is no reason not to measure the others
        return _Opened(contender, feeds, None, error=str(error))
    return _Opened(contender, feeds, lambda: peer.run(feeds), how=peer.how, notes=peer.failed)


def profile_operators(
    session: Session, feeds: Mapping[str, Array], rounds: int = 10, ceilings: Ceilings | None = None
) -> tuple[OperatorRow, ...]:
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
    places = dict(_places(session.graph, shapes))
    rows = (_operator(places, name, seconds, ", ".join(kernels[name]), total) for name, seconds in best.items())
    if ceilings is None or not session.isa:
        return tuple(rows)
    return tuple(replace(row, peak=_peak_share(row, places, session.isa, ceilings)) for row in rows)


def _peak_share(row: OperatorRow, places: Mapping[str, _Place], isa: str, ceilings: Ceilings) -> float | None:
    """An operator with integer weights, or with integer activations only, is an int8 one."""
    found = [places[name] for name in row.layer.split(JOIN) if name in places]
    products = [place for place in found if macs_of(place.node, place.shapes)]
    if not products:
        return None
    node, graph = products[0].node, products[0].graph
    return row.gops / ceilings.peak(isa, int8=graph.values[node.inputs[1]].qparams is not None)


@dataclass(frozen=True)
class _Place:
    """A node, and the graph that it is in, with the shapes of that graph's values."""

    node: Node
    graph: Graph
    shapes: Shapes


def _places(graph: Graph, shapes: Shapes, path: str = "") -> Iterator[tuple[str, _Place]]:
    """Every node by its name, those of bodies with their path."""
    for node in graph.nodes:
        name = body_path(path, node.name) if path else node.name
        yield name, _Place(node, graph, shapes)
        for key, body in node.graphs.items():
            yield from _places(body, shapes_within(node, body, shapes), body_path(name, key))


def _operator(places: Mapping[str, _Place], name: str, seconds: float, kernel: str, total: float) -> OperatorRow:
    found = [places[member] for member in name.split(JOIN) if member in places]
    cost = cost_of(found[0].graph, [place.node for place in found], found[0].shapes) if found else Cost(0, 0)
    rate = 2e-9 * cost.macs / seconds if seconds else 0.0
    ops = JOIN.join(place.node.op for place in found) or "layout"
    return OperatorRow(name, ops, kernel, 1e3 * seconds, seconds / total, rate, cost.bytes)


def _row(model: _Opened, timing: Timing | None, options: BenchOptions, ceilings: Ceilings | None) -> BenchRow:
    contender, session = model.contender, model.session
    row = BenchRow(contender.source, contender.engine, contender.precision, contender.graph.backend)
    if session is None:
        version = versions(contender.engine)
        row = replace(row, how=model.how, version=version, error=model.error, notes=model.notes)
    if timing is None:
        return row
    graph = contender.graph if session is None else session.graph
    shapes = concrete_shapes(graph, {name: array.shape for name, array in model.feeds.items()})
    row = replace(
        row,
        min_ms=1e3 * timing.minimum,
        median_ms=1e3 * timing.median,
        p90_ms=1e3 * timing.p90,
        runs=len(timing.seconds),
        gops=2e-9 * sum(macs_of(node, shapes) for node in graph.nodes) / timing.median,
    )
    if session is None:
        return row
    rounds = max(1, min(50, int(options.seconds / timing.minimum)))
    operators = profile_operators(session, model.feeds, rounds, ceilings) if options.per_op else ()
    return replace(row, isa=session.isa or "NumPy", fallbacks=dict(session.fallbacks), operators=operators)


def slowest(rows: Iterable[OperatorRow], most: int) -> list[OperatorRow]:
    """The rows that took longest, first; all of them for 0."""
    ordered = sorted(rows, key=lambda row: -row.ms)
    return ordered[:most] if most else ordered
