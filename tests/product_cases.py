"""Random quantized transposed convolutions, products of two activations and softmax."""

from __future__ import annotations

import numpy as np
from int8_cases import F32, Int8Case, Operand, Rng, some_activation, some_qparams, some_weight

from qtool.ir import DType, QParams


def conv_transpose(rng: Rng, backend: str, rank: int, per_channel: bool = False, groups: int | None = None) -> Int8Case:
    groups = int(rng.choice([1, 1, 2, 3])) if groups is None else groups
    inputs, outputs = groups * int(rng.integers(1, 6)), int(rng.integers(1, 6))
    kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, high, rank)) for high in (4, 4, 3))
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    sizes = [int(v) for v in rng.integers(3, 7, rank)]
    full = [(size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip(sizes, stride, dilation, kernel, strict=True)]
    padding = tuple((cut, cut) for cut in (int(rng.integers(0, min(3, (size - 1) // 2 + 1))) for size in full))
    x = some_activation(rng, (int(rng.integers(1, 3)), inputs, *sizes), bits=7 if backend == "fbgemm" else 8)
    shape = (inputs, outputs, *kernel)
    if per_channel:
        scale = rng.uniform(0.002, 0.02, outputs).astype(F32)
        params = QParams(scale, np.zeros(outputs, np.int32), DType.INT8, 1)
        weight = Operand(rng.integers(-128, 128, shape).astype(np.int8), params, True)
    else:
        weight = some_weight(rng, shape, False)
        if weight.qparams.axis is not None:
            scale = weight.qparams.scale[:1]
            weight = Operand(weight.array, QParams.per_tensor(float(scale[0]), 0, DType.INT8), True)
    bias = Operand(rng.normal(0, 1, outputs * groups).astype(F32), None, True) if rng.integers(3) else None
    out = some_qparams(rng, low=0.02, high=0.4)
    attrs = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    return Int8Case(f"conv_transpose{rank}d", backend, attrs, (x, weight, bias), out)


def matmul(rng: Rng, backend: str, dtype: DType = DType.UINT8, inner: int | None = None) -> Int8Case:
    lead = tuple(int(v) for v in rng.integers(1, 4, rng.integers(0, 3)))
    rows, columns = (int(v) for v in rng.integers(1, 9, 2))
    inner = int(rng.integers(1, 80)) if inner is None else inner
    a, b = some_activation(rng, (*lead, rows, inner), dtype), some_activation(rng, (*lead, inner, columns), dtype)
    spread = float(a.qparams.scale[0] * b.qparams.scale[0]) * 100 * np.sqrt(inner)
    zero = int(some_qparams(rng, dtype).zero_point[0])
    return Int8Case("matmul", backend, {}, (a, b), QParams.per_tensor(F32(spread * rng.uniform(0.5, 2)), zero, dtype))


def softmax(rng: Rng, backend: str, dtype: DType = DType.UINT8) -> Int8Case:
    """Over the last axis; rows with ties, and at times of one number."""
    shape = tuple(int(v) for v in rng.integers(1, 40, rng.integers(1, 4)))
    out = QParams.per_tensor(1 / 256, 0 if dtype is DType.UINT8 else -128, dtype)
    return Int8Case("softmax", backend, {"dim": -1}, (some_activation(rng, shape, dtype),), out)
