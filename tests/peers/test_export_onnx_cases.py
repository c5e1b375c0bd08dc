"""The onnx package's own cases, through the import and the export: the models written give the expected numbers too."""

from __future__ import annotations

import dataclasses

import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

import onnx_cases  # noqa: E402

from qtool.errors import ModelError  # noqa: E402
from qtool.exporters import export_onnx  # noqa: E402
from qtool.frontends.onnx import import_onnx  # noqa: E402

pytestmark = pytest.mark.peers
LEAST = {"node": 1400, "simple": 1, "light": 9, "pytorch-operator": 35, "pytorch-converted": 82}
"""How many have to go all the way."""


def again(case, folder):
    """The case with the model that the export makes of it; None where the import refuses it."""
    path = folder / "model.onnx"
    path.write_bytes(case.model.SerializeToString())
    try:
        graph = import_onnx(path)
    except ModelError:
        return None
    export_onnx(graph, folder / "exported.onnx")
    return dataclasses.replace(case, model=onnx.load(folder / "exported.onnx"))


@pytest.mark.parametrize("kind", onnx_cases.KINDS)
def test_exported_models_give_the_expected_numbers(kind, tmp_path):
    passed, wrong = 0, []
    for case in onnx_cases.cases(kind):
        made = again(case, tmp_path)
        result = "" if made is None else onnx_cases.outcome(made)
        passed += result == onnx_cases.PASS
        if result not in ("", onnx_cases.PASS) and onnx_cases.outcome(case) == onnx_cases.PASS:
            wrong.append(f"{case.name}: {result}")
    assert not wrong
    assert passed >= LEAST[kind]
