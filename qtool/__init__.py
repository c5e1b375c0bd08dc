"""qtool turns a float neural network into an int8 one: smaller, faster on a CPU, as accurate.

The command line is ``qtool``; from Python::

    graph  = qtool.load("float.npz")
    result = qtool.quantize(graph, {"": qtool.get_default_qconfig("fbgemm")}, batches)
    y      = qtool.Session(result.graph, threads=1).run({"x": x})

Names are imported when they are first used, so that ``import qtool`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtool.analysis.compare import compare
    from qtool.engine.session import Session
    from qtool.frontends.torch import from_torch
    from qtool.ir.npz import load, save
    from qtool.passes import fuse
    from qtool.quantize.api import quantize
    from qtool.quantize.calibrate import calibrate
    from qtool.quantize.convert import convert
    from qtool.quantize.prepare import prepare
    from qtool.quantize.qat.model import QatModel
    from qtool.quantize.qat.prepare import prepare_qat
    from qtool.recipe.presets import get_default_dynamic_qconfig, get_default_qat_qconfig, get_default_qconfig

__all__ = [
    "QatModel",
    "Session",
    "calibrate",
    "compare",
    "convert",
    "from_torch",
    "fuse",
    "get_default_dynamic_qconfig",
    "get_default_qat_qconfig",
    "get_default_qconfig",
    "load",
    "prepare",
    "prepare_qat",
    "quantize",
    "save",
]

_HOMES = {
    "QatModel": "qtool.quantize.qat.model",
    "Session": "qtool.engine.session",
    "calibrate": "qtool.quantize.calibrate",
    "compare": "qtool.analysis.compare",
    "convert": "qtool.quantize.convert",
    "from_torch": "qtool.frontends.torch",
    "fuse": "qtool.passes",
    "get_default_dynamic_qconfig": "qtool.recipe.presets",
    "get_default_qat_qconfig": "qtool.recipe.presets",
    "get_default_qconfig": "qtool.recipe.presets",
    "load": "qtool.ir.npz",
    "prepare": "qtool.quantize.prepare",
    "prepare_qat": "qtool.quantize.qat.prepare",
    "quantize": "qtool.quantize.api",
    "save": "qtool.ir.npz",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qtool' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
