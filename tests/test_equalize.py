"""Cross-layer equalization: the function stays, the weights become alike, and what would break is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtool.engine import reference
from qtool.errors import ModelError
from qtool.ir import Graph
from qtool.ops import Builder
from qtool.passes.equalize import META, counts_of, equalize, even, rescaled_layers
from qtool.passes.equalize_chains import find_chains, layer_table


class Net:
    """Layers one behind the other on ``x`` (N, 4, 9, 9), of random weights that differ much by channel."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = Builder("net")
        self.y = self.b.input("x", ("N", 4, 9, 9))
        self.count = 0

    @property
    def channels(self) -> int:
        return int(self.b.value(self.y).shape[1])

    def uneven(self, *shape: int) -> np.ndarray:
        """Normal numbers, the first axis in sizes from 1 / 30 to 30."""
        size = np.exp(self.rng.uniform(-3.4, 3.4, (shape[0], *[1] * (len(shape) - 1))))
        return (self.rng.standard_normal(shape) * size).astype(np.float32)

    def layer(self, op: str, shape: tuple[int, ...], *, bias: bool = True, **attrs: object) -> Net:
        with self.b.scope(f"layer{self.count}"):
            names = [self.b.param("weight", self.uneven(*shape) / np.float32(np.sqrt(np.prod(shape[1:]))))]
            names += [self.b.param("bias", self.uneven(shape[0]))] if bias else []
            self.y = self.b.node(op, [self.y, *names], **attrs)
        self.count += 1
        return self

    def conv(self, out: int, groups: int = 1, **kwargs: object) -> Net:
        shape = (out, self.channels // groups, 3, 3)
        return self.layer("conv2d", shape, padding=((1, 1), (1, 1)), groups=groups, **kwargs)

    def linear(self, out: int) -> Net:
        return self.layer("linear", (out, self.channels))

    def norm(self) -> Net:
        channels = self.channels
        with self.b.scope(f"norm{self.count}"):
            parts = {
                "running_mean": np.zeros(channels),
                "running_var": np.ones(channels),
                "weight": self.rng.uniform(0.02, 1, channels) * self.rng.choice([-1, 1], channels),
                "bias": self.rng.standard_normal(channels) / 2,
            }
            names = [self.b.param(key, array.astype(np.float32)) for key, array in parts.items()]
            self.y = self.b.node("batch_norm", [self.y, *names], eps=1e-3)
        return self

    def act(self, op: str, **attrs: object) -> Net:
        self.y = self.b.node(op, [self.y], **attrs)
        return self

    def flat(self) -> Net:
        return self.act("adaptive_avg_pool2d", output_size=(1, 1)).act("flatten")

    def graph(self, *others: str) -> Graph:
        return _measured(self.b.finish([self.y, *others]))


def _measured(graph: Graph) -> Graph:
    """With batch norms of the statistics that ``feeds`` have."""
    for norm in (node for node in graph.nodes if node.op == "batch_norm"):
        seen = reference.run(graph, feeds(), [norm.inputs[0]])[norm.inputs[0]]
        axes = (0, *range(2, seen.ndim))
        found = {norm.inputs[1]: seen.mean(axis=axes), norm.inputs[2]: seen.var(axis=axes)}
        graph = replace(graph, initializers={**graph.initializers, **found})
    return graph


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((6, 4, 9, 9)).astype(np.float32)}


def same(before: Graph, after: Graph, tolerance: float = 1e-4) -> None:
    expected, found = reference.run(before, feeds()), reference.run(after, feeds())
    for name in expected:
        limit = tolerance * np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=limit)


def spread(graph: Graph, layer: str) -> float:
    """The largest of a layer's channels, in medians of them, batch norm folded."""
    sizes = layer_table(graph, next(n for n in graph.nodes if n.name == layer)).max(axis=2).reshape(-1)
    return float(sizes.max() / np.median(sizes))


def unchanged(graph: Graph) -> bool:
    made = equalize(graph)
    assert counts_of(made) == (0, 0)
    return all(np.array_equal(made.initializers[name], array) for name, array in graph.initializers.items())


