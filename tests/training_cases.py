"""Convolutions for training and their formulas in float64: for the tests of the kernels and of their Python face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtool.native import abi
from qtool.native.training import ConvGeometry

UNIT = 2.0**-24


def chain_error(steps: int) -> float:
    """The relative error of ``steps`` roundings one after another, in any order of a sum (Higham, Accuracy and
    Stability of Numerical Algorithms, lemma 3.1)."""
    return steps * UNIT / (1 - steps * UNIT)


@dataclass(frozen=True)
class Conv:
    """A convolution over NHWC; ``channels`` are those of the input and the output."""

    batch: int = 1
    size: tuple[int, int] = (1, 1)
    channels: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def geometry(self) -> ConvGeometry:
        return ConvGeometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, *self.size, self.channels[0])

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.channels[1], *self.kernel, self.channels[0] // self.groups)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, *self.geometry.out_size(self.size, self.kernel), self.channels[1])

    def arrays(self, seed: int, integers: bool) -> dict[str, np.ndarray]:
        """x, w, bias and dy in float32; small integers make every sum exact."""
        rng = np.random.default_rng(seed)
        draw = (lambda *s: rng.integers(-3, 4, s)) if integers else (lambda *s: rng.normal(size=s))
        shapes = {"x": self.x_shape, "w": self.weight_shape, "bias": self.channels[1:], "dy": self.y_shape}
        return {name: np.ascontiguousarray(draw(*shape), np.float32) for name, shape in shapes.items()}

    def args(self) -> abi.ConvArgs:
        (top, _), (left, _) = self.padding
        _, out_height, out_width, _ = self.y_shape
        return abi.make(
            abi.ConvArgs, batch=self.batch, in_height=self.size[0], in_width=self.size[1], in_channels=self.channels[0],
            out_height=out_height, out_width=out_width, out_channels=self.channels[1],
            kernel_height=self.kernel[0], kernel_width=self.kernel[1],
            stride_height=self.stride[0], stride_width=self.stride[1], pad_top=top, pad_left=left,
            dilation_height=self.dilation[0], dilation_width=self.dilation[1], groups=self.groups,
            out_min_f=-np.inf, out_max_f=np.inf,
        )  # fmt: skip


def _taps(case: Conv):
    """(ky, kx, the padded input's rows and columns that the output pixels see) of every tap."""
    _, out_height, out_width, _ = case.y_shape
    for ky in range(case.kernel[0]):
        for kx in range(case.kernel[1]):
            rows = np.arange(out_height) * case.stride[0] + ky * case.dilation[0]
            columns = np.arange(out_width) * case.stride[1] + kx * case.dilation[1]
            yield ky, kx, np.ix_(range(case.batch), rows, columns)


def _padded(case: Conv, x: np.ndarray) -> np.ndarray:
    return np.pad(x.astype(np.float64), ((0, 0), *case.padding, (0, 0)))


def _grouped(case: Conv, array: np.ndarray) -> np.ndarray:
    """The last axis as [groups, channels of a group]."""
    return array.reshape(*array.shape[:-1], case.groups, array.shape[-1] // case.groups)


def forward(case: Conv, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y without bias, float64."""
    padded, y = _padded(case, x), np.zeros(case.y_shape)
    weights = w.astype(np.float64).reshape(case.groups, -1, *case.weight_shape[1:])
    for ky, kx, seen in _taps(case):
        pixels = _grouped(case, padded[seen])
        y += np.einsum("nyxgi,goi->nyxgo", pixels, weights[:, :, ky, kx], optimize=True).reshape(case.y_shape)
    return y


def input_grad(case: Conv, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """dx, float64."""
    padded = np.zeros_like(_padded(case, np.zeros(case.x_shape)))
    weights = w.astype(np.float64).reshape(case.groups, -1, *case.weight_shape[1:])
    given = _grouped(case, dy.astype(np.float64))
    for ky, kx, seen in _taps(case):
        part = np.einsum("nyxgo,goi->nyxgi", given, weights[:, :, ky, kx], optimize=True)
        padded[seen] += part.reshape(*case.y_shape[:3], case.channels[0])
    (top, _), (left, _) = case.padding
    return padded[:, top : top + case.size[0], left : left + case.size[1]]


def weight_grad(case: Conv, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dw, float64."""
    padded, dw = _padded(case, x), np.zeros(case.weight_shape)
    given = _grouped(case, dy.astype(np.float64))
    for ky, kx, seen in _taps(case):
        pixels = _grouped(case, padded[seen])
        part = np.einsum("nyxgi,nyxgo->goi", pixels, given, optimize=True)
        dw[:, ky, kx] = part.reshape(case.channels[1], case.weight_shape[3])
    return dw


def random_case(rng: np.random.Generator, depthwise: bool) -> Conv:
    def pick(low: int, high: int) -> tuple[int, int]:
        a, b = rng.integers(low, high + 1, 2)
        return int(a), int(b)

    kernel, dilation, padding = pick(1, 4), pick(1, 3), (pick(0, 3), pick(0, 3))
    spans = [(k - 1) * d + 1 - sum(p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = (max(1, spans[0]) + int(rng.integers(0, 9)), max(1, spans[1]) + int(rng.integers(0, 9)))
    groups = int(rng.choice([1, 1, 2, 3]))
    numbers = [*range(1, 18), 31, 32, 33]
    channels = (int(rng.choice(numbers)) * groups, int(rng.choice(numbers)) * groups)
    if depthwise:
        groups = int(rng.choice(numbers[1:]))
        channels = (groups, groups)
    return Conv(int(rng.integers(1, 4)), size, channels, kernel, pick(1, 3), padding, dilation, groups)


ONE = ((1, 1), (1, 1))
CASES = [
    Conv(2, (9, 7), (5, 6), (3, 3), padding=ONE),
    Conv(5, (8, 8), (64, 33), (3, 3), padding=ONE),  # several images a block
    Conv(3, (32, 32), (3, 16), (3, 3), padding=ONE),
    Conv(2, (16, 16), (16, 32), (3, 3), (2, 2), ONE),
    Conv(2, (15, 16), (20, 9), (1, 1), (2, 2)),  # pixels that no tap sees
    Conv(1, (12, 12), (3, 20), (4, 4), (4, 4)),  # patches
    Conv(1, (5, 1300), (3, 5), (3, 3), padding=ONE),  # parts of a line
    Conv(2, (70, 40), (40, 9), (3, 3), padding=((2, 0), (0, 1))),  # parts of an image
    Conv(1, (6, 700), (70, 3), (3, 5), (1, 2), ((1, 1), (3, 0)), (2, 3)),
    Conv(1, (1, 100), (1, 6), (1, 9), (1, 4), ((0, 0), (4, 4))),
    Conv(1300, (1, 1), (64, 10)),
    Conv(64, (1, 1), (64, 10)),
    Conv(3, (20, 30), (17, 31)),
    Conv(2, (9, 9), (600, 70), (1, 1)),
    Conv(0, (5, 5), (3, 4), (3, 3)),
    Conv(2, (7, 7), (24, 36), (3, 3), padding=ONE, groups=3),
]
DEPTHWISE = [
    Conv(2, (9, 7), (5, 5), (3, 3), padding=ONE, groups=5),
    Conv(3, (14, 14), (96, 96), (3, 3), (2, 2), ONE, groups=96),
    Conv(1, (11, 40), (33, 33), (5, 5), padding=((2, 2), (2, 2)), groups=33),
    Conv(0, (5, 5), (4, 4), (3, 3), groups=4),
]
