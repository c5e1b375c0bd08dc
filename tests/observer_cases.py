"""Data without a random generator, what PyTorch 2.13's observers make of it (checked live where torch is there), and
short ways to observe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from qtool.quantize.observers import make_observer
from qtool.recipe.schema import ObserverConfig, QDType, Scheme

numbers = st.floats(-1e6, 1e6, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)


def affine(observer: str, **changes) -> ObserverConfig:
    return ObserverConfig(observer, **changes)


def observed(config: ObserverConfig, *batches, axis: int = 0):
    observer = make_observer(config, axis)
    for x in batches:
        observer.observe(x)
    return observer


def wave(count: int, spread: float, middle: float, power: int = 1) -> np.ndarray:
    """float32 numbers around ``middle``, all over the place and the same on every machine; odd powers have tails."""
    steps = (np.arange(count, dtype=np.int64) * 7919 + 13) % 10007
    unit = steps.astype(np.float32) / np.float32(10007) * np.float32(2) - np.float32(1)
    shaped = unit.copy()
    for _ in range(power - 1):
        shaped *= unit
    return shaped * np.float32(spread) + np.float32(middle)


BATCHES = {
    "two-sided": [wave(3000, 1.0, 0.1, 3), wave(2000, 1.5, 0.0, 3), wave(1000, 1.2, -0.5, 5)],
    "one-sided": [np.maximum(wave(4000, 3.0, 0.0, 5), 0), np.maximum(wave(4000, 6.0, -0.3, 7), 0)],
    "negative": [-np.abs(wave(1000, 0.02, 0.0)), -np.abs(wave(1000, 0.01, 0.0, 3))],
    "far from zero": [wave(500, 0.01, 100.0), wave(500, 0.02, 100.0)],
    "constant, then not": [np.full(64, 2.5, np.float32), wave(640, 2.0, 1.0), np.full(64, 2.5, np.float32)],
    "zeros": [np.zeros(10, np.float32)],
    "huge": [wave(1000, 1e30, 0.0, 3)],
    "tiny": [wave(1000, 1e-12, 0.0, 3)],
    "outlier": [wave(5000, 1.0, 0.0, 3), np.array([40.0], np.float32), wave(5000, 1.0, 0.0, 3)],
}

CONFIGS = {
    "min_max": ObserverConfig("min_max"),
    "moving_average": ObserverConfig("moving_average_min_max", options={"averaging_constant": 0.1}),
    "histogram": ObserverConfig("histogram"),
    "histogram, 7 bits": ObserverConfig("histogram", reduce_range=True),
    "histogram, signed": ObserverConfig("histogram", QDType.QINT8, Scheme.PER_TENSOR_SYMMETRIC, eps=2.0**-12),
}


@dataclass(frozen=True)
class Golden:
    config: str
    batches: str
    scale: float
    zero_point: int


GOLDEN = (
    Golden("min_max", "two-sided", 0.012510275468230247, 136),
    Golden("min_max", "one-sided", 0.02212347462773323, 0),
    Golden("min_max", "negative", 7.838434248697013e-05, 255),
    Golden("min_max", "far from zero", 0.39223504066467285, 0),
    Golden("min_max", "constant, then not", 0.015656491741538048, 64),
    Golden("min_max", "zeros", 1.1920928955078125e-07, 0),
    Golden("min_max", "huge", 7.819652141596636e27, 128),
    Golden("min_max", "tiny", 1.1920928955078125e-07, 0),
    Golden("min_max", "outlier", 0.16078431904315948, 6),
    Golden("moving_average", "two-sided", 0.008330178447067738, 124),
    Golden("moving_average", "one-sided", 0.012726723216474056, 0),
    Golden("moving_average", "negative", 7.446043309755623e-05, 255),
    Golden("moving_average", "far from zero", 0.39219987392425537, 0),
    Golden("moving_average", "constant, then not", 0.009978135116398335, 0),
    Golden("moving_average", "zeros", 1.1920928955078125e-07, 0),
    Golden("moving_average", "huge", 7.819652141596636e27, 128),
    Golden("moving_average", "tiny", 1.1920928955078125e-07, 0),
    Golden("moving_average", "outlier", 0.01768413372337818, 0),
    Golden("histogram", "two-sided", 0.01247362419962883, 136),
    Golden("histogram", "one-sided", 0.02208026498556137, 0),
    Golden("histogram", "negative", 7.838434248697013e-05, 255),
    Golden("histogram", "far from zero", 0.3922349512577057, 0),
    Golden("histogram", "constant, then not", 0.015648847445845604, 64),
    Golden("histogram", "zeros", 1.1920928955078125e-07, 0),
    Golden("histogram", "huge", 3.914519217638575e27, 255),
    Golden("histogram", "tiny", 1.1920928955078125e-07, 0),
    Golden("histogram", "outlier", 0.1607058048248291, 6),
    Golden("histogram, 7 bits", "two-sided", 0.02504546567797661, 68),
    Golden("histogram, 7 bits", "one-sided", 0.04433438926935196, 0),
    Golden("histogram, 7 bits", "negative", 0.0001573858899064362, 127),
    Golden("histogram, 7 bits", "far from zero", 0.787558376789093, 0),
    Golden("histogram, 7 bits", "constant, then not", 0.031420912593603134, 32),
    Golden("histogram, 7 bits", "zeros", 1.1920928955078125e-07, 0),
    Golden("histogram, 7 bits", "huge", 7.85986132131084e27, 127),
    Golden("histogram, 7 bits", "tiny", 1.1920928955078125e-07, 0),
    Golden("histogram, 7 bits", "outlier", 0.32267701625823975, 3),
    Golden("histogram, signed", "two-sided", 0.013305152766406536, 0),
    Golden("histogram, signed", "one-sided", 0.04416052997112274, 0),
    Golden("histogram, signed", "negative", 0.000244140625, 0),
    Golden("histogram, signed", "far from zero", 0.7844699025154114, 0),
    Golden("histogram, signed", "constant, then not", 0.023463962599635124, 0),
    Golden("histogram, signed", "zeros", 0.000244140625, 0),
    Golden("histogram, signed", "huge", 7.82903843527715e27, 0),
    Golden("histogram, signed", "tiny", 0.000244140625, 0),
    Golden("histogram, signed", "outlier", 0.31356847286224365, 0),
)
