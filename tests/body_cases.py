"""Graphs with layers in the bodies of control flow, inputs for them, and ways to quantize them."""

from __future__ import annotations

import numpy as np

from qtool.ir import DType, Graph, bodies_by_path
from qtool.ops import Builder
from qtool.quantize.api import Quantized, quantize
from qtool.quantize.prepare import PrepareOptions
from qtool.recipe.presets import PRESETS
from qtool.recipe.schema import Backend, Mode

FBGEMM, QNNPACK, ONEDNN, ACCURATE, DYNAMIC = (
    PRESETS[name].qconfig for name in ("fbgemm", "qnnpack", "onednn", "accurate", "per_channel_dynamic")
)


def weights(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(shape)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def layer(b: Builder, name: str, x: str, size: int = 8) -> str:
    with b.scope(name):
        return b.node("linear", [x, b.param("weight", weights(size, size)), b.param("bias", weights(size, 1)[:, 0])])


def branch(name: str, convolves: bool) -> Graph:
    """(x, w) -> conv or two linear layers and a relu, and a product with what is captured."""
    b = Builder(name)
    x, w = b.input("x", ("N", 8)), b.input("w", (8, 8))
    if convolves:
        y = b.node("unsqueeze", [x], dim=1)
        with b.scope("conv"):
            y = b.node("conv1d", [y, b.param("weight", weights(4, 1, 3))], padding=((1, 1),))
        y = b.node("mean", [y], dim=(1,))
    else:
        y = layer(b, "fc2", b.node("relu", [layer(b, "fc1", x)]))
    y = b.node("linear", [y, w], "shared")
    return b.finish([b.node("relu", [y])])


def if_graph() -> Graph:
    b = Builder("choices")
    x, cond = b.input("x", ("N", 8)), b.input("cond", (), DType.BOOL)
    w = b.param("w", weights(8, 8))
    x = layer(b, "head", x)
    bodies = {"then_branch": branch("then", True), "else_branch": branch("else", False)}
    (y,) = b.nodes("if", [cond, x, w], 1, "choice", graphs=bodies)
    return b.finish([layer(b, "tail", y)])


def loop_body(inner: bool = False) -> Graph:
    """h = tanh(fc(h)) each turn, or an ``if`` on whether the turn is the first one; rows of a captured product."""
    b = Builder("turn")
    turn, going = b.input("turn", (), DType.INT64), b.input("going", (), DType.BOOL)
    h, w = b.input("h", ("N", 8)), b.input("w", (8, 8))
    if inner:
        first = b.node("equal", [turn, b.param("zero", np.array(0, np.int64))])
        bodies = {"then_branch": branch("then", True), "else_branch": branch("else", False)}
        (h,) = b.nodes("if", [first, h, w], 1, "choice", graphs=bodies)
    h = b.node("tanh", [layer(b, "fc", h)], "new")
    return b.finish([b.node("identity", [going], "again"), h, b.node("linear", [h, w], "row")])


def loop_graph(inner: bool = False) -> Graph:
    b = Builder("turns")
    x, trips = b.input("x", ("N", 8)), b.input("trips", (), DType.INT64)
    w = b.param("w", weights(8, 8))
    outputs = b.nodes("loop", [trips, "", x, w], 2, "turns", graphs={"body": loop_body(inner)}, carried=1)
    return b.finish(outputs)


def scan_graph() -> Graph:
    """A cell of a recurrent net: h = tanh(fc(x) + rec(h)), and h is given for each element."""
    b = Builder("cell")
    h, x = b.input("h", ("N", 8)), b.input("x", ("N", 8))
    new = b.node("tanh", [b.node("add", [layer(b, "fc", x), layer(b, "rec", h)])], "new")
    body = b.finish([new, b.node("identity", [new], "seen")])
    b = Builder("sequence")
    inputs = [b.input("h", ("N", 8)), b.input("xs", ("T", "N", 8))]
    return b.finish(b.nodes("scan", inputs, 2, "scan", graphs={"body": body}, num_scan_inputs=1, states=1))


def feeds_of(graph: Graph, seed: int, **fixed) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {"x": rng.standard_normal((4, 8)), "h": np.zeros((4, 8)), "xs": rng.standard_normal((5, 4, 8))}
    found: dict[str, np.ndarray] = {name: made[name].astype(np.float32) for name in graph.inputs if name in made}
    if "cond" in graph.inputs:
        found["cond"] = np.array(fixed.get("cond", seed % 2 == 0))
    if "trips" in graph.inputs:
        found["trips"] = np.array(fixed.get("trips", 3), np.int64)
    return found


GRAPHS = {"if": if_graph, "loop": loop_graph, "if in loop": lambda: loop_graph(inner=True), "scan": scan_graph}
MODES = {
    "fbgemm": (FBGEMM, PrepareOptions(Mode.STATIC, Backend.FBGEMM)),
    "qnnpack": (QNNPACK, PrepareOptions(Mode.STATIC, Backend.QNNPACK)),
    "onednn": (ONEDNN, PrepareOptions(Mode.STATIC, Backend.ONEDNN)),
    "accurate": (ACCURATE, PrepareOptions(Mode.STATIC, Backend.FBGEMM)),
    "dynamic": (DYNAMIC, PrepareOptions(Mode.DYNAMIC, Backend.FBGEMM)),
}


def quantized(graph: Graph, mode: str = "fbgemm", **options) -> Quantized:
    qconfig, prepared = MODES[mode]
    batches = [feeds_of(graph, seed) for seed in range(6)]
    return quantize(graph, {"": qconfig}, batches, prepared, **options)


def int8_layers(graph: Graph) -> set[str]:
    """Where the graph has int8 arithmetic, bodies included."""

    def found(one: Graph, path: str) -> set[str]:
        own = {
            f"{path}{node.name}"
            for node in one.nodes
            if node.op != "quantize" and (node.op.endswith("_dynamic") or one.values[node.outputs[0]].qparams)
        }
        return own.union(*(found(body, f"{path}{inner}.") for inner, body in bodies_by_path(one).items()))

    return found(graph, "")
