"""``qtool run``: data and single arrays in, outputs out, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from cli_cases import arrays

import qtool as package
from qtool.ir.npz import load, save


@pytest.mark.parametrize("model", ["float.npz", "quant.npz"])
def test_run_gives_what_a_session_gives(cli, quantized, model):
    words = ("run", model, "data.npz", "--split", "test", "--batch-size", "10")
    plain = cli(*words, "-o", "out.npz", "--json").json
    expected = package.Session(load(quantized / model)).run({"x": arrays()["test_x"]})["fc"]
    with np.load(quantized / "out.npz") as written:
        assert written.files == ["fc"]
        close = {"rtol": 1e-4, "atol": 1e-5} if model == "float.npz" else {"rtol": 0, "atol": 0}  # int8 is exact
        np.testing.assert_allclose(written["fc"], expected, **close)
    (row,) = plain["outputs"]
    assert plain["schema"] == "qtool.run/1"
    assert (row["name"], row["dtype"], row["shape"]) == ("fc", "float32", [32, 4])
    assert row["low"] == pytest.approx(float(expected.min()))
    assert row["high"] == pytest.approx(float(expected.max()))


def test_run_takes_single_arrays(cli, quantized):
    np.save(quantized / "in.npy", arrays()["test_x"][:3])
    done = cli("run", "quant.npz", "--input", "x=in.npy", "-o", "out.npy")
    assert "float32[3, 4]" in done.out
    expected = package.Session(load(quantized / "quant.npz")).run({"x": arrays()["test_x"][:3]})["fc"]
    np.testing.assert_array_equal(np.load(quantized / "out.npy"), expected)
    assert cli("run", "quant.npz", "in.npy").code == 0  # nothing is written without -o
    assert sorted(path.name for path in quantized.iterdir()) == sorted(
        ["data.npz", "float.npz", "in.npy", "out.npy", "quant.npz", "recipe.yaml"]
    )


@pytest.mark.parametrize(
    "words",
    [
        ["data.npz", "--input", "x=in.npy"],
        ["--input", "x"],
        ["--input", "=in.npy"],
        ["--input", "x=in.npy", "--input", "x=in.npy"],
        ["data.npz", "-o", "out.txt"],
    ],
)
def test_run_refuses_what_makes_no_sense(cli, quantized, words):
    assert cli("run", "quant.npz", *words).code == 2


def test_run_writes_several_outputs_under_names_that_are_no_paths(cli, tmp_path):
    b = package.ops.Builder("two")
    x = b.input("x", ("N", 4))
    left, right = b.nodes("split", [x], 2, name="a b", split_sizes=(2, 2), dim=1)
    save(b.finish([left, right]), tmp_path / "two.npz")
    np.save(tmp_path / "in.npy", np.ones((2, 4), np.float32))
    assert cli("run", "two.npz", "-i", "x=in.npy", "-o", "out.npy").code == 2
    assert cli("run", "two.npz", "-i", "x=in.npy", "-o", "out.npz").code == 0
    with np.load(tmp_path / "out.npz") as written:
        assert written.files == ["a%20b.0", "a%20b.1"]
