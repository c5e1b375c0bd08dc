"""ResNet (He et al., 2015, arXiv:1512.03385) as torchvision has it: the stride is in the 3x3 convolution ("v1.5")."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qtool.ir import Graph
from qtool.zoo.blocks import Net, Window

Block = Callable[[Net, str, int, int], str]
"""(net, input, width, stride) -> output, under the block's scope."""


def resnet18(net: Net, classes: int) -> Graph:
    return _resnet(net, classes, _basic_block, (2, 2, 2, 2))


def resnet50(net: Net, classes: int) -> Graph:
    return _resnet(net, classes, _bottleneck, (3, 4, 6, 3))


def _resnet(net: Net, classes: int, block: Block, depths: Sequence[int]) -> Graph:
    y = net.batch_norm(net.conv(net.x, "conv1", 64, Window(7, stride=2, padding=3)), "bn1")
    y = net.max_pool(net.activation(y, "relu"), Window(3, stride=2, padding=1), "maxpool")
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            with net.scope(f"layer{stage + 1}"), net.scope(str(index)):
                y = block(net, y, 64 * 2**stage, stride)
    return net.classify(y, classes)


def _basic_block(net: Net, x: str, width: int, stride: int) -> str:
    y = net.batch_norm(net.conv(x, "conv1", width, Window(3, stride, padding=1)), "bn1")
    y = net.activation(y, "relu")
    y = net.batch_norm(net.conv(y, "conv2", width, Window(3, padding=1)), "bn2")
    y = net.function("add", y, _shortcut(net, x, width, stride))
    return net.activation(y, "relu")


def _bottleneck(net: Net, x: str, width: int, stride: int) -> str:
    y = net.batch_norm(net.conv(x, "conv1", width, Window(1)), "bn1")
    y = net.activation(y, "relu")
    y = net.batch_norm(net.conv(y, "conv2", width, Window(3, stride, padding=1)), "bn2")
    y = net.activation(y, "relu")
    y = net.batch_norm(net.conv(y, "conv3", 4 * width, Window(1)), "bn3")
    y = net.function("add", y, _shortcut(net, x, 4 * width, stride))
    return net.activation(y, "relu")


def _shortcut(net: Net, x: str, out: int, stride: int) -> str:
    """The block's input, or its projection where the shape changes."""
    if stride == 1 and net.channels(x) == out:
        return x
    with net.scope("downsample"):
        return net.batch_norm(net.conv(x, "0", out, Window(1, stride)), "1")
