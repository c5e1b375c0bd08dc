"""Steps of quantization-aware training against PyTorch's FX mode: the same losses, parameters and ranges."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

import torch.ao.quantization as tq  # noqa: E402
from torch import nn  # noqa: E402
from torch.ao.quantization import quantize_fx  # noqa: E402

import qtool  # noqa: E402
from qtool.quantize.prepare import PrepareOptions  # noqa: E402
from qtool.quantize.qat.layers import Phase  # noqa: E402
from qtool.quantize.qat.losses import cross_entropy  # noqa: E402
from qtool.quantize.qat.model import QatModel  # noqa: E402
from qtool.quantize.qat.native_operators import make_operators  # noqa: E402
from qtool.quantize.qat.operators import Operators  # noqa: E402
from qtool.quantize.qat.prepare import prepare_qat  # noqa: E402
from qtool.recipe.presets import get_default_qat_qconfig  # noqa: E402
from qtool.recipe.schema import Backend, Mode, Rule  # noqa: E402

RATE, STEPS, CLASSES = 0.05, 4, 5
BACKENDS = ("qnnpack", "onednn")
"""Both use all of the 8 bits. With 7 PyTorch clips in training what its converted model does not clip."""


class Net(nn.Module):
    """Convolutions with batch norm, with and without relu and bias, a depthwise one, a residual sum, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn3(self.depthwise(self.bn2(self.conv2(x)) + x)))
        return self.fc(torch.flatten(self.pool(y), 1))


def make_net() -> nn.Module:
    torch.manual_seed(1)
    net = Net()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
    return net


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(16, 3, 12, 12)).astype(np.float32), rng.integers(0, CLASSES, 16)) for _ in range(STEPS)]


def prepared_torch(net: nn.Module, backend: str) -> nn.Module:
    torch.backends.quantized.engine = backend
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mapping = tq.QConfigMapping().set_global(tq.get_default_qat_qconfig(backend, version=0))
        return quantize_fx.prepare_qat_fx(net.train(), mapping, (torch.zeros(1, 3, 12, 12),))


def steps_of_torch(module: nn.Module, frozen: bool) -> list[float]:
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=0.9)
    if frozen:
        module.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)
    losses = []
    for x, labels in batches():
        loss = nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def steps_of_qtool(model: QatModel, frozen: bool) -> list[float]:
    momentum: dict[str, np.ndarray] = {}
    losses = []
    for x, labels in batches():
        output = next(iter(model.forward({"x": x}, Phase(True, frozen, True, True)).values()))
        loss, gradient = cross_entropy(output, labels)
        for name, found in model.backward({model.graph.outputs[0]: gradient}).items():
            momentum[name] = found if name not in momentum else np.float32(0.9) * momentum[name] + found
            model.parameters[name] -= np.float32(RATE) * momentum[name]
        losses.append(loss)
    return losses


def make_model(net: nn.Module, backend: str, operators: Operators) -> QatModel:
    graph = qtool.from_torch(copy.deepcopy(net), (torch.zeros(2, 3, 12, 12),))
    rules = [Rule("", get_default_qat_qconfig(backend))]
    return QatModel(prepare_qat(graph, rules, PrepareOptions(Mode.QAT, Backend(backend))), operators)


@pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_are_those_of_torch(backend: str, frozen: bool, native: bool) -> None:
    net = make_net()
    model = make_model(net, backend, make_operators() if native else Operators())
    module = prepared_torch(net, backend)
    expected, got = steps_of_torch(module, frozen), steps_of_qtool(model, frozen)
    # A value half way between two steps may fall on either side; after that the two part, slowly.
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(got, expected, rtol=2e-2)
    known = {name.replace(".bn.", "/"): array.detach().numpy() for name, array in module.named_parameters()}
    compared = 0
    for name, array in model.parameters.items():
        theirs = known.get(torch_name(name))
        if theirs is not None:
            np.testing.assert_allclose(array, theirs, atol=5e-3, err_msg=name)
            compared += 1
    assert compared >= 8


def torch_name(name: str) -> str:
    """Where FX puts a parameter: a batch norm lies in its convolution."""
    layer, _, kind = name.partition(".")
    layers = {"bn1": "conv1", "bn2": "conv2", "bn3": "depthwise"}
    return f"{layers[layer]}/{kind}" if layer in layers else name


def test_first_ranges_are_those_of_torch() -> None:
    backend = "qnnpack"  # on onednn a residual sum goes into the convolution, which PyTorch's training does not know
    net = make_net()
    model = make_model(net, backend, Operators())
    module = prepared_torch(net, backend)
    x = batches()[0][0]
    module(torch.from_numpy(x))
    model.forward({"x": x}, Phase(True, False, True, True))
    weights = {name: quantizer.grid.qparams.scale for name, quantizer in model.weight_quantizers.items()}
    for name, child in module.named_modules():
        if hasattr(child, "weight_fake_quant") and f"{name}.weight" in weights:
            np.testing.assert_allclose(weights[f"{name}.weight"], child.weight_fake_quant.scale.numpy(), rtol=1e-6)
    theirs = [
        child.scale.item()
        for name, child in module.named_modules()
        if name.startswith("activation_post_process") and hasattr(child, "fake_quant_enabled")
    ]
    ours = [float(q.grid.qparams.scale[0]) for q in {id(q): q for q in model.quantizers.values()}.values()]
    # A batch norm magnifies what the sums of a convolution in another order differ by.
    np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=1e-4)
