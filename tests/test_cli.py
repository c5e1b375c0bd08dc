"""The command line: every command on small models, what it prints and where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import cli_cases
import numpy as np
import pytest
from cli_cases import RECIPE, Done, arrays, command, environment, mlp, qtool, trained, workspace

import qtool as package
from qtool import native, zoo
from qtool.analysis import metrics
from qtool.analysis.ceilings import Ceilings
from qtool.cli import COMMANDS, common, main
from qtool.cli import eval as eval_command
from qtool.cli.render import megabytes, times
from qtool.ir.npz import load, save
from qtool.recipe.schema import ZOO_NAMES, Backend

PARTS = ("check", "init", "schema", "presets")
ALL = [(name,) for name in COMMANDS] + [("recipe", part) for part in PARTS]


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QTOOL_ISA", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["qtool", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return Done(int(left.value.code or 0), out, err)

    return run


@pytest.fixture
def quantized(cli, tmp_path):
    """float.npz, quant.npz, data.npz and recipe.yaml in the current folder."""
    workspace(tmp_path)
    assert cli("quantize", "-r", "recipe.yaml").code == 0
    return tmp_path


# ------------------------------------------------------------------------------------------------------------ the frame


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(cli, words):
    done = cli(*words, "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 90
    assert "..." not in done.out.split("Commands:")[-1] or words != ("recipe",)
    assert "Example" in done.out
    assert f"qtool {' '.join(words)}" in done.out.split("Example")[1]


@pytest.mark.parametrize("words", [w for w in ALL if w not in [("recipe",), ("recipe", "init"), ("recipe", "schema")]])
def test_commands_share_their_options(cli, words):
    text = cli(*words, "--help").out
    for option in ("--json", "--threads", "--isa", "--quiet", "--verbose", "--debug", "QTOOL_ISA"):
        assert option in text


def test_help_lists_every_command_and_how_to_complete_them(cli):
    text = cli("--help").out
    assert all(name in text for name in COMMANDS)
    assert "_QTOOL_COMPLETE=bash_source qtool" in text
    assert cli("-h").out == text


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "qtool")
def test_help_imports_nothing_heavy(words, tmp_path):
    code = (
        "import sys; from qtool.cli import cli; cli.main([*sys.argv[1:], '--help'], standalone_mode=False);"
        "print('MODULES', *sys.modules)"
    )
    call = [sys.executable, "-c", code, *words]
    done = subprocess.run(call, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("MODULES")[1].split())
    assert "click" in loaded
    assert not loaded & {"numpy", "rich", "yaml", "importlib.metadata", "qtool.ir", "qtool.ops", "qtool.native"}


def test_version(cli):
    assert cli("--version").out == f"qtool {common.qtool_version()}\n"


def test_names_on_the_command_line_are_those_of_the_library():
    assert common.ISAS == native.abi.ISAS
    assert tuple(backend.value for backend in Backend) == common.BACKENDS
    assert (*zoo.names(), *zoo.sequence_names()) == ZOO_NAMES
    assert tuple(metrics.METRICS) == eval_command.METRICS


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["quantise"], "did you mean 'quantize'"),
        (["frobnicate"], "frobnicate"),
        (["quantize"], "--recipe"),
        (["bench", "--backend", "tpu"], "tpu"),
        (["bench", "--seconds", "0"], "seconds"),
        (["eval", "x.npz"], "--data"),
        (["run", "x.npz"], "give either FILE.npz or --recipe, or --input"),
        (["compare", "a.npz"], "QUANT"),
        (["zoo", "resnet19"], "resnet19"),
        (["doctor", "--threads", "0"], "threads"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_exits_with_2(cli, words, told):
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_isa_can_come_from_the_environment(cli, monkeypatch):
    assert cli("doctor", "--json").json["chosen"] == (native.supported_isas() or ("NumPy",))[-1]
    monkeypatch.setenv("QTOOL_ISA", "scalar")
    assert cli("doctor", "--json").json["chosen"] == ("scalar" if native.available() else "NumPy")
    monkeypatch.setenv("QTOOL_ISA", "sse9")
    done = cli("doctor")
    assert done.code == 2
    assert "QTOOL_ISA" in done.err


def test_isa_reaches_the_engine(cli, quantized, need_native):
    for isa in native.supported_isas():
        row = cli("bench", "quant.npz", "--seconds", "0.001", "--isa", isa, "--json").json["models"][0]["rows"][0]
        assert row["isa"] == isa


def test_completion_knows_commands_options_and_the_zoo(tmp_path):
    def complete(*words: str) -> str:
        env = {
            "_QTOOL_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("qtool", *words)),
            "COMP_CWORD": str(len(words)),
        }
        return qtool(cwd=tmp_path, env=env).out

    assert "plain,quantize" in complete("qu")
    assert "plain,--per-op" in complete("bench", "--per")
    assert "plain,zoo:mobilenet_v2" in complete("bench", "zoo:m")
    assert "complete" in qtool(cwd=tmp_path, env={"_QTOOL_COMPLETE": "bash_source"}).out


def test_a_reader_that_stops_early_is_no_error_to_speak_of(quantized):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        done = subprocess.run(
            command("inspect", "quant.npz", "--json"),
            cwd=quantized,
            env=environment(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""


# ------------------------------------------------------------------------------------------------------------- quantize


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


@pytest.mark.parametrize("columns", [80, 200])
def test_tables_fit_their_width(cli, quantized, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (
        ["quantize", "-r", "recipe.yaml", "-v"],
        ["compare", "float.npz", "quant.npz"],
        ["inspect", "float.npz"],
        ["inspect", "quant.npz"],
        ["recipe", "check", "recipe.yaml"],
        ["recipe", "presets", "-v"],
        ["bench", "float.npz", "--seconds", "0.001", "--per-op"],
    ):
        lines = cli(*words).out.splitlines()
        assert max(map(len, lines)) <= columns
        assert all(line == line.rstrip() for line in lines)
        if columns == 200 and words[0] == "inspect":
            assert any(line.startswith("block.conv2 ") and " conv2d " in line for line in lines)


# ------------------------------------------------------------------------------------------------- compare, eval, bench


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


# ------------------------------------------------------------------------------------------------------------------ run


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


# -------------------------------------------------------------------------------------- inspect, zoo, recipe and doctor


def test_inspect_says_what_would_be_quantized(cli, quantized):
    plain = cli("inspect", "float.npz", "--json").json
    assert plain["schema"] == "qtool.inspect/1"
    states = {layer["name"]: layer["precision"] for layer in plain["layers"]}
    assert (states["conv1"], states["bn1"], states["relu1"], states["fc"]) == ("int8", "fused", "fused", "int8")
    assert plain["macs"] == 64 * 16 * 27 + 64 * 16 * 144 + 16 * 16 * 9 + 4 * 16
    assert plain["bytes"] == trained().parameter_bytes()
    assert plain["inputs"] == {"x": "float32[N, 3, 8, 8]"}


def test_inspect_shows_parameters_and_origin_of_a_quantized_model(cli, quantized):
    done = cli("inspect", "quant.npz")
    assert "int8, backend fbgemm" in done.out
    assert "calibrated on 32 samples of data.npz" in done.out
    layers = {layer["name"]: layer for layer in cli("inspect", "quant.npz", "--json").json["layers"]}
    graph = load(quantized / "quant.npz")
    assert layers["conv1"]["precision"] == "int8"
    out = next(node for node in graph.nodes if node.name == "conv1").outputs[0]
    assert layers["conv1"]["scale"] == float(graph.values[out].qparams.scale[0])


def test_inspect_names_the_reason_for_float(cli, tmp_path):
    b = package.ops.Builder("odd")
    y = b.node("gelu", [b.input("x", ("N", 4))], name="act")
    save(b.finish([b.node("softmax", [y], name="probabilities", dim=1)]), tmp_path / "odd.npz")
    assert "float32" in cli("inspect", "odd.npz").out


def test_zoo_lists_and_builds(cli, tmp_path):
    assert all(name in cli("zoo").out for name in ZOO_NAMES)
    assert set(cli("zoo", "--json").json["models"]) == set(ZOO_NAMES)
    plain = cli("zoo", "mobilenet_v2", "--image", "32", "--classes", "3", "--seed", "5", "-o", "m.npz", "--json").json
    assert plain["bytes"] == (tmp_path / "m.npz").stat().st_size
    assert load(tmp_path / "m.npz").values["x"].shape == ("N", 3, 32, 32)
    done = cli("inspect", "m.npz")
    assert "features.0.0" in done.out


def test_recipe_init_writes_one_that_quantizes(cli, tmp_path):
    workspace(tmp_path)
    words = ("recipe", "init", "--model", "float.npz", "--data", "data.npz", "--result", "mine.npz")
    done = cli(*words, "-o", "mine.yaml")
    assert done.code == 0
    assert cli(*words).out == (tmp_path / "mine.yaml").read_text()
    assert "is good: 6 of 6 layers would be quantized" in cli("recipe", "check", "mine.yaml").out
    assert not (tmp_path / "mine.npz").exists()
    done = cli("quantize", "-r", "mine.yaml", "--set", "gates=null", "--set", "latency=null")
    assert done.code == 0
    assert cli(*words, "-o", "mine.yaml").code == 2  # what is there is not overwritten


def test_recipe_check_shows_rules_and_data(cli, tmp_path):
    workspace(tmp_path, RECIPE + 'qconfig_dict: {"": fbgemm, block: null, "type:linear": default}\n')
    plain = cli("recipe", "check", "recipe.yaml", "--json").json
    assert plain["schema"] == "qtool.recipe-check/1"
    assert plain["samples"] == {"calibration": 32, "evaluation": 32}
    assert {row["key"]: row["matched"] for row in plain["rules"]} == {"": 7, "block": 4, "type:linear": 1}
    assert {row["layer"] for row in plain["fallbacks"]} == {"block.conv2", "block.add"}
    done = cli("recipe", "check", "recipe.yaml")
    assert "the rule 'block' leaves it in float" in done.out
    assert "calibration: 32 samples of data.npz" in done.out


def test_recipe_schema_and_presets(cli):
    schema = json.loads(cli("recipe", "schema").out)
    assert schema["properties"]["backend"]
    presets = cli("recipe", "presets", "--json").json["presets"]
    assert presets["fbgemm"]["qconfig"]["activation"]["reduce_range"] is True
    assert "accurate" in cli("recipe", "presets").out
    assert "get_default_qconfig('fbgemm')" in cli("recipe", "presets", "-v").out


def test_doctor(cli):
    plain = cli("doctor", "--json").json
    assert plain["schema"] == "qtool.doctor/1"
    assert plain["instruction_sets"] == list(native.supported_isas())
    explained = {note.partition(":")[0] for note in plain["instruction_set_notes"]}
    assert explained >= set(native.abi.ISAS) - set(native.supported_isas())
    assert any(text.startswith("numpy ") for text in plain["packages"])
    assert len(plain["kernels"]) == (len(native.kernels()) if native.available() else 0)
    assert "engine" in cli("doctor").out
    if native.available():
        assert native.kernels()[0].name in cli("doctor", "-v").out


def test_doctor_measures_the_machine_when_it_is_asked(cli, monkeypatch):
    def made_up(threads: int) -> Ceilings:
        return Ceilings(threads, {"scalar": 3.5}, {"scalar": 2.5}, {"L1": 99.5 * threads}, {"L1": 16384})

    monkeypatch.setattr("qtool.analysis.ceilings.measure_ceilings", made_up)
    plain = cli("doctor", "--ceilings", "--threads", "3", "--json").json["ceilings"]
    assert plain == [made_up(1).to_json(), made_up(3).to_json()]
    shown = cli("doctor", "--ceilings", "--threads", "3").out
    assert all(text in shown for text in ("int8 scalar", "3.5", "read L1 (16.4 kB)", "99.5", "298.5", "3 threads"))
    assert "ceilings" not in cli("doctor", "--json").json


def test_dynamic_models_go_through_all_commands(cli, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 12)).astype(np.float32)
    labels = package.Session(mlp()).run({"x": x})["fc2"].argmax(axis=1)
    recipe = "model: float.npz\noutput: quant.npz\nmode: dynamic\nevaluation: {data: data.npz, split: test}\n"
    workspace(tmp_path, recipe, mlp(), test_x=x, test_y=labels)
    plain = cli("quantize", "-r", "recipe.yaml", "--json").json
    assert {layer["precision"] for layer in plain["layers"]} == {"int8 dynamic"}
    plain = cli("compare", "float.npz", "quant.npz", "--data", "data.npz", "--split", "test", "--json").json
    assert {row["layer"] for row in plain["shadow"]} == {"fc1", "fc2"}
    assert "int8 dynamic" in cli("inspect", "quant.npz").out
    (model,) = cli("bench", "float.npz", "quant.npz", "--seconds", "0.01", "--json").json["models"]
    assert len(model["rows"]) == 2


# ----------------------------------------------------------------------------------------------------------------- text


def test_numbers_for_people():
    assert [megabytes(n) for n in (12, 1500, 46_850_000)] == ["12 B", "1.5 kB", "46.85 MB"]
    assert times(2.0, "faster", "slower") == "2.00 times faster"
    assert times(0.25, "faster", "slower") == "4.00 times slower"


def test_text_from_files_cannot_steer_the_terminal():
    assert common.printable("a\x1b[2Jb\x07\nc é") == "a\\x1b[2Jb\\x07\nc é"


def test_the_cases_are_what_they_say():
    x, labels = cli_cases.images(64, seed=9)
    scores = package.Session(trained()).run({"x": x})["fc"]
    assert np.mean(scores.argmax(axis=1) == labels) == 1.0
