"""The golden files: int8 cases with the results that PyTorch gave, one .npz an engine.

Member ``cases`` is the JSON of a list, one object a case; member ``data`` the bytes of all arrays, one after the other:
of each case the operands, then the result, each as [dtype, shape] in the object's ``arrays``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from int8_cases import Int8Case, Operand

from qtool.ir import Array, DType, QParams

FOLDER = Path(__file__).parent / "golden"
Golden = tuple[str, Int8Case, Array]
"""Family, case and PyTorch's result."""


def save(path: Path, cases: list[Golden]) -> None:
    arrays = [a for _, case, y in cases for a in (*(o.array for o in case.operands if o is not None), y)]
    text = json.dumps([_describe(*golden) for golden in cases], separators=(",", ":")).encode()
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    np.savez_compressed(path, cases=np.frombuffer(text, np.uint8), data=np.frombuffer(data, np.uint8))


def load(path: Path) -> Iterator[Golden]:
    with np.load(path) as file:
        cases, data = json.loads(file["cases"].tobytes()), file["data"].tobytes()
    start = 0
    for described in cases:
        arrays = []
        for dtype, shape in described["arrays"]:
            array = np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
            start += array.nbytes
            arrays.append(array)
        *inputs, result = arrays
        operands = tuple(d and Operand(inputs.pop(0), _qparams(d[0]), d[1]) for d in described["operands"])
        attrs = {name: _tuples(value) for name, value in described["attrs"].items()}
        case = Int8Case(described["op"], described["backend"], attrs, operands, _qparams(described["out"]))
        yield described["family"], case, result


def _describe(family: str, case: Int8Case, result: Array) -> dict[str, Any]:
    arrays = [*(o.array for o in case.operands if o is not None), result]
    return {
        "family": family,
        "op": case.op,
        "backend": case.backend,
        "attrs": case.attrs,
        "operands": [None if o is None else [_plain(o.qparams), o.constant] for o in case.operands],
        "out": _plain(case.out),
        "arrays": [[array.dtype.name, array.shape] for array in arrays],
    }


def _plain(qparams: QParams | None) -> Any:
    """float32 numbers survive JSON's decimals, which have float64's digits."""
    if qparams is None:
        return None
    return [qparams.scale.tolist(), qparams.zero_point.tolist(), qparams.dtype.value, qparams.axis]


def _qparams(plain: Any) -> QParams | None:
    if plain is None:
        return None
    scale, zero_point, dtype, axis = plain
    return QParams(np.array(scale, np.float32), np.array(zero_point, np.int32), DType(dtype), axis)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
