"""Transfer learning: which layer is replaced, what is drawn, what follows it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtool.engine import reference
from qtool.errors import ModelError, RecipeError
from qtool.ir import Graph, npz
from qtool.ir.verify import verify
from qtool.ops import Builder, check_types
from qtool.quantize.qat.head import replace_head
from qtool.recipe.training import Head

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
RNG = np.random.default_rng(0)


def array(*shape: int):
    return RNG.normal(size=shape).astype(np.float32)


def small(after=None, bias: bool = True) -> Graph:
    """conv1 (3x3) -> relu -> pool -> conv2 (1x1) -> flatten -> fc -> what comes after."""
    b = Builder("small")
    y = b.input("x", ("N", 2, 4, 4))
    with b.scope("conv1"):
        y = b.node("conv2d", [y, b.param("weight", array(3, 2, 3, 3))])
    y = b.node("relu", [y], "relu")
    with b.scope("conv2"):
        y = b.node("conv2d", [y, b.param("weight", array(5, 3, 1, 1)), b.param("bias", array(5))])
    y = b.node("mean", [y], "pool", dim=(2, 3))
    with b.scope("fc"):
        y = b.node("linear", [y, b.param("weight", array(7, 5)), *([b.param("bias", array(7))] if bias else [])])
    return b.finish([after(b, y) if after else y])


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet", "digits_mlp"])
def test_sample_models_get_another_number_of_classes(name) -> None:
    graph = npz.load(SAMPLES / f"{name}.npz")
    made = replace_head(graph, Head(3), 0)
    verify(made)
    check_types(made)
    (out,) = made.outputs
    assert made.values[out].shape[1:] == (3,)
    last = [node for node in graph.nodes if node.op == "linear"][-1]
    changed = {key for key, value in made.initializers.items() if value is not graph.initializers[key]}
    assert changed == set(last.inputs[1:])
    found = reference.run(made, {"x": array(2, 1, 16, 16)})[out]
    assert found.shape == (2, 3)


def test_weights_are_drawn_from_the_seed_within_their_bound() -> None:
    made, again, other = (replace_head(small(), Head(1000), seed) for seed in (3, 3, 4))
    weight, bias = made.initializers["fc.weight"], made.initializers["fc.bias"]
    assert (weight.shape, bias.shape, weight.dtype, bias.dtype) == ((1000, 5), (1000,), np.float32, np.float32)
    for drawn in (weight, bias):
        assert 0.98 / 5**0.5 < np.abs(drawn).max() <= np.float32(1 / 5**0.5)
        assert abs(drawn.mean()) < 0.03
    assert len(np.unique(np.concatenate([weight.ravel(), bias]))) > 5900
    assert np.array_equal(weight, again.initializers["fc.weight"])
    assert not np.array_equal(weight, other.initializers["fc.weight"])
    assert "fc.bias" not in replace_head(small(bias=False), Head(2), 0).initializers


def test_shapes_behind_the_head_follow() -> None:
    graph = small(lambda b, y: b.node("softmax", [b.node("relu", [y], "act")], "probabilities", dim=-1))
    made = replace_head(graph, Head(2), 0)
    check_types(made)
    assert [made.values[name].shape for name in ("fc", "act", "probabilities")] == [("N", 2)] * 3
    assert made.values["pool"] is graph.values["pool"]
    assert graph.values["fc"].shape == ("N", 7)


def test_a_layer_may_be_named_by_module_path_or_be_a_pointwise_convolution() -> None:
    graph = small()
    assert replace_head(graph, Head(2, "fc"), 0).values["fc"].shape == ("N", 2)
    body = graph.with_outputs(["pool"])
    body = replace(body, nodes=body.nodes[:-1])
    made = replace_head(body, Head(2), 0)
    assert made.values["pool"].shape == ("N", 2)
    assert made.initializers["conv2.weight"].shape == (2, 3, 1, 1)
    assert replace_head(body, Head(2, "conv2"), 0).values["conv2"].shape[1] == 2


def test_a_weight_that_others_read_stays_theirs() -> None:
    b = Builder("tied")
    y = b.input("x", ("N", 5))
    weight = b.param("weight", array(5, 5))
    y = b.node("linear", [b.node("linear", [y, weight], "one"), weight], "two")
    graph = b.finish([y])
    made = replace_head(graph, Head(2), 0)
    verify(made)
    check_types(made)
    assert made.initializers["weight"] is graph.initializers["weight"]
    assert made.initializers["weight.head"].shape == (2, 5)


def test_only_what_the_outputs_come_from_is_looked_at() -> None:
    def after(b: Builder, y: str) -> str:
        b.node("linear", [y, b.param("unused", array(4, 7))], "aside")
        return y

    assert replace_head(small(after), Head(2), 0).values["fc"].shape == ("N", 2)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Head(2, "fcc", "r.yaml:4"), r"^r\.yaml:4: head\.layer: 'fcc' matches nothing in the model; did you mean 'fc'"),
        (Head(2, "relu", "r.yaml:4"), r"^r\.yaml:4: head\.layer: got relu at 'relu', expected a linear layer or a 1x1"),
        (Head(2, "conv1"), r"^head\.layer: got conv2d at 'conv1', expected a linear layer or a 1x1 convolution"),
        (Head(2, "re:conv2|fc"), r"^head\.layer: got 2 of them at 're:conv2\|fc'"),
    ],
)
def test_a_layer_that_cannot_be_replaced_is_refused(head, message) -> None:
    with pytest.raises(RecipeError, match=message):
        replace_head(small(), head, 0)


@pytest.mark.parametrize(
    ("graph", "head", "message"),
    [
        (small(), Head(2, "conv2"), "head: 2 outputs do not fit what follows them in the model: linear 'fc'"),
        (small(lambda b, y: b.node("add", [y, b.param("a", array(7))], "sum")), Head(2), "do not fit .*: add 'sum'"),
        (small(lambda b, y: b.node("reshape", [y], "r", shape=(-1, 7))), Head(2), "head: "),
        (small(lambda b, y: b.node("mean", [y], "m", dim=(1,), keepdim=True)), Head(2), r"of shape \('N', 1\); exp"),
        (replace(small(), backend="fbgemm"), Head(2), r"the model is quantized \(backend fbgemm\)"),
    ],
    ids=["in the middle", "a constant behind", "a fixed reshape", "no classes", "quantized"],
)
def test_a_model_that_takes_no_other_head_is_refused(graph, head, message) -> None:
    with pytest.raises(ModelError, match=message):
        replace_head(graph, head, 0)


def test_a_model_without_such_a_layer_is_refused() -> None:
    b = Builder("bare")
    graph = b.finish([b.node("relu", [b.input("x", ("N", 3))], "act")])
    with pytest.raises(ModelError, match="head: the model has no layer that could be replaced; expected a linear"):
        replace_head(graph, Head(2), 0)
