"""ResNet for pictures of 32 x 32 (He et al., 2015, arXiv:1512.03385, section 4.2); shortcuts have no parameters."""

from __future__ import annotations

from qtool.ir import Graph
from qtool.zoo.blocks import Net, Window


def resnet20(net: Net, classes: int) -> Graph:
    y = net.batch_norm(net.conv(net.x, "conv1", 16, Window(3, padding=1)), "bn1")
    y = net.function("relu", y)
    for stage, width in enumerate((16, 32, 64)):
        for index in range(3):
            stride = 2 if stage > 0 and index == 0 else 1
            with net.scope(f"layer{stage + 1}"), net.scope(str(index)):
                y = _block(net, y, width, stride)
    return net.classify(y, classes, fc="linear", pool="")


def _block(net: Net, x: str, width: int, stride: int) -> str:
    y = net.batch_norm(net.conv(x, "conv1", width, Window(3, stride, padding=1)), "bn1")
    y = net.function("relu", y)
    y = net.batch_norm(net.conv(y, "conv2", width, Window(3, padding=1)), "bn2")
    y = net.function("add", y, x if stride == 1 else _shortcut(net, x, width, stride))
    return net.function("relu", y)


def _shortcut(net: Net, x: str, width: int, stride: int) -> str:
    """Option A: every second row and column, and as many channels of zeros on both sides as are missing."""
    with net.scope("shortcut"):
        return net.pad_channels(net.subsample(x, stride), (width - net.channels(x)) // 2)
