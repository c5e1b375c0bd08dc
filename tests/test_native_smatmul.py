"""Products of two activations: every row against float64, and what the plan folds into them against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import isas, kernel_rows, run_kernel

from qtool import native
from qtool.engine import reference
from qtool.engine.lowering.view import View, dense
from qtool.engine.session import Session
from qtool.errors import EngineError
from qtool.ir import Graph
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.ops.builder import Builder

ROWS = [row for row in kernel_rows("sconv") if row.values[0] is None or row.values[0].name.startswith("sconv_")]
SIZES = [*range(1, 11), 15, 16, 17, 31, 33, 48, 63, 64, 65, 129]
UNIT = 2.0**-24


@dataclass(frozen=True)
class Operand:
    """A tensor (batch, rows, columns) whose axes lie in memory in some order."""

    memory: np.ndarray
    array: np.ndarray

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(stride // 4 for stride in self.array.strides)


def operand(rng: np.random.Generator, shape: tuple[int, ...], order: tuple[int, ...]) -> Operand:
    memory = rng.normal(size=[shape[axis] for axis in order]).astype(np.float32)
    return Operand(memory, memory.transpose(np.argsort(order)))


ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1))


def _args(a: Operand, b: Operand, mask: Operand | None, **changes: object) -> abi.MatmulArgs:
    n, rows, inner = a.array.shape
    columns = b.array.shape[2]
    fields: dict[str, object] = {
        "batch": (1, 1, 1, n), "rows": rows, "inner": inner, "columns": columns,
        "a_batch": (0, 0, 0, a.strides[0]), "a_row": a.strides[1], "a_inner": a.strides[2],
        "b_batch": (0, 0, 0, b.strides[0]), "b_inner": b.strides[1], "b_column": b.strides[2],
        "y_batch": (0, 0, 0, rows * columns), "y_row": columns, "scale": 1.0,
    }  # fmt: skip
    if mask is not None:
        fields |= {"mask": 1, "mask_batch": (0, 0, 0, mask.strides[0]), "mask_row": mask.strides[1]}
    return abi.make(abi.MatmulArgs, **{**fields, **changes})


def _check(row: native.KernelRow, sizes: tuple[int, ...], seed: int, threads: int = 1) -> np.ndarray:
    """Products and sums are rounded one after another: as many half units of the sum of sizes as there are terms."""
    rng = np.random.default_rng(seed)
    n, rows, inner, columns = sizes
    a = operand(rng, (n, rows, inner), ORDERS[rng.integers(6)])
    b = operand(rng, (n, inner, columns), ORDERS[rng.integers(6)])
    scale = float(rng.choice([1.0, 0.125, -0.3]))
    kinds = (None, operand(rng, (n, rows, columns), (0, 1, 2)), operand(rng, (n, 1, columns), (0, 1, 2)))
    mask = kinds[rng.integers(3)]
    changes: dict[str, object] = {"scale": scale}
    if mask is not None and mask.array.shape[1] == 1:
        changes["mask_row"] = 0
    inputs = [a.memory, b.memory] + ([] if mask is None else [mask.memory])
    like = np.empty((n, rows, columns), np.float32)
    got = run_kernel(row, Kind.SMATMUL, _args(a, b, mask, **changes), inputs, like, threads=threads)
    wide = a.array.astype(np.float64), b.array.astype(np.float64)
    added = 0.0 if mask is None else mask.array.astype(np.float64)
    expected = scale * (wide[0] @ wide[1]) + added
    bound = (inner + 3) * 2 * UNIT * (abs(scale) * (np.abs(wide[0]) @ np.abs(wide[1])) + np.abs(added))
    assert (np.abs(got - expected) <= bound + 1e-30).all(), sizes
    return got


@pytest.mark.parametrize("row", ROWS)
def test_every_size(row):
    for i, size in enumerate(SIZES):
        for sizes in ((1, size, 7, 9), (2, 5, size, 70 - i), (1 + i % 3, 1 + i % 13, 4, size)):
            _check(row, sizes, 10 * i + sizes[0])


@pytest.mark.parametrize("row", ROWS)
def test_blocks_of_long_sums_and_many_rows(row):
    """Long sums are cut in blocks and many rows in chunks; the number of threads changes no bit."""
    for seed, sizes in enumerate(((1, 7, 9000, 11), (2, 800, 20, 40), (1, 390, 1100, 70), (3, 1, 5, 200))):
        results = [_check(row, sizes, seed, threads) for threads in (1, 2, 3)]
        assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("row", ROWS)
def test_nan_and_infinity_stay_where_they_belong(row):
    a, b = (operand(np.random.default_rng(0), (1, 20, 20), (0, 1, 2)) for _ in range(2))
    a.memory[0, 3, 4], b.memory[0, 5, 17] = np.nan, np.inf
    got = run_kernel(row, Kind.SMATMUL, _args(a, b, None), [a.memory, b.memory], np.empty((1, 20, 20), np.float32))
    wrong = ~np.isfinite(got[0])
    expected = np.zeros((20, 20), bool)
    expected[3], expected[:, 17] = True, True
    np.testing.assert_array_equal(wrong, expected)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "1 or more"),
        ({"inner": -1}, "1 or more"),
        ({"a_row": -1}, "negative"),
        ({"batch": (1, 1, 1, -2)}, "negative"),
        ({"b_batch": (0, 0, 0, -2)}, "negative"),
        ({"a_row": 2**50}, "too large"),
        ({"a_offset": 1}, "input 0 has"),
        ({"b_column": 2}, "input 1 has"),
        ({"y_row": 5}, "the output has"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    a, b = (operand(np.random.default_rng(0), (2, 4, 4), (0, 1, 2)) for _ in range(2))
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.SMATMUL, (0, 1), 2, _args(a, b, None, **changes))], [Buffer(128), Buffer(128), Buffer(128)], 0)


# ---- what the plan folds into a product -------------------------------------------------------------------------


def _compare(graph: Graph, isa: str, seed: int = 0) -> Session:
    rng = np.random.default_rng(seed)
    feeds = {name: rng.normal(size=graph.values[name].shape).astype(np.float32) for name in graph.inputs}
    session = Session(graph, isa=isa)
    assert not session.fallbacks
    expected = reference.run(graph, feeds)
    for name, got in session.run(feeds).items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-5)
    return session


def attention(heads: int, mask: tuple[int, ...], joined: bool, outputs: bool = False) -> Graph:
    """Attention over (2, 7, heads * 5); ``joined``: queries, keys and values are slices of one value."""
    b, width = Builder("attention"), heads * 5
    if joined:
        x = b.input("x", (2, 7, 3 * width))
        parts = b.nodes("split", [x], 3, split_sizes=(width,) * 3, dim=2)
    else:
        parts = [b.input(name, (2, 7, width)) for name in "qkv"]
    q, k, v = (
        b.node("permute", [b.node("reshape", [part], f"r{i}", shape=(2, 7, heads, 5))], f"p{i}", dims=(0, 2, 1, 3))
        for i, part in enumerate(parts)
    )
    scores = b.node("matmul", [q, b.node("transpose", [k], "t", dim0=-1, dim1=-2)], "scores")
    scores = b.node("div", [scores, b.param("c", np.float32(5**0.5))], "scaled")
    scores = b.node("add", [scores, b.input("mask", mask)], "masked")
    y = b.node("matmul", [b.node("softmax", [scores], "softmax", dim=-1), v], "context")
    y = b.node("reshape", [b.node("permute", [y], "back", dims=(0, 2, 1, 3))], "y", shape=(2, 7, width))
    return b.finish([y, q, scores] if outputs else [y])


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("mask", [(7,), (1, 1, 1, 7), (2, 1, 1, 7), (2, 1, 7, 7), (2, 3, 7, 7), (1, 7)])
def test_attention_copies_nothing(mask, joined, isa):
    graph = attention(3, mask, joined)
    session = _compare(graph, isa)
    feeds = {name: np.zeros(graph.values[name].shape, np.float32) for name in graph.inputs}
    nodes = [timing.node for timing in session.profile(feeds) if "layout" not in timing.kernel]
    assert nodes == ["scores + scaled + masked", "softmax", "context + back"]
    moved = [timing.node for timing in session.profile(feeds) if "layout" in timing.kernel]
    assert set(moved) <= {"y"}  # what leaves the plan


@pytest.mark.parametrize("isa", isas())
def test_what_is_read_elsewhere_is_still_made(isa):
    _compare(attention(3, (2, 3, 7, 7), joined=True, outputs=True), isa)


@settings(max_examples=60)
@given(data=st.data(), isa=st.sampled_from(isas()))
def test_any_product(data, isa):
    """Shapes that are broadcast, vectors, and permutations on both sides."""
    sizes = st.integers(1, 5)
    rows, inner, columns = data.draw(sizes), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    batch = [data.draw(sizes) for _ in range(data.draw(st.integers(0, 3)))]
    b = Builder("product")
    sides = []
    for name, matrix in (("a", [rows, inner]), ("b", [inner, columns])):
        leading = batch[data.draw(st.integers(0, len(batch))) :]
        shape = [1 if data.draw(st.booleans()) else size for size in leading] + matrix
        if data.draw(st.booleans()) and len(matrix) == len(shape):
            shape = [inner]
        order = data.draw(st.permutations(range(len(shape))))
        x = b.input(name, tuple(shape[axis] for axis in order))
        sides.append(b.node("permute", [x], f"{name}.p", dims=tuple(int(i) for i in np.argsort(order))))
    y = b.node("matmul", sides, "y")
    rank = len(b.value(y).shape)
    if rank > 1:
        y = b.node("permute", [y], "turned", dims=tuple(data.draw(st.permutations(range(rank)))))
    _compare(b.finish([y]), isa)


@given(data=st.data())
def test_views_are_where_numpy_says(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    view = View(0, dense(shape))
    dims = tuple(data.draw(st.permutations(range(len(shape)))))
    turned, view = array.transpose(dims), view.permuted(dims)
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, turned.shape[axis] - 1))
    cut, view = np.moveaxis(np.moveaxis(turned, axis, 0)[start:], 0, axis), view.cut(axis, start)
    memory = array.ravel()
    spots = sum(np.ix_(*(np.arange(n) * s for n, s in zip(cut.shape, view.strides, strict=True)))) + view.offset
    np.testing.assert_array_equal(memory[spots], cut)
    new = tuple(data.draw(st.permutations([*cut.shape, 1])))
    again = view.reshaped(cut.shape, new)
    if again is not None:
        spots = sum(np.ix_(*(np.arange(n) * s for n, s in zip(new, again.strides, strict=True)))) + again.offset
        np.testing.assert_array_equal(memory[spots], cut.reshape(new))
    whole = view.permutation(cut.shape)
    if whole is not None:
        np.testing.assert_array_equal(memory.reshape(whole[0]).transpose(whole[1]).reshape(cut.shape), cut)
