"""What PyTorch exports comes back with its module names and numbers, its decomposed layers whole again."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402

from qtool.engine.session import Session  # noqa: E402
from qtool.pipeline import load_model  # noqa: E402

pytestmark = pytest.mark.peers


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.act = activation

    def forward(self, x):
        return x + self.act(self.conv(x))


class Picture(nn.Module):
    """Padding of its own, a view with the batch's size, upsampling to another tensor's size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.blocks = nn.Sequential(Block(nn.Hardswish()), Block(nn.SiLU()), Block(nn.GELU()), Block(nn.Hardsigmoid()))
        self.down = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        small = self.down(x)
        big = nn.functional.interpolate(small, size=x.shape[2:], mode="nearest")
        y = nn.functional.avg_pool2d(x * big, 2)
        return self.head(y.view(x.size(0), -1))


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.lstm = nn.LSTM(16, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(24, 16)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        y, _ = self.lstm(x)
        return torch.softmax(self.act(self.fc(y)) + x, -1)


def export(module, args, path, opset):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": ["x"], "output_names": ["y"]}
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        torch.onnx.export(module, args, str(path), dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
    return load_model(path)


def compare(module, graph, x):
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(Session(graph).run({"x": x.numpy()})["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_a_network_of_pictures(tmp_path, opset):
    torch.manual_seed(0)
    module = Picture().eval()
    graph = export(module, (torch.randn(2, 3, 17, 17),), tmp_path / "m.onnx", opset)
    found = {node.op for node in graph.nodes}
    assert {"hardswish", "silu", "gelu", "hardsigmoid", "relu6"} <= found
    assert not found & {"pad", "shape", "gather", "erf", "reshape_to"}
    scopes = {node.scope for node in graph.nodes if node.op in ("conv2d", "linear")}
    assert scopes == {"stem.1", *(f"blocks.{i}.conv" for i in range(4)), "head"}
    assert {"blocks.2.conv.weight", "head.weight", "head.bias"} <= set(graph.initializers)
    compare(module, graph, torch.randn(3, 3, 17, 17))


@pytest.mark.parametrize("opset", [13, 17])
def test_a_network_of_words(tmp_path, opset):
    torch.manual_seed(0)
    module = Text().eval()
    graph = export(module, (torch.randint(0, 50, (2, 7)),), tmp_path / "m.onnx", opset)
    ops = [node.op for node in graph.nodes]
    assert ops.count("layer_norm") == 1
    assert ops.count("gelu") == 1
    assert ops.count("lstm") == 2
    assert ops.count("embedding") == 1
    assert ops.count("linear") == 1
    compare(module, graph, torch.randint(0, 50, (4, 7)))


def test_a_transformer(tmp_path):
    torch.manual_seed(0)
    module = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu"), 2, enable_nested_tensor=False
    ).eval()
    graph = export(module, (torch.randn(2, 6, 16),), tmp_path / "m.onnx", 17)
    compare(module, graph, torch.randn(3, 6, 16))
