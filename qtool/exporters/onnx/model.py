"""The file: a checked ModelProto, with large weights beside it where protobuf's 2 GB are not enough."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qtool.errors import MissingExtraError, ModelError
from qtool.exporters.onnx.bodies import Exported as Body
from qtool.exporters.onnx.bodies import needed_opset, too_new, walk
from qtool.exporters.onnx.emitter import Item
from qtool.ir import Array, DType, Graph, Value
from qtool.ir.files import atomic_write
from qtool.ops.qdq import lower_qdq

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 13
"""The first with parameters per channel in QuantizeLinear and DequantizeLinear."""
DEFAULT_OPSET = 17
"""Read by every runtime of the last years; newer only where an operator needs it."""
EXTERNAL_BYTES = 2**31 - 2**24
"""Weights of more than this go to a file of their own: a protobuf message ends at 2 GB."""
LARGE = 1024
"""Only arrays of at least this many bytes do; the rest, which shapes may depend on, stays in the model."""
ALIGNMENT = 4096
"""Of arrays in the external file, so that runtimes can map them into memory."""


@dataclass(frozen=True)
class Exported:
    """What was written. ``data`` is the file of external weights, None where the model holds them itself."""

    path: Path
    opset: int
    nodes: int
    bytes: int
    data: Path | None = None


def export_onnx(
    graph: Graph,
    path: str | os.PathLike[str],
    opset: int | None = None,
    *,
    external_bytes: int = EXTERNAL_BYTES,
) -> Exported:
    """Writes a graph as an ONNX model, whole or not at all, checked with full strict shape inference.

    Quantized graphs become QDQ models: float operators between DequantizeLinear and QuantizeLinear nodes, int8 weights
    with DequantizeLinear (per channel where they are so). Values keep their names and nodes get their module's path. A
    graph of linear layers quantized at run time keeps int8 weights and quantizes activations by nodes of the graph.

    ``opset`` is by default 17, or what the newest operator of the graph needs; at least 13. Weights of more than
    ``external_bytes`` go to ``<path>.data``.

    Raises ModelError listing every node that has no counterpart in ONNX or not at this opset, OutputError where the
    file cannot be written, MissingExtraError without the package onnx.
    """
    _import_onnx()
    lowered = lower_qdq(graph) if graph.is_quantized else graph
    target = Path(path)
    made = _make(lowered, opset, f"{target.name}.data", external_bytes)
    data = target.with_name(made.weights.file) if made.weights.places else None
    if data:
        _write_data(data, made.body.emitter.initializers, made.weights.places)
    with atomic_write(target) as file:
        file.write(made.proto.SerializeToString())
    written = target.stat().st_size + (data.stat().st_size if data else 0)
    return Exported(target, made.opset, len(made.proto.graph.node), written, data)


def _import_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtraError("onnx", "onnx", "writing ONNX models") from None


def _choose_opset(graph: Graph, wanted: int | None) -> int:
    from onnx.defs import onnx_opset_version

    newest, needed = onnx_opset_version(), needed_opset(graph)
    chosen = max(DEFAULT_OPSET, needed) if wanted is None else wanted
    if not OLDEST_OPSET <= chosen <= newest:
        raise ModelError(f"got opset {chosen}, expected {OLDEST_OPSET} to {newest} (what the installed onnx knows)")
    missing = too_new(graph, chosen)
    if missing:
        listed = "\n  ".join(missing)
        raise ModelError(f"'{graph.name}' needs opset {needed}, got {chosen}:\n  {listed}")
    return chosen


@dataclass(frozen=True)
class _Weights:
    """The file of external arrays, and the place and size in it of each."""

    file: str
    places: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class _Made:
    """A checked model."""

    proto: onnx.ModelProto
    body: Body
    weights: _Weights
    opset: int


def _make(graph: Graph, wanted: int | None, data: str, external_bytes: int) -> _Made:
    """The model at the opset that is wanted. Without one: at the first that takes it, since operators learn attributes
    and element types over time; what none takes is told for the first."""
    from onnx.defs import onnx_opset_version

    first = _choose_opset(graph, wanted)
    problem: ModelError | None = None
    for opset in range(first, (onnx_opset_version() if wanted is None else first) + 1):
        try:
            return _make_at(graph, opset, data, external_bytes)
        except ModelError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _make_at(graph: Graph, opset: int, data: str, external_bytes: int) -> _Made:
    body = walk(graph, opset)
    arrays = body.emitter.initializers
    outside = sum(array.nbytes for array in arrays.values()) > external_bytes
    weights = _Weights(data, _place(arrays) if outside else {})
    proto = _model(graph, body, opset, weights)
    _check(proto, weights.places)
    return _Made(proto, body, weights, opset)


def _place(arrays: Mapping[str, Array]) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for name, array in arrays.items():
        if array.nbytes >= LARGE:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            places[name] = start, array.nbytes
            end = start + array.nbytes
    return places


def _write_data(path: Path, arrays: Mapping[str, Array], places: Mapping[str, tuple[int, int]]) -> None:
    with atomic_write(path) as file:
        for name, (start, _) in places.items():
            file.write(bytes(start - file.tell()))
            _little_endian(arrays[name]).tofile(file)


def _little_endian(array: Array) -> Array:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


# ---- protobuf -----------------------------------------------------------------------------------------------------


def _model(graph: Graph, body: Body, opset: int, weights: _Weights) -> onnx.ModelProto:
    from onnx import helper

    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        _graph(body, opset, weights),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="qtool",
        producer_version=_qtool_version(),
    )
    helper.set_model_props(model, _properties(graph))
    return model


def _properties(graph: Graph) -> dict[str, str]:
    """Where the model comes from, as JSON texts: what the graph's file records, and the arithmetic it is meant for."""
    found = {f"qtool.{key}": json.dumps(value, sort_keys=True) for key, value in graph.meta.items()}
    if graph.backend:
        found["qtool.backend"] = graph.backend
    return found


