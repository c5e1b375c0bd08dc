"""Small models and data for tests of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qtool.ir import Array, Graph
from qtool.ops import Builder
from qtool.quantize.prepare import PrepareOptions
from qtool.quantize.qat.layers import Phase
from qtool.quantize.qat.model import ModelOptions, QatModel
from qtool.quantize.qat.operators import Operators
from qtool.quantize.qat.prepare import prepare_qat
from qtool.recipe.presets import get_default_qat_qconfig
from qtool.recipe.schema import Backend, Mode, QConfig, Rule

CLASSES, SIDE = 3, 8


def conv_bn(b: Builder, x: str, rng: np.random.Generator, shape: tuple[int, ...], **attrs: Any) -> str:
    """A convolution without bias and its batch norm."""
    channels = shape[0]
    y = b.node(
        "conv2d", [x, b.param("weight", _normal(rng, shape, 0.4))], name="conv", padding=((1, 1), (1, 1)), **attrs
    )
    statistics = [b.param("mean", _normal(rng, (channels,), 0.2)), b.param("var", _positive(rng, channels))]
    affine = [b.param("gamma", _positive(rng, channels)), b.param("beta", _normal(rng, (channels,), 0.2))]
    return b.node("batch_norm", [y, *statistics, *affine], name="bn")


def small_net(seed: int = 0) -> Graph:
    """conv-bn-relu, a depthwise one with a residual sum, a pool and a linear layer: (N, 2, 8, 8) -> (N, 3)."""
    rng = np.random.default_rng(seed)
    b = Builder("small")
    x = b.input("x", ("N", 2, SIDE, SIDE))
    with b.scope("first"):
        y = b.node("relu", [conv_bn(b, x, rng, (6, 2, 3, 3), stride=(2, 2))], name="relu")
    with b.scope("second"):
        z = b.node("relu6", [conv_bn(b, y, rng, (6, 1, 3, 3), groups=6)], name="relu6")
    with b.scope("head"):
        s = b.node("add", [z, y], name="add")
        pooled = b.node(
            "flatten", [b.node("adaptive_avg_pool2d", [s], name="pool", output_size=(1, 1))], name="flatten"
        )
        weight, bias = (
            b.param("weight", _normal(rng, (CLASSES, 6), 0.6)),
            b.param("bias", _normal(rng, (CLASSES,), 0.1)),
        )
        out = b.node("linear", [pooled, weight, bias], name="fc")
    return b.finish([out])


def pictures(count: int, seed: int = 0) -> tuple[Array, Array]:
    """Pictures of three classes that are told apart by where they are bright, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    x = rng.normal(size=(count, 2, SIDE, SIDE)).astype(np.float32)
    for number, label in enumerate(labels):
        x[number, label % 2, :, 3 * (label // 2) : 3 * (label // 2) + 4] += 1.5
    return x, labels.astype(np.int64)


def save_pictures(path: Path, train: int = 96, test: int = 48) -> Path:
    """An .npz with the splits train and test."""
    splits: dict[str, Array] = {}
    for split, count, seed in (("train", train, 1), ("test", test, 2)):
        splits[f"{split}_x"], splits[f"{split}_y"] = pictures(count, seed)
    np.savez(path, **splits)  # type: ignore[arg-type]
    return path


def make_model(
    graph: Graph,
    backend: str = "qnnpack",
    qconfig: QConfig | None = None,
    operators: Operators | None = None,
    options: ModelOptions = ModelOptions(),
) -> QatModel:
    rules = [Rule("", qconfig or get_default_qat_qconfig(backend))]
    prepared = prepare_qat(graph, rules, PrepareOptions(Mode.QAT, Backend(backend)))
    return QatModel(prepared, operators or Operators(), options)


def observed(model: QatModel, feeds: Mapping[str, Array]) -> QatModel:
    """The model after its quantizers have seen a batch."""
    model.forward(feeds, Phase(training=False, freeze_bn=True, observe=True, fake_quant=True))
    return model


def _normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    return (deviation * rng.normal(size=shape)).astype(np.float32)


def _positive(rng: np.random.Generator, count: int) -> Array:
    return rng.uniform(0.5, 1.5, count).astype(np.float32)
