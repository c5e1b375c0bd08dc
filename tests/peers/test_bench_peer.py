"""Other engines beside qtool in one run of bench: the same models, rows of all, and ratios that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpu import HAS_VNNI, WHY_VNNI

pytest.importorskip("onnx")
pytestmark = pytest.mark.peers

from qtool import zoo  # noqa: E402
from qtool.analysis.bench import BenchOptions, Contender, contenders, quantize_quickly, run_bench  # noqa: E402
from qtool.analysis.evaluate import EngineOptions  # noqa: E402
from qtool.analysis.latency import random_feeds  # noqa: E402
from qtool.analysis.peers import PACKAGES, PEERS, Job, open_peer, versions  # noqa: E402
from qtool.errors import EngineError  # noqa: E402
from qtool.exporters import export_onnx  # noqa: E402
from qtool.ir import DType  # noqa: E402
from qtool.ops import Builder  # noqa: E402
from qtool.pipeline import load_model  # noqa: E402
from qtool.recipe.schema import Backend, Mode  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
WAYS = {
    "onnxruntime": {"float32": {"float32"}, "int8": {"QDQ"}},
    "openvino": {"float32": {"float32"}, "int8": {"QDQ", "NNCF"}},
    "torch": {
        kind: {f"{what}{how}" for how in ("", ", traced, frozen", ", traced, frozen, optimized")}
        for kind, what in (("float32", "float32"), ("int8", "FX x86"))
    },
}


def normal(rng, *shape):
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)


@pytest.fixture(params=PEERS)
def peer(request):
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    return request.param


@pytest.fixture(scope="module")
def graph():
    return zoo.build("mobilenet_v2", image=32, classes=10)


def job(graph, real=None, batch=2, **more):
    return Job(graph, real, random_feeds(graph, batch), **more)


def test_rows_of_both_engines_and_their_ratio(graph, peer):
    (group,) = contenders([("here", graph)], Backend.FBGEMM, EngineOptions())
    result = run_bench(group, BenchOptions(seconds=0.01, warmup=1, peers=(peer,)))
    rows = {(row.engine, row.precision): row for row in result.rows}
    assert set(rows) == {(engine, kind) for engine in ("qtool", peer) for kind in ("float32", "int8")}
    for kind in ("float32", "int8"):
        ours, theirs = rows["qtool", kind], rows[peer, kind]
        assert (ours.ratio, ours.how, ours.version) == (None, "", "")
        assert theirs.ratio.minimum == pytest.approx(ours.min_ms / theirs.min_ms)
        assert theirs.ratio.p10 <= theirs.ratio.median <= theirs.ratio.p90
        assert theirs.how in WAYS[peer][kind]
        assert theirs.version == versions(peer) != ""
        assert (theirs.error, theirs.operators) == ("", ())
        assert ours.runs == theirs.runs >= 5
        assert theirs.speedup == pytest.approx(rows["qtool", "float32"].median_ms / theirs.median_ms)


def test_the_peer_runs_the_same_model(graph, peer):
    given = job(graph, graph)
    (theirs,) = open_peer(peer, given).run(given.feeds)
    (ours,) = EngineOptions().session(graph).run(given.feeds).values()
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


def test_the_peer_quantizes_the_same_model(peer):
    """A network of trained weights, so that rounding does not add up to something else."""
    real = load_model(SAMPLES / "digits_resnet.npz")
    images = np.load(SAMPLES / "digits.npz")["test_x"][:64].astype(np.float32)
    given = replace(job(quantize_quickly(real, Backend.ONEDNN), real), feeds={real.inputs[0]: images})
    (theirs,) = open_peer(peer, given).run(given.feeds)
    (exact,) = EngineOptions().session(real).run(given.feeds).values()
    assert not np.array_equal(theirs, exact)
    assert np.mean(theirs.argmax(axis=1) == exact.argmax(axis=1)) > 0.95


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_goes_to_the_peer_as_it_stands(graph, tmp_path, engine):
    for package in PACKAGES[engine]:
        pytest.importorskip(package)
    path = tmp_path / "model.onnx"
    export_onnx(graph, path)
    loaded = load_model(path)
    given = job(loaded, loaded, source=str(path))
    (theirs,) = open_peer(engine, given).run(given.feeds)
    (ours,) = EngineOptions().session(loaded).run(given.feeds).values()
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())
    path.write_bytes(b"something else")
    with pytest.raises(EngineError, match=f"{engine} does not run"):
        open_peer(engine, given)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_models_go_to_each_peers_own_dynamic_quantization(peer):
    if peer != "torch" and not HAS_VNNI:
        pytest.skip(WHY_VNNI)
    b, rng = Builder("words"), np.random.default_rng(0)
    y = b.input("x", (5, "N", 32))
    sizes = ((1, 4 * 24, 32), (1, 4 * 24, 24), (1, 8 * 24))
    y, _, _ = b.nodes("lstm", [y, *(b.param(f"p{i}", normal(rng, *s)) for i, s in enumerate(sizes))], 3, hidden_size=24)
    y = b.node("squeeze", [y], dim=(1,))
    real = b.finish([b.node("linear", [y, b.param("w", normal(rng, 40, 24)), b.param("b", normal(rng, 40))])])
    given = job(quantize_quickly(real, Backend.FBGEMM, mode=Mode.DYNAMIC), real)
    assert given.dynamic
    found = open_peer(peer, given)
    assert found.failed == ()
    assert "FX" not in found.how
    (theirs,) = found.run(given.feeds)
    (exact,) = EngineOptions().session(real).run(given.feeds).values()
    np.testing.assert_allclose(theirs, exact, atol=0.1 * np.abs(exact).max())


def test_a_peer_that_cannot_does_not_stop_the_others(graph):
    """A quantized model alone: PyTorch needs the float one to quantize by itself."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    group = [Contender("q.npz", "int8", quantize_quickly(graph, Backend.FBGEMM))]
    result = run_bench(group, BenchOptions(seconds=0.01, warmup=1, peers=("torch", "onnxruntime")))
    ours, torch, ort = result.rows
    assert "give the float model" in torch.error
    assert (torch.min_ms, torch.ratio, torch.runs, torch.gops) == (None, None, 0, None)
    assert ours.speedup is None
    assert (ort.error, ort.how) == ("", "QDQ")
    assert result.to_json()["rows"][1]["min_ms"] is None


