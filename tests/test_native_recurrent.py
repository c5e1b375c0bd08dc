"""Every row of the recurrent family against the NumPy reference, over sizes, directions, layouts and lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import isas, kernel_rows, run_kernel

import qtool
from qtool.engine import reference
from qtool.errors import DataError, EngineError
from qtool.ir import DType, Graph
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.ops.builder import Builder
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_default_dynamic_qconfig
from qtool.recipe.schema import Backend, Mode

ROWS = kernel_rows("recurrent")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
SIZES = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 130]


@dataclass(frozen=True)
class Case:
    """A layer over (time, batch, inputs)."""

    kind: str
    time: int = 3
    batch: int = 2
    inputs: int = 5
    hidden: int = 8
    attrs: dict[str, object] = field(default_factory=dict)
    bias: bool = True
    states: bool = True
    lengths: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.attrs.get("direction") == "bidirectional" else 1

    def graph(self, seed: int) -> Graph:
        rng = np.random.default_rng(seed)
        b, d, units = Builder(self.kind), self.directions, GATES[self.kind] * self.hidden
        swap = bool(self.attrs.get("layout"))
        x = (self.batch, self.time, self.inputs) if swap else (self.time, self.batch, self.inputs)
        state = (self.batch, d, self.hidden) if swap else (d, self.batch, self.hidden)
        names = [b.input("x", x)]
        for name, size in (("w", self.inputs), ("r", self.hidden)):
            names.append(b.param(name, rng.uniform(-0.6, 0.6, (d, units, size)).astype(np.float32)))
        names.append(b.param("b", rng.normal(size=(d, 2 * units)).astype(np.float32)) if self.bias else "")
        names.append(b.input("lengths", (self.batch,), DType.INT64) if self.lengths else "")
        count = 2 if self.kind == "lstm" else 1
        names += [b.input(f"s{k}", state) if self.states else "" for k in range(count)]
        attrs = dict(self.attrs)
        if attrs.pop("peepholes", False):
            names.append(b.param("p", rng.normal(size=(d, 3 * self.hidden)).astype(np.float32)))
        return b.finish(b.nodes(self.kind, names, count + 1, hidden_size=self.hidden, **attrs))

    def feeds(self, graph: Graph, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        feeds = {
            name: rng.uniform(-1, 1, graph.values[name].shape).astype(np.float32)
            for name in graph.inputs
            if name != "lengths"
        }
        if self.lengths:
            feeds["lengths"] = rng.integers(0, self.time + 1, self.batch)
        return feeds


def quantized(graph: Graph, backend: str = "fbgemm", per_channel: bool = False) -> Graph:
    options = PrepareOptions(Mode.DYNAMIC, Backend(backend))
    return qtool.quantize(graph, {"": get_default_dynamic_qconfig(per_channel)}, options=options).graph


def _compare(graph: Graph, feeds: dict[str, np.ndarray], isa: str, tolerance: float, threads: int = 1) -> None:
    expected = reference.run(graph, feeds)
    session = qtool.Session(graph, isa=isa, threads=threads)
    assert not session.fallbacks
    for name, got in session.run(feeds).items():
        assert got.dtype == expected[name].dtype
        np.testing.assert_allclose(got, expected[name], rtol=0, atol=tolerance)


FORWARD = [
    Case("lstm"),
    Case("lstm", attrs={"direction": "bidirectional", "layout": 1}, batch=3),
    Case("lstm", attrs={"direction": "reverse"}, lengths=True, batch=4, time=5),
    Case("lstm", attrs={"input_forget": True, "clip": 0.5}, states=False),
    Case("lstm", attrs={"peepholes": True, "direction": "bidirectional"}, bias=False),
    Case("gru", attrs={"linear_before_reset": True, "direction": "bidirectional"}, lengths=True, batch=3),
    Case("gru", attrs={"linear_before_reset": False, "layout": 1}),
    Case("gru", attrs={"linear_before_reset": False, "clip": 0.3}, lengths=True, batch=5, time=4),
    Case("rnn", attrs={"direction": "bidirectional"}, states=False),
    Case("rnn", attrs={"activations": ("Relu",), "layout": 1}, lengths=True, batch=3),
]


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_float_layers(case, isa):
    graph = case.graph(1)
    for seed in range(3):
        _compare(graph, case.feeds(graph, seed), isa, 2e-6, threads=1 + seed)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_dynamic_layers(case, backend, isa):
    """The integers are the reference's; a gate's last bit may move a hidden state from one level to the next."""
    for per_channel in (False, True):
        graph = quantized(case.graph(2), backend, per_channel)
        _compare(graph, case.feeds(graph, 3), isa, 1e-2)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("kind", GATES)
def test_one_dynamic_step_is_equal_to_float_rounding(kind, isa):
    for seed in range(10):
        case = Case(kind, time=1, batch=1 + seed, inputs=23, hidden=17, attrs={"direction": "bidirectional"})
        graph = quantized(case.graph(seed), "qnnpack" if seed % 2 else "fbgemm")
        _compare(graph, case.feeds(graph, seed), isa, 1e-6)


@settings(max_examples=40)
@given(data=st.data(), isa=st.sampled_from(isas()), dynamic=st.booleans())
def test_any_layer(data, isa, dynamic):
    kind = data.draw(st.sampled_from(sorted(GATES)))
    attrs: dict[str, object] = {"layout": data.draw(st.integers(0, 1))}
    attrs["direction"] = data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    if kind == "gru":
        attrs["linear_before_reset"] = data.draw(st.booleans())
    sizes = [data.draw(st.integers(1, most)) for most in (6, 5, 40, 40)]
    case = Case(kind, *sizes, attrs, *(data.draw(st.booleans()) for _ in range(3)))
    graph = case.graph(sum(sizes))
    graph = quantized(graph) if dynamic else graph
    _compare(graph, case.feeds(graph, 7), isa, 2e-2 if dynamic else 5e-6)


def _args(name: str, arrays: dict[str, np.ndarray], **changes: object) -> abi.RecurrentArgs:
    fields = {
        "kind": abi.Recurrent[name.upper()], "time": 1, "batch": 1, "in_features": 3,
        "directions": 1, "clip": float("inf"), "initial_h": 1, "initial_c": int(name == "lstm"),
        "w": arrays["w"], "r": arrays["r"], "bias": arrays["b"],
    }  # fmt: skip
    return abi.make(abi.RecurrentArgs, **{**fields, **changes})


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("kind", GATES)
def test_every_number_of_units(row, kind):
    """One step of one sample, through exactly this row; nothing is written outside of the output."""
    for hidden in SIZES:
        case = Case(kind, time=1, batch=1, inputs=3, hidden=hidden)
        graph = case.graph(hidden)
        feeds = case.feeds(graph, hidden)
        gates, outputs = GATES[kind], 3 if kind == "lstm" else 2
        like = np.empty(hidden * (outputs + 6 + 2 * gates), np.float32)
        got = run_kernel(row, Kind.RECURRENT, _args(kind, graph.initializers, hidden=hidden), [*feeds.values()], like)
        expected = np.concatenate([array.ravel() for array in reference.run(graph, feeds).values()])
        np.testing.assert_allclose(got[: hidden * outputs], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("isa", isas())
def test_lengths_beyond_the_steps_are_refused(isa):
    case = Case("gru", lengths=True)
    graph = quantized(case.graph(0))
    feeds = case.feeds(graph, 0) | {"lengths": np.array([1, 4])}
    with pytest.raises(DataError, match="'gru': got sequence lengths from 1 to 4, expected 0 to 3"):
        qtool.Session(graph, isa=isa).run(feeds)


def test_other_functions_stay_on_the_reference():
    graph = Case("lstm", attrs={"activations": ("HardSigmoid", "Softsign", "Tanh")}).graph(0)
    assert list(qtool.Session(graph).fallbacks.values()) == ["activations HardSigmoid, Softsign, Tanh"]


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": 3}, "no such recurrent layer"),
        ({"hidden": 0}, "not positive"),
        ({"directions": 3}, "one or two"),
        ({"lengths_bytes": 2}, "4 or 8"),
        ({"clip": -1.0}, "clip"),
        ({"r": None}, "weight is missing"),
        ({"dynamic": 1}, "scale is missing"),
        ({"hidden": 2**29}, "too large"),
        ({"initial_c": 1}, "memory"),
        ({"batch": 7}, "input 0 has"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    graph = Case("gru", time=1, batch=1, inputs=3, hidden=4).graph(0)
    args = _args("gru", graph.initializers, **{"hidden": 4, **changes})
    buffers = [Buffer(12), Buffer(16), Buffer(4 * 64)]
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.RECURRENT, (0, 1), 2, args)], buffers, 0)
