"""Batch norm and sums of channels over [rows, channels] matrices of float32, forward and backward."""

from __future__ import annotations

import numpy as np

from qtool.errors import EngineError
from qtool.native import abi
from qtool.native.operators import Floats, Operators, check_floats


class RowTraining:
    """A picture [N, H, W, C] is the matrix ``x.reshape(-1, C)``."""

    _operators: Operators

    def batch_norm(self, x: Floats, weight: Floats, bias: Floats, eps: float) -> tuple[Floats, Floats, Floats, Floats]:
        """(y, mean, biased variance, 1 / sqrt(variance + eps)) of x [rows, C] by its own mean and variance."""
        _check_matrix("batch_norm x", x)
        rows, channels = x.shape
        for name, array in (("weight", weight), ("bias", bias)):
            check_floats(f"batch_norm {name}", array, (channels,))
        out = np.empty(x.size + 3 * channels, np.float32)
        self._run_rows(abi.Kind.TNORM, (rows, channels, eps), (x, np.concatenate((weight, bias)), out))
        mean, variance, inv_std = out[x.size :].reshape(3, channels).copy()
        return out[: x.size].reshape(x.shape), mean, variance, inv_std

    def batch_norm_grad(
        self, x: Floats, dy: Floats, mean: Floats, inv_std: Floats, weight: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """(dx [rows, C], dweight, dbias) with the mean and inv_std that ``batch_norm`` gave."""
        _check_matrix("batch_norm_grad x", x)
        rows, channels = x.shape
        check_floats("batch_norm_grad dy", dy, x.shape)
        for name, array in (("mean", mean), ("inv_std", inv_std), ("weight", weight)):
            check_floats(f"batch_norm_grad {name}", array, (channels,))
        out = np.empty(x.size + 2 * channels, np.float32)
        factors = np.concatenate((mean, inv_std, weight))
        self._run_rows(abi.Kind.TNORM_GRAD, (rows, channels, 0.0), (x, dy, factors, out))
        by_weight, by_bias = out[x.size :].reshape(2, channels).copy()
        return out[: x.size].reshape(x.shape), by_weight, by_bias

    def channel_sums(self, x: Floats) -> Floats:
        """[C]: the sums over the rows of x [rows, C]."""
        check_floats("channel_sums x", x, rank=2)
        y = np.empty(x.shape[1], np.float32)
        self._run_rows(abi.Kind.TSUMS, (*x.shape, 0.0), (x, y))
        return y

    def affine(self, x: Floats, scale: Floats, shift: Floats) -> Floats:
        """x * scale + shift of x [rows, C] by channel; the product and the sum are rounded each."""
        check_floats("affine x", x, rank=2)
        for name, array in (("scale", scale), ("shift", shift)):
            check_floats(f"affine {name}", array, x.shape[1:])
        y = np.empty_like(x)
        self._run_rows(abi.Kind.TAFFINE, (*x.shape, 0.0), (x, np.concatenate((scale, shift)), y))
        return y

    def _run_rows(self, kind: abi.Kind, key: tuple[int, int, float], arrays: tuple[Floats, ...]) -> None:
        rows, channels, eps = key
        self._operators.run(kind, key, lambda: abi.make(abi.TnormArgs, rows=rows, channels=channels, eps=eps), arrays)


def _check_matrix(name: str, x: Floats) -> None:
    check_floats(name, x, rank=2)
    if x.size == 0:
        raise EngineError(f"{name}: got no numbers (shape {x.shape}), expected at least one row and one channel")
