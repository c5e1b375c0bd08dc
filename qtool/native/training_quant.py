"""Elementwise operators of training in float32: clamps, sums, and rounding to the grid of a quantized tensor."""

from __future__ import annotations

import numpy as np

from qtool.errors import EngineError
from qtool.native import abi
from qtool.native.operators import Floats, check_floats
from qtool.native.statistics import Statistics

INF = float("inf")


class ElementTraining(Statistics):
    """Arrays of any shape. ``out``, where it can be given, may be the first array itself."""

    def clamp(self, x: Floats, low: float, high: float, out: Floats | None = None) -> Floats:
        """min(max(x, low), high); NaN stays NaN. relu: 0, infinity."""
        check_floats("clamp x", x)
        y = _output("clamp", x, out)
        self._run_clamp(abi.Kind.TCLAMP, (x.size, low, high), (x, y))
        return y

    def clamp_grad(self, x_or_y: Floats, dy: Floats, low: float, high: float) -> Floats:
        """dy where low < x < high (or y, which is the same), 0 elsewhere, as PyTorch's relu, relu6 and hardtanh; an
        infinite limit cuts nothing."""
        check_floats("clamp_grad x", x_or_y)
        check_floats("clamp_grad dy", dy, x_or_y.shape)
        dx = np.empty_like(dy)
        self._run_clamp(abi.Kind.TCLAMP_GRAD, (dy.size, low, high), (x_or_y, dy, dx))
        return dx

    def add(self, a: Floats, b: Floats, low: float = -INF, high: float = INF, out: Floats | None = None) -> Floats:
        """min(max(a + b, low), high) of two arrays of one shape."""
        check_floats("add a", a)
        check_floats("add b", b, a.shape)
        y = _output("add", a, out)
        self._run_clamp(abi.Kind.TADD, (a.size, low, high), (a, b, y))
        return y

    def fake_quant(
        self, x: Floats, scale: float, zero_point: int, low: int, high: int, out: Floats | None = None
    ) -> Floats:
        """scale * (q - zero_point) of the integer q that x is rounded to, bit for bit that of
        ``QParams.quantize`` and ``dequantize`` per tensor for a storage type of low .. high."""
        check_floats("fake_quant x", x)
        y = _output("fake_quant", x, out)
        self._run_quant(abi.Kind.TFAKE_QUANT, _tensor(x, low, high), (x, _grid(scale, zero_point), y))
        return y

    def fake_quant_channels(self, x: Floats, scale: Floats, zero_point: np.ndarray, low: int, high: int) -> Floats:
        """As ``fake_quant`` of each row of x [O, K] by its own scale [O] and zero_point [O] (any integers), bit for
        bit that of QParams along axis 0."""
        grid = _channel_grid("fake_quant_channels", x, scale, zero_point)
        y = np.empty_like(x)
        self._run_quant(abi.Kind.TFAKE_QUANT, _channels(x, low, high), (x, grid, y))
        return y

    def fake_quant_grad(self, x: Floats, dy: Floats, scale: float, zero_point: int, low: int, high: int) -> Floats:
        """Straight through: dy where the integer of x is in low .. high without being clamped, 0 elsewhere."""
        check_floats("fake_quant_grad x", x)
        check_floats("fake_quant_grad dy", dy, x.shape)
        dx = np.empty_like(dy)
        arrays = (x, dy, _grid(scale, zero_point), dx)
        self._run_quant(abi.Kind.TFAKE_QUANT_GRAD, _tensor(x, low, high), arrays)
        return dx

    def fake_quant_channels_grad(
        self, x: Floats, dy: Floats, scale: Floats, zero_point: np.ndarray, low: int, high: int
    ) -> Floats:
        """As ``fake_quant_grad`` of each row of x [O, K]."""
        grid = _channel_grid("fake_quant_channels_grad", x, scale, zero_point)
        check_floats("fake_quant_channels_grad dy", dy, x.shape)
        dx = np.empty_like(dy)
        self._run_quant(abi.Kind.TFAKE_QUANT_GRAD, _channels(x, low, high), (x, dy, grid, dx))
        return dx

    def fake_quant_scale_grad(self, x: Floats, dy: Floats, scale: float, zero_point: int, low: int, high: int) -> float:
        """The derivative by the scale (Esser et al., Learned step size quantization, 2020, eq. 3): the sum of dy times
        q - zero_point - x / scale where x is not clamped, and the limit - zero_point where it is."""
        check_floats("fake_quant_scale_grad x", x)
        check_floats("fake_quant_scale_grad dy", dy, x.shape)
        ds = np.empty(1, np.float32)
        arrays = (x, dy, _grid(scale, zero_point), ds)
        self._run_quant(abi.Kind.TFAKE_QUANT_SCALE_GRAD, _tensor(x, low, high), arrays)
        return float(ds[0])

    def fake_quant_channels_scale_grad(
        self, x: Floats, dy: Floats, scale: Floats, zero_point: np.ndarray, low: int, high: int
    ) -> Floats:
        """As ``fake_quant_scale_grad`` of each row of x [O, K]: [O]."""
        grid = _channel_grid("fake_quant_channels_scale_grad", x, scale, zero_point)
        check_floats("fake_quant_channels_scale_grad dy", dy, x.shape)
        ds = np.empty(x.shape[0], np.float32)
        self._run_quant(abi.Kind.TFAKE_QUANT_SCALE_GRAD, _channels(x, low, high), (x, dy, grid, ds))
        return ds

    def _run_clamp(self, kind: abi.Kind, key: tuple[int, float, float], arrays: tuple[Floats, ...]) -> None:
        count, low, high = key
        self._operators.run(kind, key, lambda: abi.make(abi.TclampArgs, count=count, low=low, high=high), arrays)

    def _run_quant(self, kind: abi.Kind, key: tuple[int, int, int, int, int], arrays: tuple[Floats, ...]) -> None:
        rows, n, low, high, fused = key
        self._operators.run(
            kind, key, lambda: abi.make(abi.TquantArgs, rows=rows, n=n, low=low, high=high, fused=fused), arrays
        )


def _output(name: str, like: Floats, out: Floats | None) -> Floats:
    if out is None:
        return np.empty_like(like)
    check_floats(f"{name} out", out, like.shape)
    return out


def _grid(scale: float, zero_point: int) -> Floats:
    return np.array([scale, zero_point], np.float32)


def _channel_grid(name: str, x: Floats, scale: Floats, zero_point: np.ndarray) -> Floats:
    check_floats(f"{name} x", x, rank=2)
    check_floats(f"{name} scale", scale, x.shape[:1])
    if zero_point.shape != scale.shape:
        raise EngineError(f"{name} zero_point: got shape {zero_point.shape}, expected {scale.shape}")
    grid = np.empty((2, len(scale)), np.float32)
    grid[0], grid[1] = scale, zero_point
    return grid


def _tensor(x: Floats, low: int, high: int) -> tuple[int, int, int, int, int]:
    return 1, x.size, low, high, 1


def _channels(x: Floats, low: int, high: int) -> tuple[int, int, int, int, int]:
    return x.shape[0], x.shape[1], low, high, 0
