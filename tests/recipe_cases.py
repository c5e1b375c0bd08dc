"""Recipes that load and recipes that do not, for several files of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtool.errors import RecipeError
from qtool.recipe.load import load_recipe
from qtool.recipe.schema import Recipe

SMALL = """\
model: float.npz
output: int8.npz
calibration: {data: calib.npz}
"""

FULL = """\
model: ../models/float.npz
output: int8.npz
mode: static
backend: qnnpack
debug: true
qconfig_dict:
  "": default
  layer2: {activation: {observer: histogram, dtype: quint8, scheme: per_tensor_affine, reduce_range: true},
           weight: {observer: per_channel_min_max, dtype: qint8, scheme: per_channel_symmetric}}
  layer2.0.conv2: null
  "type:linear": {weight: {observer: mse}}
fuse: [[conv1, bn1, relu], [fc, act]]
stubs: {quant: [x], dequant: [fc]}
calibration: {data: data.npz, split: calib, batch_size: 16, batches: 4, shuffle: 7, samples: [0, 64]}
evaluation:
  data: images
  samples: [64, null]
  metric: top5
  labels: labels.csv
  preprocess: {resize: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
latency: {threads: 2, batch: 4, warmup: 0, seconds: 0.5}
gates: {max_accuracy_drop: 0.01, min_size_ratio: 3.5, min_speedup: 1}
report: {json: out/report.json}
"""


def rules_of(recipe: Recipe) -> dict[str, object]:
    return {rule.key: rule.qconfig for rule in recipe.rules}


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


WRONG_BY_SCHEMA = [
    ("modle: x.npz\n", 4, "unknown key 'modle'; did you mean 'model'?"),
    ("zzz: 1\n", 4, "unknown key 'zzz'; expected one of: model, output, mode"),
    ("backend: fbgem\n", 4, "backend: unknown value 'fbgem'; did you mean 'fbgemm'?"),
    ("backend: [fbgemm]\n", 4, "backend: got a list, expected one of: fbgemm, x86, onednn, qnnpack"),
    ("mode: 3\n", 4, "mode: got 3, expected one of"),
    ("\n# a comment\ndebug: 1\n", 6, "debug: got 1, expected true or false"),
    ("debug: 'true'\n", 4, "debug: got 'true', expected true or false"),
    ("gates:\n  min_speed: 1\n", 5, "unknown key 'min_speed' in gates; did you mean 'min_speedup'?"),
    ("gates:\n  min_size_ratio: high\n", 5, "gates.min_size_ratio: got 'high', expected a number from 0"),
    ("gates: {min_size_ratio: -1}\n", 4, "gates.min_size_ratio: got -1, expected a number from 0"),
    ("gates: {min_size_ratio: true}\n", 4, "gates.min_size_ratio: got true, expected a number"),
    ("gates: 3\n", 4, "gates: got 3, expected a mapping with the keys max_accuracy_drop, min_size_ratio"),
    ("latency:\n  threads: 0\n", 5, "latency.threads: got 0, expected a whole number from 1 to 1024"),
    ("latency: {threads: 1.5}\n", 4, "latency.threads: got 1.5, expected a whole number"),
    ("latency: {seconds: 0}\n", 4, "latency.seconds: got 0, expected a number above 0"),
    ("evaluation:\n  split: test\n", 4, "evaluation.data is missing"),
    ("evaluation: {data: d.npz, metric: top2}\n", 4, "evaluation.metric: unknown value 'top2'; did you mean 'top1'?"),
    ("evaluation: {data: 3}\n", 4, "evaluation.data: got 3, expected a path"),
    (
        "evaluation: {data: d, preprocess: {mean: [1, 2]}}\n",
        4,
        "preprocess.mean: got a list, expected a list of 1 or 3",
    ),
    ("evaluation: {data: d, preprocess: {std: [1, 0, 1]}}\n", 4, "preprocess.std[1]: got 0, expected a number above 0"),
    ("evaluation: {data: d, preprocess: {noise: {seed: 1}}}\n", 4, "evaluation.preprocess.noise.sigma is missing"),
    ("evaluation: {data: d, preprocess: {noise: {sigma: 0}}}\n", 4, "noise.sigma: got 0, expected a number above 0"),
    ("evaluation: {data: d, residual: 1}\n", 4, "evaluation.residual: got 1, expected true or false"),
    ("evaluation: {data: d, shuffle: true}\n", 4, "evaluation.shuffle: got true, expected a whole number"),
    ("evaluation: {data: d, samples: 5}\n", 4, "samples: got 5, expected a list of two numbers, the second of which"),
    ("evaluation: {data: d, samples: [null, 5]}\n", 4, "samples[0]: got null, expected a whole number"),
    ("evaluation: {data: d, audio: {window: 512}}\n", 4, "evaluation.audio.rate is missing"),
    (
        "evaluation:\n  data: d\n  audio: {rate: 8000, window: 9, features: magnitudes}\n",
        6,
        "evaluation.audio.features: unknown value 'magnitudes'; did you mean 'magnitude'?",
    ),
    ("evaluation: {data: d, audio: {rate: 8000, window: 0}}\n", 4, "audio.window: got 0, expected a whole number"),
    ("evaluation: {data: d, carry: [a]}\n", 4, "evaluation.carry: got a list, expected a mapping from names"),
    ("evaluation: {data: d, carry: {a: 3}}\n", 4, "evaluation.carry.a: got 3, expected the name of an input"),
    ("evaluation: {data: d, constants: {}}\n", 4, "evaluation.constants: got a mapping, expected a mapping from names"),
    ("evaluation: {data: d, constants: {a: b}}\n", 4, "constants.a: got 'b', expected a number, or true or false"),
    ("evaluation: {data: d, outputs: []}\n", 4, "evaluation.outputs: got a list, expected a list of one or more"),
    ("fuse: all\n", 4, "fuse: unknown value 'all'"),
    ("fuse:\n  - [a, b]\n  - c\n", 6, "fuse[1]: got 'c', expected a list"),
    ("fuse: [[a, 3]]\n", 4, "fuse[0][1]: got 3, expected the name of a module"),
    ("fuse: []\n", 4, "fuse: got a list, expected a list of one or more"),
    ("stubs: {quant: [x]}\n", 4, "stubs.dequant is missing"),
    ("stubs: none\n", 4, "stubs: unknown value 'none'"),
    ("qconfig_dict: fbgemm\n", 4, "qconfig_dict: got 'fbgemm', expected a mapping such as"),
    ("qconfig_dict: {}\n", 4, "qconfig_dict: got a mapping, expected a mapping such as"),
    ('qconfig_dict:\n  "": acurate\n', 5, "unknown value 'acurate'; did you mean 'accurate'?"),
    ("qconfig_dict:\n  a: fbgemm\n  b: 3\n", 6, "qconfig_dict.b: got 3, expected one of: accurate"),
    (
        "qconfig_dict:\n  a: {actvation: {}}\n",
        5,
        "unknown key 'actvation' in qconfig_dict.a; did you mean 'activation'?",
    ),
    ("qconfig_dict:\n  a:\n    weight:\n      obsrver: mse\n", 7, "unknown key 'obsrver' in qconfig_dict.a.weight"),
    ("qconfig_dict:\n  a:\n    weight:\n      observer: mes\n", 7, "unknown value 'mes'; did you mean 'mse'?"),
]
"""Text after SMALL, the line and the message; the JSON schema refuses these too."""
