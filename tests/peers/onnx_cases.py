"""Runs the test cases that come with the ``onnx`` package through the import and the reference engine; whole models
through the engine that users have, since their weights are all alike: BLAS adds up equal columns in different orders,
and the logits of 1,000 equal classes are no longer equal.

What does not pass, and why, is listed in ``onnx_backend_known.txt``, which ``python tests/peers/onnx_cases.py`` writes.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from qtool.engine.reference import run
from qtool.engine.session import Session
from qtool.errors import DataError, EngineError, ModelError
from qtool.frontends.onnx import import_onnx

KINDS = ("node", "simple", "light", "pytorch-operator", "pytorch-converted")
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
PASS, WRONG = "pass", "WRONG"
MODEL_NODES = 50
KNOWN = Path(__file__).with_name("onnx_backend_known.txt")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    data: tuple[tuple[list, list], ...]
    """Inputs and expected outputs, in the model's order."""
    rtol: float
    atol: float


@functools.cache
def cases(kind: str) -> tuple[Case, ...]:
    if kind == "light":
        return tuple(_light(path) for path in sorted((DATA / "light").glob("*.onnx")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = load_model_tests(kind=kind)
    return tuple(sorted((_case(test) for test in found), key=lambda case: case.name))


def _case(test) -> Case:
    if test.model is not None:
        data = tuple((list(inputs), list(outputs)) for inputs, outputs in test.data_sets)
        return Case(test.name, test.model, data, test.rtol, test.atol)
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    data = tuple(
        (_protos(path, "input", model.graph.input), _protos(path, "output", model.graph.output))
        for path in sorted(folder.glob("test_data_set_*"))
    )
    return Case(test.name, model, data, test.rtol, test.atol)


def _protos(folder: Path, what: str, infos) -> list:
    found = []
    for number, info in enumerate(infos):
        path = folder / f"{what}_{number}.pb"
        if not path.is_file():
            break
        if not info.type.HasField("tensor_type"):
            found.append(None)
            continue
        found.append(numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())))
    return found


def _light(path: Path) -> Case:
    """Its weights are made at run time by ConstantOfShape; the input is the one the onnx package's own runner feeds."""
    model = onnx.load(path)
    output = numpy_helper.to_array(onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes()))
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for info in model.graph.input:
        if info.name not in names:
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    return Case(f"test_{path.stem.removeprefix('light_')}", model, ((inputs, [output]),), 2e-3, 1e-7)


def outcome(case: Case) -> str:
    """ "pass", "WRONG ..." for other numbers than expected, or why the model is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(case.model.SerializeToString())
        try:
            graph = import_onnx(path)
        except ModelError as error:
            return f"refused: {reason(str(error), path)}"
        names = {tensor.name for tensor in case.model.graph.initializer}
        fed = [info.name for info in case.model.graph.input if info.name not in names]
        for inputs, outputs in case.data:
            found = _run(graph, fed, inputs)
            if isinstance(found, str):
                return found
            for got, expected in zip(found, outputs, strict=False):
                problem = difference(got, expected, case)
                if problem:
                    return f"{WRONG}: {problem}"
    return PASS


def _run(graph, fed, inputs):
    feeds = {name: _array(item) for name, item in zip(fed, inputs, strict=False)}
    try:
        given = {name: feeds[name] for name in graph.inputs if name in feeds}
        results = Session(graph).run(given) if len(graph.nodes) >= MODEL_NODES else run(graph, given)
    except (DataError, EngineError) as error:
        return f"not run: {reason(str(error), None)}"
    return [results[name] for name in graph.outputs]


def _array(item):
    return numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else np.asarray(item)


def difference(got, expected, case: Case) -> str:
    expected = _array(expected)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"{got.dtype}{got.shape} instead of {expected.dtype}{expected.shape}"
    if expected.dtype == object:
        return "objects"
    close = np.isclose(got.astype(np.float64), expected.astype(np.float64), case.rtol, case.atol, equal_nan=True)
    return "" if close.all() else f"{(~close).sum()} of {close.size} numbers differ"


def reason(message: str, path) -> str:
    """What a message says without names that differ from run to run."""
    if "are not supported:" in message:
        lines = [line.strip() for line in message.splitlines()[1:-1]]
        return "; ".join(sorted({line.split(" (")[0].replace(" x1:", ":") for line in lines}))[:160]
    text = message.replace(str(path), "model").replace("model: ", "", 1) if path else message
    return " ".join(text.split())[:160]


def write_known() -> None:
    """The list beside this file, with how many of each kind pass."""
    counts, lines = [], []
    for kind in KINDS:
        found = {case.name: outcome(case) for case in cases(kind)}
        counts.append(f"# {kind}: {sum(result == PASS for result in found.values())} of {len(found)} pass")
        lines += [f"{kind} {name}: {result}" for name, result in found.items() if result != PASS]
    header = [f"# onnx {onnx.__version__}", "# Cases of the onnx package that qtool does not pass, and why.", *counts]
    KNOWN.write_text("\n".join([*header, *lines, ""]))


def known() -> tuple[str, dict[str, str]]:
    """The version of onnx that the list was made with, and ``kind name`` -> why it does not pass."""
    lines = KNOWN.read_text().splitlines()
    entries = (line.split(": ", 1) for line in lines if not line.startswith("#"))
    return lines[0].removeprefix("# onnx "), {name: why for name, why in entries}  # noqa: C416


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write_known()
