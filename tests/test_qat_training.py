"""Training from a recipe: the loop, freezing, checkpoints, interruptions, and what the command line says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from qat_cases import save_pictures, small_net

from qtool.cli import cli
from qtool.errors import ModelError, QtoolError, QuantizationError, RecipeError
from qtool.ir.npz import load, save
from qtool.pipeline import TrainingOptions, quantize_recipe, train_recipe
from qtool.quantize.qat import training as loop
from qtool.quantize.qat.run import TrainingInterrupted
from qtool.recipe.load import load_recipe
from qtool.report.types import Report

RECIPE = """
model: float.npz
output: out.npz
mode: {mode}
backend: qnnpack
train:
  data: data.npz
  split: train
  batch_size: 32
  epochs: {epochs}
  rate: 0.05
{train}
evaluation: {{data: data.npz, split: test, metric: top1}}
{more}
"""


def write_recipe(folder: Path, *, mode: str = "qat", epochs: int = 4, train: str = "", more: str = "") -> Path:
    save(small_net(), folder / "float.npz")
    save_pictures(folder / "data.npz")
    path = folder / "recipe.yaml"
    path.write_text(
        RECIPE.format(mode=mode, epochs=epochs, train="".join(f"  {line}\n" for line in train.split("\n")), more=more)
    )
    return path


def stage(label: str, total: int | None) -> Any:
    from contextlib import nullcontext

    return nullcontext(lambda done, note="", /: None)  # noqa: ARG005 (nobody looks)


def run(path: Path, *overrides: str, output: str = "out.npz", resume: bool = False) -> Report:
    overrides = (*overrides, f"output={path.parent / output}")
    return quantize_recipe(load_recipe(path, overrides), stage, training=TrainingOptions(resume=resume))


def test_training_lowers_the_loss_and_gains_accuracy(tmp_path: Path) -> None:
    report = run(write_recipe(tmp_path, epochs=8))
    training, accuracy = report.training, report.accuracy
    assert training is not None
    assert accuracy is not None
    losses = [epoch["loss"] for epoch in training.epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert accuracy.quant > accuracy.float + 0.1
    assert training.samples == 8 * 96
    assert training.same_top1 > 0.9
    assert load(tmp_path / "out.npz").meta["training"]["samples"] == 8 * 96  # type: ignore[index,call-overload]


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=2)
    run(path)
    run(path, output="again.npz")
    run(path, "train.seed=1", output="other.npz")
    first, again, other = (load(tmp_path / name).initializers for name in ("out.npz", "again.npz", "other.npz"))
    assert all(np.array_equal(array, again[name]) for name, array in first.items())
    assert any(not np.array_equal(array, other[name]) for name, array in first.items())


@pytest.mark.parametrize("train", ["optimizer: sgd", "optimizer: adamw", "learn_scales: true"])
def test_resumed_training_ends_as_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    path = write_recipe(tmp_path, train=train)
    run(path, f"train.checkpoint={tmp_path / 'whole.ckpt.npz'}", output="whole.npz")
    stop_in_epoch(monkeypatch, 2)
    with pytest.raises(TrainingInterrupted, match=r"interrupted in epoch 3 of 4: the first 2 .* go on with --resume"):
        run(path)
    assert not (tmp_path / "out.npz").exists()
    monkeypatch.undo()
    report = run(path, resume=True)
    assert report.training is not None
    assert [epoch["number"] for epoch in report.training.epochs] == [0, 1, 2, 3]
    whole, resumed = load(tmp_path / "whole.npz").initializers, load(tmp_path / "out.npz").initializers
    assert whole.keys() == resumed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array)


def stop_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C in the first step of an epoch."""
    step = loop.Trainer._step

    def stopping(self: loop.Trainer, *args: Any) -> Any:
        if self.progress.done == number:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(loop.Trainer, "_step", stopping)


def test_ctrl_c_in_the_first_epoch_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(tmp_path)
    stop_in_epoch(monkeypatch, 0)
    with pytest.raises(TrainingInterrupted, match="no epoch was finished, so nothing is kept"):
        run(path)
    assert {file.name for file in tmp_path.iterdir()} == {"float.npz", "data.npz", "recipe.yaml"}


def test_resume_needs_a_checkpoint_of_the_same_training(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=1)
    with pytest.raises(RecipeError, match="--resume: there is no checkpoint at"):
        run(path, resume=True)
    run(path)
    with pytest.raises(RecipeError, match=r"another training: train.rate was 0.05 and is 0.1"):
        run(path, "train.rate=0.1", resume=True)


