"""Recipes that train: the blocks ``train`` and ``head``, what they default to, and what is refused."""

from __future__ import annotations

import pytest
import yaml
from recipe_cases import refusal
from test_recipe_schema import validates

from qtool.errors import RecipeError
from qtool.ir import EMPTY, Node
from qtool.recipe.jsonschema import recipe_schema
from qtool.recipe.load import load_recipe
from qtool.recipe.match import select
from qtool.recipe.presets import get_preset
from qtool.recipe.schema import DataConfig, Mode, TrainConfig
from qtool.recipe.training import (
    Augment,
    Distance,
    FakeQuant,
    Head,
    Loss,
    LossConfig,
    Optimizer,
    OptimizerConfig,
    Pattern,
    Schedule,
    ScheduleConfig,
)

SMALL = """\
model: float.npz
output: out/int8.npz
mode: qat
train: {data: train.npz}
"""

FULL = """\
model: float.npz
output: int8.npz
mode: qat
backend: qnnpack
head: {classes: 2, layer: fc}
train:
  data: images
  split: train
  batch_size: 16
  shuffle: 3
  samples: [0, 640]
  labels: labels.csv
  preprocess: {resize: 40, crop: 32}
  outputs: [logits]
  epochs: 5
  optimizer: adamw
  rate: 0.002
  betas: [0.8, 0.99]
  weight_decay: 0.01
  decay_norms: false
  schedule: step
  step_epochs: 2
  gamma: 0.5
  warmup_epochs: 0.5
  loss: cross_entropy
  label_smoothing: 0.1
  seed: 11
  augment: {flip: true, crop: 4, rotate: 12, scale: 0.1, shift: 1.5}
  freeze_bn_epoch: 3
  freeze_observer_epoch: null
  layers: [fc, "re:layer[34]", "type:linear"]
  fake_quant: exact
  learn_scales: true
  checkpoint: best/state.npz
"""


def test_a_small_recipe_has_the_defaults(write, tmp_path) -> None:
    recipe = load_recipe(write(SMALL))
    data = DataConfig(tmp_path / "train.npz", batch_size=64)
    assert recipe.train == TrainConfig(data, checkpoint=tmp_path / "out/int8.ckpt.npz")
    assert (recipe.mode, recipe.head, recipe.calibration) == (Mode.QAT, None, None)
    assert [rule.qconfig for rule in recipe.rules] == [get_preset("fbgemm_qat")]


def test_a_full_recipe(write, tmp_path) -> None:
    path = write(FULL)
    recipe = load_recipe(path)
    train = recipe.train
    assert train is not None
    assert train.data.preprocess is not None
    assert (train.data.batch_size, train.data.shuffle, train.data.samples) == (16, 3, (0, 640))
    assert (train.data.labels, train.data.outputs) == (tmp_path / "labels.csv", ("logits",))
    assert train == TrainConfig(
        data=train.data,
        epochs=5,
        optimizer=OptimizerConfig(Optimizer.ADAMW, 0.002, betas=(0.8, 0.99), weight_decay=0.01, decay_norms=False),
        schedule=ScheduleConfig(Schedule.STEP, 2, 0.5, 0.5),
        loss=LossConfig(label_smoothing=0.1),
        augment=Augment(True, 4, 12, 0.1, 1.5),
        seed=11,
        freeze_bn_epoch=3,
        freeze_observer_epoch=None,
        layers=tuple(Pattern(key, f"{path}:31") for key in ("fc", "re:layer[34]", "type:linear")),
        fake_quant=FakeQuant.EXACT,
        learn_scales=True,
        checkpoint=tmp_path / "best/state.npz",
    )
    assert recipe.head == Head(2, "fc", f"{path}:5")


@pytest.mark.parametrize(
    ("added", "changed"),
    [
        (", optimizer: adam", {"optimizer": OptimizerConfig(Optimizer.ADAM, 0.001)}),
        (", nesterov: true", {"optimizer": OptimizerConfig(nesterov=True)}),
        (", epochs: 1", {"epochs": 1, "freeze_bn_epoch": 1, "freeze_observer_epoch": 1}),
        (", epochs: 3", {"epochs": 3, "freeze_bn_epoch": 2, "freeze_observer_epoch": 2}),
        (", freeze_bn_epoch: null", {"freeze_bn_epoch": None}),
        (", freeze_bn_epoch: 0", {"freeze_bn_epoch": 0}),
        (
            ", loss: distillation, distillation_loss: mse",
            {"loss": LossConfig(Loss.DISTILLATION, distance=Distance.MSE)},
        ),
        (", loss: distillation, temperature: 4", {"loss": LossConfig(Loss.DISTILLATION, temperature=4)}),
        (", augment: {flip: true}", {"augment": Augment(flip=True)}),
    ],
)
def test_what_is_left_out_follows_from_the_rest(write, tmp_path, added, changed) -> None:
    found = load_recipe(write(SMALL.replace("train.npz", f"train.npz{added}"))).train
    data = DataConfig(tmp_path / "train.npz", batch_size=64)
    assert found == TrainConfig(**{"data": data, "checkpoint": tmp_path / "out/int8.ckpt.npz", **changed})


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_resolved_recipes_say_the_defaults_and_mean_the_same(write, text) -> None:
    recipe = load_recipe(write(text))
    assert validates(recipe_schema(), yaml.safe_load(text))
    assert validates(recipe_schema(), dict(recipe.resolved))
    again = load_recipe(write(yaml.safe_dump(dict(recipe.resolved), sort_keys=False)))
    assert recipe.train is not None
    assert again.train is not None
    assert {**vars(again.train), "layers": ()} == {**vars(recipe.train), "layers": ()}
    assert [pattern.key for pattern in again.train.layers] == [pattern.key for pattern in recipe.train.layers]
    assert again.resolved == recipe.resolved


