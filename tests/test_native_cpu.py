"""Which instruction sets are found on CPUs of many kinds, and that each runs no kernel that it has not."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernels import SOURCE, compile_flags
from qconv_cases import linear, numbers

from qtool import native
from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

BASIC = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29  # leaf 1, ecx: FMA, OSXSAVE, AVX, F16C
AVX2 = 1 << 5  # leaf 7, ebx
AVX512 = AVX2 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31  # and F, DQ, CD, BW, VL
AVX512_VNNI = 1 << 11  # leaf 7, ecx
AVX_VNNI = 1 << 4  # leaf 7.1, eax
YMM, ZMM = 0b111, 0b11100111  # registers that the operating system saves

CPUS = {
    "x86-64": ((0, 0, 0, 0, YMM), ["scalar"]),
    "haswell": ((BASIC, AVX2, 0, 0, YMM), ["scalar", "avx2"]),
    "skylake-x": ((BASIC, AVX512, 0, 0, ZMM), ["scalar", "avx2"]),
    "cascade lake": ((BASIC, AVX512, AVX512_VNNI, 0, ZMM), ["scalar", "avx2", "avx512vnni"]),
    "alder lake": ((BASIC, AVX2, 0, AVX_VNNI, YMM), ["scalar", "avx2", "avxvnni"]),
    "sapphire rapids": ((BASIC, AVX512, AVX512_VNNI, AVX_VNNI, ZMM), ["scalar", "avx2", "avxvnni", "avx512vnni"]),
    "no AVX-512 by the system": ((BASIC, AVX512, AVX512_VNNI, AVX_VNNI, YMM), ["scalar", "avx2", "avxvnni"]),
    "no AVX by the system": ((BASIC, AVX2, 0, AVX_VNNI, 0b011), ["scalar"]),
    "AVX-VNNI and no AVX2": ((BASIC, 0, 0, AVX_VNNI, YMM), ["scalar"]),
}

CPUID = """
#pragma once
extern unsigned pretended[5];
static inline int __get_cpuid_count(unsigned leaf, unsigned subleaf, unsigned* a, unsigned* b, unsigned* c, unsigned*) {
  if (leaf == 1) *c = pretended[0];
  if (leaf == 7 && subleaf == 0) *b = pretended[1], *c = pretended[2];
  if (leaf == 7 && subleaf == 1) *a = pretended[3];
  return 1;
}
"""

MAIN = """
#include <cstdio>
#include <cstdlib>
#include "core/cpu.h"
#include "qtool.h"
unsigned pretended[5];
int main(int, char** arguments) {
  for (int i = 0; i < 5; i++) pretended[i] = std::strtoul(arguments[1 + i], nullptr, 10);
  for (int isa = 0; isa < QT_ISA_COUNT; isa++) {
    if (qtool::cpu_supports(isa)) std::puts(qtool::isa_name(isa));
  }
}
"""


@pytest.fixture(scope="module")
def detection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints what core/cpu.cc finds, of the registers of cpuid and of XCR0 in its arguments."""
    if not (shutil.which("g++") and SOURCE.is_dir() and platform.machine() in ("x86_64", "AMD64")):
        pytest.skip("needs g++, the sources and x86-64")
    folder = tmp_path_factory.mktemp("cpu")
    text = (SOURCE / "core" / "cpu.cc").read_text()
    xgetbv = '__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));'
    assert text.count(xgetbv) == 1
    (folder / "cpuid.h").write_text(CPUID)
    (folder / "cpu.cc").write_text(text.replace(xgetbv, "low = pretended[4], high = 0;"))
    (folder / "main.cc").write_text(MAIN)
    flags = [*compile_flags(), "-DQT_EMULATE_AMX=0", "-DQT_EMULATE_AVXVNNI=0", f"-I{folder}"]
    command = ["g++", *flags, str(folder / "cpu.cc"), str(folder / "main.cc"), "-o", str(folder / "detect")]
    subprocess.run(command, check=True)
    return folder / "detect"


@pytest.mark.parametrize("cpu", CPUS)
def test_instruction_sets_are_those_that_the_cpu_tells_and_the_system_saves(cpu, detection):
    registers, expected = CPUS[cpu]
    done = subprocess.run([detection, *map(str, registers)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == expected


def _plan(isa: str, kernel: str | None = None) -> Plan:
    n = numbers(linear(7, 36, 20), 0)
    buffers = [Buffer(n.x.nbytes), Buffer(n.args.batch * n.args.out_channels)]
    return Plan([Op(Kind.QCONV, (0,), 1, n.args, kernel)], buffers, 0, isa=isa)


def _runs(isa: str) -> set[str]:
    """The instruction sets whose kernels a CPU with ``isa`` runs."""
    return {"avxvnni", *abi.ISAS[:2]} if isa == "avxvnni" else set(abi.ISAS[: abi.ISAS.index(isa) + 1]) - {"avxvnni"}


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize("isa", abi.ISAS)
def test_an_instruction_set_runs_its_own_kernels_and_those_it_includes(isa):
    if isa not in native.supported_isas():
        pytest.skip(f"this CPU does not have {isa}")
    rows = {row.name: row.isa for row in native.kernels() if row.family == "qconv"}
    assert rows[_plan(isa).kernels[0]] == ("avx512vnni" if isa == "amx" else isa)
    for name, needed in rows.items():
        if needed in _runs(isa):
            assert _plan(isa, name).kernels == (name,)
        else:
            with pytest.raises(EngineError, match=f"kernel {name} needs {needed}"):
                _plan(isa, name)


@pytest.mark.usefixtures("need_native")
def test_operators_without_a_kernel_for_avxvnni_go_to_that_of_avx2():
    if "avxvnni" not in native.supported_isas():
        pytest.skip("this CPU does not have avxvnni")
    args = abi.make(abi.BinaryArgs, rows=1, channels=64, a_scale=1.0, b_scale=1.0, inv_scale=1.0, out_max=255)
    plan = Plan([Op(Kind.QBINARY, (0, 1), 2, args)], [Buffer(64)] * 3, 0, isa="avxvnni")
    assert plan.kernels == ("qbinary_rows_avx2",)
    a, b, out = np.arange(64, dtype=np.uint8), np.full(64, 3, np.uint8), np.zeros(64, np.uint8)
    plan.run(a, b, out)
    np.testing.assert_array_equal(out, a + b)
