"""The whole session: which qtool is tested, what tests share, and which instruction sets were covered."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _test_the_installed_package() -> None:
    """``python -m pytest`` puts the checkout first on the path, where there is no native library: the installed qtool
    is to be tested where there is one. An editable install, which has no Python file of its own, leaves things as
    they are."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if any((Path(entry) / "qtool" / "errors.py").is_file() for entry in others):
        sys.path[:] = others


_test_the_installed_package()

import pytest  # noqa: E402
from cli_cases import Done, workspace  # noqa: E402
from hypothesis import settings  # noqa: E402

from qtool import native  # noqa: E402
from qtool.cli import main  # noqa: E402

settings.register_profile("qtool", deadline=None, derandomize=True)
settings.load_profile("qtool")


@pytest.fixture(scope="session")
def need_native() -> None:
    """Skips with the reason where the native library is not there."""
    if not native.available():
        pytest.skip(native.why_not())


@pytest.fixture
def write(tmp_path: Path):
    """Writes a recipe; gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


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


def _uncovered() -> list[str]:
    """Kernel rows that this CPU can run and no test did."""
    import kernels

    usable = native.supported_isas()
    return [r.name for r in native.kernels() if r.isa in usable and r.name not in kernels.covered]


def _problem() -> str:
    """What is wrong with the coverage of a whole run; "" where nothing is."""
    if native.available():
        missing = _uncovered()
        return f"no test ran {', '.join(missing)}" if missing else ""
    compiler = shutil.which("c++") or shutil.which("g++")
    return f"the native library was not built, although there is {compiler}" if compiler else ""


def _is_whole_run(config: pytest.Config, exitstatus: int) -> bool:
    """Whether everything was asked for, and ran to the end: part of the tests need not cover all kernels."""
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return False
    chosen = {(config.invocation_params.dir / arg).resolve() for arg in config.args}
    narrowed = config.option.keyword or config.option.markexpr not in ("", "not peers") or config.option.collectonly
    rerun = getattr(config.option, "lf", False) or getattr(config.option, "stepwise", False)
    return bool(chosen & {ROOT, ROOT / "tests"}) and not (narrowed or rerun)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A kernel that is never run fails the session: SIMD that is switched off unseen is a regression like another."""
    if _is_whole_run(session.config, exitstatus) and _problem():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Says which qtool was tested and which instruction sets."""
    import kernels

    terminalreporter.section("native kernels")
    terminalreporter.line(f"qtool in {Path(native.__file__).parent.parent}")
    if native.available():
        usable = native.supported_isas()
        ran = {row.isa for row in native.kernels() if row.name in kernels.covered}
        terminalreporter.line(
            f"covered: {', '.join(sorted(ran, key=usable.index)) or 'none'}; this CPU has {', '.join(usable)}"
        )
    else:
        terminalreporter.line(f"none: {native.why_not()}")
    if _is_whole_run(terminalreporter.config, exitstatus) and _problem():
        terminalreporter.line(f"FAILED: {_problem()}", red=True)
