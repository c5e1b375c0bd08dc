"""What all commands share: options, consoles, progress bars, and the one place where errors become exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qtool.errors import QtoolError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_ERROR, EXIT_GATE, EXIT_INTERRUPTED = 1, 3, 130
ISAS = ("scalar", "avx2", "avx512vnni")

F = TypeVar("F", bound=Callable[..., Any])

try:
    VERSION = version("qtool")
except PackageNotFoundError:  # a source tree that is not installed
    VERSION = "0+source"


@dataclass(frozen=True)
class Shared:
    """The options every command has."""

    json: bool
    threads: int | None
    isa: str | None
    quiet: bool
    verbose: bool
    debug: bool

    @property
    def console(self) -> Console:
        """Where the result goes: standard output."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    @property
    def log(self) -> Console:
        """Where everything else goes: standard error."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, quiet=self.quiet)

    def emit(self, plain: dict[str, Any]) -> None:
        """One JSON object on standard output. Infinities and NaN become null: JSON has none."""
        from qtool.report.text import finite

        click.echo(json.dumps(finite(plain), indent=2, default=str, allow_nan=False))

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A progress bar on a terminal, nothing elsewhere; gives a function that takes the amount done so far."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done: None  # noqa: ARG005 (nobody looks)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.log, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)


def shared_options(command: F) -> Callable[..., Any]:
    """Adds the shared options and hands them to the command as its first argument, a ``Shared``."""

    def wrapper(*args: Any, **options: Any) -> Any:
        names = ("json", "threads", "isa", "quiet", "verbose", "debug")
        return command(Shared(**{name: options.pop(f"shared_{name}") for name in names}), *args, **options)

    decorated: Callable[..., Any] = update_wrapper(wrapper, command)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


_OPTIONS = (
    click.option("--json", "shared_json", is_flag=True, help="Print one JSON object instead of tables."),
    click.option("--threads", "shared_threads", type=click.IntRange(1, 1024), help="Threads of the engine."),
    click.option(
        "--isa",
        "shared_isa",
        type=click.Choice(ISAS),
        envvar="QTOOL_ISA",
        show_envvar=True,
        help="Instruction set of the kernels; the best one this CPU has if not given.",
    ),
    click.option("--quiet", "-q", "shared_quiet", is_flag=True, help="No progress, no log."),
    click.option("--verbose", "-v", "shared_verbose", is_flag=True, help="Tell more."),
    click.option("--debug", "shared_debug", is_flag=True, help="Show the traceback of an error."),
)


def guarded(command: click.Command) -> None:
    """Runs a command and leaves the process with its exit code; the only place that catches errors."""
    debug = "--debug" in sys.argv
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: nothing was written", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        sys.exit(EXIT_ERROR)
    except QtoolError as error:
        if debug:
            raise
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error}", err=True)
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if debug:
            raise
        click.echo(f"internal error: {type(error).__name__}: {error} (--debug shows where)", err=True)
        sys.exit(EXIT_ERROR)