def _qtool_version() -> str:
    try:
        return version("qtool")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+source"


def _graph(body: Body, opset: int, weights: _Weights) -> onnx.GraphProto:
    from onnx import helper

    described = {name: _type(name, value) for name, value in body.types.items()}
    inner = [name for name in described if name not in (*body.inputs, *body.outputs)]
    return helper.make_graph(
        [_node(item, opset, weights) for item in body.emitter.items],
        body.name or "graph",
        [described[name] for name in body.inputs],
        [described[name] for name in body.outputs],
        [_tensor(name, array, weights) for name, array in body.emitter.initializers.items()],
        value_info=[described[name] for name in inner],
    )


def _type(name: str, value: Value) -> onnx.ValueInfoProto:
    from onnx import helper

    dims = [None if isinstance(dim, str) and dim.startswith("?") else dim for dim in value.shape]
    return helper.make_tensor_value_info(name, element_type(value.dtype.value), dims)


def element_type(name: str) -> int:
    """NumPy's name of an element type -> ONNX's number of it."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(DType(name).numpy))


def _tensor(name: str, array: Array, weights: _Weights) -> onnx.TensorProto:
    import onnx
    from onnx import numpy_helper

    if name not in weights.places:
        return numpy_helper.from_array(np.asarray(array, order="C"), name)
    start, size = weights.places[name]
    tensor = onnx.TensorProto(name=name, data_type=element_type(array.dtype.name), dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", weights.file), ("offset", str(start)), ("length", str(size))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _node(item: Item, opset: int, weights: _Weights) -> onnx.NodeProto:
    from onnx import helper
    from onnx.defs import SchemaError, get_schema

    try:
        schema = get_schema(item.op, opset, "")
    except SchemaError:
        raise ModelError(f"{item.op} '{item.name}': opset {opset} does not have it") from None
    node = helper.make_node(item.op, item.inputs, item.outputs, name=item.name)
    for name, value in item.attrs.items():
        if name in schema.attributes:
            node.attribute.append(_attribute(name, value, schema.attributes[name].type, (opset, weights)))
        elif not _is_default(item.op, name, value):
            raise ModelError(f"{item.op} '{item.name}': its attribute {name} has no place in opset {opset}")
    return node


def _is_default(op: str, name: str, value: Any) -> bool:
    """Whether an attribute that came with a later opset has the value that operators without it imply."""
    from onnx import helper
    from onnx.defs import get_schema

    found = get_schema(op).attributes.get(name)
    if found is None or not found.default_value.name:
        return False
    default = helper.get_attribute_value(found.default_value)
    return bool((default.decode() if isinstance(default, bytes) else default) == value)


def _attribute(name: str, value: Any, kind: Any, context: tuple[int, _Weights]) -> onnx.AttributeProto:
    from onnx import helper, numpy_helper
    from onnx.defs import OpSchema

    kinds = OpSchema.AttrType
    if isinstance(value, Body):
        value = _graph(value, *context)
    elif isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    elif kind == kinds.INT and isinstance(value, str):
        value = element_type(value)
    elif kind == kinds.FLOAT:
        value = float(value)
    elif kind in (kinds.FLOATS, kinds.INTS, kinds.STRINGS):
        value = _items(value, float if kind == kinds.FLOATS else None)
    return helper.make_attribute(name, value)


def _items(values: Iterable[Any], convert: type | None) -> list[Any]:
    return [convert(value) if convert else value for value in values]


def _check(model: onnx.ModelProto, external: Mapping[str, tuple[int, int]]) -> None:
    """onnx.checker with strict shape inference; external arrays, which are not written yet, count as inputs."""
    import onnx

    checked = model
    if external:
        checked = onnx.ModelProto()
        checked.CopyFrom(model)
        kept = [tensor for tensor in model.graph.initializer if tensor.name not in external]
        outside = [tensor for tensor in model.graph.initializer if tensor.name in external]
        del checked.graph.initializer[:]
        checked.graph.initializer.extend(kept)
        for tensor in outside:
            described = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            checked.graph.input.append(described)
    try:
        onnx.checker.check_model(checked, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"'{model.graph.name}' does not make a valid ONNX model: {error}") from error
