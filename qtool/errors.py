"""Every error that qtool raises on purpose.

    QtoolError
    ├── ModelError          a model file or graph is broken, hostile or unsupported
    ├── RecipeError         a recipe key, value or module path is wrong
    ├── DataError           calibration, evaluation or input data is missing or unfit
    ├── QuantizationError   the graph and the recipe cannot be quantized together
    ├── EngineError         a plan cannot be made or run
    ├── OutputError         a result cannot be written
    └── MissingExtraError   an optional dependency is not installed

A message says what was got, what was expected, where (layer, file, line) and what to do.
"""

from __future__ import annotations


class QtoolError(Exception):
    """Base of all errors that are shown to the user as one message, without a traceback."""


class ModelError(QtoolError):
    """A model file or a graph is broken, hostile or not supported."""


class RecipeError(QtoolError):
    """A recipe holds an unknown key, a bad value or a path that matches nothing."""


class DataError(QtoolError):
    """Data for calibration, evaluation or inference is missing or does not fit the model."""


class QuantizationError(QtoolError):
    """The graph cannot be quantized as the recipe asks."""


class EngineError(QtoolError):
    """A plan cannot be made or run on this machine."""


class OutputError(QtoolError):
    """A result cannot be written."""


class MissingExtraError(QtoolError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': python -m pip install 'qtool[{extra}]'")
