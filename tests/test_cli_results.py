"""Results that cannot be written, and Ctrl-C: one message, and nothing half-written is left behind."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_cases import RECIPE, arrays, command, environment, listing, qtool, qtool_here, workspace
from cli_failures import QUANTIZE, fails, fails_too, poisoned

from qtool.cli import main
from qtool.ir import npz


@pytest.mark.parametrize(
    "output", ["nowhere/quant.npz", "recipe.yaml/quant.npz", "folder", "/dev/full", "/proc/qtool/quant.npz", "n" * 300]
)
def test_results_that_cannot_be_written_are_found_out_before_the_work(tmp_path, output):
    workspace(tmp_path, **poisoned("calib", np.nan))  # so that the work, had it begun, would say something else
    (tmp_path / "folder").mkdir()
    run = qtool if output in ("nowhere/quant.npz", "/dev/full") else qtool_here
    assert "cannot write" in fails(tmp_path, *QUANTIZE, "--set", f"output={output}", run=run)
    assert "cannot write" in fails_too(tmp_path, *QUANTIZE, "--set", f"report.json={output}")
    assert "cannot write" in fails_too(tmp_path, "zoo", "resnet18", "-o", output)


def test_a_folder_without_permission(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    workspace(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot write" in fails(tmp_path, *QUANTIZE, "--set", "output=locked/quant.npz")


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_disk_that_is_full(tmp_path):
    workspace(tmp_path)
    assert qtool(*QUANTIZE, "--set", "output=old.npz", cwd=tmp_path).code == 0  # it stays as it is, below
    message = fails(tmp_path, *QUANTIZE, "--set", "output=old.npz", preexec_fn=_small_files)
    assert "cannot write" in message
    assert "old.npz" in message
    words = ("run", "float.npz", "data.npz", "--split", "test", "-o", "out.npz")
    np.savez(tmp_path / "data.npz", test_x=np.repeat(arrays()["test_x"], 20, axis=0))
    assert "out.npz" in fails(tmp_path, *words, preexec_fn=_small_files)


def test_standard_output_that_is_full(tmp_path):
    workspace(tmp_path)
    with open("/dev/full", "w") as full:
        for words in (("inspect", "float.npz"), ("inspect", "float.npz", "--json"), ("recipe", "schema")):
            streams = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
            done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), check=False, **streams)
            assert done.returncode == 1
            assert done.stderr == "error: No space left on device\n"


def interrupted(folder: Path, stage: str, words: tuple[str, ...]) -> tuple[int, str]:
    """Runs a command on a terminal, presses Ctrl-C as soon as it shows the stage; its exit code and what it showed."""
    master, slave = pty.openpty()
    streams = {"stdin": slave, "stdout": slave, "stderr": slave}
    # Ctrl-C may come right between opening a file and the statement that would close it.
    python, *rest = command(*words)
    call = [python, *rest[:2], "-W", "ignore::ResourceWarning", *rest[2:]]
    # What runs in the background ignores Ctrl-C, and would hand that on; what is handled is not handed on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(call, cwd=folder, env=environment(TERM="xterm"), **streams) as process:
        signal.signal(signal.SIGINT, before)
        os.close(slave)
        shown = b"".join(_shown_until_closed(master, stage, process)).decode(errors="replace")
        os.close(master)
        return process.wait(60), shown


def _shown_until_closed(master: int, stage: str, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    sent, begin = False, time.monotonic()
    while time.monotonic() - begin < 60:
        try:
            read = os.read(master, 65536)
        except OSError:  # the other end is closed
            return
        yield read
        if not sent and stage.encode() in read:
            process.send_signal(signal.SIGINT)
            sent = True
    process.kill()


LONG = np.zeros((60_000, 3, 8, 8), np.float32)


@pytest.mark.parametrize("stage", ["calibrate", "evaluate", "time"])
def test_ctrl_c_leaves_nothing_behind(tmp_path, stage):
    recipe = RECIPE.replace(", batches: 2", "") + "latency: {seconds: 60}\nreport: {json: report.json}\n"
    split = {"calibrate": "calib", "evaluate": "test"}.get(stage)
    longer = {f"{split}_x": LONG, f"{split}_y": np.zeros(len(LONG), int)} if split else {}
    workspace(tmp_path, recipe, **longer)
    before = set(listing(tmp_path))
    code, shown = interrupted(tmp_path, stage, QUANTIZE)
    assert code == 130, shown
    assert "interrupted" in shown
    assert "Traceback" not in shown
    assert set(listing(tmp_path)) == before


def test_ctrl_c_while_saving_leaves_the_old_file(tmp_path, monkeypatch, capsys):
    workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quant.npz").write_bytes(b"old")
    real = npz.write_archive

    def stop_half_way(file, members):
        if hasattr(file, "fileno"):
            file.write(b"half")
            raise KeyboardInterrupt
        real(file, members)

    monkeypatch.setattr(npz, "write_archive", stop_half_way)
    monkeypatch.setattr(sys, "argv", ["qtool", *QUANTIZE])
    before = listing(tmp_path)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    assert listing(tmp_path) == before
