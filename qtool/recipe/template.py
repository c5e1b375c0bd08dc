"""A commented recipe to start from."""

from __future__ import annotations

import json
import re

from qtool.recipe.schema import Backend

_PLAIN = re.compile(r"[A-Za-z./_][A-Za-z0-9./_-]*")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}

_TEMPLATE = """\
# A recipe for qtool: qtool quantize --recipe THIS_FILE
# Paths are relative to this file. qtool recipe check tells what each rule matches, qtool recipe schema all keys.

model: {model}
output: {output}
mode: static        # static: activations calibrated on data; dynamic: quantized at run time (linear layers, no data)
backend: {backend}     # the int8 arithmetic: fbgemm, x86, onednn or qnnpack

# Which layer is quantized how. The most specific rule wins: "" < "type:conv2d" < "re:layer[12]" < the longest module
# path. A qconfig is a preset's name (qtool recipe presets), a mapping, or null to leave a layer in float.
qconfig_dict:
  "": accurate      # 8-bit activations of least squared error, per-channel weights; fbgemm is PyTorch's default
  # layer1.0.conv1: null
  # "type:linear": {{activation: {{observer: percentile, percentile: 99.99}}}}

# Data to observe activations on: some hundred samples like those the model will see.
calibration:
  data: {data}
  split: {calibration_split}
  batch_size: 32
  # batches: 16     # all of them, where this is left out
  # shuffle: 0      # a random order, and with samples: [0, 512] here and [512, null] below, parts that do not overlap

# Labelled data that both models are measured on.
evaluation:
  data: {data}
  split: {evaluation_split}
  batch_size: 32
  metric: top1

latency: {{threads: 1, batch: 1, warmup: 5, seconds: 1.0}}

# qtool exits with 3 when one of these is missed.
gates:
  max_accuracy_drop: 0.01
  min_size_ratio: 3.5
  min_speedup: 1.0

# report: {{json: report.json}}
"""


def recipe_template(
    model: str = "model.npz",
    output: str = "model.int8.npz",
    data: str = "data.npz",
    backend: Backend = Backend.FBGEMM,
    splits: tuple[str, str] = ("calib", "test"),
) -> str:
    """YAML text that loads as it stands; ``splits`` are those for calibration and evaluation."""
    return _TEMPLATE.format(
        model=_quoted(model),
        output=_quoted(output),
        data=_quoted(data),
        backend=backend.value,
        calibration_split=_quoted(splits[0]),
        evaluation_split=_quoted(splits[1]),
    )


def _quoted(text: str) -> str:
    """Text as YAML: as it is where that is plainly text, else as JSON, which YAML includes."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)
