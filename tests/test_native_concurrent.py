"""Sessions side by side, one session called from several threads, any number of threads: always the same bits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from random_graphs import RandomGraph

from qtool.engine.session import Session
from qtool.ir import Array, Graph
from qtool.ops import Builder
from qtool.quantize.api import quantize
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_default_dynamic_qconfig, get_default_qconfig
from qtool.recipe.schema import Mode

pytestmark = pytest.mark.usefixtures("need_native")

SEEDS = range(4)
AROUND = ((1, 1), (1, 1))
Outputs = Mapping[str, Array]


def _made(seed: int) -> RandomGraph:
    return RandomGraph(seed, quantized=seed % 2 == 0)


def _together(work: Callable[[int], None], count: int) -> None:
    """Runs work(0), work(1), ... at once; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def guarded(index: int) -> None:
        start.wait()
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _assert_equal(got: Outputs, expected: Outputs) -> None:
    assert list(got) == list(expected)
    for name, array in got.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_sessions_side_by_side():
    """They share a pool, two by two; plans are made while others run."""
    made = [_made(seed) for seed in SEEDS]
    feeds = [one.feeds(2) for one in made]
    expected = [Session(one.graph).run(feed) for one, feed in zip(made, feeds, strict=True)]

    def work(index: int) -> None:
        for turn in range(len(SEEDS)):
            at = (index + turn) % len(SEEDS)
            session = Session(made[at].graph, threads=2 + at % 2)
            for _ in range(3):
                _assert_equal(session.run(feeds[at]), expected[at])

    _together(work, 4)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_session_called_from_several_threads(seed):
    """With feeds of their own, of several batch sizes, so that plans are made and dropped in between."""
    made = _made(seed)
    feeds = [made.feeds(1 + index) for index in range(5)]
    expected = [Session(made.graph).run(feed) for feed in feeds]
    session = Session(made.graph, threads=2)

    def work(index: int) -> None:
        for turn in range(6):
            at = (index + turn) % len(feeds)
            _assert_equal(session.run(feeds[at]), expected[at])

    _together(work, 3)


# ---- any number of threads --------------------------------------------------------------------------------------


def _large(b: Builder, rng: np.random.Generator) -> str:
    """Large enough that every family has several chunks: a picture, then a sequence made of it."""

    def param(name: str, *shape: int) -> str:
        return b.param(name, rng.standard_normal(shape).astype(np.float32) * np.float32(0.2))

    x = b.input("x", ("N", 3, 61, 67))
    y = b.node("conv2d", [x, param("w1", 70, 3, 3, 3), param("b1", 70)], "stem", padding=AROUND, activation="relu")
    z = b.node("conv2d", [y, param("w2", 70, 1, 3, 3), param("b2", 70)], "depthwise", padding=AROUND, groups=70)
    z = b.node("conv2d", [z, param("w3", 70, 70, 1, 1), param("b3", 70)], "point")
    z = b.node("add", [b.node("sigmoid", [z], "gate"), y], "sum")
    z = b.node("mul", [z, b.node("adaptive_avg_pool2d", [z], "mean", output_size=(1, 1))], "scaled")
    z = b.node("max_pool2d", [z], "pool", kernel_size=(3, 3), stride=(2, 2), padding=AROUND)
    z = b.node("flatten", [z], "flat", start_dim=2)
    z = b.node("permute", [z], "rows", dims=(0, 2, 1))
    z = b.node("layer_norm", [z, param("g", 70), param("h", 70)], "norm", normalized_shape=(70,))
    z = b.node("linear", [z, param("w4", 90, 70), param("b4", 90)], "fc")
    return b.node("softmax", [z], "out", dim=-1)


def _large_graph() -> Graph:
    b = Builder("large")
    return b.finish([_large(b, np.random.default_rng(0))])


def _quantized(graph: Graph, mode: str) -> Graph:
    if mode == "float":
        return graph
    if mode == "dynamic":
        return quantize(graph, {"": get_default_dynamic_qconfig()}, (), PrepareOptions(Mode.DYNAMIC)).graph
    return quantize(graph, {"": get_default_qconfig("fbgemm")}, [_pictures(2)]).graph


def _pictures(count: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((count, 3, 61, 67)).astype(np.float32)}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["float", "static", "dynamic"])
def test_results_do_not_depend_on_the_thread_count(mode, batch):
    graph = _quantized(_large_graph(), mode)
    expected = Session(graph).run(_pictures(batch))
    for threads in (2, 3, 5):
        session = Session(graph, threads=threads)
        for _ in range(3):
            _assert_equal(session.run(_pictures(batch)), expected)


@pytest.mark.parametrize("seed", range(20))
def test_results_of_random_graphs_do_not_depend_on_the_thread_count(seed):
    made = _made(seed)
    feeds = made.feeds(2)
    expected = Session(made.graph).run(feeds)
    for threads in (2, 3):
        _assert_equal(Session(made.graph, threads=threads).run(feeds), expected)
