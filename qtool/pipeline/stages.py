"""How long work is shown: a function opens a display for a stage and gives one that is told of progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Update(Protocol):
    """Told how much of a stage's total is done, and what else is worth showing."""

    def __call__(self, done: int, note: str = "", /) -> None: ...


Stage = Callable[[str, int | None], AbstractContextManager[Update]]
"""Opens a progress display for a stage with a total."""
