"""Saving and loading: what is written is read back, stays small and mapped, and a failure leaves nothing behind."""

from __future__ import annotations

import json
import mmap
import os
import stat
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ir_samples import float_graph, mobilenet_v2_int8, quantized_graph, same_graph

from qtool.errors import ModelError, OutputError
from qtool.ir import DType, Graph, Node, QParams, Value, constant, zipwriter
from qtool.ir.codec import short_float32
from qtool.ir.npz import is_graph_file, load, save
from qtool.ir.zipreader import open_archive

FULL_DISK = """
    import resource, signal, sys
    from qtool.errors import OutputError
    from qtool.ir.npz import load, save
    graph = load(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        save(graph, sys.argv[2])
    except OutputError as error:
        print(error)
"""


@pytest.mark.parametrize(
    "graph", [float_graph(), quantized_graph(), quantized_graph(1)], ids=["float", "int8", "one channel"]
)
def test_what_is_saved_is_loaded(graph, tmp_path):
    save(graph, tmp_path / "g.npz")
    assert same_graph(load(tmp_path / "g.npz"), graph)
    assert same_graph(load(str(tmp_path / "g.npz"), check_sums=False), graph)


def test_numpy_and_zipfile_read_the_file(tmp_path):
    graph = quantized_graph()
    save(graph, tmp_path / "g.npz")
    with np.load(tmp_path / "g.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["@graph", "@scales", "@zero_points", *graph.initializers]
        assert np.array_equal(arrays["a.weight.q"], graph.initializers["a.weight.q"])
        document = json.loads(bytes(arrays["@graph"]))
    assert document["schema"] == "qtool.graph/1"
    assert document["meta"]["calibration"] == "ab" * 32
    assert document["values"]["a.weight.q"] == {
        "dtype": "int8",
        "shape": [5, 3, 3, 3],
        "axis": 0,
        "scale": [0, 5],
        "zero_point": 0,
    }
    with zipfile.ZipFile(tmp_path / "g.npz") as archive:
        assert archive.testzip() is None


def test_weights_are_mapped_and_read_only(tmp_path):
    save(mobilenet_v2_int8(True), tmp_path / "g.npz")
    for array in load(tmp_path / "g.npz").initializers.values():
        assert not array.flags.writeable
        assert array.ctypes.data % 64 == 0
        assert isinstance(root(array).obj, mmap.mmap)


def root(array: np.ndarray) -> memoryview:
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def test_a_file_repacked_by_numpy_is_read_although_misaligned(tmp_path):
    graph = float_graph()
    save(graph, tmp_path / "g.npz")
    with np.load(tmp_path / "g.npz") as arrays:
        np.savez(tmp_path / "again.npz", **arrays)
    assert same_graph(load(tmp_path / "again.npz"), graph)


def test_a_file_system_that_cannot_map_is_read(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no mapping here")

    save(float_graph(), tmp_path / "g.npz")
    monkeypatch.setattr(mmap, "mmap", refuse)
    assert same_graph(load(tmp_path / "g.npz"), float_graph())


def test_equal_graphs_give_equal_files(tmp_path):
    for name in ("a", "b"):
        save(quantized_graph(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("per_channel", "most"), [(False, 3_630_000), (True, 3_750_000)])
def test_a_quantized_mobilenet_v2_is_small(per_channel, most, tmp_path):
    recipe = {f"features.{i}": {"observer": "histogram", "dtype": "quint8"} for i in range(150)}
    graph = replace(mobilenet_v2_int8(per_channel), meta={"recipe": recipe})
    save(graph, tmp_path / "m.npz")
    assert graph.parameter_bytes() > 3_500_000
    assert (tmp_path / "m.npz").stat().st_size < most


def test_arrays_of_any_layout_are_written(tmp_path):
    """Fortran order and big-endian in memory; C order and little-endian in the file."""
    graph = float_graph()
    turned = {
        "fc1.weight": np.asfortranarray(graph.initializers["fc1.weight"]),
        "fc1.bias": graph.initializers["fc1.bias"].astype(">f4"),
    }
    save(replace(graph, initializers={**graph.initializers, **turned}), tmp_path / "g.npz")
    assert same_graph(load(tmp_path / "g.npz"), graph)


def test_large_archives_use_zip64(tmp_path, monkeypatch):
    # As if 4 GiB were 1000 bytes: the same records, without the disk space.
    monkeypatch.setattr(zipwriter, "ZIP64_FROM", 1000)
    graph = quantized_graph(40)
    save(graph, tmp_path / "g.npz")
    assert (tmp_path / "g.npz").read_bytes().count(b"PK\6\6") == 1
    assert same_graph(load(tmp_path / "g.npz"), graph)
    with zipfile.ZipFile(tmp_path / "g.npz") as archive:
        assert archive.testzip() is None
    with np.load(tmp_path / "g.npz") as arrays:
        assert np.array_equal(arrays["b.weight.q"], graph.initializers["b.weight.q"])


def test_more_members_than_a_short_record_counts(tmp_path):
    arrays = {f"c{i}": np.zeros((), np.int8) for i in range(65_540)}
    values = {name: constant(name, array) for name, array in arrays.items()}
    values["y"] = Value("y", DType.INT8, ())
    graph = Graph("many", (), ("y",), (Node("add", "y", tuple(arrays), ("y",)),), values, arrays)
    save(graph, tmp_path / "g.npz")
    assert len(open_archive(tmp_path / "g.npz", 100_000).members) == 65_541
    assert load(tmp_path / "g.npz").initializers.keys() == arrays.keys()


# ------------------------------------------------------------------------------------------------------ random graphs

names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12)
printable = names.filter(str.isprintable)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    printable,
    st.text(st.characters(codec="utf-8")),
)
attrs = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
meta_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8")),
)
metas = st.recursive(
    meta_leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3),
    ),
    max_leaves=8,
)
arrays_of_any_type = st.sampled_from([t.numpy for t in DType]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
scales = st.floats(2.0**-100, 2.0**100, width=32)


@st.composite
def qparams_of(draw, array: np.ndarray):
    if array.dtype.name not in ("int8", "uint8") or draw(st.booleans()):
        return None
    axes = [axis for axis, size in enumerate(array.shape) if size]
    axis = draw(st.sampled_from([None, *axes]))
    count = 1 if axis is None else array.shape[axis]
    low, high = (-128, 127) if array.dtype.name == "int8" else (0, 255)
    scale = draw(st.lists(scales, min_size=count, max_size=count))
    zero_points = st.lists(st.integers(low, high), min_size=count, max_size=count)
    return QParams(np.array(scale, np.float32), np.array(draw(zero_points), np.int32), DType.of(array), axis)


@st.composite
def graphs(draw) -> Graph:
    unique = draw(st.lists(printable, min_size=4, max_size=10, unique=True))
    made = draw(st.integers(1, len(unique) - 2))
    weights = {name: draw(arrays_of_any_type) for name in unique[1 + made :]}
    values = {name: constant(name, array, draw(qparams_of(array))) for name, array in weights.items()}
    for name in unique[: made + 1]:
        shape = draw(st.lists(st.one_of(st.integers(0, 2**20), printable), max_size=2).map(tuple))
        values[name] = Value(name, DType.FLOAT32, shape)
    nodes = []
    for index in range(1, made + 1):
        inputs = draw(st.lists(st.sampled_from(["", *unique[:index], *weights]), max_size=3))
        node = Node(
            draw(printable),
            unique[index],
            tuple(inputs),
            (unique[index],),
            draw(st.dictionaries(printable, attrs, max_size=3)),
            draw(printable),
        )
        nodes.append(node)
    last = replace(nodes[-1], inputs=(*nodes[-1].inputs, *weights))
    meta = draw(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), metas, max_size=3))
    backend = draw(st.sampled_from(["", "fbgemm", "x86", "onednn", "qnnpack"]))
    return Graph(draw(printable), (unique[0],), (unique[made],), (*nodes[:-1], last), values, weights, backend, meta)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graph=graphs())
