"""Models of the zoo with weights of a file: in recipes, and on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pth_files import state_file

from qtool import zoo
from qtool.cli import main
from qtool.errors import ModelError, RecipeError
from qtool.ir.npz import load
from qtool.pipeline import load_model
from qtool.recipe.load import load_recipe
from qtool.recipe.schema import ZooModel
from qtool.zoo.weights import parameters

RNG = np.random.default_rng(0)
SMALL = "output: q.npz\ncalibration: {data: data.npz}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weights(here) -> Path:
    state = {key: array + np.float32(0.01) for key, array in parameters(zoo.build("resnet20", seed=1)).items()}
    return state_file(here / "r.pth", {f"module.{key}": array for key, array in state.items()})


def recipe(text: str, *overrides: str):
    Path("r.yaml").write_text(text + SMALL)
    return load_recipe("r.yaml", overrides)


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["qtool", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("model: zoo:resnet20\n", ZooModel("resnet20")),
        ("model: {zoo: dncnn}\n", ZooModel("dncnn")),
        ("model: {zoo: dncnn, weights: null}\n", ZooModel("dncnn")),
        ("model: {zoo: resnet20, weights: w/r.pth}\n", ZooModel("resnet20", Path("w/r.pth"))),
    ],
)
def test_recipes_name_models_of_the_zoo(here, text, model):
    found = recipe(text)
    assert found.model == model
    assert found.model_file == model.weights
    if "{" in text:
        assert recipe(text, "model.weights=x.pth").model == ZooModel(model.name, Path("x.pth"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: zoo:resnet19\n", "r.yaml:1: model: unknown value 'resnet19'; did you mean 'resnet18'"),
        ("model:\n  zoo: dncn\n", "r.yaml:2: model.zoo: unknown value 'dncn'; did you mean 'dncnn'?"),
        ("model:\n  weights: r.pth\n", "r.yaml:[12]: model.zoo is missing: an architecture of the zoo"),
        (
            "model:\n  zoo: dncnn\n  weigths: r.pth\n",
            "r.yaml:3: unknown key 'weigths' in model; did you mean 'weights'",
        ),
        ("model: [zoo]\n", "r.yaml:1: model: got a list, expected a path"),
        ("model: {zoo: dncnn, weights: q.npz}\n", "r.yaml:2: output: is the model itself"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(here, text, message):
    with pytest.raises(RecipeError, match=message):
        recipe(text)


def test_weights_of_another_architecture(weights):
    with pytest.raises(ModelError, match="dncnn: the state dict lacks"):
        load_model(ZooModel("dncnn", weights))
    with pytest.raises(ModelError, match=r"x.npz: .*r.pth is for a model of the zoo"):
        load_model("x.npz", weights)


def test_a_recipe_quantizes_and_records_them(weights, here, monkeypatch, capsys):
    np.savez("data.npz", x=RNG.standard_normal((4, 3, 32, 32), np.float32), y=np.zeros(4, np.int64))
    Path("r.yaml").write_text("model: {zoo: resnet20, weights: r.pth}\n" + SMALL)
    assert run(monkeypatch, "quantize", "-r", "r.yaml") == 0
    assert "37 of 37 layers in int8" in capsys.readouterr().out
    assert run(monkeypatch, "inspect", "q.npz") == 0
    assert "from zoo:resnet20 with r.pth, mode static" in capsys.readouterr().out
    assert run(monkeypatch, "compare", "zoo:resnet20", "q.npz", "-w", "r.pth", "--batches", "1") == 0
    assert "4 samples" in capsys.readouterr().out


def test_commands_take_weights(weights, here, monkeypatch, capsys):
    np.savez("data.npz", x=RNG.standard_normal((2, 3, 32, 32), np.float32), y=np.zeros(2, np.int64))
    named = ("zoo:resnet20", "--weights", "r.pth")
    assert run(monkeypatch, "zoo", "resnet20", "--weights", "r.pth", "-o", "r.npz") == 0
    for words in (("run", *named, "data.npz", "-o", "a.npy"), ("run", "r.npz", "data.npz", "-o", "b.npy")):
        assert run(monkeypatch, *words) == 0
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    assert load("r.npz").initializers.keys() == zoo.build("resnet20").initializers.keys()
    assert run(monkeypatch, "inspect", *named) == 0
    capsys.readouterr()
    assert run(monkeypatch, "eval", *named, "r.npz", "--data", "data.npz", "--metric", "mse") == 0
    assert "mse of 2 samples" in capsys.readouterr().out
    assert run(monkeypatch, "bench", *named, "--seconds", "0.01") == 0
    assert "resnet20: 1 thread" in capsys.readouterr().out


def test_weights_without_a_model_of_the_zoo(weights, here, monkeypatch, capsys):
    assert run(monkeypatch, "inspect", "x.npz", "--weights", "r.pth") == 2
    assert "--weights is for models of the zoo" in capsys.readouterr().err
