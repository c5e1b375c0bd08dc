"""The zoo without any peer: shapes, keys, sizes, errors, and random weights that behave."""

from __future__ import annotations

import numpy as np
import pytest

from qtool import zoo
from qtool.errors import ModelError
from qtool.ir import npz
from qtool.ir.verify import verify
from qtool.ops import attrs_of, check_types, get
from qtool.zoo.weights import parameters

IMAGES, CLASSES = ("N", 3, 224, 224), ("N", 1000)
FACTS = {
    # nodes, trainable parameters (the authors' figures; inception_v3 without the auxiliary head), input, output
    "resnet18": (69, 11_689_512, IMAGES, CLASSES),
    "resnet50": (175, 25_557_032, IMAGES, CLASSES),
    "mobilenet_v2": (152, 3_504_872, IMAGES, CLASSES),
    "googlenet": (196, 6_624_904, IMAGES, CLASSES),
    "inception_v3": (313, 23_834_568, ("N", 3, 299, 299), CLASSES),
    "resnet20": (75, 269_722, ("N", 3, 32, 32), ("N", 10)),
    "dncnn": (48, 556_096, ("N", 1, "H", "W"), ("N", 1, "?dncnn.47.2", "?dncnn.47.3")),
}
SOME_KEYS = {
    "resnet18": ("layer1.0.conv1.weight", "layer2.0.downsample.1.running_var", "fc.bias"),
    "resnet50": ("layer4.2.conv3.weight", "layer1.0.downsample.0.weight", "layer3.5.bn3.bias"),
    "mobilenet_v2": ("features.0.0.weight", "features.1.conv.2.bias", "features.18.1.weight", "classifier.1.weight"),
    "googlenet": ("conv2.conv.weight", "inception4e.branch3.1.bn.running_mean", "inception3a.branch4.1.conv.weight"),
    "inception_v3": ("Conv2d_2b_3x3.bn.weight", "Mixed_6e.branch7x7dbl_5.conv.weight", "Mixed_7c.branch_pool.bn.bias"),
    "resnet20": ("conv1.weight", "layer2.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"),
    "dncnn": ("dncnn.0.weight", "dncnn.0.bias", "dncnn.2.weight", "dncnn.45.running_mean", "dncnn.47.weight"),
}


def trainable(graph):
    return {key: array for key, array in parameters(graph).items() if ".running_" not in key}


def run(graph, x):
    """The graph by its operators' definitions, node by node."""
    values = {**graph.initializers, graph.inputs[0]: x}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        (values[node.outputs[0]],) = get(node.op).reference(attrs_of(node), *inputs)
    return values[graph.outputs[0]]


@pytest.fixture(scope="module")
def small():
    return zoo.build("resnet18", seed=1, classes=10, image=32)


@pytest.mark.parametrize("name", zoo.names())
def test_every_architecture(name):
    graph = zoo.build(name)
    verify(graph)
    check_types(graph)
    nodes, count, taken, given = FACTS[name]
    assert len(graph.nodes) == nodes
    assert sum(array.size for array in trainable(graph).values()) == count
    assert graph.values["x"].shape == taken
    assert graph.values[graph.outputs[0]].shape == given
    assert set(SOME_KEYS[name]) <= set(graph.initializers)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in graph.initializers.values())
    assert all(np.ptp(array) > 0 for array in graph.initializers.values())
    assert all((array > 0).all() for key, array in graph.initializers.items() if key.endswith("running_var"))


@pytest.mark.parametrize("name", zoo.names())
def test_every_node_belongs_to_a_module_of_torchvision(name):
    graph = zoo.build(name, classes=None if name == "dncnn" else 2, image=80)
    for node in graph.nodes:
        for key in node.inputs[1:]:
            if key in graph.initializers:
                assert key.rpartition(".")[0] == node.scope == node.name


@pytest.mark.parametrize(("name", "megabytes"), [("mobilenet_v2", 14.2), ("resnet18", 46.8)])
def test_file_sizes(name, megabytes, tmp_path):
    path = tmp_path / "model.npz"
    npz.save(zoo.build(name), path)
    assert path.stat().st_size / 1e6 == pytest.approx(megabytes, abs=0.1)


def test_outputs_are_finite_and_differ(small):
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    logits = run(small, x)
    assert logits.shape == (4, 10)
    assert np.isfinite(logits).all()
    assert 0.3 < logits.std() < 30
    assert min(np.ptp(logits, axis=0)) > 0.1


def test_the_seed_decides_the_weights(small):
    same, other = (
        zoo.build("resnet18", seed=1, classes=10, image=32),
        zoo.build("resnet18", seed=2, classes=10, image=32),
    )
    key = "layer3.0.conv2.weight"
    assert all(np.array_equal(array, same.initializers[k]) for k, array in small.initializers.items())
    assert not np.array_equal(other.initializers[key], small.initializers[key])
    assert small.meta == {"source": "zoo:resnet18", "seed": 1}


def test_weights_of_a_state_dict(small):
    state = {key: array.astype(np.float64) for key, array in parameters(small).items()}
    state["bn1.num_batches_tracked"] = np.array(7)
    graph = zoo.build("resnet18", state, image=32)
    assert graph.values[graph.outputs[0]].shape == ("N", 10)
    assert all(array.dtype == np.float32 for array in graph.initializers.values())
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(run(graph, x), run(small, x))


@pytest.mark.parametrize(("name", "key"), [("googlenet", "aux1.fc1.weight"), ("inception_v3", "AuxLogits.fc.bias")])
def test_heads_for_training_are_passed_over(name, key):
    state = dict(parameters(zoo.build(name, classes=3, image=80)))
    state[key] = np.zeros(5, np.float32)
    assert key not in zoo.build(name, state, image=80).initializers


