"""Inception v3 (Szegedy et al., 2015, arXiv:1512.00567) with torchvision's module names; images are 299x299."""

from __future__ import annotations

from collections.abc import Sequence

from qtool.ir import Graph
from qtool.zoo.blocks import Net, Window, basic_conv

ROW = Window((1, 7), padding=(0, 3))
COLUMN = Window((7, 1), padding=(3, 0))
POINT = Window(1)
SAME_3 = Window(3, padding=1)
HALVE = Window(3, stride=2)

Layer = tuple[str, int, Window]


def inception_v3(net: Net, classes: int) -> Graph:
    y = _chain(net, net.x, [("Conv2d_1a_3x3", 32, HALVE), ("Conv2d_2a_3x3", 32, Window(3))])
    y = _chain(net, y, [("Conv2d_2b_3x3", 64, SAME_3)])
    y = net.max_pool(y, HALVE, "maxpool1")
    y = _chain(net, y, [("Conv2d_3b_1x1", 80, POINT), ("Conv2d_4a_3x3", 192, Window(3))])
    y = net.max_pool(y, HALVE, "maxpool2")
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        with net.scope(name):
            y = _inception_a(net, y, pooled)
    with net.scope("Mixed_6a"):
        y = _inception_b(net, y)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        with net.scope(name):
            y = _inception_c(net, y, width)
    with net.scope("Mixed_7a"):
        y = _inception_d(net, y)
    for name in ("Mixed_7b", "Mixed_7c"):
        with net.scope(name):
            y = _inception_e(net, y)
    return net.classify(y, classes)


def _chain(net: Net, x: str, layers: Sequence[Layer]) -> str:
    for name, out, window in layers:
        x = basic_conv(net, x, name, out, window)
    return x


def _pooled_branch(net: Net, x: str, out: int) -> str:
    return basic_conv(net, net.avg_pool(x, SAME_3), "branch_pool", out, POINT)


def _inception_a(net: Net, x: str, pooled: int) -> str:
    one = basic_conv(net, x, "branch1x1", 64, POINT)
    five = _chain(net, x, [("branch5x5_1", 48, POINT), ("branch5x5_2", 64, Window(5, padding=2))])
    double = _chain(net, x, [("branch3x3dbl_1", 64, POINT), ("branch3x3dbl_2", 96, SAME_3)])
    double = basic_conv(net, double, "branch3x3dbl_3", 96, SAME_3)
    return net.cat(one, five, double, _pooled_branch(net, x, pooled))


def _inception_b(net: Net, x: str) -> str:
    three = basic_conv(net, x, "branch3x3", 384, HALVE)
    double = _chain(net, x, [("branch3x3dbl_1", 64, POINT), ("branch3x3dbl_2", 96, SAME_3)])
    double = basic_conv(net, double, "branch3x3dbl_3", 96, HALVE)
    return net.cat(three, double, net.max_pool(x, HALVE))


def _inception_c(net: Net, x: str, width: int) -> str:
    one = basic_conv(net, x, "branch1x1", 192, POINT)
    seven = _chain(net, x, [("branch7x7_1", width, POINT), ("branch7x7_2", width, ROW), ("branch7x7_3", 192, COLUMN)])
    double = _chain(net, x, [("branch7x7dbl_1", width, POINT), ("branch7x7dbl_2", width, COLUMN)])
    double = _chain(net, double, [("branch7x7dbl_3", width, ROW), ("branch7x7dbl_4", width, COLUMN)])
    double = basic_conv(net, double, "branch7x7dbl_5", 192, ROW)
    return net.cat(one, seven, double, _pooled_branch(net, x, 192))


def _inception_d(net: Net, x: str) -> str:
    three = _chain(net, x, [("branch3x3_1", 192, POINT), ("branch3x3_2", 320, HALVE)])
    seven = _chain(net, x, [("branch7x7x3_1", 192, POINT), ("branch7x7x3_2", 192, ROW)])
    seven = _chain(net, seven, [("branch7x7x3_3", 192, COLUMN), ("branch7x7x3_4", 192, HALVE)])
    return net.cat(three, seven, net.max_pool(x, HALVE))


def _inception_e(net: Net, x: str) -> str:
    row, column = Window((1, 3), padding=(0, 1)), Window((3, 1), padding=(1, 0))
    one = basic_conv(net, x, "branch1x1", 320, POINT)
    three = basic_conv(net, x, "branch3x3_1", 384, POINT)
    three_row = basic_conv(net, three, "branch3x3_2a", 384, row)
    three = net.cat(three_row, basic_conv(net, three, "branch3x3_2b", 384, column))
    double = _chain(net, x, [("branch3x3dbl_1", 448, POINT), ("branch3x3dbl_2", 384, SAME_3)])
    double_row = basic_conv(net, double, "branch3x3dbl_3a", 384, row)
    double = net.cat(double_row, basic_conv(net, double, "branch3x3dbl_3b", 384, column))
    return net.cat(one, three, double, _pooled_branch(net, x, 192))
