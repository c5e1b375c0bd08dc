"""Names for the graph: module scopes out of node and parameter names, and free names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

from qtool.ir.limits import MAX_NAME

_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where PyTorch's newer exporter writes the module path of a node."""
_PARAMETER = re.compile(r"^(?P<scope>[A-Za-z_][\w.\-]*)\.(?P<leaf>[A-Za-z]\w*)$")
_WRAPPERS = ("StatefulPartitionedCall", "PartitionedCall")
_MARGIN = 64
"""Characters kept free for the suffixes that quantization and numbering add."""


def scope_of(node: Any, parameters: Iterable[str]) -> str:
    """The module path of an ONNX node; "" where neither its name nor its parameters tell.

    In this order: what PyTorch's exporter recorded; the module its parameters belong to, ``layer1.0.conv1.weight``; the
    path in its name, PyTorch's ``/layer1/layer1.0/conv1/Conv`` or TensorFlow's ``model/conv1/Conv2D``; its name.
    """
    recorded = next((p.value for p in getattr(node, "metadata_props", ()) if p.key == _TORCH_SCOPES), "")
    if recorded:
        return clean(_recorded_scope(recorded))
    path = joined_path(node.name.split("/")[:-1])
    for name in parameters:
        found = _PARAMETER.match(name)
        if found:  # what is called conv1.bias.corrected belongs to /conv1/Conv, not to a module conv1.bias
            return clean(path if path and found["scope"].startswith(f"{path}.") else found["scope"])
    return clean(path if "/" in node.name else node.name)


def _recorded_scope(text: str) -> str:
    """``"['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']"`` -> ``layer1.0.conv1``."""
    try:
        parts = ast.literal_eval(text) if len(text) < MAX_NAME * 8 else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    paths = [part for part in parts if isinstance(part, str)] if isinstance(parts, (list, tuple)) else []
    return paths[-2] if len(paths) > 1 else ""


def joined_path(parts: Sequence[str]) -> str:
    """``["", "layer1", "layer1.0", "conv1"]`` -> ``layer1.0.conv1``: a part that spells out its parent replaces it."""
    path: list[str] = []
    for part in parts:
        if not part or part.startswith(_WRAPPERS):
            continue
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


def is_parameter_name(name: str) -> bool:
    """Whether an initializer is named after a module, as ``layer1.0.conv1.weight``."""
    return bool(_PARAMETER.match(name))


def clean(name: str) -> str:
    """A name the graph accepts: printable and not too long."""
    printable = "".join(c if c.isprintable() else "_" for c in name)
    return printable[: MAX_NAME - _MARGIN]


class Names:
    """Hands out names that are not taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def reserve(self, name: str) -> None:
        self._taken.add(name)

    def free(self, name: str) -> str:
        """The name itself, or with the next number behind it."""
        name = clean(name) or "value"
        found = name
        while found in self._taken:
            number = self._next.get(name, 1)
            self._next[name] = number + 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found
