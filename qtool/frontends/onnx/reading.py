"""Opens an .onnx file: parsed and checked by the onnx package, functions expanded to operators that are known."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from qtool.errors import MissingExtraError, ModelError
from qtool.ir.limits import shown

_DOMAINS = ("", "ai.onnx")


def read_model(path: Path, known: Collection[str]) -> Any:
    """The ModelProto, external data not loaded; operators not ``known`` that ONNX defines by others become those.

    MissingExtraError without the onnx package, ModelError for a file that is no valid model.
    """
    try:
        import onnx
        import onnx.inliner
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("onnx", "onnx", f"reading {path}") from None
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file")
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, DecodeError) as error:
        raise ModelError(f"{path}: it is no valid ONNX model: {str(error).strip()[:500]}") from error
    except (OSError, ValueError, RuntimeError, MemoryError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: it cannot be read: {str(error)[:500]}") from error
    return expand_functions(model, known)


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators; the converters know the forms of all of them."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in _DOMAINS), default=1)


def expand_functions(model: Any, known: Collection[str]) -> Any:
    """Calls of functions as the nodes they stand for: the model's own, and ONNX's where qtool has no such operator."""
    unknown = sorted({_key(node) for node in all_nodes(model.graph)} - {("", name) for name in known})
    local = {(f.domain, f.name) for f in model.functions}
    inlined = [key for key in unknown if key in local or _is_function(*key)]
    if not inlined:
        return model
    expanded = _inlined(model, inlined)
    if expanded is not None:
        return expanded
    for key in inlined:  # one that onnx cannot expand must not keep the others from it
        expanded = _inlined(model, [key])
        if expanded is None and key in local:
            raise ModelError(f"its function {shown(key[1])} cannot be expanded")
        model = model if expanded is None else expanded
    return model  # the import lists what is left as not supported


def _inlined(model: Any, keys: Sequence[tuple[str, str]]) -> Any:
    """The model without calls of these functions; None where onnx fails to do it."""
    import onnx.inliner

    try:
        return onnx.inliner.inline_selected_functions(model, list(keys), False, inline_schema_functions=True)
    except (RuntimeError, ValueError):
        return None


def _key(node: Any) -> tuple[str, str]:
    return ("" if node.domain in _DOMAINS else node.domain, node.op_type)


def _is_function(domain: str, name: str) -> bool:
    import onnx

    try:
        schema = onnx.defs.get_schema(name, domain=domain)
    except onnx.defs.SchemaError:
        return False
    return any(getattr(schema, kind, False) for kind in ("has_function", "has_context_dependent_function"))


def all_nodes(graph: Any) -> Iterator[Any]:
    """Every node of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)
            for inner in attribute.graphs:
                yield from all_nodes(inner)
