"""The command line: parses, calls the library, renders. Commands are loaded when they are named, so help is instant."""

from __future__ import annotations

import importlib

import click

from qtool.cli.common import guarded, qtool_version

COMMANDS: dict[str, str] = {
    "quantize": "Quantize a model as a recipe says, and report size, accuracy and latency.",
    "train": "Train a float model as a recipe says, before it is quantized.",
    "compare": "Compare a quantized model with its float one, layer by layer.",
    "bench": "Measure the latency of models in float32 and int8.",
    "run": "Run a model on arrays and write its outputs.",
    "eval": "Measure the accuracy of models on labelled data.",
    "inspect": "List a model's layers, shapes and sizes, and what would be quantized.",
    "export": "Write a model as an ONNX file that other engines run.",
    "zoo": "Build a well-known architecture, with random or torchvision weights.",
    "recipe": "Check, start and document recipes.",
    "doctor": "Tell what this machine has: CPU, kernels, optional packages.",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is called; the list of commands needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"qtool.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name where there is no such command."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            if not near or args[0].startswith("-"):
                raise
            raise click.UsageError(f"there is no command '{args[0]}'; did you mean '{near[0]}'?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:  # noqa: ARG001
    if wanted and not ctx.resilient_parsing:
        click.echo(f"qtool {qtool_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """Turn a float neural network into an int8 one: smaller, faster on a CPU, as accurate, proven in one report.

    \b
    Examples:
      qtool quantize --recipe configs/static.yaml
      qtool compare float.npz quant.npz
      qtool bench --backend qnnpack

    Every command takes --json (one JSON object on standard output; progress and log go to standard error), --threads,
    --isa (or the variable QTOOL_ISA), --quiet, --verbose and --debug.

    Exit codes: 0 done, 1 an error (one message; --debug shows the traceback), 2 wrong usage, 3 a gate of the recipe was
    missed, 130 interrupted.

    \b
    Completion of commands, options and files, in bash (zsh, fish: zsh_source, fish_source):
      eval "$(_QTOOL_COMPLETE=bash_source qtool)"
    """


def main() -> None:
    """Entry point of the ``qtool`` command."""
    guarded(cli)
