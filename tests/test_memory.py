"""How much memory quantizing takes beside the model's own file, which is mapped: counted by allocation."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qtool.ir import DType, QParams
from qtool.ir.npz import load, save
from qtool.ir.pieces import PIECE, all_finite, row_pieces
from qtool.ops import Builder
from qtool.pipeline import quantize_recipe
from qtool.recipe.load import load_recipe

MB = 1e6
RECIPE = "{model: large.npz, output: large.int8.npz, mode: dynamic, qconfig_dict: {'': float_qparams}}"


@contextmanager
def quiet(label: str, total: int | None = None):
    yield lambda done: None  # noqa: ARG005 (nobody looks)


def quantized_peak(folder: Path, rows: int) -> tuple[float, int, int]:
    """The most that is allocated while a model of one table and one linear layer of ``rows`` x 1024 is quantized, the
    bytes of its weights in float, and those of the quantized ones."""
    b, rng = Builder("large"), np.random.default_rng(0)
    weight = rng.standard_normal((rows, 1024), np.float32)
    tokens = b.input("tokens", ("N", 4), DType.INT64)
    with b.scope("emb"):
        y = b.node("embedding", [tokens, b.param("weight", weight)])
    with b.scope("fc"):
        graph = b.finish([b.node("linear", [y, b.param("weight", weight)])])
    save(graph, folder / "large.npz")
    (folder / "recipe.yaml").write_text(RECIPE)
    size = graph.parameter_bytes()
    del graph, weight, b
    tracemalloc.start()
    try:
        quantize_recipe(load_recipe(folder / "recipe.yaml"), quiet)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak, size, load(folder / "large.int8.npz").parameter_bytes()


def test_quantizing_allocates_little_more_than_the_quantized_weights(tmp_path):
    """One weight is half of this model, so a single copy of it in float would show: that alone is half of its size."""
    quantized_peak(tmp_path, 1024)  # what is imported and remembered once
    peak, size, result = quantized_peak(tmp_path, 16384)
    assert size == 2 * 16384 * 1024 * 4
    assert result < 0.26 * size
    assert peak < result + 0.1 * size


# --------------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("shape", [(0, 3), (1, 2 * PIECE), (7, 5), (3, PIECE // 2 + 1), (2 * PIECE + 1,), (4, 0)])
def test_pieces_cover_every_row_once(shape):
    rows = np.arange(shape[0])
    pieces = [rows[piece] for piece in row_pieces(shape)]
    np.testing.assert_array_equal(np.concatenate(pieces), rows)
    assert all(len(piece) * max(1, int(np.prod(shape[1:]))) <= PIECE or len(piece) == 1 for piece in pieces)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_pieces_are_quantized_with_the_parameters_of_their_rows(axis):
    x = np.random.default_rng(0).standard_normal((300, 700), np.float32)  # several pieces
    assert len(list(row_pieces(x.shape))) > 1
    count = 1 if axis is None else x.shape[axis]
    scale = np.linspace(0.01, 0.1, count, dtype=np.float32)
    found = QParams(scale, np.zeros(count, np.int32), DType.INT8, axis).quantize(x)
    along = scale if axis is None else np.expand_dims(scale, 1 - axis)
    np.testing.assert_array_equal(found, np.clip(np.rint(x * (np.float32(1) / along)), -128, 127))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(bad):
    x = np.zeros((3, PIECE), np.float32)
    assert all_finite(x)
    assert all_finite(x[0, 0])
    x[2, -1] = bad
    assert not all_finite(x)
    assert not all_finite(x[2, -1])
