"""GoogLeNet (Szegedy et al., 2014, arXiv:1409.4842) as torchvision has it: batch norm, 3x3 where the paper has 5x5."""

from __future__ import annotations

from qtool.ir import Graph
from qtool.zoo.blocks import Net, Window, basic_conv

Widths = tuple[int, int, int, int, int, int]
"""1x1; 3x3 reduced, 3x3; third branch reduced, third branch; after the pool (Table 1 of the paper)."""

INCEPTION_3: tuple[Widths, ...] = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
INCEPTION_4: tuple[Widths, ...] = (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)
INCEPTION_5: tuple[Widths, ...] = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))
HALVE = Window(3, stride=2, ceil_mode=True)


def googlenet(net: Net, classes: int) -> Graph:
    y = basic_conv(net, net.x, "conv1", 64, Window(7, stride=2, padding=3))
    y = net.max_pool(y, HALVE, "maxpool1")
    y = basic_conv(net, y, "conv2", 64, Window(1))
    y = basic_conv(net, y, "conv3", 192, Window(3, padding=1))
    y = net.max_pool(y, HALVE, "maxpool2")
    y = _stage(net, y, 3, INCEPTION_3)
    y = net.max_pool(y, HALVE, "maxpool3")
    y = _stage(net, y, 4, INCEPTION_4)
    y = net.max_pool(y, Window(2, stride=2, ceil_mode=True), "maxpool4")
    y = _stage(net, y, 5, INCEPTION_5)
    return net.classify(y, classes)


def _stage(net: Net, y: str, number: int, blocks: tuple[Widths, ...]) -> str:
    for letter, widths in zip("abcde", blocks, strict=False):
        with net.scope(f"inception{number}{letter}"):
            y = _inception(net, y, widths)
    return y


def _inception(net: Net, x: str, widths: Widths) -> str:
    one, three_reduced, three, third_reduced, third, pooled = widths
    branches = [basic_conv(net, x, "branch1", one, Window(1))]
    for name, reduced, out in (("branch2", three_reduced, three), ("branch3", third_reduced, third)):
        with net.scope(name):
            y = basic_conv(net, x, "0", reduced, Window(1))
            branches.append(basic_conv(net, y, "1", out, Window(3, padding=1)))
    with net.scope("branch4"):
        y = net.max_pool(x, Window(3, stride=1, padding=1, ceil_mode=True), "0")
        branches.append(basic_conv(net, y, "1", pooled, Window(1)))
    return net.cat(*branches)
