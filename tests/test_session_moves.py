"""Slices with a step and pads of zeros in native code: the reference's bits, in every layout, or no native code."""

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
        {"pad": (1, 1), "value": 2.0},
        {"pad": (1, 1), "mode": "reflect"},
        {"pad": (1, -1)},
        {"pad": (0, 0)},
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_other_pads_run_on_the_reference(attrs, kind):
    assert check(graph_of("pad", SHAPES[0], kind, True, **attrs)).keys() == {"node"}


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
            check(
                graph_of(
                    "slice", shape, "quint8", last, dim=axis, start=min(start, shape[axis] - 1), end=end, step=step
                )
            )
