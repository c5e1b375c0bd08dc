"""Training's arithmetic on native kernels."""

from __future__ import annotations

from qtool.quantize.qat.operators import Operators


def make_operators(threads: int = 1, isa: str | None = None) -> Operators:
    return Operators()
