"""The tile unit: its model in C++ against NumPy and its faults, and the code that the compiler makes of the kernels."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernels import SOURCE, compile_flags
from qconv_cases import Case, linear, numbers

from qtool import native
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.native.library import library

HAS_KERNELS = native.available() and "qtileconv_amx" in {row.name for row in native.kernels()}
FACE = """
#include "core/tile.h"
extern "C" {
void config(const void* bytes) { qtool::emulate_tile_config(*static_cast<const qtool::TileConfig*>(bytes)); }
void load(int tile, const void* from, int64_t pitch) { qtool::emulate_tile_load(tile, from, pitch); }
void store(int tile, void* to, int64_t pitch) { qtool::emulate_tile_store(tile, to, pitch); }
void dot(int sum, int a, int b) { qtool::emulate_tile_dot(sum, a, b); }
void release() { qtool::emulate_tile_release(); }
}
"""


# ---- the model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the tile unit as a library of its own."""
    if not shutil.which("g++") or not SOURCE.is_dir():
        pytest.skip("needs g++ and the sources")
    folder = tmp_path_factory.mktemp("unit")
    (folder / "face.cc").write_text(FACE)
    sources = [str(folder / "face.cc"), str(SOURCE / "core" / "tile_emulation.cc")]
    target = folder / "unit.so"
    subprocess.run(["g++", *compile_flags(), "-O1", "-shared", "-fPIC", *sources, "-o", str(target)], check=True)
    return target


def config(*tiles: tuple[int, int], palette: int = 1) -> bytes:
    """What LDTILECFG reads, for tiles of so many rows and bytes a row."""
    rows = [tile[0] for tile in tiles] + [0] * (16 - len(tiles))
    row_bytes = [tile[1] for tile in tiles] + [0] * (16 - len(tiles))
    return bytes([palette, *[0] * 15]) + np.array(row_bytes, np.uint16).tobytes() + bytes(rows)


@pytest.mark.parametrize(("m", "k", "n"), [(16, 16, 16), (1, 1, 1), (5, 3, 7), (16, 1, 9), (2, 16, 16)])
def test_the_model_multiplies_as_the_formula_says(unit, m, k, n):
    tiles = ctypes.CDLL(str(unit))
    rng = np.random.default_rng(m)
    a = rng.integers(0, 256, (m, 100)).astype(np.uint8)  # rows lie further apart than they are long
    b = rng.integers(-128, 128, (k, 4 * n + 3)).astype(np.int8)
    start = rng.integers(-(2**31), 2**31, n).astype(np.int32)  # some sums go round
    tiles.config(config((m, 4 * n), (m, 4 * k), (k, 4 * n)))
    tiles.load(0, ctypes.c_void_p(start.ctypes.data), ctypes.c_int64(0))
    for tile, array in ((1, a), (2, b)):
        tiles.load(tile, ctypes.c_void_p(array.ctypes.data), ctypes.c_int64(array.strides[0]))
    tiles.dot(0, 1, 2)
    tiles.dot(0, 1, 2)
    got = np.full((m, n + 1), 77, np.int32)
    tiles.store(0, ctypes.c_void_p(got.ctypes.data), ctypes.c_int64(got.strides[0]))
    tiles.release()
    left = a[:, : 4 * k].astype(np.int64)
    right = b[:, : 4 * n].reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n).astype(np.int64)
    np.testing.assert_array_equal(got[:, :n], (start + 2 * (left @ right)).astype(np.int32))
    assert (got[:, n] == 77).all()


FAULTS = [
    ("release()", "not configured"),
    (f"config({config((16, 64), palette=2)!r})", "palette"),
    (f"config({config((17, 64))!r})", "larger than 16 rows"),
    (f"config({config((16, 65))!r})", "larger than 16 rows"),
    (f"config({config((16, 0))!r})", "rows without bytes"),
    (f"config({config(*[(16, 64)] * 9)!r})", "no such tile"),
    (f"config({config((16, 64), (16, 64))!r})", "the tile is not configured"),
    (f"config({config((8, 64), (16, 64), (16, 64))!r})", "different rows"),
    (f"config({config((16, 32), (16, 64), (16, 64))!r})", "different columns"),
    (f"config({config((16, 64), (16, 60), (16, 64))!r})", "four bytes"),
    (f"config({config((16, 64), (16, 62), (16, 64))!r})", "multiple of 4"),
]


@pytest.mark.parametrize(("before", "message"), FAULTS)
def test_the_model_ends_where_the_unit_faults(unit, before, message):
    code = f"import ctypes; tiles = ctypes.CDLL({str(unit)!r}); tiles.{before}; tiles.dot(0, 1, 2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert "tile unit: #" in done.stderr
    assert message in done.stderr


def test_a_tile_named_twice_is_a_fault(unit):
    bytes_ = config(*[(16, 64)] * 3)
    code = f"import ctypes; tiles = ctypes.CDLL({str(unit)!r}); tiles.config({bytes_!r}); tiles.dot(0, 1, 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "named twice" in done.stderr


# ---- which layers go to tiles -------------------------------------------------------------------------------------


