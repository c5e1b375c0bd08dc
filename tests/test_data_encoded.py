"""Encoded pictures in an ``.npz`` file: the same inputs as from a folder, and an error for whatever is damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from data_samples import gathered, model

from qtool.errors import DataError
from qtool.quantize.data import open_data
from qtool.recipe.schema import DataConfig, Preprocess

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RNG = np.random.default_rng(0)
NET = model({"image": ("N", 3, 8, 8)})
PREPROCESS = Preprocess(crop=8, mean=(0.5,), std=(0.25,))
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def encoded(form: str = "JPEG") -> list[bytes]:
    made = []
    for width in (8, 9, 10, 11, 30):
        buffer = io.BytesIO()
        Image.fromarray(RNG.integers(0, 256, (8, width, 3), np.uint8)).save(buffer, form)
        made.append(buffer.getvalue())
    return made


FILES = encoded()
JPEG = np.frombuffer(b"".join(FILES), np.uint8)
OFFSETS = np.cumsum([0, *map(len, FILES)])


def opened(path: Path, save=np.savez, prefix: str = "", *, graph=NET, config: dict | None = None, **arrays: np.ndarray):
    save(path, **{prefix + name: array for name, array in {"jpeg": JPEG, "offsets": OFFSETS, **arrays}.items()})
    return open_data(DataConfig(path, **{"preprocess": PREPROCESS, **(config or {})}), graph)


def folder(path: Path, files: list[bytes], suffix: str):
    path.mkdir()
    for number, data in enumerate(files):
        (path / f"{number}.{suffix}").write_bytes(data)
    return open_data(DataConfig(path, preprocess=PREPROCESS), NET)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
def test_pictures_are_those_of_a_folder(form, tmp_path):
    files = encoded(form)
    data = opened(
        tmp_path / "d.npz",
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=LABELS,
    )
    feeds, labels = gathered(data)
    beside = folder(tmp_path / "d", files, form.lower())
    assert np.array_equal(feeds["image"], gathered(beside)[0]["image"])
    assert np.array_equal(labels, LABELS)
    assert (data.samples, data.classes) == (5, 10)
    assert data.fingerprint() == beside.fingerprint()


def test_bytes_around_the_pictures_are_left_out(tmp_path):
    around = np.concatenate([np.zeros(7, np.uint8), JPEG, np.zeros(9, np.uint8)])
    data = opened(tmp_path / "d.npz", jpeg=around, offsets=(OFFSETS + 7).astype(np.uint32))
    plain = opened(tmp_path / "e.npz")
    assert np.array_equal(gathered(data)[0]["image"], gathered(plain)[0]["image"])


def test_splits_and_chosen_samples(tmp_path):
    whole = gathered(opened(tmp_path / "d.npz"))[0]["image"]
    config = {"split": "test", "shuffle": 1, "samples": (1, 4)}
    data = opened(tmp_path / "e.npz", prefix="test_", config=config, y=LABELS)
    feeds, labels = gathered(data)
    chosen = list(data.numbers)
    assert np.array_equal(feeds["image"], whole[chosen])
    assert np.array_equal(labels, LABELS[chosen])
    with pytest.raises(DataError, match=r"there is no .*val_x"):
        open_data(DataConfig(tmp_path / "e.npz", "val", preprocess=PREPROCESS), NET)


def test_a_model_may_call_its_inputs_so(tmp_path):
    graph = model({"jpeg": ("N", 2), "offsets": ("N", 3)})
    arrays = {"jpeg": np.ones((4, 2), np.float32), "offsets": np.zeros((4, 3), np.float32)}
    assert opened(tmp_path / "d.npz", graph=graph, config={"preprocess": None}, **arrays).samples == 4


@pytest.mark.parametrize(
    ("message", "arrays"),
    [
        (r"runs from \d+ to \d+; expected increasing numbers", {"offsets": OFFSETS[[1, 0, 2, 3, 4, 5]]}),
        ("expected increasing numbers", {"offsets": OFFSETS[[0, 1, 1, 2]]}),
        ("runs from -1 to", {"offsets": OFFSETS - 1}),
        (f"to {len(JPEG) + 1}; expected increasing numbers within 0..{len(JPEG)}", {"offsets": OFFSETS + 1}),
        ("to 18446744073709551615; expected", {"offsets": np.array([0, 2**64 - 1], np.uint64)}),
        (r"'offsets' is float64 of shape \(6,\); expected n \+ 1 integers", {"offsets": OFFSETS / 1}),
        (r"'offsets' is int64 of shape \(1,\); expected n \+ 1 integers", {"offsets": OFFSETS[:1]}),
        (r"'offsets' is int64 of shape \(1, 6\)", {"offsets": OFFSETS[None]}),
        (r"'jpeg' is int8 of shape \(\d+,\); expected uint8 of one axis", {"jpeg": JPEG.view(np.int8)}),
        (r"'jpeg' is uint8 of shape \(1, \d+\); expected uint8 of one axis", {"jpeg": JPEG[None]}),
        ("'offsets' has 6 numbers; expected at most 4 for 3 bytes", {"jpeg": JPEG[:3]}),
        (r"'labels' has shape \(4,\); expected labels for 5 samples", {"labels": LABELS[:4]}),
        ("'labels' has label 10 at sample 0", {"labels": LABELS + 7}),
    ],
)
def test_members_that_do_not_fit(message, arrays, tmp_path):
    with pytest.raises(DataError, match=rf"d\.npz: .*{message}"):
        opened(tmp_path / "d.npz", **arrays)


def test_compressed_bytes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"'jpeg' is compressed, which pictures are already; save it with numpy\.savez"):
        opened(tmp_path / "d.npz", np.savez_compressed)


def damaged(number: int, data: bytes) -> np.ndarray:
    files = [*FILES[:number], data.ljust(len(FILES[number]), b"\0")[: len(FILES[number])], *FILES[number + 1 :]]
    return np.frombuffer(b"".join(files), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        b"\x89PNG\r\n\x1a\n",
        b"BM" + bytes(12) + b"\xff" * 40,
        FILES[2][:200],
        FILES[2][:20] + b"\xff" * 400,
    ],
)
def test_what_is_no_picture(data, tmp_path):
    made = opened(tmp_path / "d.npz", jpeg=damaged(2, data))
    with pytest.raises(DataError, match=r"d\.npz: 'jpeg', picture 2: it (is no image that can be|cannot be) read"):
        gathered(made)


def test_a_file_that_became_shorter(tmp_path):
    made = opened(tmp_path / "d.npz")
    (tmp_path / "d.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:400])
    with pytest.raises(DataError, match=r"d\.npz: 'jpeg', picture"):
        gathered(made)
