"""What the tests of derivatives need beside the cases of the operators: more of them, and where functions are smooth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qtool.ir import Array

RNG = np.random.default_rng(11)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def scalar(number: int) -> Array:
    return np.array(number, np.int64)


def _positive(x: Array, _: int) -> Array:
    return np.abs(x) + 0.1


def _inside(x: Array, _: int) -> Array:
    return np.tanh(x)


DOMAINS: Mapping[str, Callable[[Array, int], Array]] = {
    "log": _positive,
    "sqrt": _positive,
    "acos": _inside,
    "asin": _inside,
    "atanh": _inside,
    "acosh": lambda x, _: 1.1 + np.abs(x),
    "pow": _positive,
    "div": lambda x, position: np.sign(x) * (np.abs(x) + 0.1) if position else x,
    "reciprocal": lambda x, _: np.sign(x) * (np.abs(x) + 0.1),
    "reduce_log_sum": _positive,
}
"""(numbers, position of the input) -> numbers where the function has a derivative of moderate size."""

MORE: dict[str, list[tuple]] = {
    "cast": [({"to": "float64"}, f(2, 3))],
    "mod": [({"fmod": True}, f(2, 3), f(3))],
    "clip": [({}, f(4, 3), None, np.array([0.5], np.float32)), ({}, f(4, 3))],
    "max": [({}, f(2, 3))],
}
"""Operator -> (attributes, inputs ...)."""
