"""``qtool doctor``: what this machine and this installation have."""

from __future__ import annotations

import platform
import sys
from typing import Any

import click

from qtool.cli.common import Shared, qtool_version, shared_options

NEEDED = ("numpy", "click", "pyyaml", "rich")
EXTRAS = {
    "onnx": "onnx",
    "onnxruntime": "peers",
    "openvino": "peers",
    "nncf": "peers",
    "torch": "torch",
    "pillow": "images",
}


@click.command("doctor")
@shared_options
def command(shared: Shared) -> None:
    """Tell what this machine has: CPU, instruction sets and kernels, optional packages. -v lists every kernel.

    \b
    Examples:
      qtool doctor
      qtool doctor --json
    """
    found = _findings(shared)
    if shared.json:
        shared.emit({"schema": "qtool.doctor/1", **found})
        return
    from qtool.cli.render import table

    rows = [
        (key.replace("_", " "), value if isinstance(value, str) else ", ".join(value) or "none")
        for key, value in found.items()
        if key != "kernels"
    ]
    shared.show(table("doctor", ("", ""), rows))
    if shared.verbose:
        columns = ("family", "instruction set", "kernel", "tile")
        shared.show("", table("kernels", columns, [tuple(row.values()) for row in found["kernels"]]))


def _findings(shared: Shared) -> dict[str, Any]:
    from qtool import native

    isas = native.supported_isas()
    engine = "native kernels" if native.available() else f"NumPy reference, same bits but slow: {native.why_not()}"
    rows = native.kernels() if native.available() else ()
    return {
        "qtool": qtool_version(),
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "engine": engine,
        "instruction_sets": list(isas),
        "instruction_set_notes": [f"{isa}: {note}" for isa in native.abi.ISAS if (note := native.isa_note(isa))],
        "chosen": native.choose_isa(shared.isa) if native.available() else "NumPy",
        "packages": [f"{name} {_version(name)}" for name in NEEDED],
        "extras": [f"{name} {_version(name)} (qtool[{extra}])" for name, extra in EXTRAS.items()],
        "kernels": [{"family": r.family, "isa": r.isa, "name": r.name, "tile": r.tile} for r in rows],
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]}, {len(names)} processors" if names else platform.processor() or "unknown"
