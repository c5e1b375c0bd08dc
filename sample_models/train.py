"""Makes the sample models: draws them, trains each as the recipe beside this file says, and writes them here.

    python sample_models/train.py

Seeds and order are fixed and one thread is used: the same qtool gives the same weights on the same kind of CPU. What
lies between, and checkpoints, are in the folder ``build``. ``README.md`` says what comes out.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphs import build

from qtool.engine import reference
from qtool.ir import Graph, npz
from qtool.pipeline import TrainingOptions, train_recipe
from qtool.pipeline.stages import Update
from qtool.quantize.data import open_data
from qtool.recipe.load import load_recipe
from qtool.recipe.schema import DataConfig

HERE = Path(__file__).resolve().parent
MODELS = ("digits_resnet", "digits_mobilenet", "digits_mlp")
MIN_ACCURACY = 0.97
log = logging.getLogger("train")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    (HERE / "build").mkdir(exist_ok=True)
    for name in MODELS:
        recipe = load_recipe(HERE / f"{name}.train.yaml")
        assert isinstance(recipe.model, Path)
        npz.save(build(name), recipe.model)
        train_recipe(recipe, quiet, options=TrainingOptions(tell=log.info))
        graph = npz.load(recipe.output)
        check(name, graph)
        npz.save(graph, HERE / f"{name}.npz")


@contextmanager
def quiet(title: str, total: int | None) -> Iterator[Update]:  # noqa: ARG001  # what a stage is called with
    """Shows no progress within an epoch."""
    yield lambda done, note="": None  # noqa: ARG005


def check(name: str, graph: Graph) -> None:
    """Measures the graph on the test images with the NumPy reference engine; ends the script where it is too bad."""
    right = total = 0
    for feeds, labels in open_data(DataConfig(HERE / "digits.npz", "test", 200), graph).batches():
        logits = reference.run(graph, feeds)[graph.outputs[0]]
        right += int((logits.argmax(1) == labels).sum())
        total += len(logits)
    size = graph.parameter_bytes()
    log.info("%s: %.2f %% of %d test images, %d bytes of parameters", name, 100 * right / total, total, size)
    if right < MIN_ACCURACY * total:
        raise SystemExit(f"{name}: {right / total:.4f} is below {MIN_ACCURACY}")


if __name__ == "__main__":
    main()
