"""``qtool compare``, ``eval`` and ``bench`` on a small model and its quantized form."""

from __future__ import annotations

import pytest


def test_compare_uses_the_calibration_data_that_the_file_records(cli, quantized):
    plain = cli("compare", "float.npz", "quant.npz", "--json").json
    assert plain["schema"] == "qtool.compare/1"
    assert plain["data"].endswith("data.npz (calib), the calibration data")
    assert plain["samples"] == 32
    assert {row["layer"] for row in plain["weights"]} == {"conv1", "block.conv2", "dw", "fc"}
    (quantized / "data.npz").rename(quantized / "moved.npz")
    plain = cli("compare", "float.npz", "quant.npz", "--json", "--batches", "2", "--batch-size", "4").json
    assert plain["data"] == "random inputs, seed 0"
    assert plain["samples"] == 8
    plain = cli("compare", "float.npz", "quant.npz", "--json", "--data", "moved.npz", "--split", "test").json
    assert plain["data"] == "moved.npz (test)"
    assert plain["agreement"] == 1.0


def test_compare_shows_the_worst_layers(cli, quantized):
    done = cli("compare", "float.npz", "quant.npz", "--top", "2")
    assert "weights: the worst 2 of 4" in done.out
    assert "shadow: the worst 2 of" in done.out
    assert "both models choose the same class for 100.00 % of the samples" in done.out
    done = cli("compare", "float.npz", "quant.npz", "--weights-only", "--top", "0")
    assert "outputs" not in done.out
    assert all(name in done.out for name in ("conv1", "block.conv2", "dw", "fc"))


@pytest.mark.parametrize("words", [["--weights-only", "--data", "data.npz"], ["--split", "test"]])
def test_compare_refuses_options_that_say_nothing_together(cli, quantized, words):
    assert cli("compare", "float.npz", "quant.npz", *words).code == 2


def test_eval_puts_models_side_by_side(cli, quantized):
    words = ("eval", "float.npz", "quant.npz", "--data", "data.npz", "--split", "test")
    plain = cli(*words, "--json").json
    assert plain["schema"] == "qtool.eval/1"
    assert (plain["metric"], plain["n"]) == ("top1", 32)
    assert [row["model"] for row in plain["models"]] == ["float.npz", "quant.npz"]
    assert plain["models"][0]["value"] == 1.0
    assert "against the first" in cli(*words).out
    plain = cli(*words, "--json", "--metric", "sqnr", "--batches", "1").json
    assert plain["models"][0]["value"] is None  # infinite: the first model against itself
    assert 10 < plain["models"][1]["value"] < 60
    assert cli("eval", "float.npz", "--data", "data.npz", "--split", "test").code == 0


def test_eval_agrees_with_the_report(cli, quantized):
    report = cli("quantize", "-r", "recipe.yaml", "--json").json
    found = cli("eval", "float.npz", "quant.npz", "--data", "data.npz", "--split", "test", "--json").json
    assert [row["value"] for row in found["models"]] == [report["accuracy"]["float"], report["accuracy"]["quant"]]


def test_bench_quantizes_a_float_model_by_itself(cli, quantized):
    words = ("bench", "float.npz", "--backend", "qnnpack", "--seconds", "0.01", "--batch", "2", "--threads", "2")
    plain = cli(*words, "--json").json
    assert plain["schema"] == "qtool.bench/2"
    (model,) = plain["models"]
    assert (model["model"], model["batch"], model["threads"]) == ("cli", 2, 2)
    real, quant = model["rows"]
    assert (real["precision"], real["backend"], real["speedup"]) == ("float32", "", 1.0)
    assert (quant["precision"], quant["backend"], quant["source"]) == ("int8", "qnnpack", "quantized here")
    assert 0 < quant["min_ms"] <= quant["median_ms"] <= quant["p90_ms"]
    assert real["runs"] == quant["runs"] >= 5  # in turns
    assert quant["speedup"] == pytest.approx(real["median_ms"] / quant["median_ms"])


def test_bench_runs_a_float_file_and_its_quantized_one_in_turns(cli, quantized):
    (model,) = cli("bench", "quant.npz", "float.npz", "--seconds", "0.01", "--json").json["models"]
    assert [row["source"] for row in model["rows"]] == ["float.npz", "quant.npz"]
    (model,) = cli("bench", "quant.npz", "--seconds", "0.01", "--json").json["models"]
    assert model["rows"][0]["speedup"] is None


def test_bench_per_op_accounts_for_all_the_work(cli, quantized):
    (model,) = cli("bench", "float.npz", "--seconds", "0.01", "--per-op", "--json").json["models"]
    macs = 64 * 16 * 27 + 64 * 16 * 144 + 16 * 16 * 9 + 4 * 16
    for row in model["rows"]:
        assert sum(operator["share"] for operator in row["operators"]) == pytest.approx(1.0)
        done = sum(1e6 * operator["gops"] * operator["ms"] for operator in row["operators"])
        assert done == pytest.approx(2 * macs)
        assert row["gops"] * row["median_ms"] == pytest.approx(2e-6 * macs)
        assert all(operator["kernel"] and operator["bytes"] for operator in row["operators"] if operator["gops"])
    assert "operators" in cli("bench", "float.npz", "--seconds", "0.01", "--per-op", "--top", "2").out
