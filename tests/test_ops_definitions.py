"""Operators against their definitions, written out: erf, pools, convolutions."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import CASES, Case, make_rng, normal

from qtool.ops import conv, get, parse_attrs
from qtool.ops.erf import erf
from qtool.ops.geometry import adaptive_bins, pool_size


def test_erf_is_exact():
    x = np.concatenate([np.linspace(-8, 8, 20001), [0.46875, -0.0, 1e-300, np.inf, -np.inf]])
    expected = np.array([math.erf(value) for value in x])
    np.testing.assert_allclose(erf(x), expected, rtol=0, atol=1e-15)


@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_pool_windows_start_in_the_data_or_the_padding_before_it(size, kernel, stride, padding):
    padded = size + sum(padding)
    if kernel > padded:
        return
    whole = [start for start in range(0, padded, stride) if start + kernel <= padded]
    cut = [start for start in range(0, padded, stride) if start < size + padding[0]]
    assert pool_size(size, kernel, stride, padding, 1, False) == len(whole)
    got = pool_size(size, kernel, stride, padding, 1, True)
    # One window more than the whole ones at most, and only where pixels are left over.
    covered = whole[-1] + kernel >= padded
    expected = len(whole) + (not covered and whole[-1] + stride in cut)
    assert got == expected or (got == len(whole) - 1 and whole[-1] not in cut)


@given(size=st.integers(1, 30), bins=st.integers(1, 40))
def test_adaptive_bins_cover_everything(size, bins):
    found = adaptive_bins(size, bins)
    assert len(found) == bins
    assert set(itertools.chain.from_iterable(range(*b) for b in found)) == set(range(size))
    assert all(start < end for start, end in found)


def naive_conv2d(x, weight, attrs):
    """Straight from the definition, pixel by pixel, in float64."""
    (top, bottom), (left, right) = attrs.padding
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (top, bottom), (left, right)])
    (sh, sw), (dh, dw) = attrs.stride, attrs.dilation
    outputs, inputs, kh, kw = weight.shape
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((len(x), outputs, height, width))
    for n, o, i, j in np.ndindex(*y.shape):
        first = o // (outputs // attrs.groups) * inputs
        patch = x[n, first : first + inputs, i * sh :, j * sw :][:, : dh * kh : dh, : dw * kw : dw]
        y[n, o, i, j] = (patch[:, :kh, :kw] * weight[o]).sum()
    return y


@settings(max_examples=40)
@given(CASES["conv2d"])
def test_conv2d_is_its_definition(case: Case):
    attrs = parse_attrs(get("conv2d").attrs, case.attrs, "conv2d")
    attrs = dataclasses.replace(attrs, activation="none", clamp=None, padding_mode="zeros")
    x, weight = case.arrays[:2]
    (y,) = get("conv2d").reference(attrs, x, weight)
    np.testing.assert_allclose(y, naive_conv2d(x, weight, attrs), rtol=1e-5, atol=1e-5)  # float32 sums


def naive_pool1d(x, attrs, op):
    """One channel, window by window."""
    ((before, after),), (kernel,), (stride,) = attrs.padding, attrs.kernel_size, attrs.stride
    dilation = attrs.dilation[0] if op == "max_pool1d" else 1
    count = pool_size(len(x), kernel, stride, (before, after), dilation, attrs.ceil_mode)
    result = []
    for window in range(count):
        places = [window * stride - before + k * dilation for k in range(kernel)]
        inside = [x[place] for place in places if 0 <= place < len(x)]
        if op == "max_pool1d":
            result.append(max(inside, default=-np.inf))
        else:
            counted = sum(place < len(x) + after for place in places) if attrs.count_include_pad else len(inside)
            result.append(sum(inside) / counted)
    return result


@pytest.mark.parametrize("op", ["max_pool1d", "avg_pool1d"])
def test_pools_are_their_definition(op: str):
    @settings(max_examples=60)
    @given(CASES[op])
    def check(case: Case):
        attrs = parse_attrs(get(op).attrs, case.attrs, op)
        (y,) = get(op).reference(attrs, *case.arrays)
        for n, c in np.ndindex(*y.shape[:2]):
            np.testing.assert_allclose(y[n, c], naive_pool1d(case.arrays[0][n, c], attrs, op), rtol=1e-5, atol=1e-6)

    check()


@given(st.data())
def test_a_large_batch_is_unfolded_in_chunks_with_the_same_result(data):
    rng = make_rng(data.draw)
    x, weight = normal(rng, 5, 3, 6, 6), normal(rng, 4, 3, 3, 3)
    attrs = get("conv2d").attrs()
    (whole,) = get("conv2d").reference(attrs, x, weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "COLUMN_BYTES", 1)
        (chunked,) = get("conv2d").reference(attrs, x, weight)
    np.testing.assert_array_equal(whole, chunked)
