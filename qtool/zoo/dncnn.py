"""DnCNN (Zhang et al., 2017, arXiv:1608.03981): takes a noisy picture of any size in 0..1, and gives its noise."""

from __future__ import annotations

from qtool.ir import Graph
from qtool.zoo.blocks import Net, Window

LAYERS, WIDTH = 17, 64
_CONV = Window(3, padding=1)


def dncnn(net: Net, _: int) -> Graph:
    """The modules are numbered as in one ``torch.nn.Sequential``, called ``dncnn``."""
    with net.scope("dncnn"):
        y = net.activation(net.conv(net.x, "0", WIDTH, _CONV, bias=True), "1")
        for at in range(2, 3 * (LAYERS - 2) + 2, 3):
            y = net.batch_norm(net.conv(y, str(at), WIDTH, _CONV), str(at + 1), eps=1e-4)
            y = net.activation(y, str(at + 2))
        return net.finish(net.conv(y, str(at + 3), net.channels(net.x), _CONV))
