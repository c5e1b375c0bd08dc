"""PyTorch modules and .pt2 files as graphs: outputs against torch itself, module names, sizes, and refusals."""

from __future__ import annotations

import io
import json
import warnings
import zipfile

import numpy as np
import pytest

import qtool
from qtool import zoo
from qtool.engine import reference
from qtool.errors import MissingExtraError, ModelError
from qtool.pipeline import load_model
from qtool.zoo.weights import parameters

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_nets import TORCH  # noqa: E402

from qtool.frontends import torch as frontend  # noqa: E402

pytestmark = pytest.mark.peers
torch.set_num_threads(1)

SMALL_IMAGE = {"resnet18": 64, "resnet50": 64, "mobilenet_v2": 64, "googlenet": 70, "inception_v3": 107}


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def leaves(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if leaf is not None]


def feeds_of(graph, inputs):
    return dict(zip(graph.inputs, (tensor.numpy() for tensor in leaves(inputs)), strict=True))


def assert_agree(graph, module, *inputs, session=True):
    """Both engines against the module, to 1e-4 of each output's largest number; types and shapes exactly."""
    with torch.inference_mode():
        expected = [leaf.numpy() for leaf in leaves(module(*inputs))]
    feeds = feeds_of(graph, inputs)
    results = [reference.run(graph, feeds)]
    if session:
        results.append(qtool.Session(graph).run(feeds))
    for result in results:
        for ours, theirs in zip(result.values(), expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            if theirs.dtype.kind != "f":
                np.testing.assert_array_equal(ours, theirs)
            else:
                largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * largest)


def converted(module, *inputs, **more):
    module.eval()
    graph = qtool.from_torch(module, inputs, **more)
    assert_agree(graph, module, *inputs)
    return graph


def with_zoo_weights(name, seed=1, **more):
    graph = zoo.build(name, seed=seed, image=SMALL_IMAGE[name], transform=more.get("transform_input", False))
    module = TORCH[name](**more).eval()
    state = {key: torch.from_numpy(array.copy()) for key, array in parameters(graph).items()}
    module.load_state_dict(state, strict=False)
    return graph, module


@pytest.mark.parametrize("name", zoo.names())
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


# functions


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(draw(4, 6, seed=7))
        self.register_buffer("mask", torch.ones(5, 5).tril() == 0)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def assigned(x):
    y = x * 1
    y[:, 1] = 0.5
    y[:, :, 2:] = x[:, :, :2]
    return y


def filled_in_place(x):
    y = x + 1
    y[:, 0].fill_(1.0)
    return F.relu_(y)


