"""The operator table in the documentation is the one that the records give."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtool.engine.lowering import LOWERINGS
from qtool.ops.registry import all_ops
from qtool.ops.table import operator_page

PAGE = Path(__file__).parent.parent / "qtool" / "ops" / "README.md"


def test_operators_said_to_be_native_are_those_with_a_lowering():
    assert {name for name, spec in all_ops().items() if spec.kernel} == set(LOWERINGS)


def test_the_page_is_what_the_records_say():
    if not PAGE.is_file():
        pytest.skip("the tests run without the source tree")
    hint = "make it anew: python -c 'from qtool.ops.table import operator_page; print(operator_page(), end=\"\")'"
    assert PAGE.read_text() == operator_page(), hint
