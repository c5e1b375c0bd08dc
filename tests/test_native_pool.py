"""Pools on every kernel row, exactly, against a loop over windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernels import kernel_rows, run_kernel

from qtool.native import Kind, abi

SHAPES = [  # height, width, channels, kernel, stride, padding, dilation
    (1, 1, 1, 1, 1, 0, 1),
    (5, 7, 3, 2, 2, 0, 1),
    (7, 5, 64, 3, 2, 1, 1),
    (6, 6, 65, 3, 1, 1, 1),
    (9, 8, 127, 2, 1, 1, 2),
    (7, 7, 130, 7, 1, 0, 1),
    (4, 9, 200, 3, 3, 1, 1),
]


def pool_args(shape, out, kernel, stride, padding, dilation, **more):
    batch, height, width, channels = shape
    return abi.make(
        abi.PoolArgs,
        batch=batch,
        in_height=height,
        in_width=width,
        channels=channels,
        out_height=out[0],
        out_width=out[1],
        kernel_height=kernel,
        kernel_width=kernel,
        stride_height=stride,
        stride_width=stride,
        pad_top=padding,
        pad_left=padding,
        pad_bottom=padding,
        pad_right=padding,
        dilation_height=dilation,
        dilation_width=dilation,
        **more,
    )


def output_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def windows(size, outputs, kernel, stride, padding, dilation):
    """The valid positions under each window, and the window's size with its padding."""
    for o in range(outputs):
        at = [o * stride - padding + k * dilation for k in range(kernel)]
        yield [p for p in at if 0 <= p < size], sum(p < size + padding for p in at)


def reference(x, out, geometry, combine):
    y = np.empty((x.shape[0], *out, x.shape[3]), x.dtype)
    rows = list(windows(x.shape[1], out[0], *geometry))
    cols = list(windows(x.shape[2], out[1], *geometry))
    for (oy, (ys, h)), (ox, (xs, w)) in itertools.product(enumerate(rows), enumerate(cols)):
        y[:, oy, ox] = combine(x[:, ys][:, :, xs].reshape(x.shape[0], -1, x.shape[3]), h * w)
    return y


def run(row, kind, args, x, out, threads=1):
    return run_kernel(row, kind, args, [x], np.empty((x.shape[0], *out, x.shape[3]), x.dtype), threads=threads)


def cases():
    for height, width, channels, *geometry in SHAPES:
        out = output_size(height, *geometry), output_size(width, *geometry)
        yield (2, height, width, channels), out, geometry


@pytest.mark.parametrize("row", kernel_rows("pool"))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_max(row, dtype):
    rng = np.random.default_rng(0)
    for shape, out, geometry in cases():
        x = rng.integers(0, 256, shape).astype(dtype) - (100 if dtype is np.float32 else 0)
        got = run(
            row, Kind.QPOOL if dtype is np.uint8 else Kind.SPOOL, pool_args(shape, out, *geometry, kind=0), x, out
        )
        np.testing.assert_array_equal(got, reference(x, out, geometry, lambda taps, _: taps.max(axis=1)))


