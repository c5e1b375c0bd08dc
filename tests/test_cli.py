"""The command line: every command on small models, what it prints and where, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import cli_cases
import numpy as np
import pytest
from cli_cases import command, environment, mlp, qtool, trained, workspace

import qtool as package
from qtool import native, zoo
from qtool.analysis import metrics
from qtool.cli import COMMANDS, common
from qtool.cli import eval as eval_command
from qtool.cli.render import megabytes, times
from qtool.recipe.schema import ZOO_NAMES, Backend

PARTS = ("check", "init", "schema", "presets")
ALL = [(name,) for name in COMMANDS] + [("recipe", part) for part in PARTS]


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


# -------------------------------------------------------------------------------------- inspect, zoo, recipe and doctor


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
