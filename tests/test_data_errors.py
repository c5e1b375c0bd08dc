"""Data that are missing, broken or do not fit the model: one DataError that says what, what was expected, and where."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import X, Y, folder_of, model, opened, saved
from ir_raw import Entry, deflated, npy, npy_text, raw_zip
from ir_samples import float_graph

from qtool.errors import DataError
from qtool.ir import DType
from qtool.ir.npz import save
from qtool.quantize.data import open_data
from qtool.recipe.schema import DataConfig

BAD = X.copy()
BAD[37, 0, 2, 1] = np.nan
ENDLESS = X.copy()
ENDLESS[3, 0, 0, 0] = -np.inf


def packed(name: str, data: bytes, **fields: int) -> bytes:
    """An archive of one compressed member."""
    body = deflated(data)
    return raw_zip(
        [Entry(name, body, method=8, size=fields.get("size", len(data)), crc=fields.get("crc", zlib.crc32(data)))]
    )


def wrote(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def made(path: Path) -> Path:
    path.mkdir()
    return path


def both_kinds(path: Path) -> Path:
    folder_of(path, x=X)
    return saved(path / "d.npz", x=X).parent


def some_labels(path: Path) -> Path:
    path.mkdir()
    saved(path / "a.npz", x=X, y=Y)
    return saved(path / "b.npz", x=X).parent


SPLITS = {"calib_x": X, "calib_y": Y, "test_x": X}
CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    # ------------------------------------------------------------------------------------------------- nothing there
    "no file": ("none.npz: there is no such file", lambda p: opened(p / "none.npz")),
    "no folder": ("none: there is no such file or folder", lambda p: opened(p / "none")),
    "another kind of file": ("d.csv: data are .npz or .npy", lambda p: opened(wrote(p / "d.csv", b"1,2"))),
    "an empty file": ("d.npz: it is empty", lambda p: opened(wrote(p / "d.npz", b""))),
    "an empty npy": ("d.npy: it is not a NumPy array", lambda p: opened(wrote(p / "d.npy", b""))),
    "an empty folder": ("there are no data: it holds no .npz or .npy", lambda p: opened(made(p / "d"))),
    "an empty folder for a split": ("there is no split 'test'", lambda p: opened(made(p / "d"), split="test")),
    "a folder of splits": (
        "it has the folders 'train': choose one with 'split:'",
        lambda p: opened(made(made(p / "d") / "train").parent),
    ),
    "only labels": ("nothing but labels", lambda p: opened(folder_of(p / "d", y=Y))),
    "no samples": ("'x' is empty: it has no samples", lambda p: opened(saved(p / "d.npz", x=X[:0]))),
    "no samples in a folder": ("is empty: it has no samples", lambda p: opened(folder_of(p / "d", a=X[:0], b=X[:0]))),
    "empty samples": (
        "is empty: it has shape",
        lambda p: opened(saved(p / "d.npz", x=np.zeros((3, 0), np.float32)), model({"i": ("N", "T")})),
    ),
    # --------------------------------------------------------------------------------------------- names and splits
    "no array of the name": (
        "d.npz: there is no 'image' or 'x'; the arrays are 'pictures', 'y'",
        lambda p: opened(saved(p / "d.npz", pictures=X, y=Y)),
    ),
    "no split chosen": (
        r"a split has to be chosen \('split:'\); the splits are 'calib', 'test'",
        lambda p: opened(saved(p / "d.npz", **SPLITS)),
    ),
    "no such split": (
        "there is no split 'train'; the splits are 'calib', 'test'",
        lambda p: opened(saved(p / "d.npz", **SPLITS), split="train"),
    ),
    "no splits at all": (
        "there is no 'test_image' or 'test_x'; the arrays are 'x', 'y'",
        lambda p: opened(saved(p / "d.npz", x=X, y=Y), split="test"),
    ),
    "no such split in a folder": (
        "there is no split 'train'; the splits are 'calib', 'test'",
        lambda p: opened(folder_of(p / "d", **SPLITS), split="train"),
    ),
    "a split of an npy": ("has no splits", lambda p: opened(folder_of(p / "d", x=X) / "x.npy", split="test")),
    "half of a split": (
        "there is no 'b_mask'",
        lambda p: opened(saved(p / "d.npz", b_ids=X), model({"ids": ("N",), "mask": ("N",)}), split="b"),
    ),
    "one file for two inputs": (
        "expected an .npz file with arrays of those names",
        lambda p: opened(folder_of(p / "d", a=X) / "a.npy", model({"a": ("N",), "b": ("N",)})),
    ),
    "both kinds of files": ("both .npz and .npy", lambda p: opened(both_kinds(p / "d"))),
    "a model": ("this is a qtool model, not data", lambda p: (save(float_graph(), p / "d.npz"), opened(p / "d.npz"))),
    # --------------------------------------------------------------------------------------------- shapes and types
    "another shape": (
        r"'x' has shape \(50, 4, 4, 1\); expected float32 of shape \(N, 1, 4, 4\) for the model's input 'image'",
        lambda p: opened(saved(p / "d.npz", x=X.transpose(0, 2, 3, 1))),
    ),
    "another rank": (r"has shape \(50, 16\)", lambda p: opened(saved(p / "d.npz", x=X.reshape(50, 16)))),
    "a single number": (r"has shape \(\)", lambda p: opened(saved(p / "d.npz", x=np.float32(1)))),
    "float64": ("dtype float64; expected float32 .*astype", lambda p: opened(saved(p / "d.npz", x=X.astype(float)))),
    "uint8": ("dtype uint8; expected float32", lambda p: opened(saved(p / "d.npz", x=X.astype(np.uint8)))),
    "int32 ids": (
        "dtype int32; expected int64",
        lambda p: opened(saved(p / "d.npz", x=np.zeros((2, 3), np.int32)), model({"i": ("N", 3)}, dtype=DType.INT64)),
    ),
    "objects": ("pickled", lambda p: opened(saved(p / "d.npz", x=np.array([{}, []], object)))),
    "text": ("element type", lambda p: opened(saved(p / "d.npz", x=np.array(["a"])))),
    "big-endian": ("d.npz: 'x': member 'x.npy' is big-endian", lambda p: opened(saved(p / "d.npz", x=X.astype(">f4")))),
    "pieces of two shapes": (
        r"b.npy has samples of float32 \(1, 4, 5\); expected float32 \(1, 4, 4\) as in .*a.npy",
        lambda p: opened(folder_of(p / "d", a=X, b=np.zeros((3, 1, 4, 5), np.float32))),
    ),
    "inputs of two lengths": (
        "'b' has 4 samples and .*'a' has 50",
        lambda p: opened(saved(p / "d.npz", a=X, b=X[:4]), model({"a": ("N", 1, 4, 4), "b": ("N", 1, 4, 4)})),
    ),
    "inputs of two widths": (
        "'b' has T = 5 where .*'a' has 4",
        lambda p: opened(
            saved(p / "d.npz", a=np.ones((2, 4), np.float32), b=np.ones((2, 5), np.float32)),
            model({"a": ("N", "T"), "b": ("N", "T")}),
        ),
    ),
    "an input without a batch": ("no batch axis", lambda p: opened(saved(p / "d.npz", x=X), model({"i": ()}))),
    # ------------------------------------------------------------------------------------------------------- values
    "NaN": ("'x' has nan in sample 37; expected finite", lambda p: list(opened(saved(p / "d.npz", x=BAD)).batches())),
    "NaN when compressed": (
        "'x' has nan in sample 37",
        lambda p: list(opened(saved(p / "d.npz", np.savez_compressed, x=BAD), batch_size=1).batches()),
    ),
    "infinity": ("has -inf in sample 3", lambda p: list(opened(saved(p / "d.npz", x=ENDLESS)).batches())),
    "NaN in the hash": ("nan in sample 37", lambda p: opened(saved(p / "d.npz", x=BAD)).fingerprint()),
    # ------------------------------------------------------------------------------------------------------- labels
    "fewer labels": (
        r"'y' has shape \(49,\); expected labels for 50",
        lambda p: opened(saved(p / "d.npz", x=X, y=Y[:49])),
    ),
    "one label": (r"has shape \(\)", lambda p: opened(saved(p / "d.npz", x=X, y=np.int64(1)))),
    "a column of labels": (
        r"has shape \(50, 1\); expected class numbers of shape \(N\) for the model's output 'out' of shape \(N, 10\)",
        lambda p: opened(saved(p / "d.npz", x=X, y=Y[:, None])),
    ),
    "a label too high": (
        "'y' has label 10 at sample 8; expected 0..9, as the model has 10 classes",
        lambda p: opened(saved(p / "d.npz", x=X, y=np.where(np.arange(50) == 8, 10, 0))),
    ),
    "a label below zero": ("has label -1", lambda p: opened(saved(p / "d.npz", x=X, y=Y - Y.min() - 1))),
    "a huge label": ("has label 1844", lambda p: opened(saved(p / "d.npz", x=X, y=np.full(50, 2**64 - 1, np.uint64)))),
    "labels of text": ("element type", lambda p: opened(saved(p / "d.npz", x=X, y=np.array(["cat"] * 50)))),
    "labels of bools": ("expected class numbers or", lambda p: opened(saved(p / "d.npz", x=X, y=Y > 5))),
    "targets of another shape": (
        r"expected targets of shape \(N, 10\)",
        lambda p: opened(saved(p / "d.npz", x=X, y=np.zeros((50, 9)))),
    ),
    "targets of NaN": ("has nan in sample 0", lambda p: opened(saved(p / "d.npz", x=X, y=np.full((50, 10), np.nan)))),
    "labels in some files": ("b.npz.*has no labels", lambda p: opened(some_labels(p / "d"))),
    # ------------------------------------------------------------------------------------------------- broken files
    "no archive": ("not a zip archive", lambda p: opened(wrote(p / "d.npz", b"hello world"))),
    "an archive cut off": (
        "cut off or has something behind it",
        lambda p: opened(wrote(p / "d.npz", saved(p / "e.npz", x=X).read_bytes()[:-30])),
    ),
    "an npy cut off": (
        "bytes of elements; expected 3200 .*cut off",
        lambda p: opened(wrote(p / "d.npy", npy(X)[:-1])),
    ),
    "an npy of one exabyte": (
        "more than",
        lambda p: opened(
            wrote(p / "d.npy", npy_text("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999,), }"))
        ),
    ),
    "damaged compression": (
        "'x': it cannot be read",
        lambda p: list(opened(wrote(p / "d.npz", packed("x.npy", npy(X), crc=1))).batches()),
    ),
    "compression that ends early": (
        "expected|ends before|cannot be read",
        lambda p: list(opened(wrote(p / "d.npz", packed("x.npy", npy(X)[:-64], size=len(npy(X))))).batches()),
    ),
    "a bomb": (
        "bytes of elements; expected 3200",
        lambda p: opened(wrote(p / "d.npz", packed("x.npy", npy(X) + bytes(100 << 20)))),
    ),
    "encryption": ("encrypted", lambda p: opened(wrote(p / "d.npz", raw_zip([Entry("x.npy", npy(X), flags=1)])))),
    "an unknown method": (
        "compressed in another way",
        lambda p: opened(wrote(p / "d.npz", raw_zip([Entry("x.npy", npy(X), method=93)]))),
    ),
    "Fortran order, compressed": (
        "in Fortran order; save numpy.ascontiguousarray",
        lambda p: opened(saved(p / "d.npz", np.savez_compressed, x=np.asfortranarray(X))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_data_that_are_unfit(case, tmp_path):
    match, use = CASES[case]
    with pytest.raises(DataError, match=match) as caught:
        use(tmp_path)
    assert str(tmp_path) in str(caught.value) or "batch axis" in match
    assert len(str(caught.value)) < 700 + 2 * len(str(tmp_path))


def test_labels_beyond_the_limit_are_not_looked_at(tmp_path):
    labels = np.where(np.arange(50) == 40, 99, 0)
    saved(tmp_path / "d.npz", x=X, y=labels)
    assert opened(tmp_path / "d.npz", batch_size=8, batches=5).samples == 40
    with pytest.raises(DataError, match="has label 99 at sample 40"):
        opened(tmp_path / "d.npz", batch_size=8, batches=6)


def test_a_file_that_shrinks_is_noticed(tmp_path):
    np.save(tmp_path / "d.npy", X)
    data = opened(tmp_path / "d.npy")
    (tmp_path / "d.npy").write_bytes(b"")
    with pytest.raises(DataError, match="has become shorter"):
        list(data.batches())


def test_other_arrays_of_a_file_do_not_matter(tmp_path):
    saved(tmp_path / "d.npz", x=X, names=np.array(["a", None], object))
    assert opened(tmp_path / "d.npz").samples == 50


def test_messages_escape_what_files_hold(tmp_path):
    (tmp_path / "d.npz").write_bytes(raw_zip([Entry("\x1b[31m.npy", npy(X))]))
    with pytest.raises(DataError, match=r"the arrays are '\\x1b") as caught:
        opened(tmp_path / "d.npz")
    assert str(caught.value).isprintable()


def test_a_model_without_inputs(tmp_path):
    graph = model()
    saved(tmp_path / "d.npz", x=X)
    empty = type(graph)("m", (), ("out",), (), {"out": graph.values["out"]}, {})
    with pytest.raises(DataError, match="no inputs"):
        open_data(DataConfig(tmp_path / "d.npz"), empty)