X = (2, 3, 4)
FUNCTIONS = {
    "arithmetic": (lambda _, x: (x + 1) * 2 - 0.5 / (x.abs() + 1) + (3 - x) ** 2 + x**3 + (x * x + 1).rsqrt(), X),
    "alpha": (lambda _, x: torch.add(x, x * x, alpha=0.5) - torch.rsub(x, 2), X),
    "comparisons": (lambda _, x: (torch.where((x > 0) & (x < 1) | (x == 0), x, -x), x != 0, (x > 0).sum(-1)), X),
    "masks": (lambda m, x: (x @ x.mT).masked_fill(m.mask[:3, :3], float("-inf")).softmax(-1), X),
    "weights": (lambda m, x: (x @ m.weight, torch.addmm(m.weight[0], x[:, 0], m.weight)), X),
    "reductions": (lambda _, x: (x.mean(1), x.sum((1, 2)), x.amax(-1), x.max(), x.max(1), x.argmin(1), x.std(-1)), X),
    "more_reductions": (lambda _, x: (x.var(1, correction=0), x.norm(dim=-1), (x > 2).any(1), x.logsumexp(1)), X),
    "shapes": (lambda _, x: (x.view(x.shape[0], -1), x.flatten(1), x.unflatten(1, (3, 1)), x.permute(2, 0, 1)), X),
    "places": (lambda _, x: (x[:, 0], x[:, -1, 1:3], x[..., ::2], x[:, [0, 2]], x.flip(1), x.roll(1, 1)), X),
    "repeats": (lambda _, x: (x.unsqueeze(1).expand(-1, 5, -1, -1), x.repeat(1, 2, 1), x.unsqueeze(1).squeeze(1)), X),
    "parts": (lambda _, x: (torch.cat(x.chunk(2, 2)), torch.stack(x.split(2, 1)[:1], 1), *x.unbind(1)), X),
    "clamps": (lambda _, x: (x.clamp(-0.3), x.clamp(max=0.2), F.relu6(x * 9), F.hardtanh(x), x.clamp(-0.1, 0.1)), X),
    "activations": (
        lambda _, x: [
            f(x) for f in (F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.softplus, F.hardswish, F.hardsigmoid, F.glu)
        ],
        X,
    ),
    "composed": (lambda _, x: [f(x) for f in (F.logsigmoid, F.softsign, F.tanhshrink, F.hardshrink, F.normalize)], X),
    "padding": (lambda _, x: [F.pad(x, (1, 2), mode=mode) for mode in ("constant", "reflect", "replicate")], X),
    "new": (lambda _, x: (torch.cat([torch.zeros(x.shape[0], 1, 4), x], 1), x + torch.arange(x.shape[2])), X),
    "sizes": (lambda _, x: x.sum() / x.shape[0] + x.reshape(x.shape[0] * 3, 4)[0, 0] + x.numel(), X),
    "types": (lambda _, x: (x.long().float(), x.int() + 1, (x > 0).float(), x.double(), x.long() // 2, x % 0.7), X),
    "top": (lambda _, x: (x.cumsum(1), x.topk(2), x.tril(), torch.einsum("bij,bkj->bik", x, x)), X),
    "assignment": (lambda _, x: assigned(x), X),
    "in_place": (lambda _, x: filled_in_place(x), X),
    "outputs": (lambda m, x: {"weight": m.weight * 2, "input": x, "twice": (x, None)}, X),
    "attention": (
        lambda m, x: (
            F.scaled_dot_product_attention(x, x, x, is_causal=True),
            F.scaled_dot_product_attention(x, x, x, attn_mask=~m.mask, scale=0.3),
            F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
        ),
        (2, 4, 5, 8),
    ),
    "resizing": (
        lambda _, x: (
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, size=(5, 7), mode="bilinear"),
            F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
            F.interpolate(x, scale_factor=2, mode="bicubic"),
        ),
        (2, 3, 4, 5),
    ),
    "pools": (
        lambda _, x: (
            F.max_pool2d(x, 2, ceil_mode=True),
            F.avg_pool2d(x, 2, divisor_override=3),
            F.adaptive_avg_pool2d(x, (None, 2)),
            F.adaptive_max_pool2d(x, 2),
        ),
        (2, 3, 9, 9),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, shape = FUNCTIONS[name]
    module = Call(function).eval()
    graph = converted(module, draw(*shape))
    assert_agree(graph, module, draw(5, *shape[1:], seed=1))


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


# files


def saved(module, example, path, dynamic=None, decomposed=False):
    program = torch.export.export(module.eval(), example, dynamic_shapes=dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


@pytest.mark.parametrize("decomposed", [False, True])
def test_pt2_files(tmp_path, decomposed):
    _, module = with_zoo_weights("resnet18")
    x = draw(2, 3, 64, 64)
    path = saved(module, (x,), tmp_path / "net.pt2", ({0: torch.export.Dim("batch")},), decomposed)
    graph = load_model(path)
    assert_agree(graph, module, draw(3, 3, 64, 64, seed=1))
    direct = qtool.from_torch(module, [x])
    layers = ("conv2d", "batch_norm", "linear")
    assert [(n.name, n.inputs) for n in graph.nodes if n.op in layers[:2]] == [
        (n.name, n.inputs) for n in direct.nodes if n.op in layers[:2]
    ]
    assert graph.producers["fc"].inputs[1:] == ("fc.weight", "fc.bias")


def test_pt2_files_with_two_open_sizes(tmp_path):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    module = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    graph = load_model(saved(module, (draw(3, 5, 16),), tmp_path / "net.pt2", (dims,)))
    batch, tokens, width = graph.values[graph.inputs[0]].shape
    assert (batch, width) == ("N", 16)
    assert isinstance(tokens, str)
    assert graph.values[graph.outputs[0]].shape == (batch, tokens, width)
    for sizes in ((1, 7), (4, 2)):
        assert_agree(graph, module, draw(*sizes, 16))


def rewritten(path, change):
    """The archive with the text of its program, or with members, changed."""
    result = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w") as new:
        for info in old.infolist():
            change(new, info.filename, old.read(info))
    path.write_bytes(result.getvalue())
    return path


HARMFUL = [
    "__import__('os').system('true')",
    "exec(input())",
    "().__class__",
    "s0.x",
    "[1 for a in s0]",
    "Symbol('a b')",
]


@pytest.mark.parametrize("text", HARMFUL)
def test_pt2_files_that_would_have_code_evaluated_are_refused(tmp_path, text):
    path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2", ({0: torch.export.Dim("batch")},))
    found = []

    def change(new, name, data):
        if name.endswith("models/model.json"):
            program = json.loads(data)
            spoil(program, found)
            data = json.dumps(program)
        new.writestr(name, data)

    def spoil(item, found):
        for value in item.values() if isinstance(item, dict) else item:
            if isinstance(value, dict) and "expr_str" in value:
                found.append(value["expr_str"])
                value["expr_str"] = text
            elif isinstance(value, (dict, list)):
                spoil(value, found)

    with pytest.raises(ModelError, match="expected arithmetic on sizes"):
        load_model(rewritten(path, change))
    assert found


def with_members(more):
    def change(new, name, data):
        new.writestr(name, more.pop(name.split("/", 1)[1], data))
        if name.endswith("/version"):
            for extra in [extra for extra in more if extra.startswith("+")]:
                new.writestr(f"{name.split('/')[0]}/{extra[1:]}", more.pop(extra))

    return change


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_pt2_files_with_more_than_tensors_are_refused(tmp_path, capsys):
    evil = io.BytesIO()
    torch.save({"x": Evil()}, evil)
    cases = {
        "data/sample_inputs/model.pt": (evil.getvalue(), "holds more than tensors"),
        "+data/aotinductor/model/a.so": (b"", "compiled code"),
        "+data/constants/custom_obj_0": (b"", "no tensor"),
        "models/model.json": (b"{}", "no exported program"),
    }
    for name, (data, message) in cases.items():
        path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2")
        with pytest.raises(ModelError, match=message):
            load_model(rewritten(path, with_members({name: data})))
    assert "unpickled" not in capsys.readouterr().out


def test_pt2_files_that_call_other_functions_are_refused(tmp_path):
    path = saved(nn.Linear(3, 2), (draw(2, 3),), tmp_path / "net.pt2")

    def change(new, name, data):
        new.writestr(name, data.replace(b"torch.ops.aten.linear.default", b"torch.os.system"))

    with pytest.raises(ModelError, match=r"it calls 'torch\.os\.system'"):
        load_model(rewritten(path, change))


def test_broken_pt2_files(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(ModelError, match=r"net\.pt2"):
        load_model(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"cannot be read as a \.pt2 archive"):
        load_model(path)


# control flow


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


def test_gradient_switches_in_files_are_passed_over(tmp_path):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                x = self.first(x).relu()
            return self.second(x)

    module = Frozen().eval()
    dims = ({0: torch.export.Dim("batch")},)
    graph = load_model(saved(module, (draw(2, 4),), tmp_path / "net.pt2", dims))
    assert [node.scope for node in graph.nodes] == ["first", "", "second"]
    assert_agree(graph, module, draw(5, 4))


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


# errors


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (
            Call(lambda _, x: torch.hypot(x, x)),
            nn.Sequential(Call(lambda _, x: torch.svd(x)[1])),
        )

    def forward(self, x):
        return self.second(torch.atan2(self.first(x), x).relu())


def test_all_operators_without_a_converter_are_named_at_once():
    with pytest.raises(ModelError) as info:
        qtool.from_torch(Two(), [draw(*X)])
    message = str(info.value)
    assert "aten.hypot.default in first: it is not known" in message
    assert "aten.atan2.default in the model itself: it is not known" in message
    assert "svd" in message
    assert "in second.0: it is not known" in message
    assert message.endswith("Write these modules with other operators, or leave them out of the exported module.")


def test_states_that_change_are_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += 1
            return x + self.seen

    with pytest.raises(ModelError, match="changes 'seen' as it runs"):
        qtool.from_torch(Counts(), [draw(*X)])


def test_numbers_that_decide_sizes_or_branches_are_refused():
    with pytest.raises(ModelError, match="selects by a mask"):
        qtool.from_torch(Call(lambda _, x: x[x > 0]), [draw(*X)])
    with pytest.raises(ModelError, match=r"torch\.export cannot export Call"):
        qtool.from_torch(Call(lambda _, x: x if x.sum() > 0 else -x), [draw(*X)])


def test_without_torch(monkeypatch):
    monkeypatch.setattr(frontend, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"qtool\[torch\]"):
        qtool.from_torch(nn.Linear(2, 2), [draw(1, 2)])
    with pytest.raises(MissingExtraError, match=r"qtool\[torch\]"):
        load_model("some.pt2")
