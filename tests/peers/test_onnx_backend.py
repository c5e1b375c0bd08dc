"""The onnx package's own test cases: which pass is written down, and no model that is accepted gives other numbers."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

import onnx_cases  # noqa: E402

pytestmark = pytest.mark.peers
LEAST = {"node": 1200, "light": 9, "pytorch-operator": 35, "pytorch-converted": 82}
"""How many have to pass."""


@pytest.fixture(scope="module")
def outcomes():
    return {kind: {case.name: onnx_cases.outcome(case) for case in onnx_cases.cases(kind)} for kind in onnx_cases.KINDS}


@pytest.mark.parametrize("kind", onnx_cases.KINDS)
def test_no_model_that_is_accepted_gives_wrong_numbers(outcomes, kind):
    wrong = [f"{name}: {result}" for name, result in outcomes[kind].items() if result.startswith(onnx_cases.WRONG)]
    assert not wrong


@pytest.mark.parametrize("kind", onnx_cases.KINDS)
def test_what_does_not_pass_is_listed(outcomes, kind):
    version, known = onnx_cases.known()
    if version != onnx.__version__:
        pytest.skip(f"the list is for onnx {version}, this is {onnx.__version__}")
    failed = {f"{kind} {name}" for name, result in outcomes[kind].items() if result != onnx_cases.PASS}
    listed = {name for name in known if name.startswith(f"{kind} ")}
    assert failed - listed == set(), "these passed before"
    assert listed - failed == set(), "these pass now: python tests/peers/onnx_cases.py writes the list anew"


@pytest.mark.parametrize("kind", LEAST)
def test_enough_pass(outcomes, kind):
    passed = sum(result == onnx_cases.PASS for result in outcomes[kind].values())
    assert passed >= LEAST[kind]
