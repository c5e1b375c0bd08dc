"""Pools of the largest numbers in training, NHWC."""

from __future__ import annotations

import numpy as np

from qtool.native import abi
from qtool.native.operators import Floats, Operators, check_floats
from qtool.native.training_conv import ConvGeometry, Pair, Shape4


class PoolTraining:
    """``geometry.groups`` plays no part; padding is never larger than any number."""

    _operators: Operators

    def max_pool(self, x: Floats, kernel: Pair, geometry: ConvGeometry) -> Floats:
        """y [N, OH, OW, C]: the largest number in each window of x [N, H, W, C]."""
        check_floats("max_pool x", x, rank=4)
        shape = _out_shape(x, kernel, geometry)
        y = np.empty(shape, np.float32)
        self._run_pool(abi.Kind.SPOOL, (x.shape, shape, kernel, geometry), (x, y))
        return y

    def max_pool_grad(self, x: Floats, dy: Floats, kernel: Pair, geometry: ConvGeometry) -> Floats:
        """dx of dy [N, OH, OW, C]: the first of the largest in a window gets all, as in PyTorch."""
        check_floats("max_pool_grad x", x, rank=4)
        shape = _out_shape(x, kernel, geometry)
        check_floats("max_pool_grad dy", dy, shape)
        dx = np.empty_like(x)
        self._run_pool(abi.Kind.TMAX_POOL_GRAD, (x.shape, shape, kernel, geometry), (x, dy, dx))
        return dx

    def _run_pool(
        self, kind: abi.Kind, key: tuple[Shape4, Shape4, Pair, ConvGeometry], arrays: tuple[Floats, ...]
    ) -> None:
        self._operators.run(kind, key, lambda: _args(*key), arrays)


def _out_shape(x: Floats, kernel: Pair, geometry: ConvGeometry) -> Shape4:
    return (x.shape[0], *geometry.out_size(x.shape[1:3], kernel), x.shape[3])


def _args(x: Shape4, y: Shape4, kernel: Pair, geometry: ConvGeometry) -> abi.Args:
    (top, bottom), (left, right) = geometry.padding
    return abi.make(
        abi.PoolArgs, kind=int(abi.Pool.MAX), batch=x[0], in_height=x[1], in_width=x[2], channels=x[3],
        out_height=y[1], out_width=y[2], kernel_height=kernel[0], kernel_width=kernel[1],
        stride_height=geometry.stride[0], stride_width=geometry.stride[1], pad_top=top, pad_left=left,
        pad_bottom=bottom, pad_right=right, dilation_height=geometry.dilation[0], dilation_width=geometry.dilation[1],
    )  # fmt: skip
