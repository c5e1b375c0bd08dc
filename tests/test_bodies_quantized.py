"""Layers in bodies of control flow are quantized as any other: near the float results, the same bits everywhere."""

from __future__ import annotations

import os
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from body_cases import (
    DYNAMIC,
    FBGEMM,
    GRAPHS,
    MODES,
    feeds_of,
    if_graph,
    int8_layers,
    layer,
    loop_graph,
    quantized,
    weights,
)

from qtool.engine.session import BodySession, Engine, Session
from qtool.errors import DataError, QuantizationError
from qtool.ir import DType, Graph, bodies_by_path
from qtool.ir.npz import load, save
from qtool.ops import Builder, check_types
from qtool.passes import clean, optimize
from qtool.quantize.api import quantize
from qtool.quantize.calibrate import calibrate
from qtool.quantize.prepare import PrepareOptions, prepare
from qtool.recipe.presets import PRESETS
from qtool.recipe.schema import Backend, Mode, Rule


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", GRAPHS)
def test_bodies_are_quantized(kind: str, mode: str, tmp_path):
    """Near the float results; debug graphs, the reference and a file give the same bits."""
    graph = GRAPHS[kind]()
    made = quantized(graph, mode).graph
    names = int8_layers(made)
    assert len([name for name in names if "." in name]) >= 2
    debug = quantized(graph, mode, debug=True).graph
    save(made, tmp_path / "int8.npz")
    again = load(tmp_path / "int8.npz")
    sessions = [
        Session(made),
        Session(debug),
        Session(again),
        Session(made, engine="reference"),
        Session(made, isa="scalar"),
    ]
    assert int8_layers(debug) == {name for name in names if mode == "dynamic"}
    for seed in (10, 11):
        feeds = feeds_of(graph, seed)
        real = Session(graph).run(feeds)
        first, *others = (session.run(feeds) for session in sessions)
        for name, expected in real.items():
            error = np.linalg.norm(first[name] - expected) / np.linalg.norm(expected)
            assert error < 0.1, (name, error)  # 20 dB
            for other in others:
                if mode == "dynamic":  # what stays in float differs by rounding, which a quantizer may carry on
                    np.testing.assert_allclose(other[name], first[name], rtol=0, atol=0.02)
                else:
                    assert np.array_equal(other[name], first[name])


def test_a_debug_graph_gives_the_same_bits_in_dynamic_mode():
    for kind in GRAPHS:
        graph = GRAPHS[kind]()
        made, debug = (Session(quantized(graph, "dynamic", debug=debug).graph) for debug in (False, True))
        feeds = feeds_of(graph, 20)
        for name, array in made.run(feeds).items():
            assert np.array_equal(debug.run(feeds)[name], array), kind


def test_constants_move_into_the_bodies_that_read_them():
    graph = clean(if_graph())
    (node,) = (node for node in graph.nodes if node.op == "if")
    assert len(node.inputs) == 2
    assert all(body.inputs == ("x",) and "w" in body.initializers for body in node.graphs.values())
    check_types(graph)
    for cond in (True, False):
        feeds = feeds_of(graph, 3, cond=cond)
        # On the reference, since native kernels, which run where weights are constants, sum up in another order.
        moved, given = (Session(one, engine="reference").run(feeds)["tail"] for one in (graph, if_graph()))
        np.testing.assert_array_equal(moved, given)


def test_a_body_of_any_size_keeps_its_input():
    b = Builder("body")
    x, w = b.input("x", ("N", 8)), b.input("w", ("M", 8))
    body = b.finish([b.node("add", [b.node("sum", [x]), b.node("sum", [w])])])
    b = Builder("any")
    inputs = [b.input("cond", (), DType.BOOL), b.input("x", ("N", 8)), b.param("w", weights(5, 8))]
    graph = clean(b.finish(b.nodes("if", inputs, 1, "choice", graphs={"then_branch": body, "else_branch": body})))
    assert graph.nodes[0].inputs[-1] == "w"


def test_every_turn_is_observed():
    """The range of what is carried is that of all turns of all batches, not of the last ones."""
    graph = loop_graph()
    batches = [feeds_of(graph, seed, trips=trips) for seed, trips in ((0, 2), (1, 5))]
    prepared = prepare(graph, [Rule("", PRESETS["default"].qconfig)], PrepareOptions())
    seen = calibrate(prepared, batches).bodies["turns.body"].ranges["h"]
    states = []
    for feeds in batches:
        for trips in range(int(feeds["trips"])):
            states.append(Session(graph).run({**feeds, "trips": np.array(trips, np.int64)})["turns.0"])
    lowest, highest = min(a.min() for a in states), max(a.max() for a in states)
    np.testing.assert_allclose((seen.low, seen.high), (lowest, highest), rtol=1e-5)


