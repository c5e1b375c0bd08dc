"""Turning, scaling and shifting equal PyTorch's affine_grid and grid_sample; a new head is drawn as nn.Linear's is."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from qtool.ir import DType  # noqa: E402
from qtool.ops import Builder  # noqa: E402
from qtool.quantize.qat.augment import augmented  # noqa: E402
from qtool.quantize.qat.head import replace_head  # noqa: E402
from qtool.quantize.qat.streams import Use, uniform  # noqa: E402
from qtool.recipe.training import Augment, Head  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


def test_images_move_as_in_torch() -> None:
    side = 16
    images = np.random.default_rng(0).normal(size=(32, 3, side, side)).astype(np.float32)
    found = augmented(images, Augment(rotate=12, scale=0.1, shift=1.5), 4, 5, 6)
    drawn = torch.tensor(2 * uniform(4, Use.AUGMENT, 5, 6, count=32 * 7).reshape(32, 7) - 1)
    # From here on PyTorch does it.
    angle, scale, shift = drawn[:, 1] * np.deg2rad(12), 1 + drawn[:, 2] * 0.1, drawn[:, 3:5].T * 1.5 * 2 / side
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    expected = F.grid_sample(torch.tensor(images).double(), grid, padding_mode="border", align_corners=False)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [torch.nn.Linear, lambda i, o: torch.nn.Conv2d(i, o, 1)])
def test_a_new_head_is_spread_as_torch_spreads_one(make) -> None:
    torch.manual_seed(0)
    layer = make(50, 4000)
    b = Builder("m")
    b.input("x", ("N", 50) if layer.weight.ndim == 2 else ("N", 50, 1, 1), DType.FLOAT32)
    weight, bias = np.zeros((3, *layer.weight.shape[1:]), np.float32), np.zeros(3, np.float32)
    op = "linear" if layer.weight.ndim == 2 else "conv2d"
    with b.scope("fc"):
        y = b.node(op, ["x", b.param("weight", weight), b.param("bias", bias)])
    made = replace_head(b.finish([y]), Head(4000), 0)
    for name, theirs in layer.state_dict().items():
        ours, expected = made.initializers[f"fc.{name}"], theirs.numpy()
        assert ours.shape == expected.shape
        quantiles = np.linspace(0, 1, 11)
        np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(expected, quantiles), atol=0.008)
