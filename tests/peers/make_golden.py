"""Writes tests/golden/*.npz from PyTorch's quantized operators: python tests/peers/make_golden.py

Run it again only to add cases: what is there was true of PyTorch 2.13 and is to stay true of qtool.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import int8_torch  # noqa: E402
from golden_cases import FOLDER, save  # noqa: E402
from int8_cases import MAKERS, Int8Case  # noqa: E402
from int8_torch import FAMILIES, PICTURES, documented, onednn_can  # noqa: E402

from qtool.ir import Array  # noqa: E402

CASES, BYTES = 10, 900
"""A family has so many cases, each with arrays of so many bytes at most."""


def small_cases(family: str, backend: str) -> Iterator[tuple[str, Int8Case, Array]]:
    """Cases that every machine's PyTorch agrees on: activations of 7 bits where FBGEMM may saturate."""
    rng = np.random.default_rng(2013)
    more = {"bits": 7} if family.startswith(("conv", "linear")) and family != "linear_dynamic" else {}
    found = 0
    while found < CASES:
        case = MAKERS[family](rng, backend, **more)
        if family == "conv2d_add" and not onednn_can(case):
            continue
        operands = [operand.array for operand in case.operands if operand is not None]
        if documented(case, family) or sum(array.nbytes for array in operands) > BYTES:
            continue
        result = int8_torch.run(case, family in PICTURES)
        if result.nbytes <= BYTES:
            yield family, case, result
            found += 1


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for backend, families in (("fbgemm", FAMILIES), ("qnnpack", FAMILIES), ("onednn", ["conv2d_add"])):
        cases = [triple for family in families for triple in small_cases(family, backend)]
        path = FOLDER / f"{backend}.npz"
        save(path, cases)
        print(f"{path}: {len(cases)} cases, {path.stat().st_size:,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
