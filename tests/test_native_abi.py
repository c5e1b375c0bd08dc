"""The C face of the native engine: its header and the Python twin, and what its files export."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from kernels import SOURCE, compile_flags

from qtool.native import abi
from qtool.native.library import VARIABLE, library

STRUCTS = [*dict.fromkeys(abi.ARGS.values()), abi.CBuffer, abi.COp, abi.CPlanDesc]

pytestmark = pytest.mark.usefixtures("need_native")


# ---- the C header and its Python twin --------------------------------------------------------------------------


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda s: s.c_name)
def test_structures_are_as_large_as_in_c(struct):
    assert ctypes.sizeof(struct) == library().qt_struct_bytes(struct.c_name.encode())


def test_an_unknown_structure_has_no_size():
    assert library().qt_struct_bytes(b"qt_nothing") == -1
    assert library().qt_struct_bytes(None) == -1


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda s: s.c_name)
def test_structures_have_the_fields_of_the_header(struct):
    body = re.search(rf"typedef struct {struct.c_name} \{{(.*?)\}}", _header(), re.DOTALL)
    assert body is not None
    fields = [field for line in _statements(body[1]) for field in _c_fields(line)]
    assert [(name, _c_type(kind)) for name, kind in struct._fields_] == fields


@pytest.mark.parametrize(
    ("prefix", "enum"),
    [
        ("QT_OP_", abi.Kind),
        ("QT_", abi.Unary),
        ("QT_", abi.Binary),
        ("QT_POOL_", abi.Pool),
        ("QT_", abi.Recurrent),
        ("QT_", abi.Storage),
        ("QT_CEILING_", abi.Ceiling),
        ("QT_", abi.Status),
    ],
)
def test_enumerations_have_the_values_of_the_header(prefix, enum):
    header = _header()
    for member in enum:
        assert re.search(rf"\b{prefix}{member.name} = {member.value}\b", header), member


def test_isa_names_are_those_of_the_header():
    assert [f"QT_ISA_{name.upper()} = {i}" in _header() for i, name in enumerate(abi.ISAS)] == [True] * len(abi.ISAS)


def _header() -> str:
    return "".join((SOURCE / name).read_text() for name in ("qtool.h", "qtool_args.h"))


def _statements(body: str) -> list[str]:
    return [part.strip() for part in re.sub(r"//[^\n]*", "", body).split(";") if part.strip()]


def _c_fields(statement: str) -> list[tuple[str, str]]:
    """("in_height", "int32_t") for each field of a declaration; pointers are "pointer", arrays "int64_t[6]"."""
    match = re.fullmatch(r"(?:const )?(?:struct )?(\w+)( ?\*)? *(.*)", statement, re.DOTALL)
    assert match is not None, statement
    kind = "pointer" if match[2] else match[1]
    fields = []
    for name in re.split(r",\s*", match[3]):
        size = re.fullmatch(r"(\w+)\[(\w+)\]", name)
        fields.append((size[1], f"{kind}[{size[2].replace('QT_MAX_INPUTS', '4')}]") if size else (name, kind))
    return fields


def _c_type(kind: type) -> str:
    plain = {
        ctypes.c_int32: "int32_t",
        ctypes.c_int64: "int64_t",
        ctypes.c_float: "float",
        ctypes.c_uint8: "uint8_t",
        ctypes.c_double: "double",
    }
    if kind in plain:
        return plain[kind]
    if issubclass(kind, ctypes.Array):
        return f"{plain[kind._type_]}[{kind._length_}]"
    return "pointer"


# ---- which library ----------------------------------------------------------------------------------------------


def _printed(code: str, named: Path) -> str:
    environment = {**os.environ, VARIABLE: str(named), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_named_library_is_the_one_that_is_loaded(tmp_path):
    named = Path(shutil.copy(library()._name, tmp_path / "other.so"))
    assert _printed("from qtool.native.library import library; print(library()._name)", named) == str(named)


def test_a_named_library_that_cannot_be_loaded_is_said(tmp_path):
    (tmp_path / "text.so").write_text("text")
    for named in (tmp_path / "none.so", tmp_path / "text.so"):
        text = _printed("from qtool import native; print(native.available(), native.why_not())", named)
        assert text.startswith(f"False {named} cannot be loaded: ")


# ---- symbols ----------------------------------------------------------------------------------------------------


ISA_FILES = sorted(p for p in SOURCE.glob("*/*.cc") if re.search(r"(^|_)(avx2|avxvnni|avx512vnni|amx)\.cc$", p.name))


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("nm")), reason="needs g++ and nm")
@pytest.mark.skipif(not ISA_FILES, reason="needs the sources")
@pytest.mark.parametrize("path", ISA_FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_instruction_set_files_export_no_weak_symbol(path, tmp_path):
    """The linker keeps one copy of a weak symbol, and it could be this one, for code that runs on every CPU. Without
    optimization, because inlining hides them."""
    isa = re.search(r"(avx2|avxvnni|avx512vnni|amx)\.cc$", path.name)[1]
    target = tmp_path / "kernel.o"
    command = ["g++", *compile_flags(isa), "-O0", "-c", "-w", "-fno-exceptions", str(path), "-o", str(target)]
    subprocess.run(command, check=True)
    listing = subprocess.run(["nm", "-C", "--defined-only", str(target)], check=True, capture_output=True, text=True)
    weak = [line for line in listing.stdout.splitlines() if re.search(r" [WwVvu] ", line)]
    assert weak == []


VEX_FILES = [path for path in ISA_FILES if path.name == "avxvnni.cc"]


@cache
def _assembly(path: Path, emulated: int) -> str:
    command = ["g++", *compile_flags("avxvnni"), f"-DQT_EMULATE_AVXVNNI={emulated}", "-O2", "-S", "-w", "-o", "-"]
    return subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("objdump")), reason="needs g++ and objdump")
@pytest.mark.skipif(not VEX_FILES, reason="needs the sources")
@pytest.mark.parametrize("path", VEX_FILES, ids=lambda p: p.parent.name)
def test_kernels_of_avxvnni_have_the_encoding_of_cpus_without_avx512(path, tmp_path):
    target = tmp_path / "kernel.o"
    command = ["g++", "-c", "-x", "assembler", "-", "-o", str(target)]
    subprocess.run(command, input=_assembly(path, 0), check=True, text=True)
    listing = subprocess.run(["objdump", "-d", str(target)], check=True, capture_output=True, text=True).stdout
    lines = listing.splitlines()
    products = [line for line in lines if "vpdp" in line]
    assert products
    assert [line for line in products if "{vex}" not in line] == []
    assert [line for line in lines if re.match(r"\s*[0-9a-f]+:\t62 ", line)] == []  # the first byte of an EVEX encoding


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.skipif(not VEX_FILES, reason="needs the sources")
@pytest.mark.parametrize("path", VEX_FILES, ids=lambda p: p.parent.name)
def test_what_emulates_avxvnni_differs_by_the_encoding_alone(path):
    """So that what tests ran on a CPU with the other encoding is, instruction by instruction, what others run."""
    plain, emulated = _assembly(path, 0), _assembly(path, 1)
    assert plain.count("{vex} vpdp") == emulated.count("vpdp") > 0
    assert plain.replace("{vex} ", "") == emulated


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_the_library_shows_its_c_face_and_nothing_else():
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", library()._name], check=True, capture_output=True, text=True
    )
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert names == set(re.findall(r"QT_API [\w ]*?\*? ?(qt_\w+)\(", _header()))
