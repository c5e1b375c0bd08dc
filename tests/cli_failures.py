"""Commands that have to fail, and the checks that every failure has to pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from cli_cases import Done, arrays, listing, qtool, qtool_here

QUANTIZE = ("quantize", "-r", "recipe.yaml")


def fails(folder: Path, *words: object, run: Callable[..., Done] = qtool, **options: object) -> str:
    """Runs a command that has to fail; gives its one message, with nothing on standard output and no file changed."""
    before = listing(folder)
    done = run(*words, cwd=folder, **options)
    assert done.code == 1, done.err
    assert done.out == ""
    assert "internal error" not in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert listing(folder) == before
    return done.err


def fails_too(folder: Path, *words: object) -> str:
    """A further case of the same kind, in this process."""
    return fails(folder, *words, run=qtool_here)


def poisoned(split: str, value: float) -> dict[str, np.ndarray]:
    x = arrays()[f"{split}_x"].copy()
    x[5, 0, 0, 0] = value
    return {f"{split}_x": x}
