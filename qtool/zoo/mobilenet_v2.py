"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381): inverted residuals with depthwise convolutions and relu6."""

from __future__ import annotations

from qtool.ir import Graph
from qtool.zoo.blocks import Net, Window

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: expansion, channels, blocks, stride of the first block."""


def mobilenet_v2(net: Net, classes: int) -> Graph:
    with net.scope("features"):
        y = _conv_bn_relu6(net, net.x, "0", 32, Window(3, stride=2, padding=1))
        index = 1
        for expansion, channels, blocks, first_stride in STAGES:
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                with net.scope(str(index)):
                    y = _inverted_residual(net, y, channels, stride, expansion)
                index += 1
        y = _conv_bn_relu6(net, y, str(index), 1280, Window(1))
    return net.classify(y, classes, fc="classifier.1", pool="")


def _inverted_residual(net: Net, x: str, out: int, stride: int, expansion: int) -> str:
    hidden = net.channels(x) * expansion
    y, at = x, 0
    with net.scope("conv"):
        if expansion != 1:
            y, at = _conv_bn_relu6(net, y, "0", hidden, Window(1)), 1
        y = _conv_bn_relu6(net, y, str(at), hidden, Window(3, stride, padding=1), groups=hidden)
        y = net.batch_norm(net.conv(y, str(at + 1), out, Window(1)), str(at + 2))
    return net.function("add", x, y) if stride == 1 and net.channels(x) == out else y


def _conv_bn_relu6(net: Net, x: str, name: str, out: int, window: Window, groups: int = 1) -> str:
    with net.scope(name):
        y = net.batch_norm(net.conv(x, "0", out, window, groups), "1")
        return net.activation(y, "2", "relu6")
