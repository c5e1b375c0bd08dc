"""Whatever goes wrong on the command line: one message, the right exit code, and no file left behind."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from cli_cases import RECIPE, arrays, mlp, qtool, qtool_here, trained, workspace
from cli_failures import QUANTIZE, fails, fails_too, poisoned

from qtool.cli import main
from qtool.ir import Graph
from qtool.ir.npz import load, save


def changed(graph: Graph, name: str, array: np.ndarray) -> Graph:
    return replace(graph, initializers={**graph.initializers, name: array})


# ----------------------------------------------------------------------------------------------------------------- data


DATA = {
    "nan in calibration": (poisoned("calib", np.nan), ["calib_x", "nan", "sample 5"]),
    "inf in calibration": (poisoned("calib", np.inf), ["calib_x", "inf", "sample 5"]),
    "nan in evaluation": (poisoned("test", np.nan), ["test_x", "nan", "sample 5"]),
    "no samples": ({"calib_x": np.zeros((0, 3, 8, 8), np.float32), "calib_y": np.zeros(0, int)}, ["calib_x", "empty"]),
    "wrong size": ({"calib_x": np.zeros((4, 3, 9, 9), np.float32), "calib_y": np.zeros(4, int)}, ["(N, 3, 8, 8)"]),
    "wrong rank": ({"calib_x": np.zeros((4, 192), np.float32), "calib_y": np.zeros(4, int)}, ["(N, 3, 8, 8)"]),
    "bytes": ({"calib_x": np.zeros((4, 3, 8, 8), np.uint8), "calib_y": np.zeros(4, int)}, ["uint8", "float32"]),
    "doubles": ({"calib_x": np.zeros((4, 3, 8, 8)), "calib_y": np.zeros(4, int)}, ["float64", "float32"]),
    "label too large": ({"test_y": np.full(32, 4)}, ["test_y", "0..3"]),
    "label below zero": ({"test_y": np.full(32, -1)}, ["test_y", "0..3"]),
    "labels too few": ({"test_y": np.zeros(31, int)}, ["test_y", "32"]),
    "labels as text": ({"test_y": np.full(32, "cat")}, ["test_y"]),
}


ALONE = ("nan in calibration", "wrong size", "label too large", "a key misspelt", "a module that is not there")
"""Cases that are run in a process of their own; the others go the same way in this one."""


@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_fit(tmp_path, case):
    arrays_, told = DATA[case]
    workspace(tmp_path, **arrays_)
    message = fails(tmp_path, *QUANTIZE, run=qtool if case in ALONE else qtool_here)
    assert all(text in message for text in told), message


def test_missing_data(tmp_path):
    workspace(tmp_path)
    message = fails(tmp_path, *QUANTIZE, "--set", "calibration.data=nowhere.npz")
    assert "nowhere.npz" in message
    message = fails_too(tmp_path, *QUANTIZE, "--set", "calibration.split=validation")
    assert "'validation'" in message
    assert "calib" in message
    assert "calibration" in fails_too(tmp_path, *QUANTIZE, "--set", "calibration=null")
    assert "batches" in fails_too(tmp_path, *QUANTIZE, "--set", "calibration.batches=0")
    workspace(tmp_path, test_y=np.zeros(32, np.float32))
    assert "test_y" in fails_too(tmp_path, *QUANTIZE)


def test_data_that_are_no_arrays(tmp_path):
    workspace(tmp_path)
    (tmp_path / "text.npz").write_text("not a zip archive")
    assert "text.npz" in fails(tmp_path, *QUANTIZE, "--set", "calibration.data=text.npz")
    np.savez(tmp_path / "objects.npz", calib_x=np.array([{}], object), calib_y=np.zeros(1, int))
    assert "calib_x" in fails_too(tmp_path, *QUANTIZE, "--set", "calibration.data=objects.npz")
    whole = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    assert "short.npz" in fails_too(tmp_path, *QUANTIZE, "--set", "calibration.data=short.npz")
    assert "model" in fails_too(tmp_path, *QUANTIZE, "--set", "calibration.data=float.npz")


# -------------------------------------------------------------------------------------------------------------- recipes

RECIPES = {
    "a key misspelt": ("bakend: fbgemm\n", ["recipe.yaml:7", "bakend", "backend"]),
    "a value misspelt": ("mode: statik\n", ["mode", "statik", "static"]),
    "a module that is not there": ('qconfig_dict: {"": fbgemm, blok: null}\n', ["recipe.yaml:7", "blok", "block"]),
    "an operator that is not there": ('qconfig_dict: {"type:conv3d": fbgemm}\n', ["conv3d", "conv2d"]),
    "a regex that matches nothing": ('qconfig_dict: {"": fbgemm, "re:layer9": null}\n', ["re:layer9"]),
    "everything in float": ('qconfig_dict: {"": null}\n', ["null", "nothing would be quantized"]),
    "a list that cannot be fused": ("fuse: [[conv1, fc]]\n", ["conv1", "fc"]),
    "a stub that is not there": ("stubs: {quant: [y], dequant: [fc]}\n", ["'y'"]),
    "a key twice": ("backend: qnnpack\n", ["backend", "twice"]),
    "training": ("mode: qat\n", ["qat"]),
    "no yaml": ("gates: {min_speedup: [\n", ["recipe.yaml", "YAML"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_are_wrong(tmp_path, case):
    added, told = RECIPES[case]
    kept = RECIPE.replace("mode: static\n", "") if added.startswith("mode") else RECIPE
    workspace(tmp_path, kept + added)
    message = fails(tmp_path, *QUANTIZE, run=qtool if case in ALONE else qtool_here)
    assert all(text in message for text in told), message
    if case != "training":
        assert message == fails_too(tmp_path, "recipe", "check", "recipe.yaml")


def test_recipes_that_cannot_be_read(tmp_path):
    assert "recipe.yaml" in fails(tmp_path, *QUANTIZE)
    (tmp_path / "recipe.yaml").write_bytes("model: modèle.npz\n".encode("latin-1"))
    assert "UTF-8" in fails_too(tmp_path, *QUANTIZE)
    (tmp_path / "recipe.yaml").unlink()
    (tmp_path / "recipe.yaml").mkdir()
    assert "recipe.yaml" in fails_too(tmp_path, *QUANTIZE)


def test_a_result_that_would_overwrite_its_source(tmp_path):
    workspace(tmp_path)
    for name in ("data.npz", "recipe.yaml", "float.npz"):
        assert "overwritten" in fails(tmp_path, *QUANTIZE, "--set", f"output={name}")
    message = fails_too(tmp_path, *QUANTIZE, "--set", "report.json=quant.npz")
    assert "report.json" in message


# --------------------------------------------------------------------------------------------------------------- models


def test_models_that_are_missing_or_broken(tmp_path):
    workspace(tmp_path)
    assert "nowhere.npz" in fails(tmp_path, *QUANTIZE, "--set", "model=nowhere.npz")
    assert "data.npz" in fails_too(tmp_path, *QUANTIZE, "--set", "model=data.npz")
    whole = bytearray((tmp_path / "float.npz").read_bytes())
    (tmp_path / "short.npz").write_bytes(whole[:-100])
    assert "short.npz" in fails_too(tmp_path, "inspect", "short.npz")
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(whole)
    assert "flipped.npz" in fails_too(tmp_path, *QUANTIZE, "--set", "model=flipped.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    assert "empty.npz" in fails_too(tmp_path, "run", "empty.npz", "data.npz")
    assert "zoo" in fails_too(tmp_path, "inspect", "zoo:resnet19")
    assert "resnet18" in fails_too(tmp_path, "inspect", "zoo:resnet19")


def test_a_hostile_model_is_refused_by_every_command(tmp_path):
    graph = trained()
    node = replace(graph.nodes[0], op="conv9d")
    save(replace(graph, nodes=(node, *graph.nodes[1:])), tmp_path / "bad.npz")
    workspace(tmp_path)
    for words in (
        ("inspect", "bad.npz"),
        ("run", "bad.npz", "data.npz", "--split", "test"),
        ("eval", "bad.npz", "--data", "data.npz", "--split", "test"),
        ("bench", "bad.npz"),
        ("compare", "float.npz", "bad.npz"),
        (*QUANTIZE, "--set", "model=bad.npz"),
    ):
        message = fails(tmp_path, *words)
        assert "bad.npz" in message
        assert "conv9d" in message


def test_a_pickle_in_a_model_is_not_opened(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    np.savez(tmp_path / "evil.npz", **{"@graph": np.array([Evil()], object)})
    fails(tmp_path, "inspect", "evil.npz")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    fails_too(tmp_path, "zoo", "resnet18", "--weights", "evil.pth", "-o", "out.npz")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path, value):
    weight = trained().initializers["block.conv2.weight"].copy()
    weight[1, 2, 0, 0] = value
    workspace(tmp_path, graph=changed(trained(), "block.conv2.weight", weight))
    message = fails(tmp_path, *QUANTIZE)
    assert "block.conv2.weight" in message
    assert "NaN or infinite" in message


def test_a_variance_that_is_none(tmp_path):
    workspace(tmp_path, graph=changed(trained(), "bn1.running_var", np.full(16, -5.0, np.float32)))
    assert "conv1" in fails(tmp_path, *QUANTIZE)


def test_models_in_the_wrong_place(tmp_path):
    workspace(tmp_path)
    assert qtool(*QUANTIZE, cwd=tmp_path).code == 0
    assert "quantized already" in fails(tmp_path, *QUANTIZE, "--set", "model=quant.npz", "--set", "output=q2.npz")
    assert "in this order" in fails_too(tmp_path, "compare", "quant.npz", "float.npz")
    assert "in this order" in fails_too(tmp_path, "compare", "float.npz", "float.npz")
    save(mlp(), tmp_path / "mlp.npz")
    words = ("compare", "mlp.npz", "quant.npz", "--weights-only")
    assert "was not made from this float model" in fails_too(tmp_path, *words)
    message = fails_too(tmp_path, "eval", "float.npz", "mlp.npz", "--data", "data.npz", "--split", "test")
    assert "(N, 12)" in message


def test_inputs_of_run_that_do_not_fit(tmp_path):
    workspace(tmp_path)
    np.save(tmp_path / "wrong.npy", np.zeros((1, 3, 8, 9), np.float32))
    np.save(tmp_path / "long.npy", np.zeros((1, 3, 8, 8)))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    (tmp_path / "short.npy").write_bytes((tmp_path / "wrong.npy").read_bytes()[:-8])
    assert "(N, 3, 8, 8)" in fails(tmp_path, "run", "float.npz", "-i", "x=wrong.npy", "-o", "out.npz")
    assert "float64" in fails_too(tmp_path, "run", "float.npz", "-i", "x=long.npy", "-o", "out.npz")
    assert "no input 'z'" in fails_too(tmp_path, "run", "float.npz", "-i", "z=long.npy", "-o", "out.npz")
    assert "short.npy" in fails_too(tmp_path, "run", "float.npz", "-i", "x=short.npy")
    assert "objects.npy" in fails_too(tmp_path, "run", "float.npz", "-i", "x=objects.npy")
    assert "nowhere.npy" in fails_too(tmp_path, "run", "float.npz", "-i", "x=nowhere.npy")
    assert "split" in fails_too(tmp_path, "run", "float.npz", "data.npz")
    assert "x.txt" in fails_too(tmp_path, "run", "float.npz", "x.txt")


def test_metrics_that_the_data_do_not_allow(tmp_path):
    workspace(tmp_path)
    np.savez(tmp_path / "bare.npz", x=arrays()["test_x"])
    assert "needs labels" in fails(tmp_path, "eval", "float.npz", "--data", "bare.npz")
    assert "first model" in fails_too(tmp_path, "eval", "float.npz", "--data", "bare.npz", "--metric", "sqnr")
    words = ("eval", "float.npz", "--data", "data.npz", "--split", "test", "--metric", "top5")
    assert "at least 5 classes" in fails_too(tmp_path, *words)


def test_a_batch_that_the_model_does_not_take(tmp_path):
    graph = mlp()
    fixed = {
        name: replace(value, shape=(1, *value.shape[1:])) for name, value in graph.values.items() if "N" in value.shape
    }
    save(replace(graph, values={**graph.values, **fixed}), tmp_path / "one.npz")
    assert "exactly 1" in fails(tmp_path, "bench", "one.npz", "--batch", "4")


def test_an_instruction_set_that_is_not_there(tmp_path, need_native):
    workspace(tmp_path)
    from qtool import native

    missing = [isa for isa in native.abi.ISAS if isa not in native.supported_isas()]
    if not missing:
        pytest.skip("this CPU has them all")
    assert missing[0] in fails(tmp_path, "run", "float.npz", "data.npz", "--split", "test", "--isa", missing[0])


# ---------------------------------------------------------------------------------------------------------------- debug


def test_debug_shows_the_traceback(tmp_path):
    done = qtool("inspect", "nowhere.npz", "--debug", cwd=tmp_path)
    assert done.code == 1
    assert "Traceback" in done.err
    assert "ModelError" in done.err


def test_what_nobody_foresaw_is_one_line_too(tmp_path, monkeypatch, capsys):
    def broken(path):
        raise ZeroDivisionError("what\x1b[2J")

    monkeypatch.setattr("qtool.pipeline.models.load", broken)
    monkeypatch.setattr(sys, "argv", ["qtool", "inspect", "x.npz"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "internal error: ZeroDivisionError: what\\x1b[2J (--debug shows where)\n"


def test_a_good_file_survives_all_this(tmp_path):
    """The cases above fail for their own reasons: as it stands the folder quantizes."""
    workspace(tmp_path)
    assert qtool(*QUANTIZE, cwd=tmp_path).code == 0
    assert load(tmp_path / "quant.npz").is_quantized
