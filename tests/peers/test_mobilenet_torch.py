"""MobileNetV1-0.75 and real pictures through PyTorch's FX mode and through qtool, found through QTOOL_TEST_DATA.

The two do not give the same accuracy, though on the same activations they give the same bits: float convolutions add in
another order, and PyTorch's histogram observer stops its search for a range at the first step that makes the error
grow, so that a last bit may move a range by several percent. PyTorch with other float kernels is as far from itself.
Here both see the activations of PyTorch's float network; then every scale is equal, and on ``fbgemm`` and ``qnnpack``
every logit. oneDNN gives one in some hundred thousand outputs of a layer the neighbouring step
(``test_onednn_is_within_one``), of which enough is left at the end of 28 layers to change some predictions.

Three things are other than a user of PyTorch would write them, none of them in the weights: a convolution with more
padding at one end has a larger kernel with zeros (PyTorch has only equal ends, and a ZeroPad2d before it runs in float,
with an observer of its own); on QNNPACK, relu6 gets pictures in NCHW (``test_relu6_of_qnnpack_is_permuted``); and the
flattening is a function, since PyTorch quantizes again behind the module.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")
pytestmark = [pytest.mark.peers, pytest.mark.slow]

import torch.ao.quantization as tq  # noqa: E402
from torch import nn  # noqa: E402
from torch.ao.quantization import quantize_fx  # noqa: E402

import qtool  # noqa: E402
from qtool.ir import DType, QParams  # noqa: E402
from qtool.pipeline import load_model  # noqa: E402
from qtool.quantize.calibrate import calibrate  # noqa: E402
from qtool.quantize.convert import convert  # noqa: E402
from qtool.quantize.data import open_data  # noqa: E402
from qtool.quantize.observers import make_observer  # noqa: E402
from qtool.quantize.prepare import PrepareOptions, prepare  # noqa: E402
from qtool.recipe.schema import Backend, DataConfig, Mode, Preprocess, Rule  # noqa: E402

DATA = Path(os.environ.get("QTOOL_TEST_DATA", "/nonexistent")) / "imagenet"
PICTURES, CALIBRATED, BATCH = 20, 8, 4


class Net(nn.Module):
    def __init__(self, layers, head):
        super().__init__()
        self.features, self.head = nn.Sequential(*layers), head

    def forward(self, x):
        return self.head(torch.flatten(self.features(x), 1))


class Relu6InOrder(nn.Module):
    def forward(self, x):
        return nn.functional.relu6(x.contiguous())


def module_of(graph, node):
    """The PyTorch module of a node, with the graph's weights."""
    arrays = [torch.from_numpy(graph.initializers[name].copy()) for name in node.inputs[1:]]
    if node.op == "conv2d":
        return conv_of(node.attrs, *arrays)
    if node.op == "batch_norm":
        norm = nn.BatchNorm2d(len(arrays[0]), eps=node.attrs["eps"])
        norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data = arrays
        return norm
    if node.op == "linear":
        linear = nn.Linear(arrays[0].shape[1], arrays[0].shape[0])
        linear.weight.data, linear.bias.data = arrays
        return linear
    return {"relu6": nn.ReLU6, "adaptive_avg_pool2d": lambda: nn.AdaptiveAvgPool2d(1)}[node.op]()


def conv_of(attrs, weight, bias=None):
    (top, bottom), (left, right) = attrs["padding"]
    grow_y, grow_x = bottom - top, right - left
    weight = nn.functional.pad(weight, (grow_x, 0, grow_y, 0))
    channels = weight.shape[1] * attrs["groups"], len(weight)
    padding = (bottom, right)
    conv = nn.Conv2d(*channels, weight.shape[2:], attrs["stride"], padding, 1, attrs["groups"], bias is not None)
    conv.weight.data = weight
    if bias is not None:
        conv.bias.data = bias
    return conv


@pytest.fixture(scope="module")
def graph():
    path = DATA / "mobilenet_v1_075_224.onnx"
    if not path.exists():
        pytest.skip("QTOOL_TEST_DATA holds no imagenet/mobilenet_v1_075_224.onnx")
    return load_model(path)


@pytest.fixture(scope="module")
def batches(graph):
    """Pictures for calibration and others for evaluation, in batches."""
    if not (DATA / "images").is_dir():
        pytest.skip("QTOOL_TEST_DATA holds no imagenet/images")
    preprocess = Preprocess(crop=224, mean=(0.5,), std=(0.5,))
    config = DataConfig(DATA / "images", batch_size=BATCH, preprocess=preprocess, shuffle=0, samples=(0, PICTURES))
    found = [feeds["input"] for feeds in open_data(config, graph).feeds()]
    return found[: CALIBRATED // BATCH], found[CALIBRATED // BATCH :]


def calibrated_by_torch(graph, backend, data):
    """PyTorch's quantized network, and each of its observers beside one of qtool's that saw the same tensors."""
    layers = [module_of(graph, node) for node in graph.nodes if node.op != "flatten"]
    prepared_graph = prepare(
        graph,
        [Rule("", qtool.get_default_qconfig(backend))],
        PrepareOptions(Mode.STATIC, Backend(backend)),
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = backend
        mapping = tq.get_default_qconfig_mapping(backend)
        net = quantize_fx.prepare_fx(Net(layers[:-1], layers[-1]).eval(), mapping, (torch.zeros(1, 3, 224, 224),))
        twins = {}

        def observe(theirs, inputs, _):
            if theirs not in twins:
                twins[theirs] = make_observer(prepared_graph.groups[len(twins)].config)
            twins[theirs].observe(inputs[0].numpy())

        for module in net.modules():
            if isinstance(module, tq.HistogramObserver):
                module.register_forward_hook(observe)
        for x in data:
            net(torch.from_numpy(x))
        parameters = [tuple(float(part) for part in theirs.calculate_qparams()) for theirs in twins]
        quantized = quantize_fx.convert_fx(net)
    if backend == "qnnpack":
        for name, module in list(quantized.named_modules()):
            if isinstance(module, nn.ReLU6):
                quantized.set_submodule(name, Relu6InOrder())
    return prepared_graph, quantized, parameters, list(twins.values())


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack", "onednn", "x86"])
def test_the_same_activations_give_the_same_bits(graph, batches, backend):
    calibration, evaluation = batches
    prepared, quantized, parameters, ours = calibrated_by_torch(graph, backend, calibration)
    found = [(float(o.qparams().scale[0]), float(o.qparams().zero_point[0])) for o in ours]
    assert found == parameters
    if backend in ("onednn", "x86"):
        return
    activations = {}
    for group, (scale, zero) in zip(prepared.groups, parameters, strict=True):
        activations |= dict.fromkeys(group.values, QParams.per_tensor(scale, int(zero), DType.UINT8))
    calibrated = calibrate(prepared, [{"input": calibration[0][:1]}])  # for the weights
    session = qtool.Session(convert(replace(calibrated, activations=activations)))
    for x in evaluation:
        with torch.no_grad():
            expected = quantized(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(session.run({"input": x})["logits"], expected)
