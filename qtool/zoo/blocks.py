"""The layers architectures are written in: each adds nodes under the module path that torchvision gives it.

Parameters are zeros of the right shape here; ``weights.py`` gives them their numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from qtool.ir import Array, Graph
from qtool.ops.builder import Builder

Size = int | tuple[int, int]
"""One number for height and width, or both."""


@dataclass(frozen=True)
class Window:
    """Where a convolution or pool looks."""

    kernel: Size
    stride: Size = 1
    padding: Size = 0
    ceil_mode: bool = False


class Net:
    """Builds a net for images: input ``x`` of shape (N, channels, image, image) in float32; without ``image``, of any
    height and width.

    Every layer method takes the value it reads and the module name, relative to the open scopes, and gives its output.
    """

    def __init__(self, name: str, image: int | None, channels: int = 3) -> None:
        self._builder = Builder(name)
        sides = ("H", "W") if image is None else (image, image)
        self.x = self._builder.input("x", ("N", channels, *sides))

    def scope(self, part: str) -> AbstractContextManager[None]:
        return self._builder.scope(part)

    def channels(self, x: str) -> int:
        """Size of the second axis."""
        return int(self._builder.value(x).shape[1])

    def conv(self, x: str, name: str, out: int, window: Window, groups: int = 1, *, bias: bool = False) -> str:
        """A convolution, without bias where batch_norm follows, as nearly everywhere in these architectures."""
        kernel = _pair(window.kernel)
        with self.scope(name):
            params = [self._param("weight", (out, self.channels(x) // groups, *kernel))]
            params += [self._param("bias", (out,))] if bias else []
            return self._builder.node(
                "conv2d", [x, *params], stride=_pair(window.stride), padding=_both_sides(window.padding), groups=groups
            )

    def batch_norm(self, x: str, name: str, eps: float = 1e-5) -> str:
        shape = (self.channels(x),)
        with self.scope(name):
            weight, bias = self._param("weight", shape), self._param("bias", shape)
            mean, variance = self._param("running_mean", shape), self._param("running_var", shape)
            return self._builder.node("batch_norm", [x, mean, variance, weight, bias], eps=eps)

    def activation(self, x: str, name: str, op: str = "relu") -> str:
        """An activation that is a module of its own."""
        with self.scope(name):
            return self._builder.node(op, [x])

    def function(self, op: str, *inputs: str) -> str:
        """An operator without parameters that torchvision calls as a function: it belongs to the open module."""
        return self._builder.node(op, inputs, name=op)

    def cat(self, *inputs: str) -> str:
        return self._builder.node("cat", inputs, name="cat", dim=1)

    def subsample(self, x: str, stride: int) -> str:
        """Every ``stride``-th row and column."""
        for axis in (2, 3):
            x = self._builder.node("slice", [x], name="slice", dim=axis, step=stride)
        return x

    def pad_channels(self, x: str, count: int) -> str:
        """``count`` channels of zeros before and after."""
        return self._builder.node("pad", [x], name="pad", pad=(0, 0, 0, 0, count, count))

    def max_pool(self, x: str, window: Window, name: str = "") -> str:
        """A pool that is the module ``name``, or a function where it has none."""
        if not name:
            return self._pool("max_pool2d", x, window, "max_pool2d")
        with self.scope(name):
            return self._pool("max_pool2d", x, window)

    def avg_pool(self, x: str, window: Window) -> str:
        return self._pool("avg_pool2d", x, window, "avg_pool2d")

    def affine(self, x: str, name: str, scale: Array, offset: Array) -> str:
        """x * scale + offset with constants of one number a channel."""
        with self.scope(name):
            factor = self._builder.param("scale", scale.reshape(1, -1, 1, 1))
            scaled = self._builder.node("mul", [x, factor], name="mul")
            shift = self._builder.param("offset", offset.reshape(1, -1, 1, 1))
            return self._builder.node("add", [scaled, shift], name="add")

    def classify(self, x: str, classes: int, fc: str = "fc", pool: str = "avgpool") -> Graph:
        """Global average, then the linear layer ``fc``; dropout is the identity in inference and left out.

        The average is the module ``pool``, or a function where that is empty.
        """
        with self.scope(pool) if pool else nullcontext():
            pooled = self._builder.node("adaptive_avg_pool2d", [x], output_size=(1, 1))
        return self.finish(self.linear(self.function("flatten", pooled), fc, classes))

    def linear(self, x: str, name: str, out: int) -> str:
        """A linear layer with bias on (N, features)."""
        with self.scope(name):
            weight = self._param("weight", (out, self.channels(x)))
            return self._builder.node("linear", [x, weight, self._param("bias", (out,))])

    def finish(self, logits: str) -> Graph:
        return self._builder.finish([logits])

    def _pool(self, op: str, x: str, window: Window, name: str = "") -> str:
        return self._builder.node(
            op,
            [x],
            name,
            kernel_size=_pair(window.kernel),
            stride=_pair(window.stride),
            padding=_both_sides(window.padding),
            ceil_mode=window.ceil_mode,
        )

    def _param(self, name: str, shape: tuple[int, ...]) -> str:
        return self._builder.param(name, np.zeros(shape, np.float32))


def basic_conv(net: Net, x: str, name: str, out: int, window: Window) -> str:
    """BasicConv2d of googlenet and inception_v3: conv, batch_norm with eps 0.001, relu as a function."""
    with net.scope(name):
        y = net.batch_norm(net.conv(x, "conv", out, window), "bn", eps=0.001)
        return net.function("relu", y)


def transform_input(net: Net, x: str) -> str:
    """Input normalized for ImageNet (mean .485 .456 .406, std .229 .224 .225) to that of the original nets (.5, .5)."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scale, offset = std / 0.5, (mean - 0.5) / 0.5
    return net.affine(x, "transform_input", scale.astype(np.float32), offset.astype(np.float32))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _both_sides(padding: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    height, width = _pair(padding)
    return (height, height), (width, width)
