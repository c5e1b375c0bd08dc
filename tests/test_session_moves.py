"""Slices, pads and resizes to the nearest pixel in native code: the reference's bits, in every layout."""

from __future__ import annotations

import numpy as np
import pytest

from qtool import native
from qtool.engine import reference
from qtool.engine.session import Session
from qtool.ir import DType, QParams
from qtool.ops.builder import Builder

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "native library")

RNG = np.random.default_rng(0)
KINDS = {
    "float": None,
    "quint8": QParams.per_tensor(0.05, 77, DType.UINT8),
    "qint8": QParams.per_tensor(0.05, -30, DType.INT8),
}
SHAPES = ((1, 4, 6, 8), (3, 4, 6, 8), (2, 5, 7, 9))


def graph_of(op: str, shape: tuple[int, ...], kind: str, last: bool, **attrs: object):
    """The operator between pools of one pixel, which leave values channels-last, or on its own."""
    qparams, pool = KINDS[kind], {"kernel_size": (1, 1), "stride": (1, 1)}
    b = Builder("net")
    y = b.input("x", shape)
    y = b.node("quantize", [y], "q", qparams) if qparams else y
    y = b.node("max_pool2d", [y], "before", qparams, **pool) if last else y
    y = b.node(op, [y], "node", qparams, **attrs)
    y = b.node("max_pool2d", [y], "after", qparams, **pool) if last else y
    return b.finish([b.node("dequantize", [y], "d") if qparams else y], "fbgemm" if qparams else "")


def check(graph) -> dict[str, str]:
    x = RNG.uniform(-6, 9, graph.values["x"].shape).astype(np.float32)
    expected = reference.run(graph, {"x": x})[graph.outputs[0]]
    for isa in native.supported_isas():
        session = Session(graph, isa=isa)
        assert np.array_equal(session.run({"x": x})[graph.outputs[0]], expected)
    return dict(session.fallbacks)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pair", [(0, 1), (2, 0), (3, 2), (11, 13)])
def test_pads_around_one_axis(pair, shape, kind, last):
    for axis in range(4):
        pad = (*(0, 0) * (3 - axis), *pair)
        assert not check(graph_of("pad", shape, kind, last, pad=pad))


@pytest.mark.parametrize(
    "attrs",
    [
        {"pad": (1, 1, 1, 0)},
        {"pad": (2, 0, 0, 3, 1, 1, 1, 0)},
        {"pad": (1, 1), "value": 2.0},
        {"pad": (1, 1), "value": -99.5},
        *({"pad": (1, 2, 2, 1), "mode": mode} for mode in ("reflect", "replicate", "circular")),
        {"pad": (1, -1, -2, -1)},
        {"pad": (-2, 3, 0, 0, 0, -1)},
        {"pad": (0, 0)},
    ],
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pads_of_every_mode(attrs, kind, last):
    for shape in SHAPES:
        assert not check(graph_of("pad", shape, kind, last, **attrs))


@pytest.mark.parametrize("op", ["depth_to_space", "space_to_depth"])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_pixels(op, mode, last, kind):
    for shape, block in (((2, 18, 6, 9), 3), ((1, 4, 2, 2), 2), ((3, 5, 4, 1), 1)):
        assert not check(graph_of(op, shape, kind, last, blocksize=block, mode=mode))


NEAREST = [
    {"scales": (1, 1, 2, 2)},
    {"scales": (1, 1, 2.5, 0.6), "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"scales": (1, 2, 3, 1), "nearest_mode": "ceil"},
    {"sizes": (2, 5, 3, 17), "coordinate_transformation_mode": "align_corners"},
    {"sizes": (11, 4), "axes": (2, 3), "nearest_mode": "round_prefer_ceil"},
    {"sizes": (11, 4), "axes": (3, 2), "keep_aspect_ratio_policy": "not_larger"},
    {"scales": (1, 1, 1, 1)},
]


@pytest.mark.parametrize("attrs", NEAREST)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_resizing_to_the_nearest_pixel(attrs, kind, last):
    attrs = dict(attrs)
    told = {name: attrs.pop(name, None) for name in ("scales", "sizes")}
    assert not check(resized(SHAPES[2], kind, last, told, **attrs))


def test_other_resizes_run_on_the_reference():
    assert check(resized(SHAPES[2], "quint8", False, {"scales": (1, 1, 2, 2), "sizes": None}, mode="linear")) != {}


def resized(shape, kind, last, told, **attrs):
    qparams, pool = KINDS[kind], {"kernel_size": (1, 1), "stride": (1, 1)}
    b = Builder("net")
    y = b.input("x", shape)
    y = b.node("quantize", [y], "q", qparams) if qparams else y
    y = b.node("max_pool2d", [y], "before", qparams, **pool) if last else y
    names = [
        "" if values is None else b.param(name, np.array(values, np.float32 if name == "scales" else np.int64))
        for name, values in told.items()
    ]
    y = b.node("resize", [y, "", *names], "node", qparams, **attrs)
    y = b.node("max_pool2d", [y], "after", qparams, **pool) if last else y
    return b.finish([b.node("dequantize", [y], "d") if qparams else y], "fbgemm" if qparams else "")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "step"), [(0, 2), (1, 2), (0, 3), (2, 3), (-6, 2)])
def test_slices_with_a_step(start, step, kind, last):
    for axis in range(4):
        shape = tuple(6 if dim == axis else size for dim, size in enumerate((2, 4, 5, 3)))
        assert not check(graph_of("slice", shape, kind, last, dim=axis, start=start, step=step))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_slices_of_no_even_parts_have_the_same_bits(shape, last):
    for axis in range(4):
        for start, end, step in ((0, None, 2), (1, 4, 2), (1, None, 5)):
            first = min(start, shape[axis] - 1)
            assert not check(graph_of("slice", shape, "quint8", last, dim=axis, start=first, end=end, step=step))
