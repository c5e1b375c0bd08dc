"""The committed sample models against the torch networks and the data that their script defines."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from qtool.engine import reference
from qtool.ir import npz

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peers
torch.set_num_threads(1)
SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
NETS = {"digits_resnet": "ResNet", "digits_mobilenet": "MobileNet", "digits_mlp": "MLP"}


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of sample_models, which is no package."""
    monkeypatch.syspath_prepend(SAMPLES)
    before = set(sys.modules)
    yield importlib.import_module
    for name in ("nets", "graphs", "train"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NETS)
def test_models_are_the_networks_of_the_script(name, scripts):
    graph = npz.load(SAMPLES / f"{name}.npz")
    net = getattr(scripts("nets"), NETS[name])().eval()
    counters = {key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")}
    weights = {key: torch.from_numpy(array.copy()) for key, array in graph.initializers.items()}
    net.load_state_dict({**weights, **counters}, strict=True)
    with np.load(SAMPLES / "digits.npz") as data:
        x = data["test_x"][:64]
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        reference.run(graph, {"x": x})[graph.outputs[0]], expected, atol=1e-4 * np.abs(expected).max()
    )
    again = scripts("graphs").build(name, graph.initializers)
    assert again.nodes == graph.nodes
    assert again.values == graph.values


def test_data_are_scikit_learns_digits(scripts):
    pytest.importorskip("sklearn")
    made = scripts("train").load_data()
    with np.load(SAMPLES / "digits.npz") as data:
        for split, (x, y) in made.items():
            np.testing.assert_allclose(data[f"{split}_x"], x.numpy(), atol=1e-6)
            np.testing.assert_array_equal(data[f"{split}_y"], y.numpy())
