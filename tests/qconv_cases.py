"""Quantized convolutions for the tests: their shapes, random numbers for them, and the results by NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qtool.native import abi

F32 = np.float32


@dataclass(frozen=True)
class Case:
    """A convolution's shape and what its epilogue does; ``pad`` is (top, bottom, left, right)."""

    batch: int = 1
    size: tuple[int, int] = (1, 1)
    channels: tuple[int, int] = (4, 4)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    values: str = "random"  # or low, high, mixed: bytes and weights at the ends of their ranges
    bias: str = "float"  # or int, both, none
    residual: str = "none"  # or sum (before the rounding), float, fixed (after it)
    lut: bool = False
    bounds: tuple[int, int] = (0, 255)

    @property
    def out_size(self) -> tuple[int, int]:
        def count(i: int) -> int:
            room = self.size[i] + self.pad[2 * i] + self.pad[2 * i + 1] - self.dilation[i] * (self.kernel[i] - 1) - 1
            return room // self.stride[i] + 1

        return count(0), count(1)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, *self.out_size, self.channels[1])


def linear(rows: int, inputs: int, outputs: int, **more: Any) -> Case:
    return Case(batch=rows, channels=(inputs, outputs), **more)


def depthwise(channels: int, **more: Any) -> Case:
    return Case(channels=(channels, channels), groups=channels, **more)


@dataclass(frozen=True)
class Numbers:
    """All that the operator is given beside its shape."""

    x: np.ndarray
    weight: np.ndarray  # [O][KH][KW][I]
    residual: np.ndarray | None
    args: abi.ConvArgs
    bias_i32: np.ndarray
    bias_f32: np.ndarray
    multiplier: np.ndarray
    add: abi.BinaryArgs | None
    lut: np.ndarray | None


def _bytes(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, values: str) -> np.ndarray:
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if values == "random":
        return rng.integers(low, high + 1, shape).astype(dtype)
    if values == "mixed":
        return rng.choice(np.array([low, high], dtype), shape)
    ends = {"low": (255, -128), "high": (255, 127)}[values]
    return np.full(shape, ends[0] if dtype is np.uint8 else ends[1], dtype)


def _add_args(rng: np.random.Generator, kind: str) -> abi.BinaryArgs | None:
    if kind not in ("float", "fixed"):
        return None
    zeros = {name: int(rng.integers(0, 256)) for name in ("a_zero", "b_zero", "out_zero")}
    bounds = {"out_min": int(rng.integers(0, 100)), "out_max": int(rng.integers(150, 256))}
    if kind == "float":
        scales = {name: float(rng.uniform(0.01, 2)) for name in ("a_scale", "b_scale", "inv_scale")}
        return abi.make(abi.BinaryArgs, kind=int(abi.Binary.ADD), **zeros, **bounds, **scales)
    multipliers = {name: int(rng.integers(1 << 14, 1 << 22)) for name in ("a_multiplier", "b_multiplier")}
    offset = -multipliers["a_multiplier"] * zeros["a_zero"] - multipliers["b_multiplier"] * zeros["b_zero"]
    fixed = {"fixed_point": 1, "shift": int(rng.integers(14, 23)), "offset": offset}
    return abi.make(abi.BinaryArgs, kind=int(abi.Binary.ADD), **zeros, **bounds, **multipliers, **fixed)


def numbers(case: Case, seed: int) -> Numbers:
    rng = np.random.default_rng(seed)
    outputs, depth = case.channels[1], case.channels[0] // case.groups
    x = _bytes(rng, (case.batch, *case.size, case.channels[0]), np.uint8, case.values)
    weight = _bytes(rng, (outputs, *case.kernel, depth), np.int8, case.values)
    spread = max(1.0, 74 * 74 * float(np.sqrt(depth * case.kernel[0] * case.kernel[1])))  # of the sums, about
    multiplier = (rng.uniform(20, 120, outputs) / spread).astype(F32)
    bias_i32 = rng.integers(-spread, spread, outputs).astype(np.int32)
    bias_f32 = rng.uniform(-spread, spread, outputs).astype(F32)
    residual = None if case.residual == "none" else _bytes(rng, case.out_shape, np.uint8, "random")
    add = _add_args(rng, case.residual)
    lut = rng.permutation(256).astype(np.uint8) if case.lut else None
    (height, width), (out_height, out_width) = case.size, case.out_size
    args = abi.make(
        abi.ConvArgs,
        batch=case.batch, in_height=height, in_width=width, in_channels=case.channels[0],
        out_height=out_height, out_width=out_width, out_channels=outputs,
        kernel_height=case.kernel[0], kernel_width=case.kernel[1],
        stride_height=case.stride[0], stride_width=case.stride[1], pad_top=case.pad[0], pad_left=case.pad[2],
        dilation_height=case.dilation[0], dilation_width=case.dilation[1], groups=case.groups,
        x_zero=int(rng.integers(0, 256)), out_zero=int(rng.integers(0, 256)),
        out_min=case.bounds[0], out_max=case.bounds[1],
        residual={"none": 0, "sum": 1}.get(case.residual, 2),
        res_zero=int(rng.integers(0, 256)), res_multiplier=float(F32(rng.uniform(0.1, 2))),
        weight=weight, multiplier=multiplier, add=add, lut=lut,
        bias_i32=bias_i32 if case.bias in ("int", "both") else None,
        bias_f32=bias_f32 if case.bias in ("float", "both") else None,
    )  # fmt: skip
    return Numbers(x, weight, residual, args, bias_i32, bias_f32, multiplier, add, lut)