@pytest.mark.skipif("amx" not in native.supported_isas(), reason=f"amx: {native.isa_note('amx')}")
@pytest.mark.parametrize(
    ("case", "family"),
    [
        (Case(size=(28, 28), channels=(128, 128), kernel=(3, 3), pad=(1, 1, 1, 1)), "qtileconv_amx"),
        (Case(size=(112, 112), channels=(3, 64), kernel=(7, 7), stride=(2, 2)), "qtileconv_amx"),
        (linear(9, 64, 16), "qtileconv_amx"),
        (linear(8, 4096, 1000), "qconv_avx512vnni"),  # few rows
        (linear(1000, 32, 64), "qconv_avx512vnni"),  # k is short
        (linear(100, 100, 5), "qconv_avx512vnni_narrow"),  # a third of a tile is not used
        (Case(size=(28, 28), channels=(64, 64), groups=16, kernel=(3, 3)), "qconv_avx512vnni_narrow"),
        (Case(size=(28, 28), channels=(64, 64), groups=64, kernel=(3, 3)), "qdwconv_avx512vnni"),
    ],
    ids=repr,
)
def test_layers_that_fill_tiles_go_to_them(case, family):
    n = numbers(case, 0)
    sizes = [n.x.nbytes, int(np.prod(case.out_shape))]
    buffers = [Buffer(size, i << 24) for i, size in enumerate(sizes)]
    assert Plan([Op(Kind.QCONV, (0,), 1, n.args)], buffers, 1 << 25, isa="amx").kernels == (family,)


@pytest.mark.skipif("amx" not in native.supported_isas(), reason=f"amx: {native.isa_note('amx')}")
@pytest.mark.parametrize(
    ("rows", "inputs", "kernel"),
    [
        (16, 64, "qlinear_dynamic_amx"),
        (15, 64, "qlinear_dynamic_avx512vnni"),
        (128, 32, "qlinear_dynamic_avx512vnni"),
    ],
)
def test_dynamic_layers_of_many_rows_go_to_tiles(rows, inputs, kernel):
    weight, w_scale = np.ones((8, inputs), np.int8), np.ones(8, np.float32)
    args = abi.make(
        abi.LinearDynamicArgs, rows=rows, in_features=inputs, out_features=8, weight=weight, w_scale=w_scale
    )
    buffers = [Buffer(rows * inputs * 4, 0), Buffer(rows * 32, 1 << 20)]
    assert Plan([Op(Kind.QLINEAR_DYNAMIC, (0,), 1, args)], buffers, 1 << 21, isa="amx").kernels == (kernel,)


# ---- the code -----------------------------------------------------------------------------------------------------


def _inner_loops(path: str) -> list[list[str]]:
    """Instructions of the loops that multiply tiles and call nothing, of the library at ``path``."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], check=True, capture_output=True, text=True)
    lines = re.findall(r"^ *([0-9a-f]+):\t(.*)$", listing.stdout, re.MULTILINE)
    index = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (_, text) in enumerate(lines):
        jump = re.match(r"j\w+ +([0-9a-f]+)", text)
        start = index.get(int(jump[1], 16), i) if jump else i
        body = [text for _, text in lines[start : i + 1]]
        loads = any("tileloadd" in text for text in body)  # the loop that only measures the unit has none
        multiplies = loads and 0 < sum("tdpbusd" in text for text in body) <= 4
        if start < i < start + 40 and multiplies and not any("call" in text for text in body):
            loops.append(body)
    return loops


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.skipif(not HAS_KERNELS, reason="the library has no AMX kernels")
@pytest.mark.skipif("emulated" in native.isa_note("amx"), reason="the library emulates tiles")
def test_inner_loops_have_their_loads_and_products_and_nothing_on_the_stack():
    loops = _inner_loops(library()._name)
    counts = {sum("tileloadd" in text for text in body) for body in loops}
    assert counts == {4, 5}, "2 x 2 blocks load 4 tiles a step, 4 x 1 and 1 x 4 load 5"
    for body in loops:
        assert sum("tdpbusd" in text for text in body) == 4
        assert not [text for text in body if "%rsp" in text or "%rbp" in text or "zmm" in text], body


TRAP_SOURCES = {
    "tests/tile_trap.cc": "",
    "qtool/native/core/tile_emulation.cc": "",
    "qtool/native/qtileconv/scalar.cc": "",
    "qtool/native/qtileconv/amx.cc": "amx",
    "qtool/native/qlinear_dynamic/amx.cc": "amx",
    "qtool/native/qlinear_dynamic/avx512vnni.cc": "avx512vnni",
}


@pytest.mark.skipif(not (shutil.which("g++") and SOURCE.is_dir()), reason="needs g++ and the sources")
@pytest.mark.skipif("avx512vnni" not in native.supported_isas(), reason="this CPU does not have avx512vnni")
@pytest.mark.skipif(not HAS_KERNELS, reason="the library has no AMX kernels")
def test_what_the_compiler_made_of_the_kernels_gives_the_same_bits(tmp_path):
    """Not the emulating build: the instructions themselves, each done by the model where the CPU refuses it."""
    objects = []
    for i, (source, isa) in enumerate(TRAP_SOURCES.items()):
        objects.append(str(tmp_path / f"{i}.o"))
        command = ["g++", *compile_flags(isa), "-O3", "-w", "-c", str(SOURCE.parent.parent / source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    subprocess.run(["g++", *objects, "-o", str(tmp_path / "trap")], check=True)
    done = subprocess.run([str(tmp_path / "trap")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in ("qtileconv_amx", "qlinear_dynamic_amx"):
        counts = re.search(rf"{kernel}: (\d+) results are the same, (\d+) tile instructions trapped", done.stdout)
        assert counts is not None
        assert int(counts[1]) > 100_000
        assert int(counts[2]) > 1000 or native.isa_note("amx") == ""
