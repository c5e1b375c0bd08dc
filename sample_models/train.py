"""Trains the sample models on scikit-learn's digits and writes them, with their data, beside this file.

    python -m pip install torch scikit-learn
    python sample_models/train.py

Split, seeds and order are fixed and one thread is used: the same machine and torch give the same files. Takes about two
minutes. ``README.md`` says what comes out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from graphs import IMAGE, build
from nets import MLP, MobileNet, ResNet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.engine import reference
from qtool.ir import Array, Graph, npz
from qtool.ir.files import atomic_write

HERE = Path(__file__).resolve().parent
SPLITS = {"test": 600, "calib": 256, "train": None}
"""Samples of each part in a fixed shuffle of the 1,797; the rest is for training. No sample is in two parts."""
MEAN, DEVIATION = 4.884 / 16, 6.017 / 16
"""Of all pixels, as a share of the brightest."""
BATCH = 32
MIN_ACCURACY = 0.97
log = logging.getLogger("train")

Data = Mapping[str, tuple[Tensor, Tensor]]
"""Images (N, 1, 16, 16) and labels (N,) by split."""


@dataclass(frozen=True)
class Job:
    make: Callable[[], nn.Module]
    epochs: int
    rate: float


JOBS = {
    "digits_resnet": Job(ResNet, epochs=24, rate=4e-3),
    "digits_mobilenet": Job(MobileNet, epochs=40, rate=6e-3),
    "digits_mlp": Job(MLP, epochs=80, rate=3e-3),
}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_data()
    save_data(data, HERE / "digits.npz")
    for name, job in JOBS.items():
        torch.manual_seed(0)
        net = job.make()
        train(net, job, data["train"])
        graph = build(name, {key: value.numpy() for key, value in net.state_dict().items()})
        check(name, net, graph, data["test"])
        npz.save(graph, HERE / f"{name}.npz")


def load_data() -> Data:
    """The 8x8 digits, enlarged to 16x16 and normalized, in fixed splits."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    images = F.interpolate(images, (IMAGE, IMAGE), mode="bilinear", align_corners=False)
    images = (images - MEAN) / DEVIATION
    labels = torch.from_numpy(digits.target.astype(np.int64))
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for split, size in SPLITS.items():
        taken, order = (order, order[:0]) if size is None else (order[:size], order[size:])
        parts[split] = images[taken], labels[taken]
    return parts


def save_data(data: Data, path: Path) -> None:
    """Members ``<split>_x`` (float32) and ``<split>_y`` (int64), as ``qtool`` reads them."""
    arrays: dict[str, Array] = {}
    for split, (x, y) in data.items():
        arrays |= {f"{split}_x": x.numpy(), f"{split}_y": y.numpy()}
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # NumPy 2 has a keyword, too


def train(net: nn.Module, job: Job, samples: tuple[Tensor, Tensor]) -> None:
    """AdamW with one learning-rate cycle on slightly changed images; leaves ``net`` in eval mode."""
    x, y = samples
    stream = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    steps = job.epochs * (len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.rate, total_steps=steps)
    net.train()
    for _ in range(job.epochs):
        order = torch.randperm(len(y), generator=stream)
        for chosen in order[: len(y) // BATCH * BATCH].reshape(-1, BATCH):
            loss = F.cross_entropy(net(augmented(x[chosen], stream)), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    net.eval()


def augmented(x: Tensor, stream: torch.Generator) -> Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 10 % and shifted by up to 1.5 pixels."""
    uniform = 2 * torch.rand(4, len(x), generator=stream) - 1
    angle, scale, shift = uniform[0] * 0.21, 1 + uniform[1] * 0.1, uniform[2:] * 1.5 * 2 / IMAGE
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def check(name: str, net: nn.Module, graph: Graph, samples: tuple[Tensor, Tensor]) -> None:
    """The graph computes what torch computes, and is right often enough."""
    x, y = samples
    with torch.inference_mode():
        expected = net(x).numpy()
    logits = reference.run(graph, {"x": x.numpy()})[graph.outputs[0]]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    accuracy = float((logits.argmax(1) == y.numpy()).mean())
    size = graph.parameter_bytes()
    log.info("%s: %.2f %% of %d test images, %d bytes of parameters", name, 100 * accuracy, len(y), size)
    if accuracy < MIN_ACCURACY:
        raise SystemExit(f"{name}: {accuracy:.4f} is below {MIN_ACCURACY}")


if __name__ == "__main__":
    main()
