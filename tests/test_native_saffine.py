"""Every row of the affine family against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi

ROWS = kernel_rows("saffine")


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("threads", [1, 2])
def test_affine(row, threads):
    rng = np.random.default_rng(0)
    for channels in [*range(1, 11), 15, 16, 17, 24, 31, 32, 33, 64, 65, 100, 40000]:
        for rows in (0, 1, 2, 7, 40000 // channels + 1):
            x, (scale, shift) = rng.normal(size=(rows, channels)), rng.normal(size=(2, channels))
            x, scale, shift = (a.astype(np.float32) for a in (x, scale, shift))
            args = abi.make(abi.AffineArgs, rows=rows, channels=channels, scale=scale, shift=shift)
            got = run_kernel(row, Kind.SAFFINE, args, [x], np.empty_like(x), threads=threads)
            np.testing.assert_array_equal(got, x * scale + shift)


@pytest.mark.usefixtures("need_native")
def test_the_output_may_be_the_input():
    x = np.arange(600, dtype=np.float32).reshape(20, 30)
    ones = np.ones(30, np.float32)
    args = abi.make(abi.AffineArgs, rows=20, channels=30, scale=ones * 2, shift=ones)
    expected = x * 2 + 1
    Plan([Op(Kind.SAFFINE, (0,), 0, args)], [Buffer(x.nbytes)], 0).run(x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.usefixtures("need_native")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": -1}, "rows"),
        ({"channels": 0}, "channels"),
        ({"scale": None}, "scale"),
        ({"shift": None}, "shift"),
        ({"rows": 2**62}, "too large"),
        ({"rows": 4}, "input 0 has"),
    ],
)
def test_bad_descriptions_are_refused(changes, message):
    ones = np.ones(5, np.float32)
    args = abi.make(abi.AffineArgs, **{"rows": 3, "channels": 5, "scale": ones, "shift": ones, **changes})
    with pytest.raises(EngineError, match=message):
        Plan([Op(Kind.SAFFINE, (0,), 1, args)], [Buffer(60), Buffer(60)], 0)