def test_resolved_recipes_leave_out_what_has_no_meaning(write) -> None:
    train = load_recipe(write(SMALL)).resolved["train"]
    assert train["momentum"] == 0.9
    assert train["freeze_bn_epoch"] == 4
    assert not {"betas", "step_epochs", "gamma", "temperature", "distillation_loss"} & set(train)


def test_rules_of_a_trained_model_may_be_static_or_null(write) -> None:
    recipe = load_recipe(write(SMALL + 'qconfig_dict: {"": qnnpack_qat, a: {mode: static}, b: null}\n'))
    assert [rule.qconfig and rule.qconfig.mode for rule in recipe.rules] == [None, Mode.STATIC, None]


BLOCK = SMALL.replace("train: {data: train.npz}\n", "train:\n  data: train.npz\n")
WRONG_KEYS = [
    ("epoch: 3", "unknown key 'epoch' in train; did you mean 'epochs'?"),
    ("carry: {a: b}", "unknown key 'carry' in train"),
    ("metric: top1", "unknown key 'metric' in train"),
    ("outputs: [a, b]", "train.outputs: got a list, expected a list of 1 values"),
    ("epochs: 0", "train.epochs: got 0, expected a whole number from 1"),
    ("batch_size: 0", "train.batch_size: got 0, expected a whole number from 1"),
    ("optimizer: adma", "train.optimizer: unknown value 'adma'; did you mean 'adam'?"),
    ("rate: 0", "train.rate: got 0, expected a number above 0"),
    ("momentum: 2", "train.momentum: got 2, expected a number from 0 to 1"),
    ("betas: [0.9, 1]", "train.betas[1]: got 1, expected a number from 0 to 0.99999"),
    ("betas: [0.9]", "train.betas: got a list, expected a list of 2 values"),
    ("weight_decay: -1", "train.weight_decay: got -1, expected a number from 0"),
    ("schedule: cosin", "train.schedule: unknown value 'cosin'; did you mean 'cosine'?"),
    ("warmup_epochs: -1", "train.warmup_epochs: got -1, expected a number from 0"),
    ("loss: cross-entropy", "train.loss: unknown value 'cross-entropy'; did you mean 'cross_entropy'?"),
    ("label_smoothing: 1.5", "train.label_smoothing: got 1.5, expected a number from 0 to 1"),
    ("distillation_loss: k1", "train.distillation_loss: unknown value 'k1'; did you mean 'kl'?"),
    ("augment: true", "train.augment: got true, expected a mapping with the keys flip, crop, rotate, scale, shift"),
    ("augment: {flipp: true}", "unknown key 'flipp' in train.augment; did you mean 'flip'?"),
    ("augment: {crop: 1.5}", "train.augment.crop: got 1.5, expected a whole number"),
    ("freeze_bn_epoch: -1", "train.freeze_bn_epoch: got -1, expected a whole number from 0"),
    ("layers: []", "train.layers: got a list, expected a list of one or more"),
    ("layers: head", "train.layers: got 'head', expected a list of one or more"),
    ("fake_quant: exakt", "train.fake_quant: unknown value 'exakt'; did you mean 'exact'?"),
    ("learn_scales: 1", "train.learn_scales: got 1, expected true or false"),
    ("checkpoint: 3", "train.checkpoint: got 3, expected a path"),
]
WRONG_TOGETHER = [
    ("betas: [0.9, 0.99]", "train.betas is for 'optimizer: adam or adamw', and here it is 'sgd'"),
    ("gamma: 0.5", "train.gamma is for 'schedule: step', and here it is 'cosine'"),
    ("step_epochs: 2", "train.step_epochs is for 'schedule: step', and here it is 'cosine'"),
    ("temperature: 2", "train.temperature is for 'loss: distillation', and here it is 'cross_entropy'"),
    ("distillation_loss: mse", "train.distillation_loss is for 'loss: distillation'"),
    ("warmup_epochs: 8.5", "train.warmup_epochs: got 8.5, expected at most the 8 epochs"),
    ("layers: ['re:[']", "'re:[' is not a regular expression"),
    ("layers: ['type:conv2']", "train.layers[0]: unknown operator; did you mean 'conv2d'?"),
    ("checkpoint: float.npz", "train.checkpoint: is the model, which would be overwritten"),
    ("checkpoint: ./out/int8.npz", "train.checkpoint: is the output, which would be overwritten"),
    ("checkpoint: train.npz", "train.checkpoint: is the data, which would be overwritten"),
    ("{optimizer: adam, momentum: 0.5}", "train.momentum is for 'optimizer: sgd', and here it is 'adam'"),
    ("{optimizer: adam, nesterov: false}", "train.nesterov is for 'optimizer: sgd', and here it is 'adam'"),
    ("{momentum: 0, nesterov: true}", "train.nesterov needs a momentum above 0"),
    ("{loss: mse, label_smoothing: 0.1}", "train.label_smoothing is for 'loss: cross_entropy', and here it is 'mse'"),
    (
        "{loss: distillation, distillation_loss: mse, temperature: 2}",
        "train.temperature is for 'distillation_loss: kl', and here it is 'mse'",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG_KEYS + WRONG_TOGETHER, ids=lambda text: text[:40])
def test_a_wrong_key_is_refused_with_its_line(write, text, message) -> None:
    if text.startswith("{"):  # several keys, the last of which is wrong
        text = text[1:-1].replace(", ", "\n  ")
    path = write(f"{BLOCK}\n\n  {text}\n")
    found = refusal(path)
    assert found.startswith(f"{path}:{8 + text.count(chr(10))}: ")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize("text", [text for text, _ in WRONG_KEYS])
def test_the_schema_refuses_a_wrong_key(text) -> None:
    assert not validates(recipe_schema(), yaml.safe_load(f"{BLOCK}  {text}\n"))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model: a\noutput: b\nmode: qat\n", 3, "mode qat needs a train block, such as 'train: {data: FILE, split: tr"),
        ("model: a\noutput: b\nmode: qat\ntrain: {}\n", 4, "train.data is missing"),
        ("model: a\noutput: b\ncalibration: {data: c}\ntrain: {data: t}\n", 4, "train is for mode: qat, and the mode"),
        ("model: a\noutput: b\nmode: dynamic\n\nhead: {classes: 2}\n", 5, "head is for mode: qat, and the mode is dyn"),
        (
            f"{BLOCK}  epochs: 2\n  loss: distillation\nhead: {{classes: 2}}\n",
            7,
            "train.loss: distillation learns from the float model, whose new head knows nothing; use another loss",
        ),
        (f"{SMALL}head: {{layer: fc}}\n", 5, "head.classes is missing"),
        (f"{SMALL}head: {{classes: 0}}\n", 5, "head.classes: got 0, expected a whole number from 1"),
        (f"{SMALL}head: {{classes: 2, layers: fc}}\n", 5, "unknown key 'layers' in head; did you mean 'layer'?"),
        (f"{SMALL}qconfig_dict:\n  a: dynamic\n", 6, "qconfig_dict.a: dynamic layers are not trained; in mode qat a r"),
        (f'{SMALL}qconfig_dict:\n  "": {{mode: dynamic}}\n', 6, 'qconfig_dict."": dynamic layers are not trained'),
        (f"{SMALL}qconfig_dict:\n  a: {{activation: {{observer: placeholder}}}}\n", 6, "is for mode: dynamic"),
    ],
)  # fmt: skip
def test_blocks_that_do_not_go_together(write, text, line, message) -> None:
    path = write(text)
    found = refusal(path)
    assert found.startswith(f"{path}:{line}: ")
    assert message in found


