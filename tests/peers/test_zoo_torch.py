"""The zoo against the same architectures in torch (``torch_nets.py``).

``load_state_dict(strict=True)`` shows that our keys are torchvision's, the outputs that our graphs are its networks.
"""

from __future__ import annotations

import numpy as np
import pytest

from qtool import zoo
from qtool.engine import reference
from qtool.frontends import read_state_dict
from qtool.zoo.weights import parameters

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch_nets import TORCH  # noqa: E402

pytestmark = pytest.mark.peers
torch.set_num_threads(1)

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "googlenet": 6_624_904,
    # torchvision's 27,161,264 less the 3,326,696 of AuxLogits, which only training uses.
    "inception_v3": 23_834_568,
    "resnet20": 269_722,
    "dncnn": 556_096,
}
CLASSIFIERS = [name for name in zoo.names() if name != "dncnn"]
SMALL_IMAGE = {"resnet18": 64, "resnet50": 64, "mobilenet_v2": 64, "googlenet": 70, "inception_v3": 107}
SMALL_IMAGE |= {"resnet20": 33, "dncnn": 19}
"""Odd sizes where ceil_mode and unpadded windows have something to decide."""


def loaded(name, graph, **more):
    """The torch module with the graph's weights; every key must be there and none more, counters apart."""
    module = TORCH[name](**more).eval()
    state = {key: torch.from_numpy(array.copy()) for key, array in parameters(graph).items()}
    counters = {key: value for key, value in module.state_dict().items() if key.endswith("num_batches_tracked")}
    module.load_state_dict({**state, **counters}, strict=True)
    return module


def outputs(graph, module, image, seed=0, batch=2):
    x = np.random.default_rng(seed).standard_normal((batch, graph.values["x"].shape[1], image, image), np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    return reference.run(graph, {"x": x})[graph.outputs[0]], expected


def assert_agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", zoo.names())
def test_outputs_equal_those_of_torch(name):
    graph = zoo.build(name, seed=1, image=SMALL_IMAGE[name])
    module = loaded(name, graph)
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]
    assert_agree(*outputs(graph, module, SMALL_IMAGE[name]))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "inception_v3"])
def test_outputs_equal_those_of_torch_at_full_size(name):
    graph = zoo.build(name, seed=2)
    assert_agree(*outputs(graph, loaded(name, graph), 299 if name == "inception_v3" else 224, batch=1))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_input_transform_is_torchvisions(name):
    graph = zoo.build(name, seed=3, classes=10, image=SMALL_IMAGE[name], transform=True)
    module = loaded(name, graph, classes=10, transform_input=True)
    assert_agree(*outputs(graph, module, SMALL_IMAGE[name]))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_weights_saved_by_torch_are_read_back(name, legacy, tmp_path):
    torch.manual_seed(4)
    module = TORCH[name](classes=7).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    path = tmp_path / "weights.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    graph = zoo.build(name, read_state_dict(path), image=SMALL_IMAGE[name])
    assert graph.values[graph.outputs[0]].shape == ("N", 7)
    assert_agree(*outputs(graph, module, SMALL_IMAGE[name]))


@pytest.mark.parametrize("name", zoo.names())
def test_random_batch_norm_statistics_hold_on_other_images(name):
    """The variance before each batch norm is near the recorded one on fresh noise, at full size, through all layers."""
    image = {"inception_v3": 299, "resnet20": 32, "dncnn": 48}.get(name, 224)
    graph = zoo.build(name, seed=5)
    module = loaded(name, graph)
    ratios = []

    def measure(layer, inputs, _):
        ratios.append(float(inputs[0].var((0, 2, 3)).mean() / layer.running_var.mean()))

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(measure)
    x = np.random.default_rng(5).standard_normal((2, graph.values["x"].shape[1], image, image), np.float32)
    with torch.inference_mode():
        logits = module(torch.from_numpy(x)).numpy()
    assert len(ratios) >= 15
    assert min(ratios) > 0.1
    assert max(ratios) < 10
    assert 1 < logits.std() < 20
    assert np.abs(logits[0] - logits[1]).max() > 1


# ------------------------------------------------------------------------------------------------------------ sequences


def test_bert_layers_equal_those_of_torch():
    graph = zoo.build("bert_base_layers", seed=1)
    arrays = graph.initializers
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", layer_norm_eps=1e-12, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval()
    places = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    state = {}
    for index in range(12):
        ours, theirs = f"encoder.layer.{index}", f"layers.{index}"
        for kind in ("weight", "bias"):
            joined = [arrays[f"{ours}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{theirs}.self_attn.in_proj_{kind}"] = torch.from_numpy(np.concatenate(joined))
            for place, name in places.items():
                state[f"{theirs}.{place}.{kind}"] = torch.from_numpy(arrays[f"{ours}.{name}.{kind}"].copy())
    encoder.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((1, 128, 768), np.float32)
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(x)).numpy()
    assert_agree(reference.run(graph, {"x": x})[graph.outputs[0]], expected)


def test_lstm_lm_equals_that_of_torch():
    graph = zoo.build("lstm_lm", seed=1)
    arrays = graph.initializers
    rnn = nn.LSTM(512, 512, 2)
    for index in range(2):
        b = np.split(arrays[f"rnn.{index}.b"][0], 2)
        for key, array in {
            "weight_ih": arrays[f"rnn.{index}.w"][0],
            "weight_hh": arrays[f"rnn.{index}.r"][0],
            "bias_ih": b[0],
            "bias_hh": b[1],
        }.items():
            gates = np.split(array, 4)  # ONNX: input, output, forget, cell; PyTorch: input, forget, cell, output
            getattr(rnn, f"{key}_l{index}").data = torch.from_numpy(np.concatenate([gates[g] for g in (0, 2, 3, 1)]))
    tokens = np.random.default_rng(0).integers(0, 33278, (35, 2))
    weight, bias, table = (
        torch.from_numpy(arrays[key]) for key in ("decoder.weight", "decoder.bias", "encoder.weight")
    )
    with torch.inference_mode():
        expected = nn.functional.linear(rnn(table[torch.from_numpy(tokens)])[0], weight, bias).numpy()
    assert_agree(reference.run(graph, {"tokens": tokens})[graph.outputs[0]], expected)
