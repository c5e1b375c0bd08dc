"""Float32 convolutions for training: forward with weights that change at every call, and the two gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qtool.errors import EngineError
from qtool.native import abi
from qtool.native.operators import Floats, Operators, check_floats

Pair = tuple[int, int]
Shape4 = tuple[int, int, int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """How a kernel walks over a picture; ``padding`` is ((top, bottom), (left, right))."""

    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def out_size(self, size: Pair, kernel: Pair) -> Pair:
        """(OH, OW) of a picture of ``size``; EngineError where it is smaller than the kernel."""
        spans = [(kernel[i] - 1) * self.dilation[i] + 1 for i in (0, 1)]
        free = [size[i] + sum(self.padding[i]) - spans[i] for i in (0, 1)]
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(kernel) < 1 or min(free) < 0:
            raise EngineError(f"{self}: got a picture of {size} and a kernel of {kernel}, expected one that fits")
        return free[0] // self.stride[0] + 1, free[1] // self.stride[1] + 1


@lru_cache(maxsize=1024)
def conv_out_shape(x: Shape4, weight: Shape4, geometry: ConvGeometry) -> Shape4:
    """[N, OH, OW, O] of x [N, H, W, C] and weight [O, KH, KW, C / groups]; EngineError where they do not fit."""
    groups = geometry.groups
    if groups < 1 or weight[3] * groups != x[3] or weight[0] % groups != 0:
        raise EngineError(
            f"conv: got {x[3]} channels, a weight of shape {weight} and {groups} groups, "
            "expected a weight [O, KH, KW, channels / groups] with groups dividing O"
        )
    return (x[0], *geometry.out_size(x[1:3], weight[1:3]), weight[0])


def _args(x: Shape4, weight: Shape4, y: Shape4, geometry: ConvGeometry) -> abi.Args:
    (top, _), (left, _) = geometry.padding
    return abi.make(
        abi.ConvArgs, batch=x[0], in_height=x[1], in_width=x[2], in_channels=x[3],
        out_height=y[1], out_width=y[2], out_channels=y[3], kernel_height=weight[1], kernel_width=weight[2],
        stride_height=geometry.stride[0], stride_width=geometry.stride[1], pad_top=top, pad_left=left,
        dilation_height=geometry.dilation[0], dilation_width=geometry.dilation[1], groups=geometry.groups,
        out_min_f=-np.inf, out_max_f=np.inf,
    )  # fmt: skip


class ConvTraining:
    """NHWC; a linear layer is a convolution of pictures of one pixel."""

    _operators: Operators

    def conv(self, x: Floats, weight: Floats, bias: Floats | None, geometry: ConvGeometry) -> Floats:
        """y [N, OH, OW, O] of x [N, H, W, C], weight [O, KH, KW, C / groups] and bias [O]."""
        check_floats("conv x", x, rank=4)
        check_floats("conv weight", weight, rank=4)
        shape = conv_out_shape(x.shape, weight.shape, geometry)
        if bias is None:
            bias = _zeros(weight.shape[0])
        check_floats("conv bias", bias, weight.shape[:1])
        y = np.empty(shape, np.float32)
        self._run_conv(abi.Kind.TCONV, (x.shape, weight.shape, shape, geometry), (x, weight, bias, y))
        return y

    def conv_input_grad(self, dy: Floats, weight: Floats, x_shape: Shape4, geometry: ConvGeometry) -> Floats:
        """dx of shape ``x_shape`` [N, H, W, C] of dy [N, OH, OW, O]."""
        check_floats("conv_input_grad weight", weight, rank=4)
        shape = conv_out_shape(x_shape, weight.shape, geometry)
        check_floats("conv_input_grad dy", dy, shape)
        dx = np.empty(x_shape, np.float32)
        self._run_conv(abi.Kind.TCONV_INPUT_GRAD, (x_shape, weight.shape, shape, geometry), (dy, weight, dx))
        return dx

    def conv_weight_grad(self, x: Floats, dy: Floats, weight_shape: Shape4, geometry: ConvGeometry) -> Floats:
        """dw of shape ``weight_shape`` [O, KH, KW, C / groups] of x [N, H, W, C] and dy [N, OH, OW, O]."""
        check_floats("conv_weight_grad x", x, rank=4)
        shape = conv_out_shape(x.shape, weight_shape, geometry)
        check_floats("conv_weight_grad dy", dy, shape)
        dw = np.empty(weight_shape, np.float32)
        self._run_conv(abi.Kind.TCONV_WEIGHT_GRAD, (x.shape, weight_shape, shape, geometry), (x, dy, dw))
        return dw

    def _run_conv(
        self, kind: abi.Kind, key: tuple[Shape4, Shape4, Shape4, ConvGeometry], arrays: tuple[Floats, ...]
    ) -> None:
        self._operators.run(kind, key, lambda: _args(*key), arrays)


@lru_cache(maxsize=64)
def _zeros(count: int) -> Floats:
    return np.zeros(count, np.float32)
