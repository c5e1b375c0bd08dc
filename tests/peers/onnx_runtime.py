"""Runs exported models in ONNX Runtime, optimized or as they stand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from qtool.exporters import export_onnx
from qtool.ir import DType, Graph, Value, all_nodes, constant, remake
from qtool.ops import all_ops

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")


def run_file(path: Path, feeds: dict, level: str = "ORT_DISABLE_ALL", exact: bool = False) -> list[np.ndarray]:
    """``exact`` is for CPUs without VNNI, where kernels for weights of int8 saturate if two products pass 16 bits:
    it takes others. (With ``MatMulIntegerToFloat`` it makes ONNX Runtime 1.32 fail.)"""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def optimized_ops(path: Path, into: Path) -> Counter:
    """What ONNX Runtime makes of a model, before it chooses memory layouts: operators and how often."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(into)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(into).graph.node)


def run_graph(graph: Graph, feeds: dict, folder: Path, level: str = "ORT_DISABLE_ALL", **options) -> dict:
    path = folder / "model.onnx"
    export_onnx(graph, path, **options)
    exact = not any(all_ops()[node.op].dynamic_of for node in all_nodes(graph))
    return dict(zip(graph.outputs, run_file(path, feeds, level, exact), strict=True))


def single_node(op: str, attrs: dict, arrays: tuple, batched: tuple[int, ...]) -> tuple[Graph, dict]:
    """A graph of one node: inputs with a symbolic batch where they may have one, others as constants."""
    from qtool.ir import Node, TensorType
    from qtool.ops import infer_node

    values, feeds, constants = {}, {}, {}
    names = tuple("" if array is None else f"i{i}" for i, array in enumerate(arrays))
    for position, (name, array) in enumerate(zip(names, arrays, strict=True)):
        if array is None:
            continue
        if position == 0 or position in batched or all_ops()[op].inputs[-1].endswith("*"):
            shape = ("N", *array.shape[1:]) if position in batched else array.shape
            values[name], feeds[name] = Value(name, DType.of(array), shape), array
        else:
            values[name], constants[name] = constant(name, array), array
    types = [
        TensorType(values[name].dtype, values[name].shape, constants.get(name)) if name else None for name in names
    ]
    node = Node(op, "node", names, (), attrs)
    inferred = infer_node(node, types)
    outputs = tuple(f"o{i}" for i in range(len(inferred)))
    values.update({name: Value(name, t.dtype, t.shape) for name, t in zip(outputs, inferred, strict=True)})
    made = Node(op, "node", names, outputs, attrs)
    return Graph("single", tuple(feeds), outputs, (made,), values, constants), feeds


def one_node_graphs(graph: Graph):
    """Each quantized node by itself, its quantized inputs and outputs being those of the graph."""
    for node in graph.nodes:
        if all(graph.values[name].qparams for name in node.outputs):
            inputs = tuple(dict.fromkeys(n for n in node.inputs if n and n not in graph.initializers))
            yield remake(replace(graph, inputs=inputs), [node], outputs=node.outputs)


def step_errors(graph: Graph, feeds: dict, folder: Path, level: str) -> dict[str, np.ndarray]:
    """For each quantized node, fed with what qtool computes before it, by how many steps ONNX Runtime differs."""
    from qtool.engine import reference

    inner = {name for part in one_node_graphs(graph) for name in (*part.inputs, *part.outputs)}
    values = {**reference.run(graph, feeds, sorted(inner)), **feeds}
    errors = {}
    for part in one_node_graphs(graph):
        got = run_graph(part, {name: values[name] for name in part.inputs}, folder, level)
        for name, array in got.items():
            assert array.dtype == values[name].dtype
            errors[f"{part.nodes[0].op} {name}"] = np.abs(array.astype(int) - values[name].astype(int))
    return errors
