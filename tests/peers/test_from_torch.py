"""PyTorch modules as graphs: outputs against torch itself, module names, parameters, sizes."""

from __future__ import annotations

import numpy as np
import pytest

import qtool
from qtool.engine import reference
from qtool.errors import ModelError
from qtool.zoo.weights import parameters

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_graphs import (  # noqa: E402
    SMALL_IMAGE,
    Call,
    X,
    assert_agree,
    converted,
    draw,
    feeds_of,
    with_zoo_weights,
)

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", SMALL_IMAGE)
def test_the_torchvision_five(name):
    more = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}
    ours, module = with_zoo_weights(name, **more)
    image = draw(2, 3, SMALL_IMAGE[name], SMALL_IMAGE[name])
    graph = converted(module, image)
    assert set(parameters(ours)) <= set(graph.initializers)
    layers = ("conv2d", "batch_norm", "linear")
    assert [(n.op, n.name, n.scope) for n in graph.nodes if n.op in layers] == [
        (n.op, n.name, n.scope) for n in ours.nodes if n.op in layers
    ]
    assert graph.values[graph.inputs[0]].shape[0] == "N"


def test_quantizes_to_the_bits_of_the_zoo():
    ours, module = with_zoo_weights("resnet18")
    theirs = qtool.from_torch(module, [draw(1, 3, 64, 64)])
    batches = [{"x": draw(2, 3, 64, 64, seed=seed).numpy()} for seed in (1, 2)]
    qconfig_dict = {"": qtool.get_default_qconfig("fbgemm"), "layer2.0.conv2": None, "layer4": None}
    graphs = [qtool.quantize(graph, qconfig_dict, batches).graph for graph in (ours, theirs)]
    assert [node.name for node in graphs[0].nodes] == [node.name for node in graphs[1].nodes]
    kept = [node for node in graphs[1].nodes if node.scope.startswith(("layer2.0.conv2", "layer4"))]
    layers = [node for node in kept if node.op == "conv2d"]
    assert layers
    assert all(graphs[1].values[node.outputs[0]].qparams is None for node in layers)
    a, b = (next(iter(reference.run(graph, batches[0]).values())) for graph in graphs)
    np.testing.assert_array_equal(a, b)


def test_from_torch_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3)).train()
    module[1].eval()
    qtool.from_torch(module, [draw(2, 3)])
    assert (module.training, [part.training for part in module]) == (True, [True, False, True])


# layers


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x, y):
        return self.a(x, y, y)


def test_multihead_attention():
    graph = converted(Attend().eval(), draw(2, 5, 16), draw(2, 7, 16, seed=1))
    projection = graph.producers["a.out_proj"]
    assert (projection.op, projection.scope, projection.inputs[1]) == ("linear", "a.out_proj", "a.out_proj.weight")


@pytest.mark.parametrize("first", [False, True])
def test_transformer_encoder(first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=first, activation="gelu")
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    graph = converted(module, draw(2, 5, 16))
    names = {node.name: node.op for node in graph.nodes}
    assert {names[f"layers.{i}.{part}"] for i in (0, 1) for part in ("linear1", "linear2")} == {"linear"}
    assert names["layers.1.norm2"] == "layer_norm"
    assert_agree(graph, module, draw(5, 5, 16, seed=1))


class Recurrent(nn.Module):
    def __init__(self, kind, **more):
        super().__init__()
        self.cell = kind(6, 5, **more)

    def forward(self, x, *states):
        states = states[0] if len(states) == 1 else states or None
        return self.cell(x, states)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "more",
    [{"batch_first": True}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}],
    ids=["plain", "two_layers_both_ways", "no_bias"],
)
def test_recurrent_layers(kind, more):
    module = Recurrent(kind, **more).eval()
    batch_first = more.get("batch_first", False)
    graph = converted(module, draw(2, 4, 6), dynamic_batch=batch_first)
    cells = [node for node in graph.nodes if node.op == kind.__name__.lower()]
    assert len(cells) == more.get("num_layers", 1)
    assert all(node.scope == "cell" for node in cells)
    if batch_first:
        assert_agree(graph, module, draw(3, 4, 6, seed=1))


def test_recurrent_layers_with_states():
    x = draw(4, 2, 6)
    for kind, states in ((nn.LSTM, 2), (nn.GRU, 1)):
        module = Recurrent(kind, num_layers=2).eval()
        converted(module, x, *(draw(2, 2, 5, seed=i) for i in range(states)), dynamic_batch=False)
    relu = Recurrent(nn.RNN, nonlinearity="relu").eval()
    converted(relu, x, dynamic_batch=False)


def test_recurrent_layers_that_project_are_refused():
    module = Recurrent(nn.LSTM, proj_size=3).eval()
    with pytest.raises(ModelError, match=r"aten\.lstm\.input in cell: it projects"):
        qtool.from_torch(module, [draw(4, 2, 6)], dynamic_batch=False)


def sequential_cases():
    return {
        "mlp": (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3), nn.Softmax(-1)), (4,)),
        "conv1d": (
            nn.Sequential(
                nn.Conv1d(3, 8, 3, padding="same", dilation=2),
                nn.BatchNorm1d(8),
                nn.PReLU(8),
                nn.MaxPool1d(2),
                nn.ConvTranspose1d(8, 4, 3, 2, 1, 1),
                nn.AdaptiveAvgPool1d(4),
                nn.Flatten(),
            ),
            (3, 20),
        ),
        "conv2d": (
            nn.Sequential(
                nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect", groups=2),
                nn.GroupNorm(2, 8),
                nn.Hardswish(),
                nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
                nn.InstanceNorm2d(4, affine=True),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.PixelShuffle(2),
                nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            ),
            (4, 6, 6),
        ),
    }