def test_random_graphs_survive_a_round_trip(graph, tmp_path):
    save(graph, tmp_path / "g.npz")
    loaded = load(tmp_path / "g.npz")
    assert same_graph(loaded, graph)
    first = (tmp_path / "g.npz").read_bytes()
    save(loaded, tmp_path / "g.npz")
    assert (tmp_path / "g.npz").read_bytes() == first


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_short_numbers_round_to_the_same_float32(number):
    assert np.float32(short_float32(np.float32(number))) == np.float32(number)


def test_a_float_nan_attribute_is_kept(tmp_path):
    graph = float_graph()
    nodes = (
        *graph.nodes[:1],
        replace(graph.nodes[1], attrs={"low": float("nan"), "high": float("-inf")}),
        *graph.nodes[2:],
    )
    save(replace(graph, nodes=nodes), tmp_path / "g.npz")
    attrs = load(tmp_path / "g.npz").nodes[1].attrs
    assert attrs["low"] != attrs["low"]
    assert attrs["high"] == float("-inf")


# -------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("meta", [{"a": float("nan")}, {"a": object()}, {"a": {1: 2}}, {"a": 2**64}, {"a": "\ud800"}])
def test_meta_that_json_cannot_hold_is_refused(meta, tmp_path):
    with pytest.raises(ModelError, match=r"meta\.a|written as JSON"):
        save(replace(float_graph(), meta=meta), tmp_path / "g.npz")
    assert not list(tmp_path.iterdir())


