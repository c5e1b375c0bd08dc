"""Other engines beside qtool in one run of bench: the same models, rows of both, and ratios that fit."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

from qtool import zoo  # noqa: E402
from qtool.analysis.bench import BenchOptions, contenders, run_bench  # noqa: E402
from qtool.analysis.evaluate import EngineOptions  # noqa: E402
from qtool.analysis.peers import open_peer  # noqa: E402
from qtool.errors import EngineError  # noqa: E402
from qtool.exporters import export_onnx  # noqa: E402
from qtool.pipeline import load_model  # noqa: E402
from qtool.recipe.schema import Backend  # noqa: E402

X = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def graph():
    return zoo.build("mobilenet_v2", image=32, classes=10)


def test_rows_of_both_engines_and_their_ratio(graph):
    (group,) = contenders([("here", graph)], Backend.FBGEMM, EngineOptions())
    result = run_bench(group, BenchOptions(seconds=0.01, warmup=1, peers=("onnxruntime",)))
    rows = {(row.engine, row.precision): row for row in result.rows}
    assert set(rows) == {(engine, kind) for engine in ("qtool", "onnxruntime") for kind in ("float32", "int8")}
    for kind in ("float32", "int8"):
        ours, theirs = rows["qtool", kind], rows["onnxruntime", kind]
        assert ours.share is None
        assert theirs.share == pytest.approx(ours.min_ms / theirs.min_ms)
        assert ours.runs == theirs.runs >= 5
        assert theirs.speedup == pytest.approx(rows["qtool", "float32"].median_ms / theirs.median_ms)
        assert theirs.operators == ()


def test_the_peer_runs_the_same_model(graph):
    (theirs,) = open_peer("onnxruntime", graph, 1)({"x": X})
    (ours,) = EngineOptions().session(graph).run({"x": X}).values()
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


def test_a_file_goes_to_the_peer_as_it_stands(graph, tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(graph, path)
    loaded = load_model(path)
    (theirs,) = open_peer("onnxruntime", loaded, 1, str(path))({loaded.inputs[0]: X})
    (ours,) = EngineOptions().session(loaded).run({loaded.inputs[0]: X}).values()
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())
    path.write_bytes(b"something else")
    with pytest.raises(EngineError, match="onnxruntime does not run"):
        open_peer("onnxruntime", loaded, 1, str(path))


def test_a_peer_that_is_not_known():
    with pytest.raises(EngineError, match="expected one of onnxruntime"):
        open_peer("tensorrt", zoo.build("mobilenet_v2", image=32, classes=10), 1)
