"""Reports as JSON text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from qtool.ir.files import atomic_write
from qtool.report.types import Report, TrainReport


def write_report(report: Report | TrainReport, path: Path) -> None:
    """The report as a JSON file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(report_json(report).encode())


def report_json(report: Report | TrainReport) -> str:
    """The report as indented JSON, ending with a newline."""
    return json.dumps(finite(report.to_json()), indent=2, default=str, allow_nan=False) + "\n"


def finite(plain: Any) -> Any:
    """The same plain values with infinities and NaN as None: JSON has none."""
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    if isinstance(plain, dict):
        return {str(key): finite(value) for key, value in plain.items()}
    return [finite(value) for value in plain] if isinstance(plain, list | tuple) else plain