def test_a_body_that_never_ran_stays_in_float():
    graph = if_graph()
    batches = [feeds_of(graph, seed, cond=True) for seed in range(4)]
    made = quantize(graph, {"": FBGEMM}, batches)
    (warning,) = [text for text in made.calibrated.warnings if "never run" in text]
    assert warning.startswith("if 'choice': its body 'else_branch' was never run in calibration, so 3 layers stay")
    reasons = {fallback.node: fallback.reason for fallback in made.calibrated.prepared.all_fallbacks}
    assert reasons["choice.else_branch.fc1"] == "its body was never run in calibration"
    bodies = bodies_by_path(made.graph)
    assert bodies["choice.then_branch"].backend == "fbgemm"
    assert bodies["choice.else_branch"].backend == ""
    names = int8_layers(made.graph)
    assert "choice.then_branch.conv" in names
    assert not any("else_branch" in name for name in names)
    feeds = feeds_of(graph, 30, cond=False)
    real, quant = (Session(g).run(feeds)["tail"] for g in (graph, made.graph))
    assert 0 < np.linalg.norm(real - quant) < 0.1 * np.linalg.norm(real)


def test_dynamic_layers_of_a_body_that_never_ran_are_quantized_all_the_same():
    graph = if_graph()
    rules = {"": FBGEMM, "choice.else_branch.fc2": replace(DYNAMIC, mode=Mode.DYNAMIC)}
    made = quantize(graph, rules, [feeds_of(graph, 0, cond=True)])
    assert {name for name in int8_layers(made.graph) if "else_branch" in name} == {"choice.else_branch.fc2"}


def test_a_loop_without_turns_leaves_nothing_to_quantize():
    graph = loop_graph()
    with pytest.raises(QuantizationError, match="nothing is left to quantize: loop 'turns': its body 'body' was never"):
        quantize(graph, {"": FBGEMM}, [feeds_of(graph, 0, trips=0)])


def test_nothing_is_said_of_bodies_where_nothing_needs_to_run():
    assert quantize(if_graph(), {"": DYNAMIC}, (), MODES["dynamic"][1]).calibrated.warnings == ()


def test_what_is_wrong_in_a_body_is_named():
    graph = loop_graph()
    feeds = feeds_of(graph, 0)
    feeds["x"][1, 2] = np.inf
    with pytest.raises(DataError, match="loop 'turns': calibration of the input 'h'"):
        quantize(graph, {"": FBGEMM}, [feeds])
    body = bodies_by_path(graph)["turns.body"]
    body.initializers["fc.weight"][0, 0] = np.nan
    with pytest.raises(QuantizationError, match=r"'fc.weight' of linear 'fc': 1 of 64 numbers are NaN"):
        quantize(graph, {"": FBGEMM}, [feeds_of(graph, 0)])


def test_biases_are_corrected_in_bodies():
    graph, options = loop_graph(), PrepareOptions(Mode.STATIC, Backend.FBGEMM)
    plain, corrected = (
        quantize(graph, {"": replace(FBGEMM, bias_correction=on)}, [feeds_of(graph, 1)], options)
        for on in (False, True)
    )
    means = corrected.calibrated.bodies["turns.body"].means
    assert means["h"].shape == (8,)
    bodies = [bodies_by_path(made.graph)["turns.body"].initializers for made in (plain, corrected)]
    assert "fc.bias.corrected" in bodies[1]
    shift = bodies[1]["fc.bias.corrected"] - bodies[0]["fc.bias"]
    assert 0 < np.abs(shift).max() < 0.1


def test_bodies_run_in_native_code(need_native):
    """In float and in int8, each operator under its own name."""
    graph = if_graph()
    for one in (optimize(graph), quantized(graph).graph):
        session, feeds = Session(one), feeds_of(graph, 2, cond=True)
        rows = {name: row.kernel for row in session.profile(feeds) for name in row.node.split(" + ")}
        assert rows["choice"] == "control"
        kernels = {name: kernel for name, kernel in rows.items() if name.startswith("choice.then_branch.")}
        assert kernels["choice.then_branch.conv"] not in ("reference", "control")
        assert "else_branch" not in "".join(rows)
        on_reference = {name for name, kernel in kernels.items() if kernel == "reference"}
        assert on_reference == {name for name in session.fallbacks if name.startswith("choice.then_branch.")}