def _accumulated(case: Case, n: Numbers) -> np.ndarray:
    """The int32 sums, exact: products of bytes and their sums are integers that float64 holds."""
    (height, width), (out_height, out_width) = case.size, case.out_size
    outputs, depth = case.channels[1], case.channels[0] // case.groups
    acc = np.zeros((*case.out_shape[:3], case.groups, outputs // case.groups))
    x = n.x.astype(np.float64) - n.args.x_zero
    weight = n.weight.astype(np.float64).reshape(case.groups, outputs // case.groups, *case.kernel, depth)
    for ky in range(case.kernel[0]):
        for kx in range(case.kernel[1]):
            rows = np.arange(out_height) * case.stride[0] - case.pad[0] + ky * case.dilation[0]
            columns = np.arange(out_width) * case.stride[1] - case.pad[2] + kx * case.dilation[1]
            seen = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
            taps = x[:, rows.clip(0, height - 1)][:, :, columns.clip(0, width - 1)] * seen[None, :, :, None]
            taps = taps.reshape(*taps.shape[:3], case.groups, 1, depth)
            acc += np.matmul(taps, weight[:, :, ky, kx].swapaxes(1, 2))[..., 0, :]
    assert np.abs(acc).max(initial=0) < 2.0**52
    return acc.reshape(case.out_shape).astype(np.int64)


def _dequantized(q: np.ndarray, scale: F32, zero: F32) -> np.ndarray:
    """fma(scale, q, -(scale * zero)): float64 holds the product and the sum exactly."""
    return (np.float64(scale) * q - np.float64(scale * zero)).astype(F32)


def _added(n: Numbers, q: np.ndarray) -> np.ndarray:
    """The sum of two quantized tensors, as QT_OP_QBINARY defines it."""
    p, other = n.add, n.residual
    assert p is not None
    assert other is not None
    if p.fixed_point:
        total = p.a_multiplier * q.astype(np.int64) + p.b_multiplier * other.astype(np.int64) + p.offset
        half = 1 << (p.shift - 1)
        r = np.sign(total) * ((np.abs(total) + half) >> p.shift)  # half away from zero
        return np.clip(r + p.out_zero, p.out_min, p.out_max).astype(np.uint8)
    a = _dequantized(q, F32(p.a_scale), F32(p.a_zero))
    b = _dequantized(other, F32(p.b_scale), F32(p.b_zero))
    r = np.rint((a + b) * F32(p.inv_scale))
    return np.clip(r + F32(p.out_zero), p.out_min, p.out_max).astype(np.uint8)


def expected(case: Case, n: Numbers) -> np.ndarray:
    acc = _accumulated(case, n)
    if case.bias in ("int", "both"):
        acc = acc + n.bias_i32
    acc = acc.astype(np.int32)  # modulo 2^32
    r = acc.astype(F32)
    if case.bias in ("float", "both"):
        r = r + n.bias_f32
    r = r * n.multiplier
    if case.residual == "sum":
        r = r + (n.residual.astype(F32) - F32(n.args.res_zero)) * F32(n.args.res_multiplier)
    assert r.dtype == F32
    q = np.clip(np.rint(r), n.args.out_min - n.args.out_zero, n.args.out_max - n.args.out_zero) + F32(n.args.out_zero)
    q = q.astype(np.uint8)
    if n.add is not None:
        q = _added(n, q)
    return q if n.lut is None else n.lut[q]
