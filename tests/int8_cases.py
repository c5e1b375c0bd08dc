"""Random int8 operators, for the tests with and without PyTorch: one node with its operands and parameters.

A maker takes a generator and a backend and gives a case; ``MAKERS`` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qtool.engine import int8, reference
from qtool.engine.requantize import arithmetic_of
from qtool.ir import Array, Attr, DType, Graph, Node, QParams, Value
from qtool.ops import attrs_of, get, infer_node

Rng = np.random.Generator
F32 = np.float32


@dataclass(frozen=True)
class Operand:
    """A stored array; ``constant`` ones are initializers, the others are fed."""

    array: Array
    qparams: QParams | None = None
    constant: bool = False


@dataclass(frozen=True)
class Int8Case:
    """One operator; ``out`` is None for a float output."""

    op: str
    backend: str
    attrs: dict[str, Attr]
    operands: tuple[Operand | None, ...]
    out: QParams | None

    def __repr__(self) -> str:
        shapes = ", ".join("None" if o is None else f"{o.array.dtype}{list(o.array.shape)}" for o in self.operands)
        return f"{self.backend} {self.op}({shapes}, {self.attrs}) -> {self.out}"


def graph_of(case: Int8Case) -> Graph:
    """The case as a graph of one node, ``node``, with inputs and initializers ``x0``, ``x1``, ..."""
    values, names, arrays = {}, [], {}
    for index, operand in enumerate(case.operands):
        names.append(f"x{index}" if operand else "")
        if operand:
            shape = tuple(operand.array.shape)
            values[f"x{index}"] = Value(f"x{index}", DType.of(operand.array), shape, operand.qparams)
            if operand.constant:
                arrays[f"x{index}"] = operand.array
    node = Node(case.op, "node", tuple(names), ("y",), case.attrs)
    (inferred,) = infer_node(node, [values[name].type if name else None for name in names])
    values["y"] = Value("y", case.out.dtype if case.out else inferred.dtype, inferred.shape, case.out)
    fed = tuple(name for name in names if name and name not in arrays)
    return Graph("case", fed, ("y",), (node,), values, arrays, case.backend)


def feeds_of(case: Int8Case) -> dict[str, Array]:
    return {f"x{i}": o.array for i, o in enumerate(case.operands) if o is not None and not o.constant}


def evaluate(case: Int8Case) -> Array:
    """What the reference makes of the case."""
    return reference.run(graph_of(case), feeds_of(case))["y"]


def call_of(case: Int8Case) -> int8.Call:
    """The case as the call of its definition."""
    operands = tuple(None if o is None else int8.Operand(o.array, o.qparams) for o in case.operands)
    outputs = () if case.out is None else (case.out,)
    attrs = attrs_of(graph_of(case).nodes[0])
    return int8.Call(get(case.op), attrs, arithmetic_of(case.backend), operands, outputs)


SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def some_params(draw: Callable[..., Any], dtype: DType | None = None) -> QParams:
    """Parameters for hypothesis, of a wide range of scales."""
    dtype = dtype or draw(st.sampled_from([DType.UINT8, DType.INT8]))
    info = np.iinfo(dtype.value)
    scale = draw(st.floats(2.0**-20, 2.0**20, width=32))
    return QParams.per_tensor(scale, draw(st.integers(info.min, info.max)), dtype)


# ---- parts of cases ----------------------------------------------------------------------------------------------


def some_qparams(rng: Rng, dtype: DType = DType.UINT8, low: float = 0.005, high: float = 0.1) -> QParams:
    info = np.iinfo(dtype.value)
    return QParams.per_tensor(F32(rng.uniform(low, high)), int(rng.integers(info.min, info.max + 1)), dtype)


def some_stored(rng: Rng, shape: tuple[int, ...], qparams: QParams, bits: int = 8) -> Array:
    """Any storage values; with 7 bits those that a reduced range has."""
    low, high = qparams.limits
    if bits == 7:
        low, high = low // 2, high // 2
    return rng.integers(low, high + 1, shape).astype(qparams.dtype.numpy)


def some_activation(
    rng: Rng, shape: tuple[int, ...], dtype: DType = DType.UINT8, bits: int = 8, constant: bool = False
) -> Operand:
    qparams = some_qparams(rng, dtype)
    if bits == 7:
        qparams = replace(qparams, zero_point=np.array(qparams.zero_point // 2))
    return Operand(some_stored(rng, shape, qparams, bits), qparams, constant)


def some_weight(rng: Rng, shape: tuple[int, ...], zero_points: bool) -> Operand:
    """Per tensor or per channel; with a zero point at times where the backend has those."""
    per_channel = bool(rng.integers(2))
    scale = rng.uniform(0.001, 0.02, shape[0] if per_channel else 1).astype(F32)
    zero = np.zeros(len(scale), np.int32)
    if zero_points and rng.integers(4) == 0:
        zero = rng.integers(-20, 21, len(scale)).astype(np.int32)
    qparams = QParams(scale, zero, DType.INT8, 0 if per_channel else None)
    return Operand(rng.integers(-128, 128, shape).astype(np.int8), qparams, True)


def output_for(rng: Rng, x: QParams, weight: Operand, dtype: DType) -> QParams:
    """A scale that lets most sums of products stay in range and some saturate."""
    assert weight.qparams is not None
    taps = weight.array[0].size
    spread = float(x.scale[0]) * float(weight.qparams.scale.mean()) * 74 * 74 * np.sqrt(taps)
    scale = F32(spread * rng.uniform(0.5, 4) / 128)
    low, high = np.iinfo(dtype.value).min, np.iinfo(dtype.value).max
    return QParams.per_tensor(scale, int(rng.integers(low + 64, high - 64)), dtype)


def some_bias(rng: Rng, channels: int, out: QParams) -> Operand | None:
    if rng.integers(5) == 0:
        return None
    return Operand((rng.normal(0, 40, channels) * out.scale[0]).astype(F32), None, True)


def fused(rng: Rng, out: QParams) -> dict[str, Attr]:
    activation = rng.choice(["none", "relu", "clamp"])
    if activation != "clamp":
        return {"activation": str(activation)}
    low, high = sorted(float(F32(v)) for v in rng.uniform(-100, 100, 2) * out.scale[0])
    return {"activation": "clamp", "clamp": (low, high)}


# ---- makers ------------------------------------------------------------------------------------------------------


def linear(rng: Rng, backend: str, bits: int = 8) -> Int8Case:
    rows, inputs, outputs = rng.integers(1, 10), rng.integers(1, 200), rng.integers(1, 50)
    shape = (2, int(rows), int(inputs)) if rng.integers(4) == 0 else (int(rows), int(inputs))
    x = some_activation(rng, shape, bits=bits)
    weight = some_weight(rng, (int(outputs), int(inputs)), backend != "onednn")
    out = output_for(rng, x.qparams, weight, DType.UINT8)
    return Int8Case("linear", backend, fused(rng, out), (x, weight, some_bias(rng, int(outputs), out)), out)


def _conv(rng: Rng, backend: str, rank: int, groups: int, channels: tuple[int, int], bits: int) -> Int8Case:
    """``channels`` are those of input and output a group."""
    kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, high, rank)) for high in (5, 3, 3))
    pads = tuple(int(v) for v in rng.integers(0, 3, rank))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = tuple(int(max(e - 2 * p, 1) + rng.integers(0, 6)) for e, p in zip(extents, pads, strict=True))
    x = some_activation(rng, (int(rng.integers(1, 4)), channels[0] * groups, *sizes), bits=bits)
    zero_points = backend not in ("onednn", "x86")
    weight = some_weight(rng, (channels[1] * groups, channels[0], *kernel), zero_points)
    out = output_for(rng, x.qparams, weight, DType.UINT8)
    attrs = {
        **fused(rng, out),
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "padding": tuple((p, p) for p in pads),
    }
    return Int8Case(f"conv{rank}d", backend, attrs, (x, weight, some_bias(rng, channels[1] * groups, out)), out)


def conv1d(rng: Rng, backend: str, bits: int = 8) -> Int8Case:
    groups = int(rng.choice([1, 1, 1, 2]))
    return _conv(rng, backend, 1, groups, (int(rng.integers(1, 17)), int(rng.integers(1, 17))), bits)


def conv2d(rng: Rng, backend: str, bits: int = 8) -> Int8Case:
    return _conv(rng, backend, 2, 1, (int(rng.integers(1, 33)), int(rng.integers(1, 33))), bits)


def conv2d_grouped(rng: Rng, backend: str, bits: int = 8) -> Int8Case:
    channels = int(rng.choice([2, 3, 4, 8, 16])), int(rng.choice([2, 3, 4, 8, 16]))
    return _conv(rng, backend, 2, int(rng.integers(2, 5)), channels, bits)


def conv2d_depthwise(rng: Rng, backend: str, bits: int = 8) -> Int8Case:
    """Half of them of the shape that FBGEMM has kernels for: 3x3 or 5x5, stride 1 or 2, same padding."""
    if rng.integers(2):
        return _conv(rng, backend, 2, int(rng.integers(2, 40)), (1, 1), bits)
    kernel, groups = int(rng.choice([3, 5])), 8 * int(rng.integers(1, 6))
    sizes = tuple(int(v) for v in rng.integers(kernel, 12, 2))
    x = some_activation(rng, (int(rng.integers(1, 3)), groups, *sizes), bits=bits)
    weight = some_weight(rng, (groups, 1, kernel, kernel), backend == "qnnpack")
    out = output_for(rng, x.qparams, weight, DType.UINT8)
    stride = (int(rng.integers(1, 3)),) * 2
    attrs = {**fused(rng, out), "stride": stride, "groups": groups, "padding": ((kernel // 2,) * 2,) * 2}
    return Int8Case("conv2d", backend, attrs, (x, weight, some_bias(rng, groups, out)), out)


def conv2d_add(rng: Rng, backend: str, bits: int = 8) -> Int8Case:
    """A convolution and a residual, rounded once."""
    case = conv2d(rng, backend, bits)
    attrs = {**case.attrs, "activation": str(rng.choice(["none", "relu"]))}
    attrs.pop("clamp", None)
    shape = evaluate(replace(case, attrs=attrs)).shape
    residual = some_activation(rng, shape)
    residual = replace(residual, qparams=replace(residual.qparams, scale=case.out.scale * F32(rng.uniform(0.3, 1.5))))
    operands = (*case.operands[:2], case.operands[2], residual)
    return replace(case, attrs=attrs, operands=operands)


def linear_dynamic(rng: Rng, backend: str, row_wise: bool = False) -> Int8Case:
    rows, inputs, outputs = (int(rng.integers(1, high)) for high in (8, 150, 40))
    x = rng.normal(rng.normal(), 1, (rows, inputs)) * 10 ** rng.uniform(-6, 2)
    x = [x, np.abs(x), np.rint(x * 16) / 16][rng.integers(3)].astype(F32)
    weight = some_weight(rng, (outputs, inputs), True)
    bias = Operand(rng.normal(0, 1, outputs).astype(F32), None, True) if rng.integers(4) else None
    activation = str(rng.choice(["none", "relu"]))
    reduce_range = backend != "qnnpack" and bool(rng.integers(2))
    attrs = {"reduce_range": reduce_range, "row_wise": row_wise, "activation": activation}
    return Int8Case("linear_dynamic", backend, attrs, (Operand(x), weight, bias), None)


def some_shape(rng: Rng, tail: bool) -> tuple[int, ...]:
    """A whole number of vectors of 64, or with ``tail`` anything."""
    if tail:
        return tuple(int(v) for v in rng.integers(1, 9, rng.integers(1, 5)))
    return [(64,), (2, 64), (3, 4, 4, 4), (1, 16, 4, 4), (2, 3, 64)][rng.integers(5)]


def _near(rng: Rng, scale: float) -> float:
    """Scales as they come, and such that make ties."""
    return float(F32(scale * rng.choice([0.5, 1.0, 2.0, rng.uniform(0.4, 2.5)])))


def binary(rng: Rng, backend: str, op: str, tail: bool = False, dtype: DType = DType.UINT8) -> Int8Case:
    shape = some_shape(rng, tail)
    a, b = (some_activation(rng, shape, dtype) for _ in range(2))
    if rng.integers(3) == 0:
        b = replace(b, qparams=replace(b.qparams, scale=a.qparams.scale.copy()))
    scale = float(a.qparams.scale[0] + b.qparams.scale[0]) / 2
    if op == "mul":
        scale = float(a.qparams.scale[0] * b.qparams.scale[0]) * 100
    zero = min(int(some_qparams(rng, dtype).zero_point[0]), np.iinfo(dtype.value).max - 1)  # QNNPACK: relu needs room
    out = QParams.per_tensor(_near(rng, scale), zero, dtype)
    attrs: dict[str, Attr] = {"activation": str(rng.choice(["none", "relu"]))} if op == "add" else {}
    return Int8Case(op, backend, attrs, (a, b), out)


def unary(rng: Rng, backend: str, op: str, tail: bool = False, dtype: DType = DType.UINT8) -> Int8Case:
    x = some_activation(rng, some_shape(rng, tail), dtype)
    attrs: dict[str, Attr] = {}
    out = QParams.per_tensor(_near(rng, x.qparams.scale[0]), int(some_qparams(rng, dtype).zero_point[0]), dtype)
    if op in ("relu", "relu6", "hardtanh", "clamp"):
        out = x.qparams
    if op in ("hardtanh", "clamp"):
        low, high = sorted(float(F32(v)) for v in rng.integers(-80, 80, 2) * x.qparams.scale[0] / 2)
        attrs = {"low": low, "high": high}
    if op in ("sigmoid", "hardsigmoid"):
        out = QParams.per_tensor(1 / 256, 0 if dtype is DType.UINT8 else -128, dtype)
    if op == "tanh":
        out = QParams.per_tensor(2 / 256, 128 if dtype is DType.UINT8 else 0, dtype)
    if op == "leaky_relu":
        attrs = {"negative_slope": float(F32(rng.uniform(0.01, 0.5)))}
    if op == "elu":
        attrs = {"alpha": float(F32(rng.uniform(0.3, 2)))}
    return Int8Case(op, backend, attrs, (x,), out)


def prelu(rng: Rng, backend: str, tail: bool = False) -> Int8Case:
    """Slopes up to 1 and more, so that 1 has a step of its own."""
    shape = (2, 8, 4, 8)
    case = unary(rng, backend, "hardswish", tail)
    x = replace(case.operands[0], array=some_stored(rng, shape, case.operands[0].qparams))
    count = int(rng.choice([1, 8]))
    weight = QParams.per_tensor(F32(rng.uniform(0.008, 0.02)), int(rng.integers(0, 120)), DType.UINT8)
    slope = Operand(some_stored(rng, (count,), weight), weight, True)
    return replace(case, op="prelu", operands=(x, slope), attrs={})


def cat(rng: Rng, backend: str, channels: int = 8, dtype: DType = DType.UINT8) -> Int8Case:
    """Along axis 1, pictures of a multiple of ``channels`` channels; at times all with one set of parameters."""
    pieces = [
        some_activation(rng, (2, channels * int(rng.integers(1, 6)), 2, 3), dtype)
        for _ in range(int(rng.integers(1, 4)))
    ]
    out = QParams.per_tensor(_near(rng, pieces[0].qparams.scale[0]), int(some_qparams(rng, dtype).zero_point[0]), dtype)
    if rng.integers(3) == 0:
        pieces = [replace(piece, qparams=out) for piece in pieces]
    return Int8Case("cat", backend, {"dim": 1}, tuple(pieces), out)


def max_pool(rng: Rng, backend: str, rank: int = 2, dtype: DType = DType.UINT8) -> Int8Case:
    attrs, sizes = _windows(rng, rank)
    attrs["dilation"] = tuple(int(v) for v in rng.integers(1, 3, rank))
    x = some_activation(rng, (2, int(rng.integers(1, 40)), *(2 * size for size in sizes)), dtype)
    return Int8Case(f"max_pool{rank}d", backend, attrs, (x,), x.qparams)


def _windows(rng: Rng, rank: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    kernel = tuple(int(v) for v in rng.integers(1, 4, rank))
    if all(size == 1 for size in kernel):  # QNNPACK calls 1x1 pools meaningless
        kernel = (2,) * rank
    stride = tuple(int(v) for v in rng.integers(1, 3, rank))
    pads = tuple(int(rng.integers(0, size // 2 + 1)) for size in kernel)
    sizes = tuple(int(size + rng.integers(0, 6)) for size in kernel)
    return {"kernel_size": kernel, "stride": stride, "padding": tuple((p, p) for p in pads)}, sizes


def avg_pool(rng: Rng, backend: str, channels: int = 16, dtype: DType = DType.UINT8) -> Int8Case:
    attrs, sizes = _windows(rng, 2)
    attrs["count_include_pad"] = backend == "qnnpack" or bool(rng.integers(2))
    x = some_activation(rng, (2, channels * int(rng.integers(1, 5)), *sizes), dtype)
    return Int8Case("avg_pool2d", backend, attrs, (x,), x.qparams)


def adaptive_avg_pool(rng: Rng, backend: str, channels: int = 8, dtype: DType = DType.UINT8) -> Int8Case:
    sizes = tuple(int(v) for v in rng.integers(2, 12, 2))
    bins = (1, 1) if rng.integers(2) else tuple(int(rng.integers(1, size)) for size in sizes)
    x = some_activation(rng, (2, channels * int(rng.integers(1, 5)), *sizes), dtype)
    return Int8Case("adaptive_avg_pool2d", backend, {"output_size": bins}, (x,), x.qparams)


def mean(rng: Rng, backend: str, dtype: DType = DType.UINT8) -> Int8Case:
    """Over the innermost axes, where PyTorch works in integers."""
    rank = int(rng.integers(2, 5))
    axes = (2, 3) if rank == 4 else tuple(range(int(rng.integers(1, rank)), rank))
    x = some_activation(rng, tuple(int(v) for v in rng.integers(2, 9, rank)), dtype)
    return Int8Case("mean", backend, {"dim": axes, "keepdim": bool(rng.integers(2))}, (x,), x.qparams)


def layer_norm(rng: Rng, backend: str, multiple: int = 32, dtype: DType = DType.UINT8) -> Int8Case:
    shape = (int(rng.integers(1, 5)), multiple * int(rng.integers(1, 5)))
    x = some_activation(rng, shape, dtype)
    affine: tuple[Operand | None, ...] = (None, None)
    if rng.integers(3):
        affine = tuple(Operand(rng.normal(1, 0.5, shape[1:]).astype(F32), None, True) for _ in range(2))
    attrs: dict[str, Attr] = {"normalized_shape": shape[1:], "eps": 1e-5}
    return Int8Case("layer_norm", backend, attrs, (x, *affine), some_qparams(rng, dtype, 0.01, 0.05))


def quantize(rng: Rng, backend: str, dtype: DType = DType.UINT8) -> Int8Case:
    """Half of the numbers lie between two steps."""
    out = some_qparams(rng, dtype)
    steps = rng.normal(0, 90, (3, 5, 7))
    steps = np.where(rng.integers(2, size=steps.shape), steps, np.rint(steps) + 0.5)
    return Int8Case("quantize", backend, {}, (Operand((steps * out.scale[0]).astype(F32)),), out)


def dequantize(rng: Rng, backend: str, dtype: DType = DType.UINT8) -> Int8Case:
    return Int8Case("dequantize", backend, {}, (some_activation(rng, (3, 5, 7), dtype),), None)


Maker = Callable[..., Int8Case]
TABLES = ("relu", "relu6", "hardtanh", "clamp", "leaky_relu", "elu", "hardswish", "hardsigmoid", "sigmoid", "tanh")
"""Operators of one tensor."""


def _of(maker: Maker, op: str) -> Maker:
    return lambda rng, backend, **more: maker(rng, backend, op, **more)


MAKERS: dict[str, Maker] = {
    "linear": linear,
    "conv1d": conv1d,
    "conv2d": conv2d,
    "conv2d_grouped": conv2d_grouped,
    "conv2d_depthwise": conv2d_depthwise,
    "conv2d_add": conv2d_add,
    "linear_dynamic": linear_dynamic,
    "add": _of(binary, "add"),
    "mul": _of(binary, "mul"),
    **{op: _of(unary, op) for op in TABLES},
    "prelu": prelu,
    "cat": cat,
    "max_pool1d": lambda rng, backend, **more: max_pool(rng, backend, 1, **more),
    "max_pool2d": max_pool,
    "avg_pool2d": avg_pool,
    "adaptive_avg_pool2d": adaptive_avg_pool,
    "mean": mean,
    "layer_norm": layer_norm,
    "quantize": quantize,
    "dequantize": dequantize,
}
