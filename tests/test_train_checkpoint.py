"""Checkpoints: what is kept, what is refused, and how a mismatch is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtool.errors import ModelError, OutputError, RecipeError
from qtool.ir import npz
from qtool.ir.jsontext import write_json
from qtool.ir.zipwriter import write_archive
from qtool.quantize.qat.checkpoint import (
    Checkpoint,
    check_settings,
    load_checkpoint,
    model_hash,
    save_checkpoint,
    settings_of,
)
from qtool.recipe.load import load_recipe

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
ARRAYS = {
    "parameter/layer1.0.conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "momentum/ünïcode weight/0": np.ones(3, np.float32),
    "steps/x": np.array([7], np.int64),
    "scale": np.array(0.5, np.float32),
    "seen": np.array([True, False]),
}
SETTINGS = {"model": "abc", "train": {"rate": 0.1, "epochs": 8, "layers": ["fc"]}, "head": None}
CHECKPOINT = Checkpoint(ARRAYS, 3, 45, 0.975, SETTINGS, {"losses": [1.5, 0.25]})


def test_a_checkpoint_comes_back_as_it_was(tmp_path) -> None:
    path = tmp_path / "c.npz"
    save_checkpoint(CHECKPOINT, path)
    found = load_checkpoint(path)
    assert replace(found, arrays={}) == replace(CHECKPOINT, arrays={})
    assert list(found.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].flags.writeable
    with np.load(path, allow_pickle=False) as plain:
        assert np.array_equal(plain["scale"], ARRAYS["scale"])


def test_it_may_be_replaced_while_what_was_read_is_in_use(tmp_path) -> None:
    path = tmp_path / "c.npz"
    save_checkpoint(CHECKPOINT, path)
    found = load_checkpoint(path)
    save_checkpoint(replace(CHECKPOINT, arrays={"scale": ARRAYS["scale"]}, best=None), path)
    assert np.array_equal(found.arrays["steps/x"], [7])
    again = load_checkpoint(path)
    assert (list(again.arrays), again.best) == (["scale"], None)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path) -> None:
    path = tmp_path / "c.npz"
    save_checkpoint(CHECKPOINT, path)
    with pytest.raises(ModelError, match="cannot be written as JSON"):
        save_checkpoint(replace(CHECKPOINT, best=float("nan")), path)
    assert load_checkpoint(path).step == 45
    with pytest.raises(OutputError, match="there is no folder"):
        save_checkpoint(CHECKPOINT, tmp_path / "nowhere" / "c.npz")
    assert [each.name for each in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": "qtool.checkpoint/2"}, "its schema is 'qtool.checkpoint/2'; expected 'qtool.checkpoint/1'"),
        ({"epoch": -1}, "its epoch is -1; expected a whole number from 0"),
        ({"epoch": True}, "its epoch is True; expected a whole number"),
        ({"step": 1.5}, "its step is 1.5; expected a whole number"),
        ({"best": "high"}, "its best metric is 'high'; expected a number or null"),
        ({"settings": [1]}, "its settings or its record are no mapping"),
        ({"record": None}, "its settings or its record are no mapping"),
    ],
)
def test_a_header_that_is_wrong_is_refused(tmp_path, changed, message) -> None:
    header = {"schema": "qtool.checkpoint/1", "epoch": 0, "step": 0, "best": None, "settings": {}, "record": {}}
    text = np.frombuffer(write_json({**header, **changed}), np.uint8)
    path = tmp_path / "c.npz"
    with open(path, "wb") as file:
        write_archive(file, [("@checkpoint.npy", text)])
    with pytest.raises(ModelError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("@checkpoint.npy", np.zeros(3, np.float32))], "its header is float32 of shape"),
        ([("@checkpoint.npy", np.frombuffer(b"{", np.uint8))], "its header is not JSON"),
        ([("@checkpoint.npy", np.frombuffer(b"[]", np.uint8))], "its schema is"),
        ([("x.npy", np.zeros(3))], "it is no checkpoint of a training"),
    ],
)
def test_other_archives_are_refused(tmp_path, members, message) -> None:
    path = tmp_path / "c.npz"
    with open(path, "wb") as file:
        write_archive(file, members)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(path)


def test_models_damage_and_names_that_are_paths_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="it is no checkpoint of a training"):
        load_checkpoint(SAMPLES / "digits_mlp.npz")
    with pytest.raises(ModelError, match=r"nothing\.npz"):
        load_checkpoint(tmp_path / "nothing.npz")
    path = tmp_path / "c.npz"
    save_checkpoint(CHECKPOINT, path)
    whole = path.read_bytes()
    place = whole.index(ARRAYS["parameter/layer1.0.conv1.weight"].tobytes())
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(ModelError, match="is damaged"):
        load_checkpoint(path)
    path.write_bytes(whole[:-30])
    with pytest.raises(ModelError):
        load_checkpoint(path)
    path.write_bytes(whole.replace(b"scale.npy", b"../../x/y"))
    with pytest.raises(ModelError, match="no paths"):
        load_checkpoint(path)


# What it belongs to


def test_the_same_settings_pass_and_others_are_told() -> None:
    check_settings(CHECKPOINT, {**SETTINGS, "train": {**SETTINGS["train"], "layers": ("fc",)}}, "c.npz")
    other = {"model": "xyz", "train": {"rate": 0.01, "epochs": 8, "seed": 1}, "head": None}
    with pytest.raises(RecipeError) as error:
        check_settings(CHECKPOINT, other, "c.npz")
    assert str(error.value) == (
        "c.npz: the checkpoint is of another training: model was 'abc' and is 'xyz'; train.rate was 0.1 and is 0.01; "
        "train.layers was ['fc'] and is left out; train.seed was left out and is 1. "
        "Go on with the recipe it was made by, or train anew"
    )
    many = replace(CHECKPOINT, settings={f"k{k}": 0 for k in range(10)})
    with pytest.raises(RecipeError, match=r"; k3 was 0 and is 1, and 6 more\. Go on"):
        check_settings(many, dict.fromkeys(many.settings, 1), "c.npz")


RECIPE = """\
model: float.npz
output: int8.npz
mode: qat
train: {data: train.npz, checkpoint: here.npz}
evaluation: {data: test.npz}
report: {json: report.json}
"""


def test_settings_are_what_training_depends_on(write) -> None:
    graph = npz.load(SAMPLES / "digits_mlp.npz")
    settings = settings_of(load_recipe(write(RECIPE)), graph)
    write_json(settings)

    def same(text: str, other=graph) -> bool:
        return settings_of(load_recipe(write(text)), other) == settings

    assert same(RECIPE.replace("here.npz", "there.npz").replace("int8.npz", "other.npz"))
    assert same(RECIPE.replace("evaluation: {data: test.npz}", "latency: {threads: 2}"))
    assert same(RECIPE.replace("train.npz,", "train.npz, rate: 0.01, batch_size: 64,"))
    assert not same(RECIPE.replace("train.npz,", "train.npz, rate: 0.02,"))
    assert not same(RECIPE.replace("train.npz,", "train.npz, split: train,"))
    assert not same(RECIPE.replace("mode: qat", "mode: float"))
    assert not same(RECIPE + "backend: qnnpack\n")
    assert not same(RECIPE + "head: {classes: 2}\n")
    weights = {name: array + 1 if name.endswith("bias") else array for name, array in graph.initializers.items()}
    assert not same(RECIPE, replace(graph, initializers=weights))


def test_a_model_has_the_same_hash_wherever_it_is(tmp_path) -> None:
    graph = npz.load(SAMPLES / "digits_mlp.npz")
    npz.save(replace(graph, name="renamed", meta={"source": "elsewhere"}), tmp_path / "m.npz")
    assert model_hash(npz.load(tmp_path / "m.npz")) == model_hash(graph)
    assert len(model_hash(graph)) == 64
    nodes = tuple(replace(node, op="relu6") if node.op == "relu" else node for node in graph.nodes)
    assert model_hash(replace(graph, nodes=nodes)) != model_hash(graph)
