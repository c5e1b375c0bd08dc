"""Dynamic LSTM and GRU against ``torch.ao.quantization.quantize_dynamic`` on nn.LSTM and nn.GRU."""

from __future__ import annotations

import numpy as np
import pytest

import qtool
from qtool.ir import DType
from qtool.ops.builder import Builder
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_default_dynamic_qconfig
from qtool.recipe.schema import Backend, Mode

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Where each of ONNX's gates is among PyTorch's."""


@pytest.fixture(params=["fbgemm", "qnnpack"])
def backend(request):
    if request.param not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this PyTorch has no {request.param}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    torch.set_num_threads(1)
    yield Backend(request.param)
    torch.backends.quantized.engine = before


def stacked(module, kind, names):
    """PyTorch's parameters of all directions with the gates in ONNX's order."""
    arrays = []
    for name in names:
        parts = np.split(getattr(module, name).detach().numpy(), len(ORDER[kind]))
        arrays.append(np.concatenate([parts[gate] for gate in ORDER[kind]]))
    return np.stack(arrays)


def graph_of(kind, module, states: int, lengths: bool = False):
    """One layer of nn.LSTM or nn.GRU as a graph with the initial states as inputs."""
    ends = ("", "_reverse") if module.bidirectional else ("",)
    directions, hidden = len(ends), module.hidden_size
    b = Builder(kind)
    x = b.input("x", ("T", "N", module.input_size))
    count = b.input("lengths", ("N",), DType.INT64) if lengths else ""
    starts = [b.input(f"s{k}", (directions, "N", hidden)) for k in range(states)]
    w = b.param("w", stacked(module, kind, [f"weight_ih_l0{end}" for end in ends]))
    r = b.param("r", stacked(module, kind, [f"weight_hh_l0{end}" for end in ends]))
    biases = [stacked(module, kind, [f"bias_{which}_l0{end}" for end in ends]) for which in ("ih", "hh")]
    attrs = {"hidden_size": hidden, "direction": "bidirectional" if len(ends) == 2 else "forward"}
    if kind == "gru":
        attrs["linear_before_reset"] = True
    outputs = b.nodes(kind, [x, w, r, b.param("b", np.concatenate(biases, 1)), count, *starts], 1 + states, **attrs)
    return b.finish(outputs)


def quantized(graph, backend, per_channel=False):
    options = PrepareOptions(Mode.DYNAMIC, backend)
    return qtool.quantize(graph, {"": get_default_dynamic_qconfig(per_channel)}, options=options).graph


def make(kind, bidirectional, inputs=23, hidden=17):
    cls = torch.nn.LSTM if kind == "lstm" else torch.nn.GRU
    module = cls(inputs, hidden, bidirectional=bidirectional)
    return module, torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(module), {cls})[0]


def torch_run(kind, module, x, states):
    starts = tuple(map(torch.from_numpy, states))
    y, last = module(
        x if not isinstance(x, np.ndarray) else torch.from_numpy(x), starts if kind == "lstm" else starts[0]
    )
    return y, [state.numpy() for state in (last if kind == "lstm" else (last,))]


def y_of_torch(y, directions):
    """(T, N, directions * hidden) -> ONNX's (T, directions, N, hidden)"""
    return np.stack(np.split(y.numpy(), directions, axis=-1), axis=1)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_one_step_is_equal_to_float_rounding(kind, bidirectional, backend):
    torch.manual_seed(3)
    rng = np.random.default_rng(4)
    count = 2 if kind == "lstm" else 1
    for _ in range(20):
        module, theirs = make(kind, bidirectional)
        session = qtool.Session(quantized(graph_of(kind, module, count), backend))
        x = rng.normal(size=(1, 5, 23)).astype(np.float32) * np.float32(10 ** rng.uniform(-2, 1))
        states = [rng.uniform(-1, 1, (1 + bidirectional, 5, 17)).astype(np.float32) for _ in range(count)]
        y, last = torch_run(kind, theirs, x, states)
        got = list(session.run({"x": x, **{f"s{k}": s for k, s in enumerate(states)}}).values())
        for ours, expected in zip(got, [y_of_torch(y, 1 + bidirectional), *last], strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_whole_sequences(kind, bidirectional, backend):
    """Equal to float rounding, but where that moves a hidden state from one of its 128 or 256 levels to the next."""
    torch.manual_seed(5)
    rng = np.random.default_rng(6)
    count = 2 if kind == "lstm" else 1
    differences = []
    for _ in range(6):
        module, theirs = make(kind, bidirectional)
        session = qtool.Session(quantized(graph_of(kind, module, count), backend))
        x = rng.normal(size=(30, 4, 23)).astype(np.float32)
        states = [np.zeros((1 + bidirectional, 4, 17), np.float32) for _ in range(count)]
        y, _ = torch_run(kind, theirs, x, states)
        got = next(iter(session.run({"x": x, **{f"s{k}": s for k, s in enumerate(states)}}).values()))
        differences.append(np.abs(got - y_of_torch(y, 1 + bidirectional)).ravel())
    found = np.concatenate(differences)
    assert found.max() < 2e-3
    assert np.mean(found < 1e-6) > 0.9


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_sequences_of_different_lengths(kind, backend):
    """PyTorch's packed sequences: what lies behind an end has no part in any range."""
    torch.manual_seed(7)
    rng = np.random.default_rng(8)
    lengths = np.array([9, 6, 6, 2], np.int64)
    count = 2 if kind == "lstm" else 1
    module, theirs = make(kind, bidirectional=True)
    session = qtool.Session(quantized(graph_of(kind, module, count, lengths=True), backend))
    x = rng.normal(size=(9, 4, 23)).astype(np.float32)
    for sample, length in enumerate(lengths):
        x[length:, sample] = 1e4
    states = [rng.uniform(-1, 1, (2, 4, 17)).astype(np.float32) for _ in range(count)]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(lengths))
    y, last = torch_run(kind, theirs, packed, states)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(y)
    feeds = {"x": x, "lengths": lengths, **{f"s{k}": s for k, s in enumerate(states)}}
    for ours, expected in zip(session.run(feeds).values(), [y_of_torch(y, 2), *last], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
        assert np.mean(np.abs(ours - expected) < 1e-6) > 0.9


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_weights_are_stored_as_torch_stores_them(kind, backend):
    torch.manual_seed(9)
    module, theirs = make(kind, bidirectional=True)
    graph = quantized(graph_of(kind, module, 1 + (kind == "lstm")), backend)
    for ours, name in (("w.q", "weight_ih_l0"), ("r.q", "weight_hh_l0")):
        for direction, end in enumerate(("", "_reverse")):
            expected = theirs.get_weight()[name + end]
            parts = np.split(expected.int_repr().numpy(), len(ORDER[kind]))
            stored = np.concatenate([parts[gate] for gate in ORDER[kind]])
            np.testing.assert_array_equal(graph.initializers[ours][direction], stored)
            assert graph.values[ours].qparams.scale[direction] == np.float32(expected.q_scale())