def test_overrides_reach_the_block(write) -> None:
    found = load_recipe(write(SMALL), ["train.epochs=2", "train.freeze_bn_epoch=null", "train.augment.crop=2"]).train
    assert found is not None
    assert (found.epochs, found.freeze_bn_epoch, found.freeze_observer_epoch) == (2, None, 1)
    assert found.augment == Augment(crop=2)
    assert refusal(write("model: a\noutput: b\n"), "mode=qat").startswith("--set mode=qat: mode qat needs a train")


# Layers that train


def node(scope: str, op: str = "conv2d") -> Node:
    return Node(op, scope.replace(".", "_"), (), (), EMPTY, scope)


NODES = [node("layer3.0.conv1"), node("layer3.0.relu", "relu"), node("layer31"), node("head", "linear")]


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ((), {"layer3_0_conv1", "layer3_0_relu", "layer31", "head"}),
        (("layer3",), {"layer3_0_conv1", "layer3_0_relu"}),
        (("re:layer3", "head"), {"layer3_0_conv1", "layer3_0_relu", "layer31", "head"}),
        (("type:linear", "layer3.0.conv1"), {"layer3_0_conv1", "head"}),
    ],
)
def test_patterns_select_layers(keys, names) -> None:
    assert select([Pattern(key) for key in keys], NODES) == names


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("layer3.*", r"^r\.yaml:7: train\.layers: 'layer3\.\*' matches nothing in the model; did you mean 'layer3"),
        ("re:haed", r"^r\.yaml:7: train\.layers: 're:haed' matches nothing in the model; a regular expression"),
        ("type:conv1d", r"matches nothing in the model, which has no operator 'conv1d'; did you mean 'conv2d'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(key, message) -> None:
    with pytest.raises(RecipeError, match=message):
        select([Pattern("head"), Pattern(key, "r.yaml:7")], NODES)
