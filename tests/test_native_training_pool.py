"""Pools of the largest numbers in training, against NumPy: small integers, so there are ties and sums are exact."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import isas, kernel_rows, run_kernel

from qtool.errors import EngineError
from qtool.native import Buffer, Kind, Op, Plan, abi
from qtool.native.training import ConvGeometry, Training
from qtool.native.training_pool import _args

CASES = [
    ((2, 8, 8, 16), (2, 2), ConvGeometry((2, 2))),
    ((3, 9, 7, 5), (3, 3), ConvGeometry((2, 2), ((1, 1), (1, 1)))),
    ((1, 9, 7, 33), (3, 2), ConvGeometry((1, 3), ((0, 1), (1, 0)), (2, 1))),
    ((2, 6, 5, 70), (3, 3), ConvGeometry((1, 1), ((1, 1), (1, 1)))),
    ((1, 1, 20, 1), (1, 4), ConvGeometry((1, 2))),
    ((1, 4, 4, 130), (4, 4), ConvGeometry()),
    ((0, 4, 4, 3), (2, 2), ConvGeometry()),
]


def _arrays(shape, kernel, geometry):
    rng = np.random.default_rng(1)
    out = (shape[0], *geometry.out_size(shape[1:3], kernel), shape[3])
    return [rng.integers(-4, 5, s).astype(np.float32) for s in (shape, out)]


def _expected(x, dy, kernel, geometry):
    """(y, dx) window by window."""
    padded = np.pad(x, ((0, 0), *geometry.padding, (0, 0)), constant_values=-np.inf)
    y, grad = np.empty_like(dy), np.zeros_like(padded)
    rows, columns = (np.arange(k) * d for k, d in zip(kernel, geometry.dilation, strict=True))
    n, c = np.ix_(range(x.shape[0]), range(x.shape[3]))
    for oy in range(dy.shape[1]):
        for ox in range(dy.shape[2]):
            seen = np.array([(oy * geometry.stride[0] + r, ox * geometry.stride[1] + k) for r in rows for k in columns])
            window = padded[:, seen[:, 0], seen[:, 1]]
            best = seen[window.argmax(axis=1)] if x.size else np.zeros((*n.shape[:1], x.shape[3], 2), int)
            y[:, oy, ox] = window.max(axis=1)
            np.add.at(grad, (n, best[..., 0], best[..., 1], c), dy[:, oy, ox])
    (top, _), (left, _) = geometry.padding
    return y, grad[:, top : top + x.shape[1], left : left + x.shape[2]]


@pytest.mark.parametrize("row", kernel_rows("pool"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case[0])))
def test_gradients_go_to_the_first_of_the_largest(row, case):
    x, dy = _arrays(*case)
    _, dx = _expected(x, dy, *case[1:])
    args = _args(x.shape, dy.shape, *case[1:])
    got = run_kernel(row, Kind.TMAX_POOL_GRAD, args, [x, dy], np.empty_like(x), threads=2)
    np.testing.assert_array_equal(got, dx)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case[0])))
def test_the_python_face(isa, case):
    x, dy = _arrays(*case)
    y, dx = _expected(x, dy, *case[1:])
    for threads in (1, 3):
        training = Training(threads, isa)
        np.testing.assert_array_equal(training.max_pool(x, *case[1:]), y)
        np.testing.assert_array_equal(training.max_pool_grad(x, dy, *case[1:]), dx)


def test_what_cannot_be_is_refused(need_native):
    training, x = Training(), np.zeros((1, 4, 4, 3), np.float32)
    bad = [
        (lambda: training.max_pool(x[0], (2, 2), ConvGeometry()), "max_pool x: .* of rank 4"),
        (lambda: training.max_pool(x, (5, 1), ConvGeometry()), "expected one that fits"),
        (lambda: training.max_pool_grad(x, x, (2, 2), ConvGeometry()), "max_pool_grad dy"),
        (lambda: training.max_pool(x, (1, 1), ConvGeometry(padding=((1, 1), (0, 0)))), "outside of the picture"),
    ]
    for call, message in bad:
        with pytest.raises(EngineError, match=message):
            call()
    args = _args(x.shape, x.shape, (1, 1), ConvGeometry())
    args.kind = int(abi.Pool.AVERAGE)
    with pytest.raises(EngineError, match="largest"):
        Plan([Op(Kind.TMAX_POOL_GRAD, (0, 0), 1, args)], [Buffer(4096)] * 2, 0)
