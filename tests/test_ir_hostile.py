"""Hostile and broken model files: each gives a ModelError, in bounded time and memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import ir_hostile_arrays
import ir_hostile_json
import ir_hostile_zip
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ir_hostile import FILES, Members, repacked
from ir_raw import entries_of, graph_member, graph_of, members_of, npy_text, raw_zip
from ir_samples import float_graph, quantized_graph, same_graph

from qtool.errors import ModelError
from qtool.ir.npz import load, save
from qtool.ir.verify import verify

MAKERS = (ir_hostile_zip, ir_hostile_arrays, ir_hostile_json)
MEMORY = 16 << 20
"""What any refusal may take, beside a few copies of the file itself."""

LIMITED = """
    import resource, sys
    from qtool.errors import ModelError
    from qtool.ir.npz import load
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    try:
        load(sys.argv[1])
    except ModelError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Members:
    path = tmp_path_factory.mktemp("good") / "g.npz"
    save(quantized_graph(), path)
    return members_of(path)


def test_the_good_file_is_good(good, tmp_path):
    (tmp_path / "g.npz").write_bytes(repacked(good))
    assert same_graph(load(tmp_path / "g.npz"), quantized_graph())


def test_there_are_enough_hostile_files():
    assert len(FILES) >= 100
    assert len({match for match, _ in FILES.values()}) >= 60


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused(name, good, tmp_path):
    match, make = FILES[name]
    path = tmp_path / "hostile.npz"
    path.write_bytes(make(good))
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=match) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    assert len(text) < 600
    assert peak < MEMORY + 5 * path.stat().st_size


def limited(path: Path) -> str:
    """The error of a load that may use 60 seconds of CPU and 2 GiB of address space, whatever it is given."""
    arguments = [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_most_that_is_parsed_fits_in_memory(good, tmp_path):
    """Just below every bound: the worst JSON for its size, which is only refused once it is there."""
    nodes = b'{"nodes":[' + b"{}," * 1_300_000 + b"{}]}"
    (tmp_path / "g.npz").write_bytes(repacked(good, graph=graph_member(nodes)))
    assert "has no 'schema'" in limited(tmp_path / "g.npz")


def test_channels_that_expand_are_bounded(good, tmp_path):
    """Each value asks for a million zero points with one number."""
    document = graph_of(good)
    qvalue = {"dtype": "int8", "shape": [1_000_000], "axis": 0, "scale": [0, 1_000_000], "zero_point": 0}
    document["values"].update({f"v{i}": qvalue for i in range(100_000)})
    scales = npy_text(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000,), }", np.ones(1_000_000, "<f4").tobytes()
    )
    (tmp_path / "g.npz").write_bytes(repacked(good, graph=graph_member(document), scales=scales))
    assert "quantization parameters; at most 16000000 are read" in limited(tmp_path / "g.npz")


def test_a_sparse_file_of_terabytes(good, tmp_path):
    with open(tmp_path / "g.npz", "wb") as file:
        file.write(b"PK\3\4")
        try:
            os.truncate(file.fileno(), 1 << 42)
        except OSError as error:
            pytest.skip(f"this file system holds no file of 4 TiB: {error}")
    assert "bytes; at most" in limited(tmp_path / "g.npz")


def test_long_lists_are_cut_in_messages(good, tmp_path):
    document = graph_of(good)
    document["outputs"] = ["b"] * 100_000
    (tmp_path / "g.npz").write_bytes(repacked(good, graph=graph_member(document)))
    with pytest.raises(ModelError, match="lists an output twice") as caught:
        load(tmp_path / "g.npz")
    assert len(str(caught.value)) < 400


def test_what_is_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"none.npz: there is no such file"):
        load(tmp_path / "none.npz")
    with pytest.raises(ModelError, match="it is a folder or a device"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="it is a folder or a device"):
        load(tmp_path / "pipe")
    with pytest.raises(ModelError, match="it is a folder or a device"):
        load("/dev/zero")


def test_a_bool_is_0_or_1(tmp_path):
    save(float_graph(), tmp_path / "g.npz")
    members = members_of(tmp_path / "g.npz")
    members["mask.npy"] = members["mask.npy"][:-1] + b"\x07"
    (tmp_path / "g.npz").write_bytes(raw_zip(entries_of(members)))
    with pytest.raises(ModelError, match="bytes other than 0 and 1"):
        load(tmp_path / "g.npz")


