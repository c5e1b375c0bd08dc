"""What all commands share: options, consoles, progress bars, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from qtool.errors import QtoolError
from qtool.recipe.schema import ZOO, ZOO_NAMES

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console, RenderableType

    from qtool.analysis.evaluate import EngineOptions
    from qtool.ir import Graph
    from qtool.pipeline.stages import Update

EXIT_ERROR, EXIT_GATE, EXIT_INTERRUPTED = 1, 3, 130
ISAS = ("scalar", "avx2", "avxvnni", "avx512vnni", "amx")
BACKENDS = ("fbgemm", "x86", "onednn", "qnnpack")
"""The library's names, said again: options must be known without importing what they are about."""

PIPE_COLUMNS = 120
"""Width of tables that go to a file or a pipe, where the variable COLUMNS says nothing else."""

F = TypeVar("F", bound=Callable[..., Any])


def qtool_version() -> str:
    """The installed version; "0+source" for a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qtool")
    except PackageNotFoundError:
        return "0+source"


@dataclass(frozen=True)
class Shared:
    """The options every command has."""

    json: bool = False
    threads: int | None = None
    isa: str | None = None
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    @property
    def engine(self) -> EngineOptions:
        """How sessions run."""
        from qtool.analysis.evaluate import EngineOptions

        return EngineOptions(self.threads or 1, self.isa)

    def show(self, *parts: RenderableType) -> None:
        """Results for people, on standard output."""
        with _console() as console:
            for part in parts:
                console.print(part)

    def emit(self, plain: dict[str, Any]) -> None:
        """One JSON object on standard output. Infinities and NaN become null: JSON has none."""
        from qtool.report.text import finite

        click.echo(json.dumps(finite(plain), indent=2, default=str, allow_nan=False))

    def log(self, text: str, **style: Any) -> None:
        """One line on standard error, but for --quiet."""
        if not self.quiet:
            click.secho(text, err=True, **style)

    def tell(self, text: str) -> None:
        """One line on standard error for --verbose."""
        if self.verbose:
            self.log(text, dim=True)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Update]:
        """A progress bar on a terminal, nothing elsewhere; gives a function that takes the amount done so far, and what
        to show beside the bar."""
        start = time.perf_counter()
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, note="", /: None  # noqa: ARG005 (nobody looks)
        else:
            with _progress_bar(label, total) as update:
                yield update
        self.tell(f"{label}: {time.perf_counter() - start:.2f} s")


@contextmanager
def _console() -> Iterator[Console]:
    """The terminal; or, for a file or a pipe, text of a fixed width without blanks at the ends of lines."""
    from rich.console import Console

    if sys.stdout.isatty():
        yield Console(highlight=False, markup=False, emoji=False)
        return
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() and int(columns) else PIPE_COLUMNS
    console = Console(file=io.StringIO(), highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as captured:
        yield console
    click.echo("".join(f"{text.rstrip()}\n" for text in captured.get().splitlines()), nl=False)


@contextmanager
def _progress_bar(label: str, total: int | None) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda done, note="", /: bar.update(task, completed=done, note=note)


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
    click.option(
        "--threads", "shared_threads", type=click.IntRange(1, 1024), help="Threads of the engine.  [default: 1]"
    ),
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


if TYPE_CHECKING:
    StringType = click.ParamType[str]
else:  # generic since click 8.4
    StringType = click.ParamType


class ModelArgument(StringType):
    """A model: a file, or ``zoo:NAME``."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [f"{ZOO}{name}" for name in ZOO_NAMES]
        found = [CompletionItem(name) for name in names if incomplete and name.startswith(incomplete)]
        return found or click.Path().shell_complete(ctx, param, incomplete)


recipe_file_option = click.option(
    "--recipe", "-r", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The recipe, a YAML file."
)


def overrides_option(example: str) -> Callable[[F], F]:
    """``--set``, whose help shows an example that fits the command."""
    text = f"Override a value of the recipe, such as --set {example}; may be repeated."
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=text)


weights_option = click.option(
    "--weights",
    "-w",
    type=click.Path(path_type=Path),
    metavar="FILE.pth",
    help="A PyTorch state dict for zoo:NAME; random weights if not given.",
)


def load_models(models: Sequence[str], weights: Path | None) -> list[Graph]:
    """The models of a command line, those of the zoo with the weights that are given."""
    from qtool.pipeline import load_model

    if weights is not None and not any(model.startswith(ZOO) for model in models):
        raise click.UsageError("--weights is for models of the zoo, such as zoo:resnet18, of which there are none")
    return [load_model(model, weights if model.startswith(ZOO) else None) for model in models]


def guarded(command: click.Command) -> None:
    """Runs a command and leaves the process with its exit code; the only place that catches errors."""
    debug = "--debug" in sys.argv
    try:
        result = command.main(prog_name="qtool", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind standard output is an error like any other
    except click.exceptions.Exit as done:
        result = done.exit_code
    except click.ClickException as error:
        error.show()
        result = error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        _leave(str(stop) or "interrupted: nothing half-written is left behind", EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever read standard output has seen enough
        _leave("", EXIT_ERROR)
    except Exception as error:
        if debug:
            raise
        _leave(_message(error), EXIT_ERROR)
    sys.exit(result)


def _message(error: Exception) -> str:
    start = click.style("error", fg="red", bold=True)
    if isinstance(error, QtoolError):
        return f"{start}: {printable(str(error))}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{start}: {printable(f'{where}{error.strerror or error}')}"
    if isinstance(error, MemoryError):
        return f"{start}: there is not enough memory; smaller batches need less"
    return f"internal {start}: {type(error).__name__}: {printable(str(error))} (--debug shows where)"


def printable(text: str) -> str:
    """Text that may come from a file, with what could steer a terminal escaped; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _leave(message: str, code: int) -> NoReturn:
    if message:
        with contextlib.suppress(OSError):
            click.echo(message, err=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):  # or Python complains again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
