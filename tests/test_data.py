"""Data as a stream: every layout gives the same samples, little is held, and what does not fit is named."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_samples import X, Y, folder_of, gathered, model, opened, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ir_raw import Entry, npy_text, raw_zip

from qtool.errors import DataError
from qtool.ir import DType
from qtool.quantize.data import fingerprint, open_data
from qtool.recipe.schema import DataConfig


def archives_of(path: Path) -> Path:
    path.mkdir()
    for index, begin in enumerate(range(0, 50, 20)):
        save_as = np.savez if index % 2 else np.savez_compressed
        save_as(path / f"{index}.npz", x=X[begin : begin + 20], y=Y[begin : begin + 20])
    return path


LAYOUTS = {
    "npz": lambda p: opened(saved(p / "d.npz", x=X, y=Y)),
    "npz by input name": lambda p: opened(saved(p / "d.npz", image=X, labels=Y)),
    "npz compressed": lambda p: opened(saved(p / "d.npz", np.savez_compressed, x=X, y=Y)),
    "npz with splits": lambda p: opened(saved(p / "d.npz", calib_x=X[:9], test_x=X, test_y=Y), split="test"),
    "npz in Fortran order": lambda p: opened(saved(p / "d.npz", x=np.asfortranarray(X), y=Y)),
    "npz of small labels": lambda p: opened(saved(p / "d.npz", x=X, y=Y.astype(np.uint8))),
    "folder of npy": lambda p: opened(folder_of(p / "d", x=X, y=Y)),
    "folder of npy by input name": lambda p: opened(folder_of(p / "d", image=X, labels=Y)),
    "folder of npy with splits": lambda p: opened(folder_of(p / "d", a_x=X[:3], a_y=Y[:3], b_x=X, b_y=Y), split="b"),
    "folder of pieces": lambda p: opened(folder_of(p / "d", a1=X[:20], a2=X[20:21], b=X[21:], y=Y)),
    "folder of samples": lambda p: opened(folder_of(p / "d", y=Y, **{f"img{i:02}": x for i, x in enumerate(X)})),
    "folder of archives": lambda p: opened(archives_of(p / "d")),
    "sub-folder for a split": lambda p: opened(archives_of(p / "test").parent, split="test"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(layout, tmp_path):
    data = LAYOUTS[layout](tmp_path)
    feeds, labels = gathered(data)
    assert list(feeds) == ["image"]
    assert np.array_equal(feeds["image"], X)
    assert np.array_equal(labels, Y)
    assert labels.dtype == np.int64
    assert data.classes == 10
    assert data.samples == 50
    assert data.fingerprint() == fingerprint([{"image": X}])
    assert np.array_equal(gathered(data)[0]["image"], X), "a second pass begins at the start again"


def test_one_npy_file(tmp_path):
    np.save(tmp_path / "d.npy", X)
    data = opened(tmp_path / "d.npy")
    feeds, labels = gathered(data)
    assert np.array_equal(feeds["image"], X)
    assert labels is None
    with pytest.raises(DataError, match=r"d.npy: top1 needs labels"):
        data.require_labels("top1")


def test_several_inputs_are_found_by_name(tmp_path):
    graph = model({"ids": ("N", "T"), "mask": ("N", "T")}, dtype=DType.INT64)
    ids = np.arange(24).reshape(6, 4)
    saved(tmp_path / "d.npz", calib_ids=ids, calib_mask=ids % 2, other=ids)
    feeds, labels = gathered(opened(tmp_path / "d.npz", graph, split="calib", batch_size=4))
    assert np.array_equal(feeds["ids"], ids)
    assert np.array_equal(feeds["mask"], ids % 2)
    assert labels is None


def test_an_input_called_y_is_no_label(tmp_path):
    graph = model({"x": ("N", 3), "y": ("N", 3)})
    saved(tmp_path / "d.npz", x=np.ones((2, 3), np.float32), y=np.zeros((2, 3), np.float32))
    feeds, labels = gathered(opened(tmp_path / "d.npz", graph))
    assert feeds["y"].sum() == 0
    assert labels is None


def test_float_targets(tmp_path):
    graph = model(output=("N", 1, 4, 4))
    saved(tmp_path / "d.npz", x=X, y=X * 2)
    _, targets = gathered(opened(tmp_path / "d.npz", graph))
    assert targets.dtype == np.float32
    assert np.array_equal(targets, X * 2)


def test_labels_of_every_step(tmp_path):
    graph = model({"ids": ("N", "T")}, output=("N", "T", 5), dtype=DType.INT64)
    ids = np.zeros((3, 4), np.int64)
    assert opened(saved(tmp_path / "d.npz", x=ids, y=ids + 4), graph).classes == 5
    with pytest.raises(DataError, match=r"has label 5 at sample 2; expected 0..4"):
        opened(saved(tmp_path / "d.npz", x=ids, y=ids + np.array([[0], [0], [5]])), graph)


# --------------------------------------------------------------------------------------------------- batches and limits


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(["npz", "npz compressed", "folder of pieces", "folder of archives"]),
    size=st.integers(1, 60),
    batches=st.one_of(st.none(), st.integers(1, 60)),
)
def test_batches_are_cut_as_asked(layout, size, batches, tmp_path_factory):
    made = LAYOUTS[layout](tmp_path_factory.mktemp("d"))
    data = open_data(DataConfig(made.path, batch_size=size, batches=batches), model())
    sizes = [len(feeds["image"]) for feeds, _ in data.batches()]
    used = min(50, size * (batches or 50))
    assert sizes == [size] * (used // size) + [used % size] * (used % size > 0)
    assert len(data) == len(sizes)
    assert data.samples == used
    feeds, labels = gathered(data)
    assert np.array_equal(feeds["image"], X[:used])
    assert np.array_equal(labels, Y[:used])
    assert data.fingerprint() == fingerprint([{"image": X[:used]}])


def test_a_model_of_a_fixed_batch_sets_the_size(tmp_path):
    np.save(tmp_path / "d.npy", X)
    graph = model({"image": (5, 1, 4, 4)}, (5, 10))
    assert [len(feeds["image"]) for feeds in opened(tmp_path / "d.npy", graph).feeds()] == [5] * 10
    with pytest.raises(DataError, match=r"batches of exactly 7 .* set 'batches: 7'"):
        opened(tmp_path / "d.npy", model({"image": (7, 1, 4, 4)}))
    assert opened(tmp_path / "d.npy", model({"image": (7, 1, 4, 4)}), batches=7).samples == 49
    with pytest.raises(DataError, match="batches of 64 samples, and there are 50"):
        opened(tmp_path / "d.npy", model({"image": (64, 1, 4, 4)}))


@pytest.mark.parametrize("limits", [{"batch_size": 0}, {"batch_size": -3}, {"batches": 0}, {"batches": -1}])
def test_limits_below_one(limits, tmp_path):
    np.save(tmp_path / "d.npy", X)
    with pytest.raises(DataError, match="expected at least 1"):
        opened(tmp_path / "d.npy", **limits)


@pytest.mark.parametrize("kind", ["mapped", "compressed", "npy"])
def test_a_large_file_is_never_loaded(kind, tmp_path):
    large = np.zeros((4000, 1, 64, 64), np.float32)  # 64 MB
    path = tmp_path / ("d.npy" if kind == "npy" else "d.npz")
    if kind == "npy":
        np.save(path, large)
    else:
        (np.savez if kind == "mapped" else np.savez_compressed)(path, x=large)
    del large
    tracemalloc.start()
    try:
        data = opened(path, model({"image": ("N", 1, 64, 64)}), batch_size=16)
        assert sum(len(feeds["image"]) for feeds in data.feeds()) == 4000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20


def test_plain_arrays_are_mapped(tmp_path):
    np.save(tmp_path / "d.npy", X)
    (feeds,) = opened(tmp_path / "d.npy", batch_size=64).feeds()
    assert not feeds["image"].flags.owndata
    assert not feeds["image"].flags.writeable
    assert type(feeds["image"]) is np.ndarray


def test_batches_are_aligned_and_contiguous(tmp_path):
    # The header of one member is 4 bytes longer than NumPy would make it.
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (50, 1, 4, 4), }   "
    (tmp_path / "d.npz").write_bytes(raw_zip([Entry("x.npy", npy_text(text, X.tobytes()))]))
    for feeds in opened(tmp_path / "d.npz").feeds():
        assert feeds["image"].flags.aligned
        assert feeds["image"].flags.c_contiguous


def test_many_files_are_not_all_open_at_once(tmp_path):
    resource = pytest.importorskip("resource")
    folder_of(tmp_path / "d", **{f"img{i:03}": X[0] for i in range(300)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        assert sum(len(feeds["image"]) for feeds in opened(tmp_path / "d").feeds()) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------------------------------------------------- the hash


def test_the_hash_is_what_it_says():
    inner = hashlib.sha256(b"float32(1, 4, 4);" + X.tobytes()).hexdigest()
    assert fingerprint([{"image": X}]) == hashlib.sha256(f"50;image={inner};".encode()).hexdigest()


def test_the_hash_sees_every_difference():
    swapped = X.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    nudged = X.copy()
    nudged[49, 0, 3, 3] += 1e-6
    others = [
        [{"image": swapped}],
        [{"image": nudged}],
        [{"other": X}],
        [{"image": X[:49]}],
        [{"image": X.reshape(50, 16)}],
        [{"image": X.view(np.int32)}],
        [{"image": X, "more": X}],
        [{"a": X, "b": nudged}],
        [{"a": nudged, "b": X}],
        [],
    ]
    hashes = {fingerprint(other) for other in others}
    assert len(hashes) == len(others)
    assert fingerprint([{"image": X}]) not in hashes


@given(st.lists(st.integers(0, 50), max_size=6))
def test_the_hash_does_not_see_batches(cuts):
    edges = [0, *sorted(cuts), 50]
    batches = [{"image": X[a:b]} for a, b in zip(edges, edges[1:], strict=False) if a < b]  # noqa: RUF007
    assert fingerprint(batches) == fingerprint([{"image": np.asfortranarray(X)}])
