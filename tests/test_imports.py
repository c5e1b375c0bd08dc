"""Imports go down the layers only, never up and never sideways, and each outside package has its place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qtool

ROOT = Path(qtool.__file__).parent
LAYERS = (
    {"__main__"},
    {"cli"},
    {"pipeline"},
    {"report"},
    {"analysis"},
    {"quantize"},
    {"engine", "passes", "frontends", "exporters", "zoo", "recipe"},
    {"ops"},
    {"ir", "native"},
    {"errors"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
OUTSIDE = {
    "click": {"cli"},
    "rich": {"cli"},
    "yaml": {"recipe"},
    "ctypes": {"native"},
    "numpy": set(LEVEL) - {"errors", "recipe"},
    "torch": {"frontends", "analysis"},
    "onnxruntime": {"analysis"},
    "openvino": {"analysis"},
    "nncf": {"analysis"},
    "onnx": {"frontends", "exporters"},
    "PIL": {"quantize"},
}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Every module imported anywhere in the file, inside functions too."""
    found = []
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            found += [alias.name for alias in item.names]
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"{path} has a relative import"
            found.append(item.module or "")
            if item.module == "qtool":
                found += [f"qtool.{alias.name}" for alias in item.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    part = part_of(path)
    if part == "__init__":  # the public face names them all, lazily
        return
    assert part in LEVEL, f"{part} has no place in the layers"
    for module in imports_of(path):
        package, _, rest = module.partition(".")
        if package == "qtool" and not rest:
            continue  # `from qtool import x`: what x is, follows
        if package == "qtool":
            target = rest.split(".")[0]
            allowed = target == part or LEVEL[target] > LEVEL[part]
            assert allowed, f"{path.relative_to(ROOT)} imports {module}, which is not below it"
        elif package in OUTSIDE:
            assert part in OUTSIDE[package], f"{path.relative_to(ROOT)} imports {package}"


def test_the_walk_sees_the_tree():
    parts = {part_of(path) for path in FILES}
    assert {"cli", "quantize", "engine", "ops", "ir", "errors"} <= parts
    assert any("qtool.ir" in imports_of(path) for path in FILES if part_of(path) == "ops")


def test_public_names_are_there_and_sorted():
    assert list(qtool.__all__) == sorted(qtool.__all__)
    for name in qtool.__all__:
        assert callable(getattr(qtool, name))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        qtool.quantise  # noqa: B018