def quantized_average(total, taps, divisor, scales, zeros, fused):
    multiplier = np.float32(scales[0]) / (np.float32(scales[1]) * np.float32(divisor))
    s = (total - taps * zeros[0]).astype(np.float32)
    if fused:
        r = (s.astype(np.float64) * np.float64(multiplier) + zeros[1]).astype(np.float32)
        return np.clip(np.rint(r), 0, 255).astype(np.uint8)
    return np.clip(np.rint(s * multiplier) + zeros[1], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("row", kernel_rows("pool"))
@pytest.mark.parametrize("include_pad", [0, 1])
@pytest.mark.parametrize(
    ("scales", "zeros"), [((0.02, 0.02), (0, 0)), ((0.5, 0.11), (128, 3)), ((3.0, 0.001), (7, 255))]
)
def test_average_of_bytes(row, include_pad, scales, zeros):
    rng = np.random.default_rng(1)
    for (shape, out, geometry), high in itertools.product(cases(), (256, 2)):
        if geometry[3] != 1:
            continue
        x = (rng.integers(0, high, shape) * (255 if high == 2 else 1)).astype(np.uint8)
        args = pool_args(
            shape, out, *geometry, kind=1, count_include_pad=include_pad, x_scale=scales[0], out_scale=scales[1],
            x_zero=zeros[0], out_zero=zeros[1],
        )  # fmt: skip

        def combine(taps, padded):
            count = taps.shape[1]
            divisor = padded if include_pad else count
            return quantized_average(taps.sum(axis=1, dtype=np.int64), count, divisor, scales, zeros, False)

        np.testing.assert_array_equal(run(row, Kind.QPOOL, args, x, out), reference(x, out, geometry, combine))


@pytest.mark.parametrize("row", kernel_rows("pool"))
@pytest.mark.parametrize("outputs", [(1, 1), (3, 2), (7, 7), (9, 5)])
def test_adaptive_average(row, outputs):
    rng = np.random.default_rng(2)
    scales, zeros = (0.03, 0.025), (120, 64)
    x = rng.integers(0, 256, (2, 7, 5, 70)).astype(np.uint8)
    args = pool_args(
        x.shape, outputs, 1, 1, 0, 1, kind=1, adaptive=1, x_scale=scales[0], out_scale=scales[1],
        x_zero=zeros[0], out_zero=zeros[1],
    )  # fmt: skip
    expected, floats = np.empty((2, *outputs, 70), np.uint8), np.empty((2, *outputs, 70), np.float64)
    for oy, ox in itertools.product(range(outputs[0]), range(outputs[1])):
        y0, y1 = oy * 7 // outputs[0], -(-(oy + 1) * 7 // outputs[0])
        x0, x1 = ox * 5 // outputs[1], -(-(ox + 1) * 5 // outputs[1])
        taps = x[:, y0:y1, x0:x1].reshape(2, -1, 70)
        total, count = taps.sum(axis=1, dtype=np.int64), taps.shape[1]
        expected[:, oy, ox] = quantized_average(total, count, count, scales, zeros, True)
        floats[:, oy, ox] = total / count
    np.testing.assert_array_equal(run(row, Kind.QPOOL, args, x, outputs), expected)
    got = run(row, Kind.SPOOL, args, x.astype(np.float32), outputs)
    np.testing.assert_allclose(got, floats, rtol=35 * 2.0**-24)


@pytest.mark.parametrize("row", kernel_rows("pool"))
@pytest.mark.parametrize("size", [(16, 16), (257, 1), (40, 37)])
def test_average_of_more_bytes_than_16_bits_hold(row, size):
    x = np.random.default_rng(4).integers(250, 256, (1, *size, 150)).astype(np.uint8)
    args = pool_args(
        x.shape, (1, 1), 1, 1, 0, 1, kind=1, adaptive=1, x_scale=0.03, out_scale=0.025, x_zero=120, out_zero=7
    )  # fmt: skip
    total, count = x.sum(axis=(1, 2), dtype=np.int64), size[0] * size[1]
    expected = quantized_average(total, count, count, (0.03, 0.025), (120, 7), True)
    for threads in (1, 3):
        got = run(row, Kind.QPOOL, args, x, (1, 1), threads)
        np.testing.assert_array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("row", kernel_rows("pool"))
def test_threads_give_the_same_bits(row):
    x = np.random.default_rng(3).standard_normal((3, 9, 9, 70)).astype(np.float32)
    args = pool_args(x.shape, (4, 4), 3, 2, 0, 1, kind=1)
    results = [run(row, Kind.SPOOL, args, x, (4, 4), threads) for threads in (1, 2, 3)]
    assert all(np.array_equal(results[0], other) for other in results[1:])
