"""Reads PyTorch modules and exported programs. The only importer of torch, which is imported when it is needed.

A module goes through ``torch.export``: what its ``forward`` does with these example inputs becomes a graph of aten
operators, each of which has a row in ``table.py``.

**Trust.** ``from_torch`` runs the module's own code, as calling it does. A ``.pt2`` file is opened by
``torch.export.load``, which PyTorch does not make for hostile files: it would unpickle objects, load compiled
libraries and evaluate texts. ``load_pt2`` looks the file over first (``archive.py``) and refuses all of these, so that
a file that gets through holds tensors, names of operators and plain arithmetic; what remains is what PyTorch's own
readers of these make of a malformed one. A file of unknown origin is safer as ``.npz`` or ``.onnx``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.errors import MissingExtraError, ModelError
from qtool.ir import Graph

if TYPE_CHECKING:
    from torch import nn

__all__ = ["from_torch", "load_pt2"]


def from_torch(
    module: nn.Module,
    example_inputs: Sequence[Any],
    *,
    dynamic_batch: bool = True,
) -> Graph:
    """The float graph of a module, as it is at inference.

    ``example_inputs`` are what ``forward`` is called with, in order (tensors, or lists, tuples and dicts of them); only
    their types and sizes count. With ``dynamic_batch`` the first axis of every tensor whose size there is that of the
    first tensor may have any size, called ``"N"``. Nodes have the module paths as scopes, parameters their names in the
    state dict; batch norm is not folded (``fuse`` does that). The module is exported in evaluation mode and left as it
    was.

    Raises ModelError where torch cannot export the module, or not with a batch of any size, and for operators that
    qtool does not have, all of which are listed with their modules; MissingExtraError without torch.
    """
    _need_torch("reading a PyTorch module")
    from qtool.frontends.torch.export import export
    from qtool.frontends.torch.program import import_program

    with _evaluating(module):
        program = export(module, tuple(example_inputs), dynamic_batch)
    return import_program(program, type(module).__name__, copy=True)


def load_pt2(path: str | os.PathLike[str]) -> Graph:
    """The float graph of a ``.pt2`` file that ``torch.export.save`` wrote.

    Sizes exported as dynamic are symbols, the first of a first axis ``"N"``. Raises ModelError for a file that is
    broken, that holds anything but tensors and operators, or operators that qtool does not have; MissingExtraError
    without torch.
    """
    _need_torch("reading a .pt2 file")
    from qtool.frontends.torch.archive import read_program
    from qtool.frontends.torch.program import import_program

    file = Path(path)
    try:
        return import_program(read_program(file), file.stem)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _need_torch(purpose: str) -> None:
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "torch", purpose)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the mode of every submodule as it was afterwards."""
    modes: Mapping[Any, bool] = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own workings
            yield
    finally:
        for part, training in modes.items():
            part.training = training