ACTS = {
    "relu": {},
    "relu6": {},
    "hardtanh": {"low": 0.0, "high": 4.0},
    "clamp": {"low": 0.0, "high": 3.4028234663852886e38},
    "dropout": {},
    "tanh": {},
    "leaky_relu": {},
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_random_chains_compute_stays(data) -> None:
    net = Net(data.draw(st.integers(0, 1 << 20)))
    for _ in range(data.draw(st.integers(2, 5))):
        kind = data.draw(st.sampled_from(["dense", "depthwise", "multiplied", "grouped"]))
        out = {"dense": 8, "depthwise": net.channels, "multiplied": net.channels * 2, "grouped": 8}[kind]
        groups = {"dense": 1, "depthwise": net.channels, "multiplied": net.channels, "grouped": 2}[kind]
        net.conv(min(out, 32) if groups == 1 else out, groups, bias=data.draw(st.booleans()))
        if data.draw(st.booleans()):
            net.norm()
        for act in data.draw(st.lists(st.sampled_from(list(ACTS)), max_size=2)):
            net.act(act, **ACTS[act])
    net.flat().linear(6)
    if data.draw(st.booleans()):
        net.norm()
    net.act(data.draw(st.sampled_from(["relu", "relu6"]))).linear(3)
    graph = net.graph()
    made = equalize(graph)
    same(graph, made)
    assert made.nodes == graph.nodes
    assert made.values == graph.values
    assert all(made.initializers[name].dtype == array.dtype for name, array in graph.initializers.items())


def relu_net(act: str = "relu") -> Graph:
    """conv, norm, act, depthwise, norm, act, conv, as in MobileNetV1: one depthwise channel's input is nearly dead, and
    its weights are large."""
    net = Net(3).conv(16).norm().act(act).conv(16, 16).norm().act(act).conv(8).norm().flat().linear(4)
    graph = net.graph()
    norm = next(node for node in graph.nodes if node.op == "batch_norm")
    arrays = {name: array.copy() for name, array in graph.initializers.items()}
    arrays[norm.inputs[3]][7], arrays[norm.inputs[4]][7] = 0.001, 0.002
    return _measured(replace(graph, initializers=arrays))


@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_weights_become_alike(act) -> None:
    graph = relu_net(act)
    made = equalize(graph)
    same(graph, made)
    layers, channels = counts_of(made)
    assert 1 <= layers <= channels
    assert {"layer0", "layer1"} <= rescaled_layers(graph)
    assert spread(graph, "layer1") > 15
    assert spread(made, "layer1") < 6


def test_without_batch_norm_rows_and_biases_are_rescaled() -> None:
    graph = Net(5).conv(12).act("relu").conv(12, 12).act("relu").conv(8).flat().linear(6).act("relu").linear(3).graph()
    made = equalize(graph)
    same(graph, made)
    assert [(c.producer.name, c.consumer.name) for c in find_chains(graph)] == [
        ("layer0", "layer1"),
        ("layer1", "layer2"),
        ("layer3", "layer4"),
    ]
    assert spread(made, "layer1") < spread(graph, "layer1") / 2
    factors = made.initializers["layer0.bias"] / graph.initializers["layer0.bias"]
    rows = made.initializers["layer0.weight"] / graph.initializers["layer0.weight"]
    np.testing.assert_allclose(rows, np.broadcast_to(factors.reshape(-1, 1, 1, 1), rows.shape), rtol=1e-5)
    assert np.abs(made.initializers["layer0.bias"]).max() <= np.abs(graph.initializers["layer0.bias"]).max() * 1.00001


def test_a_channel_that_a_clamp_cuts_stays_as_it_is() -> None:
    graph = relu_net("relu6")
    norm = next(node for node in graph.nodes if node.op == "batch_norm")
    bias = graph.initializers[norm.inputs[4]].copy()
    bias[::2] = 5.9
    graph = replace(graph, initializers={**graph.initializers, norm.inputs[4]: bias})
    made = equalize(graph)
    factors = made.initializers[norm.inputs[3]] / graph.initializers[norm.inputs[3]]
    assert np.all(factors[::2] == 1)
    assert np.any(factors[1::2] != 1)


def test_dead_channels_and_zeros_do_no_harm() -> None:
    graph = relu_net("relu6")
    norm = next(node for node in graph.nodes if node.op == "batch_norm")
    arrays = {name: array.copy() for name, array in graph.initializers.items()}
    arrays[norm.inputs[3]][:3] = 0  # constant channels
    arrays[norm.inputs[4]][0] = -3  # never there
    arrays["layer0.weight"][3] = 0
    arrays[norm.inputs[2]][3] = 0
    arrays["layer1.weight"][4] = 0
    graph = replace(graph, initializers=arrays)
    made = equalize(graph)
    assert all(np.isfinite(array).all() for array in made.initializers.values())
    same(graph, made)
    arrays["layer1.weight"][5] = np.inf
    assert not any(np.isnan(a).any() for a in equalize(replace(graph, initializers=arrays)).initializers.values())


def test_factors_bring_both_sides_to_one_size() -> None:
    made = even(np.array([1.0, 1, 1, 1, 0, 100]), np.array([1.0, 1, 1, 400, 0, 1]))
    np.testing.assert_allclose(made[:3], 1)
    assert 4 <= made[3] <= 400
    assert made[4] == 1
    assert 0.01 <= made[5] <= 0.25
    assert np.all(even(np.array([1.0, np.inf, np.nan]), np.array([1.0, 1, 1])) == 1)


def test_a_grouped_consumer_reads_its_groups_inputs() -> None:
    graph = Net(8).conv(8).act("relu").conv(6, 2).act("relu").conv(4).flat().graph()
    weight = graph.initializers["layer1.weight"].copy()
    weight[3:, 1] *= 3000  # the second group's second input is channel 5
    graph = replace(graph, initializers={**graph.initializers, "layer1.weight": weight})
    made = equalize(graph)
    same(graph, made)
    factors = made.initializers["layer0.bias"] / graph.initializers["layer0.bias"]
    assert factors.argmax() == 5


def branches() -> Graph:
    net = Net().conv(8)
    branch = net.act("relu").y
    return net.conv(8, 8).graph(branch)


def shared_weight() -> Graph:
    net = Net()
    weight = net.b.param("weight", net.uneven(4, 4, 1, 1))
    net.y = net.b.node("conv2d", [net.y, weight])
    net.y = net.b.node("conv2d", [net.act("relu").y, weight])
    return net.graph()


def shared_bias() -> Graph:
    net = Net()
    bias = net.b.param("bias", net.uneven(4))
    for name in ("one", "two"):
        net.y = net.b.node("conv2d", [net.act("relu").y, net.b.param(name, net.uneven(4, 4, 1, 1)), bias])
    return net.graph()


def shared_norm() -> Graph:
    net = Net().conv(4).norm()
    names = net.b.finish([net.y]).nodes[-1].inputs[1:]
    net.act("relu").conv(4)
    net.y = net.b.node("batch_norm", [net.y, *names], eps=1e-3)
    return net.graph()


def residual() -> Graph:
    net = Net()
    weights = [net.b.param(name, net.uneven(4, 4, 1, 1)) for name in ("one", "two")]
    bias = net.b.param("bias", net.uneven(4))
    net.y = net.b.node("conv2d", [net.y, weights[0], bias, net.y])
    net.y = net.b.node("conv2d", [net.y, weights[1]])
    return net.graph()


def added_to_itself() -> Graph:
    """The consumer reads the channels a second time, as its residual."""
    net = Net().conv(4).act("relu")
    net.y = net.b.node("conv2d", [net.y, net.b.param("w", net.uneven(4, 4, 1, 1)), "", net.y])
    return net.graph()


def other_axis() -> Graph:
    """A linear layer over columns: it does not read channels."""
    net = Net().conv(9)
    net.y = net.b.node("linear", [net.y, net.b.param("w", net.uneven(9, 9))])
    return net.graph()


def plain_norm() -> Graph:
    net = Net().conv(4)
    statistics = [net.b.param(name, np.ones(4, np.float32)) for name in ("mean", "variance")]
    net.y = net.b.node("batch_norm", [net.y, *statistics], eps=1e-3)
    return net.act("relu").conv(4, 4).graph()


@pytest.mark.parametrize(
    "build",
    [
        branches,
        shared_weight,
        shared_bias,
        shared_norm,
        residual,
        added_to_itself,
        other_axis,
        plain_norm,
        lambda: Net().conv(8).act("relu6").conv(8, 8).graph(),
        lambda: Net().conv(8).act("tanh").conv(8, 8).graph(),
        lambda: Net().conv(8).norm().act("hardtanh").conv(8, 8).graph(),
        lambda: Net().conv(8).act("max_pool2d", kernel_size=(2, 2), stride=(2, 2)).conv(8, 8).graph(),
        lambda: Net().conv(8, activation="clamp", clamp=(0.0, 6.0)).conv(8, 8).graph(),
    ],
)
def test_what_cannot_be_rescaled_is_left_alone(build) -> None:
    graph = build()
    assert find_chains(graph) == ()
    assert not rescaled_layers(graph)
    assert unchanged(graph)


def test_an_equalized_graph_stays_and_a_quantized_one_is_refused() -> None:
    made = equalize(relu_net())
    assert equalize(made) is made
    assert counts_of(replace(made, meta={META: {"layers": "x"}})) == (0, 0)
    with pytest.raises(ModelError, match=r"'net' is quantized already \(backend qnnpack\); equalize the float model"):
        equalize(replace(made, backend="qnnpack", meta={}))


def test_bodies_of_control_flow_are_equalized() -> None:
    inner = relu_net()
    b = Builder("outer")
    x, choice = b.input("x", ("N", 4, 9, 9)), b.param("choice", np.array(True))
    bodies = {"then_branch": inner, "else_branch": relu_net("relu6")}
    graph = b.finish(b.nodes("if", [choice, x], 1, "choice", graphs=bodies))
    made = equalize(graph)
    same(graph, made)
    parts = [counts_of(equalize(body)) for body in bodies.values()]
    assert counts_of(made) == tuple(map(sum, zip(*parts, strict=True)))
    assert all(channels > 0 for _, channels in parts)
    (node,) = graph.nodes
    named = {f"{node.name}.{name}.{layer}" for name, body in bodies.items() for layer in rescaled_layers(body)}
    assert rescaled_layers(graph) == named
