"""The native engine on whole networks: int8 results are the reference's, bit for bit; float ones are close."""

from __future__ import annotations

import numpy as np
import pytest

import qtool
from qtool import native, zoo
from qtool.engine import reference
from qtool.passes import optimize
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import Backend

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not() or "native library")
SIDES = {"resnet18": 64, "resnet50": 64, "mobilenet_v2": 64, "googlenet": 64, "inception_v3": 107, "resnet20": 32}
CASES = [(name, "default", Backend.FBGEMM) for name in SIDES]
CASES += [("mobilenet_v2", "default", Backend.QNNPACK), ("resnet18", "default", Backend.QNNPACK)]
CASES += [("resnet18", "onednn", Backend.ONEDNN), ("mobilenet_v2", "accurate", Backend.FBGEMM)]
CASES += [("resnet20", "accurate", Backend.FBGEMM), ("resnet20", "default", Backend.QNNPACK)]


def images(name, count, seed=0):
    side = SIDES[name]
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, side, side)).astype(np.float32)}


@pytest.mark.parametrize(("name", "preset", "backend"), CASES, ids=lambda value: getattr(value, "value", value))
def test_int8_is_the_reference_bit_for_bit(name, preset, backend):
    graph = zoo.build(name, image=SIDES[name], classes=50)
    options = PrepareOptions(backend=backend)
    result = qtool.quantize(graph, {"": get_preset(preset)}, [images(name, 2)], options).graph
    session = qtool.Session(result, threads=2)
    assert not session.fallbacks
    x = images(name, 2, seed=1)
    (output,) = result.outputs
    expected = reference.run(result, x)[output]
    np.testing.assert_array_equal(session.run(x)[output], expected)


@pytest.mark.parametrize("isa", native.supported_isas())
def test_every_instruction_set_gives_the_same_bits(isa):
    graph = zoo.build("mobilenet_v2", image=64, classes=50)
    result = qtool.quantize(graph, {"": get_preset("default")}, [images("mobilenet_v2", 2)]).graph
    x = images("mobilenet_v2", 1, seed=2)
    (output,) = result.outputs
    np.testing.assert_array_equal(qtool.Session(result, isa=isa).run(x)[output], reference.run(result, x)[output])


@pytest.mark.parametrize("name", SIDES)
def test_float_is_close_to_the_reference(name):
    graph = zoo.build(name, image=SIDES[name], classes=50)
    x = images(name, 1, seed=3)
    session = qtool.Session(optimize(graph))
    assert not session.fallbacks
    (output,) = graph.outputs
    expected = reference.run(graph, x)[output]
    np.testing.assert_allclose(session.run(x)[output], expected, atol=1e-4 * np.abs(expected).max())
