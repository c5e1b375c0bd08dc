"""``qtool doctor``: what this machine and this installation have."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from qtool.cli.common import Shared, qtool_version, shared_options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qtool.analysis.ceilings import Ceilings

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
@click.option("--ceilings", is_flag=True, help="Measure what the machine can do at most, with one thread and with all.")
@shared_options
def command(shared: Shared, ceilings: bool) -> None:
    """Tell what this machine has: CPU, instruction sets and kernels, optional packages. -v lists every kernel.

    --ceilings measures 1e9 operations a second in int8 and float32, by instruction set, and 1e9 bytes a second read
    from each cache and from memory; with one thread and with --threads (one for each processor if not given).

    \b
    Examples:
      qtool doctor
      qtool doctor --json
      qtool doctor --ceilings --threads 2
    """
    found, measured = _findings(shared), _measured(shared) if ceilings else []
    if shared.json:
        more = {"ceilings": [one.to_json() for one in measured]} if ceilings else {}
        shared.emit({"schema": "qtool.doctor/1", **found, **more})
        return
    from qtool.cli.render import table

    rows = [
        (key.replace("_", " "), value if isinstance(value, str) else ", ".join(value) or "none")
        for key, value in found.items()
        if key != "kernels"
    ]
    shared.show(table("doctor", ("", ""), rows))
    if measured:
        shared.show("", _ceilings_table(measured))
    if shared.verbose:
        columns = ("family", "instruction set", "kernel", "tile")
        shared.show("", table("kernels", columns, [tuple(row.values()) for row in found["kernels"]]))


def _measured(shared: Shared) -> list[Ceilings]:
    from qtool.analysis.ceilings import measure_ceilings

    counts = dict.fromkeys((1, shared.threads or len(os.sched_getaffinity(0))))
    found = []
    with shared.progress("measure", len(counts)) as progress:
        for done, threads in enumerate(counts, 1):
            found.append(measure_ceilings(threads))
            progress(done)
    return found


def _ceilings_table(measured: list[Ceilings]) -> RenderableType:
    from qtool.cli.render import megabytes, plural, table

    first = measured[0]
    rows: list[tuple[object, ...]] = []
    for label, rates in (("int8", [one.int8 for one in measured]), ("float32", [one.float32 for one in measured])):
        rows += [(f"{label} {isa}", "GOP/s", *(f"{rate[isa]:.1f}" for rate in rates)) for isa in rates[0]]
    for level, size in first.bytes.items():
        rows.append((f"read {level} ({megabytes(size)})", "GB/s", *(f"{one.read[level]:.1f}" for one in measured)))
    columns = ("", "", *(plural(one.threads, "thread") for one in measured))
    return table("ceilings", columns, rows, numeric=range(2, len(columns)))


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
