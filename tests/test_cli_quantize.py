"""``qtool quantize`` on a small model: what it prints, writes and overrides, and missed gates."""

from __future__ import annotations

import json

from cli_cases import RECIPE, workspace

from qtool.ir.npz import load


def test_quantize_reports_and_writes(cli, tmp_path):
    workspace(tmp_path, RECIPE + "latency: {seconds: 0.01, warmup: 1}\nreport: {json: report.json}\n")
    done = cli("quantize", "--recipe", "recipe.yaml", "-v")
    assert done.code == 0
    assert "8 of 8 layers in int8" in done.out
    assert "100.00 %" in done.out
    assert "times smaller" in done.out
    assert "written: quant.npz" in done.out
    assert load(tmp_path / "quant.npz").backend == "fbgemm"
    assert "calibrate:" in done.err  # -v tells how long the stages took
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "qtool.report/1"
    kernels = {layer["name"]: layer["kernel"] for layer in report["layers"]}
    assert kernels["conv1"]


def test_quantize_json_is_all_there_is_on_standard_output(cli, tmp_path):
    workspace(tmp_path, RECIPE + "latency: {seconds: 0.01}\n")
    done = cli("quantize", "-r", "recipe.yaml", "--json", "--threads", "2")
    plain = done.json
    assert done.err == ""
    assert plain["schema"] == "qtool.report/1"
    assert plain["size"]["quant_bytes"] == (tmp_path / "quant.npz").stat().st_size
    assert plain["size"]["float_bytes"] == (tmp_path / "float.npz").stat().st_size
    assert plain["accuracy"]["n"] == 32
    assert plain["accuracy"]["float"] == 1.0
    assert plain["latency"]["threads"] == 2
    assert plain["provenance"]["calibration"]["samples"] == 32
    assert plain["fallbacks"] == []
    assert {layer["precision"] for layer in plain["layers"]} == {"int8"}


def test_quantize_set_overrides_the_recipe(cli, tmp_path):
    workspace(tmp_path)
    settings = (
        "--set",
        "backend=qnnpack",
        "--set",
        "output=other.npz",
        "--set",
        'qconfig_dict={"": qnnpack, fc: null}',
    )
    plain = cli("quantize", "-r", "recipe.yaml", "--json", *settings).json
    assert plain["backend"] == "qnnpack"
    assert [row["name"] for row in plain["fallbacks"]] == ["fc"]
    assert not (tmp_path / "quant.npz").exists()
    assert load(tmp_path / "other.npz").backend == "qnnpack"


def test_a_missed_gate_exits_with_3_after_the_report(cli, tmp_path):
    workspace(tmp_path, RECIPE + "gates: {min_size_ratio: 100, max_accuracy_drop: 0.5}\n")
    done = cli("quantize", "-r", "recipe.yaml")
    assert done.code == 3
    assert "missed: min_size_ratio" in done.err
    assert "MISSED" in done.out
    assert (tmp_path / "quant.npz").exists()
    plain = cli("quantize", "-r", "recipe.yaml", "--json").json
    assert [(gate["name"], gate["passed"]) for gate in plain["gates"]] == [
        ("max_accuracy_drop", True),
        ("min_size_ratio", False),
    ]


def test_two_runs_write_the_same_file(cli, tmp_path):
    workspace(tmp_path)
    files = []
    for _ in range(2):
        assert cli("quantize", "-r", "recipe.yaml").code == 0
        files.append((tmp_path / "quant.npz").read_bytes())
    assert files[0] == files[1]
