"""The sample models before training, as qtool graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from qtool.ir import Array, Graph
from qtool.quantize.qat.head import draw_layer
from qtool.zoo.blocks import Net, Window

IMAGE = 16
MOBILENET = ((1, 16, 1), (6, 32, 2), (6, 32, 1), (6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 96, 1))
"""Expansion, channels, stride of each inverted residual."""
SAME = Window(3, padding=1)
POINT = Window(1)


def build(name: str, seed: int = 0) -> Graph:
    """An untrained graph: input ``x`` (N, 1, 16, 16), output the logits (N, 10).

    Layers are drawn as PyTorch draws them by default, by numbers of ``seed``; batch norms begin as the identity.
    """
    graph = _ARCHITECTURES[name](Net(name, IMAGE, channels=1))
    arrays: dict[str, Array] = {}
    for place, node in enumerate(graph.nodes):
        if node.op == "batch_norm":
            _, variance, scale, _ = node.inputs[1:]  # what is left out is 0, as it was built
            arrays |= {key: np.ones_like(graph.initializers[key]) for key in (variance, scale)}
        elif node.op in ("conv2d", "linear"):
            drawn = draw_layer(graph.initializers[node.inputs[1]].shape, seed, place)
            arrays |= {key: array.astype(np.float32) for key, array in zip(node.inputs[1:], drawn, strict=False)}
    return replace(graph, initializers={**graph.initializers, **arrays}, meta={"source": "sample_models/train.py"})


def resnet(net: Net) -> Graph:
    y = net.batch_norm(net.conv(net.x, "conv1", 32, SAME), "bn1")
    y = net.activation(y, "relu")
    for stage, (width, stride) in enumerate(((32, 1), (64, 2), (128, 2))):
        with net.scope(f"layer{stage + 1}"), net.scope("0"):
            y = _block(net, y, width, stride)
    with net.scope("head"):
        y = net.cat(_conv_bn_relu(net, y, "1", 64, POINT), _conv_bn_relu(net, y, "2", 64, SAME))
    return net.classify(y, 10)


def _block(net: Net, x: str, width: int, stride: int) -> str:
    y = _conv_bn_relu(net, x, "1", width, Window(3, stride, padding=1))
    y = net.batch_norm(net.conv(y, "conv2", width, SAME), "bn2")
    shortcut = x
    if stride != 1 or net.channels(x) != width:
        with net.scope("downsample"):
            shortcut = net.batch_norm(net.conv(x, "0", width, Window(1, stride)), "1")
    with net.scope("add"):
        y = net.function("add", y, shortcut)
    return net.activation(y, "relu2")


def _conv_bn_relu(net: Net, x: str, number: str, out: int, window: Window) -> str:
    y = net.batch_norm(net.conv(x, f"conv{number}", out, window), f"bn{number}")
    return net.activation(y, f"relu{number}")


def mobilenet(net: Net) -> Graph:
    with net.scope("features"):
        y = _conv_bn_relu6(net, net.x, "0", 16, SAME)
        for index, (expansion, out, stride) in enumerate(MOBILENET, 1):
            with net.scope(str(index)):
                y = _inverted_residual(net, y, out, stride, expansion)
        y = _conv_bn_relu6(net, y, str(len(MOBILENET) + 1), 256, POINT)
    return net.classify(y, 10, fc="classifier.1", pool="")


def _inverted_residual(net: Net, x: str, out: int, stride: int, expansion: int) -> str:
    hidden = net.channels(x) * expansion
    y, at = x, 0
    with net.scope("conv"):
        if expansion != 1:
            y, at = _conv_bn_relu6(net, y, "0", hidden, POINT), 1
        y = _conv_bn_relu6(net, y, str(at), hidden, Window(3, stride, padding=1), groups=hidden)
        y = net.batch_norm(net.conv(y, str(at + 1), out, POINT), str(at + 2))
    return net.function("add", x, y) if stride == 1 and net.channels(x) == out else y


def _conv_bn_relu6(net: Net, x: str, name: str, out: int, window: Window, groups: int = 1) -> str:
    with net.scope(name):
        y = net.batch_norm(net.conv(x, "0", out, window, groups), "1")
        return net.activation(y, "2", "relu6")


def mlp(net: Net) -> Graph:
    y = net.function("flatten", net.x)
    y = net.activation(net.linear(y, "fc1", 512), "relu1")
    y = net.activation(net.linear(y, "fc2", 256), "relu2")
    return net.finish(net.linear(y, "fc3", 10))


_ARCHITECTURES: Mapping[str, Callable[[Net], Graph]] = {
    "digits_resnet": resnet,
    "digits_mobilenet": mobilenet,
    "digits_mlp": mlp,
}