def test_deep_meta_is_refused(tmp_path):
    meta: dict = {}
    for _ in range(40):
        meta = {"a": meta}
    with pytest.raises(ModelError, match="deeper than 32"):
        save(replace(float_graph(), meta=meta), tmp_path / "g.npz")


def test_a_broken_graph_is_not_written(tmp_path):
    with pytest.raises(ModelError, match="no outputs"):
        save(replace(float_graph(), outputs=()), tmp_path / "g.npz")
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="there is no folder"):
        save(float_graph(), tmp_path / "none" / "g.npz")
    with pytest.raises(OutputError, match="it is a folder"):
        save(float_graph(), tmp_path)
    with pytest.raises(OutputError, match="not a regular file"):
        save(float_graph(), "/dev/null")
    with pytest.raises(OutputError, match="cannot write"):
        save(float_graph(), tmp_path / ("n" * 300))
    assert not list(tmp_path.iterdir())
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        save(float_graph(), tmp_path / "g.npz")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    save(float_graph(), tmp_path / "old.npz")
    before = (tmp_path / "old.npz").read_bytes()
    save(quantized_graph(), tmp_path / "new.npz")
    arguments = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path / "new.npz"), str(tmp_path / "old.npz")]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)
    assert f"cannot write {tmp_path / 'old.npz'}: File too large" in done.stdout, done.stderr
    assert (tmp_path / "old.npz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.npz", "old.npz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), MemoryError])
def test_an_interrupted_save_leaves_the_old_file(error, tmp_path, monkeypatch):
    save(float_graph(), tmp_path / "g.npz")
    before = (tmp_path / "g.npz").read_bytes()

    def interrupt(handle: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", interrupt)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else OutputError
    with pytest.raises(expected):
        save(quantized_graph(), tmp_path / "g.npz")
    assert (tmp_path / "g.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["g.npz"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "real" / "g.npz")
    save(float_graph(), tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert same_graph(load(tmp_path / "real" / "g.npz"), float_graph())


def test_a_loaded_graph_outlives_the_file_it_came_from(tmp_path):
    save(float_graph(), tmp_path / "g.npz")
    loaded = load(tmp_path / "g.npz")
    save(quantized_graph(), tmp_path / "g.npz")
    assert same_graph(loaded, float_graph())


def test_the_mode_is_that_of_any_new_file(tmp_path):
    save(float_graph(), tmp_path / "g.npz")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "g.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_arrays_that_are_no_model_get_a_hint(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(
        ModelError, match=r"data.npz: it is an .npz archive of arrays \('x', 'y'\), not a qtool model.*qtool import"
    ):
        load(tmp_path / "data.npz")
    assert not is_graph_file(tmp_path / "data.npz")
    assert not is_graph_file(tmp_path / "none.npz")


def test_is_graph_file(tmp_path):
    save(float_graph(), tmp_path / "g.npz")
    assert is_graph_file(tmp_path / "g.npz")