def test_check_sums_can_be_left_out(good, tmp_path):
    (tmp_path / "g.npz").write_bytes(FILES["a damaged weight"][1](good))
    assert load(tmp_path / "g.npz", check_sums=False).name == "q"
    (tmp_path / "g.npz").write_bytes(FILES["a damaged graph"][1](good))
    with pytest.raises(ModelError, match="is damaged"):
        load(tmp_path / "g.npz", check_sums=False)


# ------------------------------------------------------------------------------------------------------- the fuzzer


def loads_soundly(path: Path) -> bool:
    """Whether the file loads; ModelError counts as no, and anything else fails the test."""
    try:
        graph = load(path)
    except ModelError:
        return False
    verify(graph)
    save(graph, path)
    assert same_graph(load(path), graph) or has_nan_attr(graph)
    return True


def has_nan_attr(graph) -> bool:
    return "nan" in repr([node.attrs for node in graph.nodes])


FUZZ = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(data=st.data())
def test_flipped_bytes(data, good, tmp_path):
    whole = bytearray(repacked(good))
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=8)):
        whole[position] = data.draw(st.integers(0, 255))
    (tmp_path / "g.npz").write_bytes(whole)
    loads_soundly(tmp_path / "g.npz")


@FUZZ
@given(data=st.data())
def test_cut_and_spliced_files(data, good, tmp_path):
    whole = repacked(good)
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(0, len(whole)))
    path = tmp_path / "g.npz"
    path.write_bytes(whole[:begin] + data.draw(st.binary(max_size=30)) + whole[end:])
    loads_soundly(path)


@FUZZ
@given(data=st.data())
def test_flipped_bytes_under_a_right_check_sum(data, good, tmp_path):
    members = dict(good)
    name = data.draw(st.sampled_from(sorted(members)))
    body = bytearray(members[name])
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    members[name] = bytes(body)
    (tmp_path / "g.npz").write_bytes(raw_zip(entries_of(members)))
    loads_soundly(tmp_path / "g.npz")


@FUZZ
@given(data=st.data())
def test_members_swapped_renamed_and_dropped(data, good, tmp_path):
    names, bodies = list(good), list(good.values())
    for _ in range(data.draw(st.integers(1, 3))):
        a, b = (data.draw(st.integers(0, len(names) - 1)) for _ in range(2))
        match data.draw(st.sampled_from(["swap", "order", "rename", "drop"])):
            case "swap":
                bodies[a], bodies[b] = bodies[b], bodies[a]
            case "order":
                names[a], names[b], bodies[a], bodies[b] = names[b], names[a], bodies[b], bodies[a]
            case "rename":
                names[a] = (
                    data.draw(st.one_of(st.sampled_from(names), st.text(max_size=8)))
                    .encode("utf-8", "replace")
                    .decode()
                )
            case "drop":
                bodies[a] = b""
    members = [entry for entry in map(lambda n, b: (n, b), names, bodies) if entry[1]]
    (tmp_path / "g.npz").write_bytes(raw_zip([e for n, b in members for e in entries_of({n: b})]))
    loads_soundly(tmp_path / "g.npz")


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, 1, -1, 5, 10, 2**31, 2**63 - 1, -(2**63), 2**64, 0.5, 1e308, float("inf"), float("nan")]),
        st.sampled_from(
            ["x", "x.q", "a.q", "a.weight.q", "b", "", "N", "float32", "int8", "conv2d", "fbgemm", "\ud800"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "x", "float", "scale"]), inner, max_size=2)
    ),
    max_leaves=6,
)


def places(value: object) -> list[tuple[object, object]]:
    """Every (container, key) of a JSON document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


@settings(FUZZ, max_examples=600)
@given(data=st.data())
def test_edited_json(data, good, tmp_path):
    document = graph_of(good)
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(document)
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        match data.draw(st.sampled_from(["replace", "replace", "drop", "copy", "shuffle"])):
            case "replace":
                container[key] = data.draw(json_values)
            case "drop":
                del container[key]
            case "copy":
                other, other_key = found[data.draw(st.integers(0, len(found) - 1))]
                container[key] = other[other_key] if other[other_key] is not container else None
            case "shuffle":
                if isinstance(container[key], list):
                    random.Random(data.draw(st.integers(0, 9))).shuffle(container[key])
        document = graph_of({"@graph.npy": graph_member(document)}) if is_json(document) else graph_of(good)
    (tmp_path / "g.npz").write_bytes(repacked(good, graph=graph_member(document)))
    loads_soundly(tmp_path / "g.npz")


def is_json(document: object) -> bool:
    """A copy may have put a container inside itself."""
    try:
        graph_member(document)
    except (ValueError, RecursionError):
        return False
    return True
