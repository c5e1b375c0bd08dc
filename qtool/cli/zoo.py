"""``qtool zoo``: well-known architectures as models."""

from __future__ import annotations

from pathlib import Path

import click

from qtool.cli.common import Shared, shared_options
from qtool.recipe.schema import ZOO_NAMES


@click.command("zoo")
@click.argument("name", required=False, metavar="[NAME]", type=click.Choice(ZOO_NAMES))
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Where to write; NAME.npz.")
@click.option(
    "--weights",
    "-w",
    type=click.Path(path_type=Path),
    metavar="FILE.pth",
    help="A PyTorch state dict; read without PyTorch. Random weights if not given.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random weights.")
@click.option("--classes", type=click.IntRange(1), help="Outputs of the classifier, 1000 if nothing tells.")
@click.option("--image", type=click.IntRange(1), help="Side of the input, the architecture's own if not given.")
@click.option("--transform-input", is_flag=True, help="As pretrained googlenet and inception_v3 want it.")
@shared_options
def command(shared: Shared, name: str | None, output: Path | None, weights: Path | None, **options: int | None) -> None:
    """Build a well-known architecture, with random or torchvision weights; without NAME list them.

    \b
    Examples:
      qtool zoo
      qtool zoo resnet18 -o resnet18.npz
      qtool zoo resnet18 --weights resnet18.pth -o resnet18.npz
    """
    if name is None:
        _list(shared)
    else:
        _build(shared, name, output or Path(f"{name}.npz"), weights, options)


def _list(shared: Shared) -> None:
    from qtool.zoo import SEQUENCES, ZOO

    sides = {name: "H x W" if entry.image is None else f"{entry.image} x {entry.image}" for name, entry in ZOO.items()}
    images = [(name, f"{entry.channels} x {sides[name]}", entry.summary) for name, entry in ZOO.items()]
    rows = images + [(name, entry.input, entry.summary) for name, entry in SEQUENCES.items()]
    if shared.json:
        shared.emit({"schema": "qtool.zoo/1", "models": {name: summary for name, _, summary in rows}})
        return
    from qtool.cli.render import table

    shared.show(table("zoo", ("name", "input", "what"), rows))


def _build(shared: Shared, name: str, output: Path, weights: Path | None, options: dict[str, int | None]) -> None:
    from qtool.frontends.pth import read_state_dict
    from qtool.ir.files import check_writable
    from qtool.ir.npz import save
    from qtool.zoo import build

    check_writable(output)
    state = read_state_dict(weights) if weights else None
    graph = build(
        name,
        state,
        options["seed"] or 0,
        options["classes"],
        image=options["image"],
        transform=bool(options["transform_input"]),
    )
    save(graph, output)
    size = output.stat().st_size
    if shared.json:
        shared.emit({"schema": "qtool.zoo/1", "model": name, "output": str(output), "bytes": size})
        return
    from qtool.cli.render import line, megabytes

    source = weights.name if weights else f"random weights, seed {options['seed']}"
    shared.show(line(f"{output}: {name}, {source}, {megabytes(size)}"))
