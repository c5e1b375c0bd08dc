"""Post-training quantization: prepare, calibrate, convert, and the observers.

The package can be called: ``qtool.quantize(graph, qconfig_dict, batches)`` is ``qtool.quantize.api.quantize``. The name
of the package would otherwise hide the function as soon as any module of it is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from qtool.quantize.api import quantize

        return quantize(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
