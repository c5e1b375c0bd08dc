"""Random cases for every operator, for the tests with and without PyTorch: attributes and arrays that fit together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qtool.ir import Array, Attr

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Case:
    """``batched`` are the positions of the inputs whose axis 0 may be the symbol N."""

    op: str
    attrs: dict[str, Attr]
    arrays: tuple[Array | None, ...]
    batched: tuple[int, ...] = (0,)

    def __repr__(self) -> str:
        shapes = ", ".join("None" if a is None else f"{a.dtype}{list(a.shape)}" for a in self.arrays)
        return f"{self.op}({shapes}, {self.attrs})"


def make_rng(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def shapes(draw: Draw, low: int = 1, high: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 5), min_size=low, max_size=high)))


def some_dim(draw: Draw, rank: int) -> int:
    return draw(st.integers(-rank, rank - 1))


def some_dims(draw: Draw, rank: int, low: int = 1) -> tuple[int, ...]:
    sets = [axes for n in range(low, rank + 1) for axes in itertools.permutations(range(rank), n)]
    axes = draw(st.sampled_from(sets))
    return tuple(axis - rank if draw(st.booleans()) else axis for axis in axes)


def batched_unless(rank: int, dims: Sequence[int]) -> tuple[int, ...]:
    return () if 0 in {dim % rank for dim in dims} else (0,)


def fused(draw: Draw) -> dict[str, Attr]:
    activation = draw(st.sampled_from(["none", "relu", "clamp", "hardswish"]))
    low = draw(st.sampled_from([-1.0, 0.0]))
    return {"activation": activation, "clamp": (low, 6.0)} if activation == "clamp" else {"activation": activation}


@st.composite
def conv(draw: Draw, op: str) -> Case:
    rank = int(op[4])
    groups = draw(st.integers(1, 3))
    inputs = draw(st.integers(1, 3))
    outputs = groups * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(rank))
    sizes = [
        max(draw(st.integers(4, 12)), d * (k - 1) + 1 - sum(p))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    attrs: dict[str, Attr] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        **fused(draw),
    }
    attrs["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    rng = make_rng(draw)
    x = normal(rng, draw(st.integers(1, 3)), inputs * groups, *sizes)
    arrays: list[Array | None] = [x, normal(rng, outputs, inputs, *kernel)]
    arrays.append(normal(rng, outputs) if draw(st.booleans()) else None)
    if draw(st.booleans()):
        spans = zip(sizes, kernel, stride, padding, dilation, strict=True)
        out = [(n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans]
        arrays.append(normal(rng, x.shape[0], outputs, *out))
    return Case(op, attrs, tuple(arrays), (0, 3)[: 1 + (len(arrays) > 3)])


@st.composite
def pool(draw: Draw, op: str) -> Case:
    rank = int(op[-2])
    maximum = op.startswith("max")
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) if maximum else 1 for _ in range(rank))
    even = draw(st.booleans())
    padding = []
    for k, d in zip(kernel, dilation, strict=True):
        before, after = (draw(st.integers(0, k // 2 if even else d * (k - 1))) for _ in range(2))
        padding.append((before, before if even else after))
    sizes = [draw(st.integers(d * (k - 1) + 1, 12)) for k, d in zip(kernel, dilation, strict=True)]
    attrs: dict[str, Attr] = {
        "kernel_size": kernel,
        "stride": tuple(draw(st.integers(1, 4)) for _ in range(rank)),
        "padding": tuple(padding),
        "ceil_mode": draw(st.booleans()),
    }
    if maximum:
        attrs["dilation"] = dilation
    else:
        attrs["count_include_pad"] = draw(st.booleans())
        if rank == 2:
            attrs["divisor_override"] = draw(st.sampled_from([None, None, 1, 3, -2]))
    return Case(op, attrs, (normal(make_rng(draw), draw(st.integers(1, 3)), draw(st.integers(1, 4)), *sizes),))


@st.composite
def adaptive_pool(draw: Draw, op: str) -> Case:
    rank = int(op[-2])
    sizes = [draw(st.integers(1, 12)) for _ in range(rank)]
    attrs: dict[str, Attr] = {"output_size": tuple(draw(st.integers(1, 14)) for _ in range(rank))}
    return Case(op, attrs, (normal(make_rng(draw), draw(st.integers(1, 3)), draw(st.integers(1, 4)), *sizes),))


@st.composite
def linear(draw: Draw, op: str) -> Case:
    inputs, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    lead = shapes(draw, 0, 3)
    rng = make_rng(draw)
    attrs = fused(draw)
    arrays: list[Array | None] = [normal(rng, *lead, inputs), normal(rng, outputs, inputs)]
    arrays.append(normal(rng, outputs) if draw(st.booleans()) else None)
    if op == "linear_dynamic":
        attrs.update(reduce_range=draw(st.booleans()), row_wise=draw(st.booleans()))
    elif draw(st.booleans()):
        arrays.append(normal(rng, *lead, outputs))
    batched = (0, 3)[: 1 + (len(arrays) > 3)] if lead else ()
    return Case(op, attrs, tuple(arrays), batched)


@st.composite
def matmul(draw: Draw, op: str) -> Case:
    lead = shapes(draw, 0, 2)
    rows, inner, columns = (draw(st.integers(1, 6)) for _ in range(3))
    left = draw(st.sampled_from([(inner,), (rows, inner), (*lead, rows, inner)]))
    right = draw(st.sampled_from([(inner,), (inner, columns), (*lead, inner, columns), (*lead[1:], inner, columns)]))
    rng = make_rng(draw)
    return Case(op, {}, (normal(rng, *left), normal(rng, *right)), ())


@st.composite
def batch_norm(draw: Draw, op: str) -> Case:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), *shapes(draw, 0, 2))
    rng = make_rng(draw)
    channels = shape[1]
    arrays: list[Array | None] = [normal(rng, *shape), normal(rng, channels)]
    arrays.append(rng.uniform(0.1, 2, channels).astype(np.float32))
    arrays += [normal(rng, channels) if draw(st.booleans()) else None for _ in range(2)]
    return Case(op, {"eps": draw(st.sampled_from([1e-5, 1e-3, 0.1]))}, tuple(arrays))


@st.composite
def layer_norm(draw: Draw, op: str) -> Case:
    shape = shapes(draw, 2, 4)
    normalized = shape[draw(st.integers(1, len(shape) - 1)) :]
    rng = make_rng(draw)
    arrays = [normal(rng, *shape), *(normal(rng, *normalized) if draw(st.booleans()) else None for _ in range(2))]
    attrs: dict[str, Attr] = {"normalized_shape": normalized, "eps": draw(st.sampled_from([1e-5, 1e-3]))}
    return Case(op, attrs, tuple(arrays))


UNARY_ATTRS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "hardtanh": st.sampled_from([{}, {"low": -2.0, "high": 0.5}, {"low": 0, "high": 6}]),
    "clamp": st.sampled_from([{"low": -0.5, "high": 3.4028234663852886e38}, {"low": -1.0, "high": 1.5}]),
    "leaky_relu": st.sampled_from([{}, {"negative_slope": 0.2}, {"negative_slope": -0.5}]),
    "elu": st.sampled_from([{}, {"alpha": 0.3}]),
    "gelu": st.sampled_from([{}, {"approximate": "tanh"}]),
    "dropout": st.sampled_from([{}, {"p": 0.1}]),
}


@st.composite
def unary(draw: Draw, op: str) -> Case:
    shape = shapes(draw, 0, 4)
    spread = draw(st.sampled_from([0.1, 1.0, 4.0, 100.0]))
    x = np.asarray(normal(make_rng(draw), *shape) * np.float32(spread), np.float32)
    return Case(op, draw(UNARY_ATTRS.get(op, st.just({}))), (x,), (0,) if shape else ())


@st.composite
def softmax(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    spread = draw(st.sampled_from([1.0, 30.0]))
    x = normal(make_rng(draw), *shape) * np.float32(spread)
    return Case(op, {"dim": some_dim(draw, len(shape))}, (x,))


@st.composite
def prelu(draw: Draw, op: str) -> Case:
    shape = shapes(draw, 0, 4)
    rng = make_rng(draw)
    many = len(shape) >= 2 and draw(st.booleans())
    return Case(op, {}, (normal(rng, *shape), normal(rng, shape[1] if many else 1)), (0,) if shape else ())


@st.composite
def binary(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    dropped = draw(st.integers(0, len(shape)))
    other = tuple(1 if draw(st.booleans()) else n for n in shape[dropped:])
    rng = make_rng(draw)
    a, b = normal(rng, *shape), normal(rng, *other)
    attrs: dict[str, Attr] = {"activation": draw(st.sampled_from(["none", "relu"]))} if op == "add" else {}
    if len(other) == len(shape) and other[0] == shape[0]:
        return Case(op, attrs, (a, b), (0, 1))
    return Case(op, attrs, *(((b, a), (1,)) if draw(st.booleans()) else ((a, b), (0,))))


@st.composite
def cat(draw: Draw, op: str) -> Case:
    shape = list(shapes(draw))
    dim = some_dim(draw, len(shape))
    rng = make_rng(draw)
    arrays = []
    for _ in range(draw(st.integers(1, 4))):
        shape[dim] = draw(st.integers(1, 4))
        arrays.append(normal(rng, *shape))
    batched = batched_unless(len(shape), [dim] if len(arrays) > 1 else [])
    return Case(op, {"dim": dim}, tuple(arrays), batched and tuple(range(len(arrays))))


@st.composite
def pad(draw: Draw, op: str) -> Case:
    mode = draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    axes = draw(st.integers(0 if mode == "constant" else 1, 2))
    shape = (*shapes(draw, 2, 2), *(draw(st.integers(3, 7)) for _ in range(axes)))
    least = -1 if mode == "constant" else 0
    attrs: dict[str, Attr] = {"pad": tuple(draw(st.integers(least, 2)) for _ in range(2 * axes)), "mode": mode}
    if mode == "constant":
        attrs["value"] = draw(st.sampled_from([0.0, -1.5]))
    return Case(op, attrs, (normal(make_rng(draw), *shape),))


@st.composite
def flatten(draw: Draw, op: str) -> Case:
    shape = shapes(draw, 0, 4)
    x = normal(make_rng(draw), *shape)
    if not shape:
        return Case(op, {"start_dim": 0}, (x,), ())
    start, end = sorted(draw(st.integers(0, len(shape) - 1)) for _ in range(2))
    return Case(op, {"start_dim": start, "end_dim": end - len(shape)}, (x,))


@st.composite
def reshape(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    factors = [p for n in shape[1:] for p in ([2, 2] if n == 4 else [n])]
    cut = draw(st.integers(0, len(factors)))
    target = [-1, int(np.prod(factors[:cut])), int(np.prod(factors[cut:]))]
    return Case(op, {"shape": tuple(draw(st.permutations(target)))}, (normal(make_rng(draw), *shape),))


@st.composite
def permute(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    order = draw(st.permutations(range(len(shape))))
    return Case(op, {"dims": tuple(order)}, (normal(make_rng(draw), *shape),))


@st.composite
def transpose(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    attrs: dict[str, Attr] = {"dim0": some_dim(draw, len(shape)), "dim1": some_dim(draw, len(shape))}
    return Case(op, attrs, (normal(make_rng(draw), *shape),))


@st.composite
def squeeze(draw: Draw, op: str) -> Case:
    shape = tuple(draw(st.sampled_from([1, 1, 3])) for _ in range(draw(st.integers(1, 4))))
    dims = some_dims(draw, len(shape))
    return Case(op, {"dim": dims}, (normal(make_rng(draw), *shape),), batched_unless(len(shape), dims))


@st.composite
def unsqueeze(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    return Case(op, {"dim": some_dim(draw, len(shape) + 1)}, (normal(make_rng(draw), *shape),))


@st.composite
def slice_(draw: Draw, op: str) -> Case:
    shape = shapes(draw)
    dim = some_dim(draw, len(shape))
    size = shape[dim]
    start = draw(st.integers(-size - 2, size - 1))
    first = max(start + size, 0) if start < 0 else start
    end = draw(st.none() | st.integers(first + 1, size + 2))
    if end is not None and end < size and draw(st.booleans()):
        end -= size  # the same place counted from the end
    attrs: dict[str, Attr] = {"dim": dim, "start": start, "end": end, "step": draw(st.integers(1, 3))}
    return Case(op, attrs, (normal(make_rng(draw), *shape),), batched_unless(len(shape), [dim]))


@st.composite
def split(draw: Draw, op: str) -> Case:
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    shape = list(shapes(draw))
    dim = some_dim(draw, len(shape))
    shape[dim] = sum(sizes)
    x = normal(make_rng(draw), *shape)
    return Case(op, {"split_sizes": sizes, "dim": dim}, (x,), batched_unless(len(shape), [dim]))


@st.composite
def reduce(draw: Draw, op: str) -> Case:
    shape = shapes(draw, 2)
    batch_stays = list(itertools.permutations(range(1 - len(shape), 0), len(shape) - 1))
    dims = draw(st.sampled_from([None, (), some_dims(draw, len(shape)), *batch_stays]))
    return Case(op, {"dim": dims, "keepdim": draw(st.booleans())}, (normal(make_rng(draw), *shape),))


@st.composite
def embedding(draw: Draw, op: str) -> Case:
    rng = make_rng(draw)
    table = normal(rng, draw(st.integers(1, 9)), draw(st.integers(1, 5)))
    dtype = draw(st.sampled_from([np.int64, np.int32]))
    ids = np.asarray(rng.integers(0, len(table), shapes(draw, 0, 3)), dtype)
    return Case(op, {}, (ids, table), (0,) if ids.ndim else ())


@st.composite
def recurrent_dynamic(draw: Draw, op: str) -> Case:
    gates = {"lstm_dynamic": 4, "gru_dynamic": 3, "rnn_dynamic": 1}[op]
    steps, batch, inputs, hidden = (draw(st.integers(1, 4)) for _ in range(4))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    directions, layout, rng = 1 + (direction == "bidirectional"), draw(st.integers(0, 1)), make_rng(draw)
    x = normal(rng, *((batch, steps) if layout else (steps, batch)), inputs)
    weights = [normal(rng, directions, gates * hidden, size) for size in (inputs, hidden)]
    bias = normal(rng, directions, 2 * gates * hidden) if draw(st.booleans()) else None
    lengths = rng.integers(0, steps + 1, batch) if draw(st.booleans()) else None
    attrs: dict[str, Attr] = {"hidden_size": hidden, "direction": direction, "layout": layout}
    attrs.update(reduce_range=draw(st.booleans()), row_wise=draw(st.booleans()))
    return Case(op, attrs, (x, *weights, bias, lengths), (0,) if lengths is None or not layout else (0, 4))


@st.composite
def embedding_rows(draw: Draw, op: str) -> Case:
    rng, bits, columns = make_rng(draw), draw(st.sampled_from([4, 8])), draw(st.integers(1, 6))
    table = rng.integers(0, 256, (draw(st.integers(1, 9)), -(-columns * bits // 8))).astype(np.uint8)
    ids = rng.integers(0, len(table), shapes(draw, 0, 3))
    arrays = (ids, table, normal(rng, len(table)), normal(rng, len(table)))
    return Case(op, {"bits": bits, "columns": columns}, arrays, (0,) if ids.ndim else ())


STRATEGIES: dict[Callable[[str], st.SearchStrategy[Case]], str] = {
    conv: "conv1d conv2d",
    pool: "max_pool1d max_pool2d avg_pool1d avg_pool2d",
    adaptive_pool: "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d",
    linear: "linear linear_dynamic",
    matmul: "matmul",
    batch_norm: "batch_norm",
    layer_norm: "layer_norm",
    unary: "relu relu6 hardtanh clamp leaky_relu elu hardswish hardsigmoid sigmoid tanh gelu silu "
    "identity dropout quantize dequantize",
    softmax: "softmax",
    prelu: "prelu",
    binary: "add sub mul div",
    cat: "cat",
    pad: "pad",
    flatten: "flatten",
    reshape: "reshape",
    permute: "permute",
    transpose: "transpose",
    squeeze: "squeeze",
    unsqueeze: "unsqueeze",
    slice_: "slice",
    split: "split",
    reduce: "mean sum",
    embedding: "embedding",
    embedding_rows: "embedding_rows",
    recurrent_dynamic: "lstm_dynamic gru_dynamic rnn_dynamic",
}
CASES = {op: make(op) for make, ops in STRATEGIES.items() for op in ops.split()}
"""Operator -> strategy of its cases."""
