"""The operator table of the documentation, from the records."""

from __future__ import annotations

import dataclasses

from qtool.ops.registry import OpSpec, all_ops

BORDERS = {"quantize": "float to int8", "dequantize": "int8 to float"}
HEADER = ("Operator", "Inputs", "Attributes", "ONNX", "int8", "Gradient", "Kernel")


def operator_table() -> str:
    """A Markdown table with one row an operator, by name; ends with a newline."""
    rows = [HEADER, *(_row(spec) for _, spec in sorted(all_ops().items()))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _row(spec: OpSpec) -> tuple[str, ...]:
    attributes = (_attribute(field) for field in dataclasses.fields(spec.attrs))
    names = (f"`{spec.name}`", ", ".join(spec.inputs), ", ".join(attributes), ", ".join(spec.onnx))
    return (*names, _rule(spec), "yes" if spec.vjp else "", "native" if spec.kernel else "NumPy")


def _attribute(field: dataclasses.Field[object]) -> str:
    if field.default is dataclasses.MISSING:
        return field.name
    return f"{field.name}={field.default}".replace("|", "\\|")


def _rule(spec: OpSpec) -> str:
    if spec.name in BORDERS:
        return BORDERS[spec.name]
    if spec.dynamic_of:
        return "dynamic"
    if spec.rule is None:
        return "float"
    if spec.fixed is not None:
        scale, zero_point = spec.fixed
        return f"fixed (1/{round(1 / scale)}, {zero_point})"
    return spec.rule.value


def operator_page() -> str:
    """The page ``README.md`` beside this file: what the columns mean, and the table."""
    return (
        "# Operators\n\n"
        "Every operator that a graph can hold, from the records in this folder. `int8` is the quantization rule, or"
        " `float` where an\noperator is never quantized. `Gradient` says whether training goes through it. `Kernel` is"
        " `native` where the engine has\nkernels for it; `NumPy` operators run on the reference, and a session lists"
        " them in `fallbacks`.\n\n" + operator_table()
    )
