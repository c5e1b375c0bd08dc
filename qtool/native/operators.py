"""Single operators on arrays: a plan of one operator for each kind and size, made at its first use and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.errors import EngineError
from qtool.native import abi
from qtool.native.plan import Buffer, Op, Plan, choose_isa

Floats = NDArray[np.float32]

MOST_PLANS = 512
"""Plans that are kept where nothing else is said; the one that was used longest ago goes first."""


class Operators:
    """Runs operators one by one; ``threads`` and ``isa`` are those of every plan; the ``most`` used last are kept."""

    def __init__(self, threads: int = 1, isa: str | None = None, most: int = MOST_PLANS) -> None:
        self.threads = threads
        self.isa = choose_isa(isa)
        self._most = most
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        Plan([], [], 0, isa=self.isa, threads=threads)  # says now what is wrong with the arguments, or the library

    def run(self, kind: abi.Kind, key: Hashable, args: Callable[[], abi.Args], arrays: Sequence[NDArray[Any]]) -> None:
        """Runs ``kind`` from the arrays but the last one to the last one.

        ``key`` holds everything that ``args`` and the sizes of the arrays depend on.
        """
        found = self._plans.get((kind, key))
        if found is None:
            last = len(arrays) - 1
            op = Op(kind, tuple(range(last)), last, args())
            found = Plan([op], [Buffer(array.nbytes) for array in arrays], 0, isa=self.isa, threads=self.threads)
            self._plans[kind, key] = found
            if len(self._plans) > self._most:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end((kind, key))
        found.run(*arrays)


def check_floats(name: str, array: Any, shape: Sequence[int] | None = None, rank: int | None = None) -> None:
    """EngineError unless ``array`` is a C-contiguous float32 array, of that shape or rank where one is given."""
    ok = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.flags.c_contiguous
    if ok and shape is not None:
        ok = array.shape == tuple(shape)
    if ok and (rank is None or array.ndim == rank):
        return
    want = f" of shape {tuple(shape)}" if shape is not None else f" of rank {rank}" if rank is not None else ""
    raise EngineError(f"{name}: got {_described(array)}, expected a C-contiguous float32 array{want}")


def _described(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return type(array).__name__
    order = "" if array.flags.c_contiguous else "strided "
    return f"a {order}{array.dtype.name} array of shape {array.shape}"