def test_a_peer_that_is_not_known(graph):
    with pytest.raises(EngineError, match="expected one of onnxruntime, openvino, torch"):
        open_peer("tensorrt", job(graph))


# ------------------------------------------------------------------------------------------------------ PyTorch modules


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_models_as_modules_that_fx_can_trace(name):
    torch = pytest.importorskip("torch")
    from torch import fx, nn

    from qtool.analysis.peers.torch_module import module_of

    graph = zoo.build(name, image=107, classes=5 if zoo.ZOO[name].classes else None)
    module, feeds = module_of(graph), random_feeds(graph, 2)
    again = fx.symbolic_trace(module)
    with torch.inference_mode():
        (theirs, traced) = (m(torch.from_numpy(feeds["x"])).numpy() for m in (module, again))
    (ours,) = EngineOptions().session(graph).run(feeds).values()
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())
    np.testing.assert_array_equal(theirs, traced)
    convs = sum(node.op == "conv2d" for node in graph.nodes)
    assert sum(isinstance(child, nn.Conv2d) for child in module.modules()) == convs


@pytest.mark.parametrize(("kind", "bidirectional"), [("lstm", False), ("lstm", True), ("gru", True)])
def test_recurrent_layers_as_modules(kind, bidirectional):
    torch = pytest.importorskip("torch")
    from qtool.analysis.peers.torch_module import module_of

    rng, directions, gates = np.random.default_rng(0), 1 + bidirectional, 4 if kind == "lstm" else 3
    b = Builder(kind)
    x = b.input("x", (5, "N", 6))
    sizes = ((directions, gates * 7, 6), (directions, gates * 7, 7), (directions, 2 * gates * 7))
    parameters = [b.param(f"p{i}", 0.3 * rng.standard_normal(size, np.float32)) for i, size in enumerate(sizes)]
    more = {"linear_before_reset": True} if kind == "gru" else {}
    direction = "bidirectional" if bidirectional else "forward"
    outputs = b.nodes(kind, [x, *parameters], 3 if kind == "lstm" else 2, hidden_size=7, direction=direction, **more)
    graph = b.finish(outputs)
    feeds = {"x": rng.standard_normal((5, 2, 6), np.float32)}
    with torch.inference_mode():
        theirs = module_of(graph)(torch.from_numpy(feeds["x"]))
    for ours, other in zip(EngineOptions().session(graph).run(feeds).values(), theirs, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def test_functions_as_modules():
    torch = pytest.importorskip("torch")
    from qtool.analysis.peers.torch_module import module_of

    b = Builder("functions")
    x = b.input("x", ("N", 4, 6))
    y = b.node("transpose", [x], dim0=1, dim1=2)
    y = b.node("matmul", [x, y])
    y = b.node("softmax", [y], dim=-1)
    y = b.node("matmul", [y, x])
    scale = b.param("scale", np.linspace(0.5, 2, 6, dtype=np.float32))
    y = b.node("div", [b.node("mul", [b.node("sub", [y, x]), scale]), scale])
    y = b.node("layer_norm", [y, scale, scale], normalized_shape=(6,))
    y = b.node("cat", [y, b.node("slice", [x], dim=1, start=1, end=4, step=2)], dim=1)
    y = b.node("permute", [b.node("unsqueeze", [y], dim=1)], dims=(0, 3, 2, 1))
    y = b.node("mean", [b.node("squeeze", [y], dim=(3,))], dim=(2,))
    graph = b.finish([b.node("reshape", [y], shape=(-1, 3, 2)), y])
    feeds = random_feeds(graph, 3)
    with torch.inference_mode():
        theirs = module_of(graph)(torch.from_numpy(feeds["x"]))
    for ours, other in zip(EngineOptions().session(graph).run(feeds).values(), theirs, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)


def test_what_is_not_translated_is_named():
    pytest.importorskip("torch")
    from qtool.analysis.peers.torch_module import module_of

    b = Builder("odd")
    x = b.input("x", ("N", 4), DType.FLOAT32)
    graph = b.finish([b.node("asinh", [b.node("acosh", [x])])])
    with pytest.raises(EngineError, match="not translated to PyTorch: acosh, asinh"):
        module_of(graph)
    b = Builder("uneven")
    x = b.input("x", ("N", 1, 4, 4))
    weight = b.param("w", np.ones((1, 1, 1, 1), np.float32))
    graph = b.finish([b.node("conv2d", [x, weight], name="c", padding=((0, 1), (0, 0)))])
    with pytest.raises(EngineError, match="conv2d 'c' with padding"):
        module_of(graph)