@pytest.mark.parametrize("name", sequential_cases())
def test_sequences_of_layers(name):
    torch.manual_seed(0)
    module, shape = sequential_cases()[name]
    graph = converted(module, draw(2, *shape))
    assert {node.scope for node in graph.nodes if node.op.startswith(("conv", "linear"))} <= set(map(str, range(8)))
    assert_agree(graph, module, draw(5, *shape, seed=1))


# control flow, parameters


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

    def branches(self):
        return lambda x, z: self.a(x).relu() + z.sum() / x.shape[0], lambda x, z: self.b(x + z) - 1

    def forward(self, x):
        with torch.no_grad():
            z = x * 2
        return torch.cond(x.sum() > 0, *self.branches(), (x, z)) * 2


def test_branches_become_bodies_whose_layers_can_be_quantized():
    module = Branches().eval()
    graph = qtool.from_torch(module, [draw(2, 4)])
    (node,) = (node for node in graph.nodes if node.op == "if")
    for name, layer in (("then_branch", "a"), ("else_branch", "b")):
        body = node.graphs[name]
        assert body.producers[layer].inputs[1:] == (f"{layer}.weight", f"{layer}.bias")
        assert f"{layer}.weight" in body.initializers
    for sign, branch in zip((1, -1), module.branches(), strict=True):
        x = sign * draw(3, 4).abs()
        with torch.inference_mode():
            expected = branch(x, x * 2).numpy() * 2
        for result in (reference.run(graph, feeds_of(graph, x)), qtool.Session(graph).run(feeds_of(graph, x))):
            np.testing.assert_allclose(next(iter(result.values())), expected, rtol=1e-5, atol=1e-6)


def test_language_models():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.out = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 20)

        def forward(self, ids):
            return self.out(self.rnn(self.embed(ids))[0])

    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (2, 7)))
    graph = converted(Language(), ids)
    assert [(node.op, node.scope) for node in graph.nodes if node.op in ("embedding", "lstm", "linear")] == [
        ("embedding", "embed"),
        ("lstm", "rnn"),
        ("linear", "out"),
    ]
    assert "embed.weight" in graph.initializers


def test_the_graph_has_parameters_of_its_own():
    module = nn.Linear(3, 2)
    graph = qtool.from_torch(module, [draw(2, 3)])
    before = graph.initializers["weight"].copy()
    with torch.no_grad():
        module.weight += 1
    np.testing.assert_array_equal(graph.initializers["weight"], before)


# small nets of the kinds that people bring


class Vision(nn.Module):
    """A vision transformer: patches, a class token, positions."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.token, self.places = nn.Parameter(draw(1, 1, 16)), nn.Parameter(draw(1, 17, 16, seed=1))
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation=F.gelu)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1) + self.places
        return self.head(self.layer(x)[:, 0])


class Generator(nn.Module):
    """A decoder of text whose embedding is its last layer as well."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(30, 16), nn.Embedding(8, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, ids):
        batch, tokens = ids.shape
        x = self.words(ids) + self.places(torch.arange(tokens))
        heads = (part.view(batch, tokens, 4, 4).transpose(1, 2) for part in self.qkv(self.norm(x)).split(16, 2))
        y = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(batch, tokens, 16)
        return (x + self.out(y)) @ self.words.weight.T


class Halves(nn.Module):
    """Down and up again, to the size of what it is joined with."""

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        a = self.first(x).relu()
        b = F.interpolate(self.up(self.down(a).relu()), size=a.shape[2:], mode="bilinear")
        return self.out(torch.cat([a, b], 1)).sigmoid()


def test_small_nets():
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 30, (2, 6)))
    for module, x in ((Vision(), draw(2, 3, 16, 16)), (Generator(), ids), (Halves(), draw(2, 3, 15, 17))):
        graph = converted(module, x)
        assert_agree(graph, module, torch.cat([x, x[:1]]))


def test_a_weight_that_two_layers_share_is_one():
    graph = qtool.from_torch(Generator(), [torch.zeros(2, 6, dtype=torch.int64)])
    readers = graph.consumers["words.weight"]
    assert [node.op for node in readers] == ["embedding", "linear"]
    assert readers[1].outputs == graph.outputs


# sizes


def test_a_batch_of_one_is_taken_as_any():
    graph = converted(nn.Linear(4, 3), draw(1, 4))
    assert [graph.values[name].shape for name in (*graph.inputs, *graph.outputs)] == [("N", 4), ("N", 3)]
    fixed = converted(nn.Linear(4, 3), draw(1, 4), dynamic_batch=False)
    assert fixed.values[fixed.inputs[0]].shape == (1, 4)


def test_a_module_made_for_one_batch_size_is_refused():
    module = Call(lambda _, x: x + torch.ones(2, 1, 1))
    with pytest.raises(ModelError, match=r"only works for the batch size of the example \(2\).*dynamic_batch=False"):
        qtool.from_torch(module, [draw(*X)])
    converted(module, draw(*X), dynamic_batch=False)
