"""Losses and their derivatives equal PyTorch's, computed in float64 there."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from qtool.quantize.qat import losses  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(3)


def same(ours, outputs, theirs) -> None:
    leaf = torch.tensor(outputs.astype(np.float64), requires_grad=True)
    loss = theirs(leaf)
    loss.backward()
    assert ours[0] == pytest.approx(loss.item(), rel=1e-12, abs=1e-300)
    expected = leaf.grad.numpy()
    # One rounding to float32, and float64's own where a derivative is a difference of like shares.
    np.testing.assert_allclose(ours[1], expected, rtol=2.0**-24 * 1.01, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (64, 1000), (3, 5, 11)])
@pytest.mark.parametrize("scale", [0.1, 1, 50])
def test_cross_entropy(shape, smoothing, scale) -> None:
    outputs = (RNG.normal(size=shape) * scale).astype(np.float32)
    labels = RNG.integers(0, shape[-1], shape[:-1])
    if len(shape) == 3:
        labels[RNG.random(labels.shape) < 0.3] = -100
        labels[0, 0] = 1
    same(
        losses.cross_entropy(outputs, labels, smoothing),
        outputs,
        lambda y: F.cross_entropy(y.movedim(-1, 1), torch.tensor(labels), label_smoothing=smoothing),
    )


@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (3, 5, 11), (2, 3, 8, 8)])
def test_mse(shape) -> None:
    outputs, targets = (RNG.normal(size=shape).astype(np.float32) for _ in range(2))
    same(losses.mse(outputs, targets), outputs, lambda y: F.mse_loss(y, torch.tensor(targets.astype(np.float64))))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (64, 100), (3, 5, 11)])
def test_distillation(shape, temperature) -> None:
    outputs, teacher = ((RNG.normal(size=shape) * 4).astype(np.float32) for _ in range(2))
    target = F.log_softmax(torch.tensor(teacher.astype(np.float64)) / temperature, -1).flatten(0, -2)

    def theirs(y):
        logs = F.log_softmax(y / temperature, -1).flatten(0, -2)
        return F.kl_div(logs, target, reduction="batchmean", log_target=True) * temperature**2

    same(losses.distillation(outputs, teacher, temperature), outputs, theirs)
