"""The committed sample models against their twins in torch, and their data against where it comes from."""

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
    for name in ("nets", "graphs"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NETS)
def test_models_are_their_twins_in_torch(name, scripts):
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


@pytest.mark.parametrize("name", NETS)
def test_untrained_layers_are_spread_as_torch_spreads_them(name, scripts):
    torch.manual_seed(0)
    state = getattr(scripts("nets"), NETS[name])().state_dict()
    drawn = scripts("graphs").build(name).initializers
    for key, ours in drawn.items():
        theirs = state[key].numpy()
        assert ours.shape == theirs.shape
        if ours.std() == 0:  # batch norms
            np.testing.assert_array_equal(ours, theirs)
        elif ours.size > 1000:
            bound = np.abs(theirs).max()
            quantiles = np.linspace(0, 1, 11)
            np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.1 * bound)


def test_data_are_scikit_learns_digits():
    """As sample_models/README.md says they were cut."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    images = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
    images = (images - 4.884 / 16) / (6.017 / 16)
    order = np.random.RandomState(0).permutation(len(images))
    with np.load(SAMPLES / "digits.npz") as data:
        for split, part in (("test", order[:600]), ("calib", order[600:856]), ("train", order[856:])):
            np.testing.assert_allclose(data[f"{split}_x"], images[part].numpy(), atol=1e-6)
            np.testing.assert_array_equal(data[f"{split}_y"], digits.target[part])
