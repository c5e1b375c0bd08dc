"""Layers that exporters spell out are recognized, with the same numbers, and what only looks like one is left alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qtool.engine.reference import run
from qtool.ops import Builder
from qtool.passes import simplify

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    RNG.bit_generator.state = START


class Net:
    """A builder with constants by value; ``x`` is its input, (N, 4, 6)."""

    def __init__(self, shape=("N", 4, 6)):
        self.b = Builder("net")
        self.x = self.b.input("x", shape)
        self._count = 0

    def c(self, value):
        self._count += 1
        return self.b.param(f"c{self._count}", np.asarray(value, np.float32))

    def op(self, name, *inputs, **attrs):
        made = [value if isinstance(value, str) else self.c(value) for value in inputs]
        return self.b.node(name, made, f"{name}{len(self.b._nodes)}", **attrs)

    def finish(self, y):
        return self.b.finish([y])


def check(graph, expected, x=None):
    simple = simplify(graph)
    assert [node.op for node in simple.nodes] == expected
    shape = tuple(3 if isinstance(n, str) else n for n in graph.values["x"].shape)
    x = RNG.standard_normal(shape).astype(np.float32) * 3 if x is None else x
    before, after = (run(g, {"x": x})[graph.outputs[0]] for g in (graph, simple))
    np.testing.assert_allclose(after, before, rtol=2e-3, atol=2e-4)
    return simple


ROOT = math.sqrt(2)
GELU = {
    "halved first": lambda n: n.op("mul", n.op("mul", n.x, 0.5), n.op("add", n.op("erf", n.op("div", n.x, ROOT)), 1)),
    "halved last": lambda n: n.op("mul", n.op("mul", n.x, n.op("add", 1, n.op("erf", n.op("div", n.x, ROOT)))), 0.5),
    "halved within": lambda n: n.op(
        "mul", n.op("mul", 0.5, n.op("add", n.op("erf", n.op("mul", n.x, 0.70710678)), 1)), n.x
    ),
    "divided": lambda n: n.op("div", n.op("mul", n.x, n.op("add", n.op("erf", n.op("div", n.x, 1.4142)), 1)), 2),
}


@pytest.mark.parametrize("make", GELU.values(), ids=GELU)
def test_gelu(make):
    net = Net()
    simple = check(net.finish(make(net)), ["gelu"])
    assert simple.nodes[0].attrs["approximate"] == "none"


def _cube(n, kind):
    return n.op("pow", n.x, 3) if kind == "pow" else n.op("mul", n.op("mul", n.x, n.x), n.x)


@pytest.mark.parametrize("kind", ["pow", "mul", "nested"])
def test_gelu_by_tanh(kind):
    n = Net()
    if kind == "nested":
        inner = n.op("mul", n.x, n.op("add", n.op("mul", n.op("mul", n.x, n.x), 0.044715), 1))
    else:
        inner = n.op("add", n.x, n.op("mul", _cube(n, kind), 0.044715))
    tanh = n.op("tanh", n.op("mul", inner, math.sqrt(2 / math.pi)))
    simple = check(n.finish(n.op("mul", n.op("mul", 0.5, n.x), n.op("add", tanh, 1))), ["gelu"])
    assert simple.nodes[0].attrs["approximate"] == "tanh"


@pytest.mark.parametrize("wrong", ["factor", "sum", "operand"])
def test_what_is_no_gelu(wrong):
    n = Net()
    other = n.op("relu", n.x)
    erf = n.op("erf", n.op("div", n.x, 1.5 if wrong == "factor" else ROOT))
    sum_ = n.op("add", erf, 2 if wrong == "sum" else 1)
    graph = n.finish(n.op("mul", n.op("mul", other if wrong == "operand" else n.x, 0.5), sum_))
    assert "gelu" not in [node.op for node in simplify(graph).nodes]


def _relu6(n, x):
    return n.op("clamp", x, low=0.0, high=6.0)


SWISH = {
    "hardsigmoid": (lambda n: n.op("div", _relu6(n, n.op("add", n.x, 3)), 6), "hardsigmoid"),
    "hardsigmoid by a factor": (lambda n: n.op("mul", n.op("relu6", n.op("add", n.x, 3)), 1 / 6), "hardsigmoid"),
    "hardsigmoid clamped last": (
        lambda n: n.op("clamp", n.op("add", n.op("mul", n.x, 1 / 6), 0.5), low=0.0, high=1.0),
        "hardsigmoid",
    ),
    "hardswish": (lambda n: n.op("div", n.op("mul", n.x, _relu6(n, n.op("add", n.x, 3))), 6), "hardswish"),
    "hardswish of hardsigmoid": (lambda n: n.op("mul", n.op("hardsigmoid", n.x), n.x), "hardswish"),
    "hardswish spelt out": (
        lambda n: n.op("mul", n.x, n.op("div", _relu6(n, n.op("add", 3, n.x)), 6)),
        "hardswish",
    ),
    "silu": (lambda n: n.op("mul", n.op("sigmoid", n.x), n.x), "silu"),
}


@pytest.mark.parametrize("case", SWISH.values(), ids=SWISH)
def test_swish(case):
    make, expected = case
    net = Net()
    check(net.finish(make(net)), [expected])


def test_what_is_no_hardswish():
    n = Net()
    graph = n.finish(n.op("mul", n.x, n.op("div", _relu6(n, n.op("add", n.x, 2)), 6)))
    check(graph, ["add", "clamp", "div", "mul"])


def _normalized(n, how, eps=1e-5):
    mean = n.op("mean", n.x, dim=(-1,), keepdim=True)
    centred = n.op("sub", n.x, mean)
    square = n.op("pow", centred, 2) if how != "mul" else n.op("mul", centred, centred)
    variance = n.op("mean", square, dim=(2,), keepdim=True)
    deviation = n.op("sqrt", n.op("add", variance, eps))
    if how == "reciprocal":
        return n.op("mul", centred, n.op("reciprocal", deviation))
    return n.op("div", centred, deviation)


@pytest.mark.parametrize("how", ["div", "mul", "reciprocal"])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(how, affine):
    n = Net()
    y = _normalized(n, how)
    if affine:
        y = n.op("add", n.op("mul", y, RNG.standard_normal(6)), RNG.standard_normal(6))
    simple = check(n.finish(y), ["layer_norm"])
    assert len(simple.nodes[0].inputs) == (3 if affine else 1)
    assert simple.nodes[0].attrs["normalized_shape"] == (6,)
    assert simple.nodes[0].attrs["eps"] == pytest.approx(1e-5)


def test_a_mean_over_another_axis_is_no_layer_norm():
    n = Net()
    centred = n.op("sub", n.x, n.op("mean", n.x, dim=(1,), keepdim=True))
    variance = n.op("mean", n.op("mul", centred, centred), dim=(1,), keepdim=True)
    graph = n.finish(n.op("div", centred, n.op("sqrt", n.op("add", variance, 1e-5))))
    assert "layer_norm" not in [node.op for node in simplify(graph).nodes]


@pytest.mark.parametrize("shifted", [True, False])
def test_softmax(shifted):
    n = Net()
    x = n.op("sub", n.x, n.op("reduce_max", n.x, axes=(1,), keepdims=True)) if shifted else n.x
    powers = n.op("exp", x)
    simple = check(n.finish(n.op("div", powers, n.op("sum", powers, dim=(1,), keepdim=True))), ["softmax"])
    assert simple.nodes[0].attrs["dim"] == 1


def test_what_is_no_softmax():
    """The maximum is taken along another axis than the sum."""
    n = Net()
    powers = n.op("exp", n.op("sub", n.x, n.op("reduce_max", n.x, axes=(2,), keepdims=True)))
    graph = n.finish(n.op("div", powers, n.op("sum", powers, dim=(1,), keepdim=True)))
    assert "softmax" not in [node.op for node in simplify(graph).nodes]


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 1, 5), (1,), ()])
def test_a_constant_behind_a_linear_layer_is_its_bias(shape):
    n = Net()
    y = n.op("linear", n.x, RNG.standard_normal((5, 6)))
    check(n.finish(n.op("add", RNG.standard_normal(shape), y)), ["linear"])


@pytest.mark.parametrize(("shape", "ops"), [((5, 1), ["conv1d"]), ((1, 5, 1), ["conv1d"]), ((4,), ["conv1d", "add"])])
def test_a_constant_behind_a_convolution(shape, ops):
    n = Net()
    y = n.op("conv1d", n.x, RNG.standard_normal((5, 4, 3)))
    check(n.finish(n.op("add", y, RNG.standard_normal(shape))), ops)


def test_a_bias_needs_a_layer_that_nobody_else_reads():
    n = Net()
    y = n.op("linear", n.x, RNG.standard_normal((6, 6)))
    check(n.finish(n.op("add", n.op("add", y, RNG.standard_normal(6)), y)), ["linear", "add", "add"])


PICTURE = ("N", 3, 6, 6)


@pytest.mark.parametrize(
    ("attrs", "folded"),
    [
        ({"pad": (1, 2, 0, 1)}, True),
        ({"pad": (1, 1)}, True),
        ({"pad": (1, 1, 1, 1), "mode": "reflect"}, True),
        ({"pad": (1, 1, 1, 1), "value": 1.0}, False),
        ({"pad": (-1, 1, 1, 1)}, False),
        ({"pad": (0, 0, 0, 0, 0, 1)}, False),
    ],
)
def test_a_pad_before_a_convolution(attrs, folded):
    n = Net(PICTURE)
    padded = n.op("pad", n.x, **attrs)
    channels = 4 if len(attrs["pad"]) == 6 else 3
    graph = n.finish(n.op("conv2d", padded, RNG.standard_normal((2, channels, 3, 3)), padding=((0, 0), (0, 0))))
    check(graph, ["conv2d"] if folded else ["pad", "conv2d"])


def test_padding_of_two_kinds_stays_apart():
    n = Net(PICTURE)
    padded = n.op("pad", n.x, pad=(1, 1, 1, 1), mode="replicate")
    weight = RNG.standard_normal((2, 3, 3, 3))
    check(n.finish(n.op("conv2d", padded, weight, padding=((1, 1), (1, 1)))), ["pad", "conv2d"])


@pytest.mark.parametrize(
    ("pool", "folded"),
    [
        ({}, True),
        ({"padding": ((1, 0), (0, 0)), "count_include_pad": False}, False),
        ({"ceil_mode": True}, False),
    ],
)
def test_a_pad_before_an_average(pool, folded):
    n = Net(PICTURE)
    padded = n.op("pad", n.x, pad=(1, 1, 1, 1))
    attrs = {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((0, 0), (0, 0)), **pool}
    check(n.finish(n.op("avg_pool2d", padded, **attrs)), ["avg_pool2d"] if folded else ["pad", "avg_pool2d"])