def test_a_layer_that_overflows_is_named(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, mode="float")
    graph = load(tmp_path / "float.npz")
    large = {**graph.initializers, "head.weight": graph.initializers["head.weight"] * np.float32(1e38)}
    save(replace(graph, initializers=large), tmp_path / "float.npz")
    message = r"the loss is (nan|inf): the output of layer '\w+' holds NaN or infinity; a smaller rate"
    with pytest.raises(QuantizationError, match=message):
        train_recipe(load_recipe(path), stage)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    graph = load(tmp_path / "float.npz")
    broken = graph.initializers["head.weight"].copy()
    broken[0, 0] = np.nan
    save(replace(graph, initializers={**graph.initializers, "head.weight": broken}), tmp_path / "float.npz")
    with pytest.raises(QuantizationError, match=r"'head[.]weight' of linear 'head.fc': 1 of 18 numbers are NaN"):
        run(path)


def test_exact_training_converts_to_the_same_numbers(tmp_path: Path) -> None:
    report = run(write_recipe(tmp_path, epochs=3, train="fake_quant: exact\nfreeze_bn_epoch: 1"))
    assert report.training is not None
    assert (report.training.same_outputs, report.training.same_top1, report.training.exact) == (1.0, 1.0, True)


def test_distillation_needs_no_labels(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=2, train="loss: distillation\ntemperature: 2")
    arrays = dict(np.load(tmp_path / "data.npz"))
    del arrays["train_y"]
    np.savez(tmp_path / "data.npz", **arrays)
    report = run(path)
    assert report.training is not None
    assert report.training.epochs[0]["accuracy"] is None
    assert report.training.epochs[1]["loss"] < report.training.epochs[0]["loss"]


def test_validation_chooses_the_epoch(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=4, more="validation: {data: data.npz, split: test, metric: top1}")
    report = run(path)
    assert report.training is not None
    assert report.accuracy is not None
    scores = [epoch["score"] for epoch in report.training.epochs]
    assert scores[report.training.best] == max(scores)
    assert report.accuracy.quant == pytest.approx(max(scores))


def test_calibration_data_set_the_first_ranges(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=1, train="freeze_observer_epoch: 0")
    run(path)
    run(path, f"calibration={{data: {tmp_path / 'data.npz'}, split: test}}", output="calibrated.npz")
    plain, calibrated = (load(tmp_path / name).values["x.q"].qparams for name in ("out.npz", "calibrated.npz"))
    assert plain != calibrated


def test_a_new_head_trains_alone(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=2, more="head: {classes: 5}")
    report = run(path)
    assert report.accuracy is not None
    trained = load(tmp_path / "out.npz")
    assert trained.values[trained.outputs[0]].shape == ("N", 5)
    run(path, "train.epochs=4", output="longer.npz")
    longer = load(tmp_path / "longer.npz").initializers
    same = {name for name, array in trained.initializers.items() if np.array_equal(array, longer[name])}
    assert any(name.startswith("first") for name in same)
    assert not any(name.startswith("head.weight") for name in same)


def test_patterns_of_layers_that_match_nothing_are_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, train="layers: [haed]")
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: train.layers: 'haed' matches nothing.*'head'"):
        run(path)


def test_float_training_writes_a_float_model(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, mode="float", epochs=16)
    report = train_recipe(load_recipe(path, ["train.rate=0.2"]), stage)
    graph = load(tmp_path / "out.npz")
    assert not graph.is_quantized
    assert any(node.op == "batch_norm" for node in graph.nodes)
    assert report.accuracy is not None
    assert report.accuracy.value > 0.8
    assert report.epochs[-1]["loss"] < report.epochs[0]["loss"]


def test_modes_and_commands_must_fit(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, mode="float")
    with pytest.raises(RecipeError, match="mode float trains and does not quantize; use qtool train"):
        run(path)
    with pytest.raises(
        RecipeError, match="training in float is for mode: float, and the mode is qat; use qtool quantize"
    ):
        train_recipe(load_recipe(write_recipe(tmp_path)), stage)


def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=1)
    run(path)
    (tmp_path / "out.ckpt.npz").write_bytes(b"PK nothing")
    with pytest.raises(ModelError, match=r"out[.]ckpt[.]npz"):
        run(path, resume=True)


def test_the_commands_show_epochs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, epochs=2)
    result = CliRunner().invoke(cli, ["quantize", "-r", str(path)])
    assert result.exit_code == 0, result.output
    assert "training\nepoch" in result.stdout
    assert "the int8 model gives the numbers of the trained one (in float) for" in result.stdout
    assert "epoch 2 of 2: loss" in result.stderr
    plain = json.loads(CliRunner().invoke(cli, ["quantize", "-r", str(path), "--json", "--resume"]).stdout)
    assert [epoch["number"] for epoch in plain["training"]["epochs"]] == [0, 1]
    path = write_recipe(tmp_path, mode="float", epochs=1)
    result = CliRunner().invoke(cli, ["train", "-r", str(path), "-q"])
    assert result.exit_code == 0, result.output
    assert "top1:" in result.stdout
    assert result.stderr == ""
    assert (
        json.loads(CliRunner().invoke(cli, ["train", "-r", str(path), "--json"]).stdout)["schema"] == "qtool.training/1"
    )


def test_resume_is_for_training(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["quantize", "-r", "configs/static.yaml", "--resume"])
    assert result.exit_code == 2 or isinstance(result.exception, QtoolError)