def test_the_first_convolution_of_dncnn_has_a_bias_and_no_other():
    graph = zoo.build("dncnn")
    convolutions = [node for node in graph.nodes if node.op == "conv2d"]
    assert [len(node.inputs) for node in convolutions] == [3] + [2] * 16
    assert {node.attrs["eps"] for node in graph.nodes if node.op == "batch_norm"} == {1e-4}


def test_shortcuts_of_resnet20_leave_out_pixels_and_add_channels():
    graph = zoo.build("resnet20", seed=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    values = {**graph.initializers, "x": x}
    for node in graph.nodes:
        (values[node.outputs[0]],) = get(node.op).reference(attrs_of(node), *[values[name] for name in node.inputs])
    before, shortcut = values["layer2.2.relu_1"], values["layer3.0.shortcut.pad"]
    assert shortcut.shape == (2, 64, 8, 8)
    assert np.array_equal(shortcut[:, 16:48], before[:, :, ::2, ::2])
    assert not shortcut[:, :16].any()
    assert not shortcut[:, 48:].any()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_input_transform_is_no_part_of_the_weights(name):
    plain = zoo.build(name, seed=3, classes=2, image=96)
    state = parameters(plain)
    graph = zoo.build(name, state, image=96, transform=True)
    verify(graph)
    check_types(graph)
    assert list(parameters(graph)) == list(state)
    x = np.random.default_rng(0).standard_normal((1, 3, 96, 96), np.float32)
    scale = np.array([0.458, 0.448, 0.45], np.float32).reshape(3, 1, 1)
    offset = np.array([-0.03, -0.088, -0.188], np.float32).reshape(3, 1, 1)
    np.testing.assert_allclose(run(graph, x), run(plain, x * scale + offset), rtol=1e-4, atol=1e-4)


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "layer4.1.bn2.bias"), r"lacks 1 of its keys: layer4\.1\.bn2\.bias"),
        (lambda s: without(s, "fc.bias"), r"lacks 1 of its keys: fc\.bias"),
        (lambda _: {}, r"lacks 102 of its keys: conv1\.weight, .* \.\.\."),
        (lambda s: {**s, "layer5.0.conv1.weight": s["conv1.weight"]}, r"unexpected .*: layer5\.0\.conv1\.weight"),
        (lambda s: {**s, "aux1.fc.weight": s["fc.weight"]}, r"unexpected .*: aux1\.fc\.weight"),
        (lambda s: {**s, "conv1.weight": s["conv1.weight"][:, :1]}, r"\(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"),
        (lambda s: {**s, "bn1.weight": s["bn1.weight"].astype(np.int64)}, "int64, expected floating point"),
        (lambda s: {**s, "fc.bias": np.float32(1)}, r"fc\.weight has shape \(10, 512\)"),
    ],
)
def test_unfit_state_dicts(small, change, message):
    with pytest.raises(ModelError, match=message):
        zoo.build("resnet18", change(parameters(small)), image=32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "the zoo has no 'resnet19'.*did you mean resnet18"),
        ({"name": "resnet18", "classes": 0}, "0 classes, expected at least 1"),
        ({"name": "resnet18", "seed": -1}, "seed -1"),
        ({"name": "resnet18", "transform": True}, "no input transform"),
        ({"name": "inception_v3", "image": 40}, "got"),
        ({"name": "dncnn", "classes": 3}, "3 classes, and this architecture is no classifier"),
        ({"name": "resnet18", "image": 0}, "got"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ModelError, match=message):
        zoo.build(**arguments)


# ------------------------------------------------------------------------------------------------------------ sequences


@pytest.fixture(scope="module", params=zoo.sequence_names())
def sequence(request):
    return zoo.build(request.param, seed=2)


SEQUENCE_FACTS = {
    # nodes, parameters (torch's own figures for the same layers), input, output
    "bert_base_layers": (23 * 12, 85_054_464, ("N", 128, 768), ("N", 128, 768)),
    "lstm_lm": (6, 2 * 33278 * 512 + 33278 + 2 * 2_101_248, (35, "N"), (35, "N", 33278)),
}


def test_every_model_of_sequences(sequence):
    verify(sequence)
    check_types(sequence)
    nodes, count, taken, given = SEQUENCE_FACTS[sequence.name]
    assert len(sequence.nodes) == nodes
    arrays = [array for key, array in sequence.initializers.items() if not key.endswith(".root")]
    assert sum(array.size for array in arrays) == count
    assert sequence.values[sequence.inputs[0]].shape == taken
    assert sequence.values[sequence.outputs[0]].shape == given
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)
    assert sequence.meta == {"source": f"zoo:{sequence.name}", "seed": 2, "mode": "dynamic"}


def test_weights_of_sequences_follow_from_the_seed(sequence):
    again, other = (zoo.build(sequence.name, seed=seed) for seed in (2, 3))
    for key, array in sequence.initializers.items():
        np.testing.assert_array_equal(array, again.initializers[key])
        assert np.ptp(array) == 0 or not np.array_equal(array, other.initializers[key])


@pytest.mark.parametrize("choice", [{"image": 64}, {"classes": 3}, {"transform": True}, {"weights": {}}])
def test_models_of_sequences_have_nothing_to_choose(choice):
    with pytest.raises(ModelError, match=f"got {next(iter(choice))}, expected only a seed"):
        zoo.build("lstm_lm", **choice)
