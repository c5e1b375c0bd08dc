"""The loops that measure the machine: that they do the work they are counted for, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.analysis.bench import BenchOptions, Contender, OperatorRow, run_bench
from qtool.analysis.ceilings import Ceilings, cache_sizes, read_sizes
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.ops import Builder

ROWS = kernel_rows("ceilings")
BYTES = 1024
MADE_UP = Ceilings(1, {"scalar": 1.0, "avx2": 8.0, "amx": 64.0}, {"scalar": 1.0, "avx2": 4.0}, {"L1": 1.0}, {"L1": 1})


def run(row, kind, data, rounds, threads=1):
    chunks = len(data)
    args = abi.make(abi.CeilingArgs, kind=kind, chunks=chunks, bytes=data.nbytes // chunks, rounds=rounds)
    return run_kernel(row, Kind.CEILING, args, [data], np.empty(chunks, np.int64), threads=threads)


def products(dtypes, low, high):
    """Three chunks that begin with two vectors of 64 bytes; integers, so that sums are exact in any order."""
    rng = np.random.default_rng(0)
    data, vectors = rng.integers(0, 256, (3, BYTES), dtype=np.uint8), []
    for place, (dtype, least) in enumerate(zip(dtypes, low, strict=True)):
        vector = rng.integers(least, high, (3, 64 // np.dtype(dtype).itemsize)).astype(dtype)
        data[:, 64 * place : 64 * place + 64] = vector.view(np.uint8).reshape(3, 64)
        vectors.append(vector.astype(np.int64))
    return data, (vectors[0] * vectors[1]).sum(axis=1)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("rounds", [0, 1024, 3 * 1024])
def test_int8_products_are_all_done(row, rounds):
    data, dots = products((np.uint8, np.int8), (0, -128), 128)
    np.testing.assert_array_equal(run(row, abi.Ceiling.INT8, data, rounds, threads=2), rounds * dots)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("rounds", [0, 1024, 3 * 1024])
def test_float_products_are_all_done(row, rounds):
    data, dots = products((np.float32, np.float32), (-8, -8), 9)  # sums below 2**24
    np.testing.assert_array_equal(run(row, abi.Ceiling.FLOAT, data, rounds), rounds * dots)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("size", "rounds"), [(1024, 0), (1024, 1), (3 * 1024, 5), (64 * 1024, 2)])
def test_every_word_is_read_every_round(row, size, rounds):
    words = np.random.default_rng(0).integers(-1000, 1000, (3, size // 4), dtype=np.int32)
    got = run(row, abi.Ceiling.READ, words, rounds, threads=2)
    np.testing.assert_array_equal(got, rounds * words.sum(axis=1, dtype=np.int64))


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": 3}, "no such kind"),
        ({"chunks": 0}, "chunks"),
        ({"rounds": -1}, "rounds"),
        ({"rounds": 1000}, "multiple of 1024"),
        ({"bytes": 0}, "multiple of 1024"),
        ({"bytes": 1025}, "multiple of 1024"),
        ({"bytes": 2**60}, "too large"),
        ({"chunks": 2}, "input 0 has"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    args = abi.make(abi.CeilingArgs, **{"kind": 0, "chunks": 1, "bytes": BYTES, "rounds": 1024, **changes})
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.CEILING, (0,), 1, args)], [Buffer(BYTES), Buffer(8)], 0)


# --------------------------------------------------------------------------------------------------- what is made of it


def test_the_peak_is_that_of_an_instruction_set_and_those_below():
    assert [MADE_UP.peak(isa, int8=True) for isa in ("scalar", "avx2", "avx512vnni", "amx")] == [1.0, 8.0, 8.0, 64.0]
    assert MADE_UP.peak("amx", int8=False) == 4.0


def test_caches_are_those_that_the_system_tells(tmp_path):
    told = [("1", "Data", "48K"), ("1", "Instruction", "64K"), ("2", "Unified", "2048K"), ("3", "Unified", "what?")]
    for number, values in enumerate(told):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size"), values, strict=True):
            (folder / name).write_text(value + "\n")
    (tmp_path / "index9").mkdir()
    assert cache_sizes(tmp_path) == {"L1": 48 << 10, "L2": 2 << 20, "L3": 32 << 20}
    assert cache_sizes(tmp_path / "none") == {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_what_is_read_of_a_level_does_not_fit_the_one_before(threads, monkeypatch):
    caches = {"L1": 48 << 10, "L2": 2 << 20, "L3": 480 << 20}
    monkeypatch.setattr("qtool.analysis.ceilings.cache_sizes", lambda: caches)
    sizes = read_sizes(threads)
    assert all(size % 4096 == 0 for size in sizes.values())
    assert sizes["L1"] < caches["L1"] < sizes["L2"] < caches["L2"] < sizes["L3"]
    assert threads * sizes["L3"] <= caches["L3"] < threads * sizes["memory"]


@pytest.mark.usefixtures("need_native")
def test_operators_are_held_against_the_peak_of_their_precision(monkeypatch):
    monkeypatch.setattr("qtool.analysis.bench.measure_ceilings", lambda threads: replace(MADE_UP, threads=threads))
    b = Builder("fc")
    x = b.input("x", ("N", 64))
    y = b.node("linear", [x, b.param("w", np.eye(64, dtype=np.float32))], name="fc")
    graph = b.finish([b.node("tanh", [y], name="tanh")])
    result = run_bench([Contender("f", "float32", graph)], BenchOptions(seconds=0.0, warmup=0, per_op=True))
    assert result.ceilings == MADE_UP
    rows: dict[str, OperatorRow] = {row.op: row for row in result.rows[0].operators}
    assert rows["linear"].peak == pytest.approx(rows["linear"].gops / MADE_UP.peak(result.rows[0].isa, int8=False))
    assert rows["tanh"].peak is None
    assert result.to_json()["ceilings"]["int8"] == MADE_UP.int8
