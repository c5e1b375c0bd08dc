"""The int8 definitions against what PyTorch's quantized operators gave, without PyTorch; see peers/make_golden.py."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import FOLDER, load, save
from int8_cases import MAKERS, evaluate

FILES = sorted(FOLDER.glob("*.npz"))
STATIC = set(MAKERS) - {"conv2d_add"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_results_are_those_of_pytorch(path):
    for family, case, expected in load(path):
        got = evaluate(case)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected, err_msg=f"{family}: {case}", strict=True)


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_every_family_is_there(backend):
    families = [family for family, _, _ in load(FOLDER / f"{backend}.npz")]
    assert set(families) == STATIC
    assert min(families.count(family) for family in STATIC) >= 5


def test_sums_of_a_convolution_and_a_residual_are_there():
    assert {family for family, _, _ in load(FOLDER / "onednn.npz")} == {"conv2d_add"}


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FILES) < 300_000


def test_a_case_survives_its_file(tmp_path):
    (first, *_) = load(FILES[0])
    save(tmp_path / "one.npz", [first])
    (again,) = load(tmp_path / "one.npz")
    assert (again[0], again[1].op, again[1].attrs, again[1].out) == (
        first[0],
        first[1].op,
        first[1].attrs,
        first[1].out,
    )
    np.testing.assert_array_equal(again[2], first[2])
