"""Cases for the operators that came with ONNX."""

from __future__ import annotations

ONNX_CASES: dict[str, list] = {"conv3d": []}