def collecting() -> Graph:
    """A loop that appends its turn to what it carries, which is empty at first."""
    b = Builder("body")
    turn, going = b.input("turn", (), DType.INT64), b.input("going", (), DType.BOOL)
    rows, x = b.input("rows", ("R", 8)), b.input("x", (1, 8))
    grown = b.node("cat", [rows, layer(b, "fc", x)], "grown", dim=0)
    body = b.finish([b.node("identity", [going], "again"), grown])
    assert turn
    b = Builder("collecting")
    rows, x, trips = b.input("rows", ("R", 8)), b.input("x", (1, 8)), b.input("trips", (), DType.INT64)
    return b.finish(b.nodes("loop", [trips, "", rows, x], 1, "turns", graphs={"body": body}, carried=1))


def run_from_nothing(graph: Graph, engine: Engine = "auto") -> np.ndarray:
    """Three turns of the loop's body, the first of them on no rows."""
    (node,) = graph.nodes
    session = BodySession(node.graphs["body"], engine=engine)
    rows, x = np.zeros((0, 8), np.float32), feeds_of(if_graph(), 0)["x"][:1]
    for turn in range(3):
        feeds = {"turn": np.array(turn, np.int64), "going": np.array(True), "rows": rows, "x": x}
        rows = session.run(feeds)["grown"]
    return rows


def test_a_body_may_meet_arrays_without_elements():
    """Shapes grow with each turn, from none."""
    graph = collecting()
    rows = run_from_nothing(graph)
    assert rows.shape == (3, 8)
    np.testing.assert_allclose(rows, run_from_nothing(graph, "reference"), rtol=1e-5, atol=1e-6)


SPEECH = Path(os.environ.get("QTOOL_TEST_DATA", "/nonexistent")) / "speech"
LARGEST = {("dynamic", "qnnpack"): 0.02, ("dynamic", "fbgemm"): 0.05, ("static", "onednn"): 0.3}
"""Difference of a probability. fbgemm takes 7 bits of activations at run time; static layers follow one another."""


def speech(start: int, count: int) -> list[np.ndarray]:
    """Windows of 512 samples, each behind the last 64 of the one before it."""
    with wave.open(str(SPEECH / "silero_test.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    padded = np.concatenate([np.zeros(64, np.float32), samples])
    return [padded[at * 512 : at * 512 + 576][None] for at in range(start, start + count)]


def listen(session: Session, chunks: list[np.ndarray]) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """What goes in, the state of the last chunk among it, and the probabilities of speech that come out."""
    state, fed, found = np.zeros((2, 1, 128), np.float32), [], []
    for chunk in chunks:
        fed.append({"input": chunk, "state": state, "sr": np.array(16000, np.int64)})
        result = session.run(fed[-1])
        state = result["stateN"]
        found.append(result["output"][0, 0])
    return fed, np.array(found)


@pytest.mark.skipif(not SPEECH.is_dir(), reason="QTOOL_TEST_DATA holds no speech")
@pytest.mark.parametrize(("mode", "backend"), LARGEST)
def test_silero(mode: str, backend: str):
    """Its layers are all in an ``if`` on the sample rate; the state is carried from chunk to chunk."""
    pytest.importorskip("onnx")
    from qtool.pipeline import load_model

    graph, chunks = load_model(SPEECH / "silero_vad.onnx"), speech(0, 200)
    session = Session(optimize(graph))
    _, real = listen(session, chunks)
    assert real.min() < 0.1
    assert real.max() > 0.9
    calibration = () if mode == "dynamic" else listen(session, speech(200, 150))[0]
    rules = {"": DYNAMIC} if mode == "dynamic" else {"": PRESETS["onednn"].qconfig, "re:.*stft": None}
    options = PrepareOptions(Mode(mode), Backend(backend))
    made, debug = (quantize(graph, rules, calibration, options, debug=debug).graph for debug in (False, True))
    names = {name.rpartition("__")[2] for name in int8_layers(made) if name.startswith("If_0.then_branch.")}
    expected = {".decoder.rnn"} if mode == "dynamic" else {f"encoder.{n}.reparam_conv" for n in range(4)}
    assert expected <= names
    _, got = listen(Session(made), chunks)
    assert np.abs(got - real).max() < LARGEST[mode, backend]
    assert np.mean((got > 0.5) == (real > 0.5)) > 0.98
    assert np.array_equal(listen(Session(debug), chunks)[1], got)
