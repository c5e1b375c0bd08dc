"""Folders of pictures: prepared as torchvision prepares them, and named when they do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from data_samples import folder_of, gathered, model

from qtool.errors import DataError, MissingExtraError
from qtool.ir import DType
from qtool.quantize.data import open_data
from qtool.recipe.schema import Colour, DataConfig, Layout, Preprocess

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

RNG = np.random.default_rng(0)
NET = model({"image": ("N", 3, 8, 8)})
ANY_SIZE = model({"image": ("N", 3, "H", "W")})
PLAIN = Preprocess()
SIZES = ((8, 8), (10, 8), (9, 14), (31, 17))
"""Width and height."""


def pictures(folder: Path, sizes=SIZES, suffix: str = ".png", mode: str = "RGB") -> list[np.ndarray]:
    folder.mkdir()
    made = []
    for index, (width, height) in enumerate(sizes):
        pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{index}{suffix}")
        made.append(pixels)
    return made


def opened(folder: Path, graph=NET, preprocess: Preprocess | None = PLAIN, **config: object):
    return open_data(DataConfig(folder, preprocess=preprocess, **config), graph)


def test_values_are_scaled_and_channels_come_first(tmp_path):
    (pixels,) = pictures(tmp_path / "d", SIZES[:1])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    feeds, labels = gathered(opened(tmp_path / "d", preprocess=Preprocess(mean=mean, std=std)))
    expected = (pixels.astype(np.float64) / 255 - mean) / std
    assert labels is None
    assert feeds["image"].dtype == np.float32
    assert np.allclose(feeds["image"][0], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


def test_the_centre_is_cropped(tmp_path):
    made = pictures(tmp_path / "d")
    feeds, _ = gathered(opened(tmp_path / "d", preprocess=Preprocess(crop=8), batch_size=3))
    # Half pixels go to the even side: 1/2 -> 0, 3 -> 3, 9/2 -> 4, 23/2 -> 12.
    corners = [(0, 0), (0, 1), (3, 0), (4, 12)]
    for got, pixels, (top, left) in zip(feeds["image"], made, corners, strict=True):
        assert np.array_equal(np.rint(got * 255).transpose(1, 2, 0), pixels[top : top + 8, left : left + 8])


@pytest.mark.parametrize(("size", "resized"), [((20, 30), (10, 15)), ((31, 17), (18, 10)), ((10, 10), (10, 10))])
def test_the_short_side_is_resized(size, resized, tmp_path):
    pictures(tmp_path / "d", [size])
    width, height = resized
    graph = model({"image": ("N", 3, height, width)})
    feeds, _ = gathered(opened(tmp_path / "d", graph, Preprocess(resize=10)))
    with Image.open(tmp_path / "d" / "0.png") as picture:
        expected = np.asarray(picture.resize(resized, Image.Resampling.BILINEAR), np.float32) / 255
    assert np.array_equal(feeds["image"][0], expected.transpose(2, 0, 1))


def test_an_exact_size_keeps_no_aspect(tmp_path):
    pictures(tmp_path / "d", [(31, 17), (8, 12)])
    feeds, _ = gathered(opened(tmp_path / "d", ANY_SIZE, Preprocess((12, 8))))
    assert feeds["image"].shape == (2, 3, 12, 8)
    with Image.open(tmp_path / "d" / "0.png") as picture:
        expected = np.asarray(picture.resize((8, 12), Image.Resampling.BILINEAR), np.float32) / 255
    assert np.array_equal(feeds["image"][0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("colour", Colour)
@pytest.mark.parametrize("span", [(0, 1), (0, 255), (-1, 1)])
def test_colours_ranges_and_layouts(span, colour, layout, tmp_path):
    (pixels,) = pictures(tmp_path / "d", SIZES[:1])
    channels = {"rgb": pixels, "bgr": pixels[:, :, ::-1]}.get(colour.value)
    if channels is None:
        # Rec. 601 luma, in Pillow's fixed point.
        channels = (pixels @ np.array([19595, 38470, 7471]) + 0x8000 >> 16)[:, :, None]
    mean = (0.1, 0.2, 0.3)[: channels.shape[2]]
    shape = ("N", 8, 8, channels.shape[2]) if layout is Layout.NHWC else ("N", channels.shape[2], 8, 8)
    preprocess = Preprocess(mean=mean, std=(2.0,), colour=colour, range=span, layout=layout)
    feeds, _ = gathered(opened(tmp_path / "d", model({"image": shape}), preprocess))
    expected = (np.interp(channels, (0, 255), span) - mean) / 2
    got = feeds["image"][0] if layout is Layout.NHWC else feeds["image"][0].transpose(1, 2, 0)
    assert feeds["image"].flags.c_contiguous
    assert np.allclose(got, expected, rtol=0, atol=2e-7 * (span[1] - span[0]))


@pytest.mark.parametrize("layout", Layout)
def test_pictures_of_any_size_come_one_by_one(layout, tmp_path):
    made = pictures(tmp_path / "d")
    graph = ANY_SIZE if layout is Layout.NCHW else model({"image": ("N", "H", "W", 3)})
    data = opened(tmp_path / "d", graph, Preprocess(layout=layout), batches=3)
    found = [feeds["image"] for feeds in data.feeds()]
    assert (len(data), data.samples, data.batch_size) == (3, 3, 1)
    for got, pixels in zip(found, made, strict=False):
        plain = pixels if layout is Layout.NHWC else pixels.transpose(2, 0, 1)
        assert np.array_equal(got, plain[None] / np.float32(255))
    assert len(data.fingerprint()) == 64
    assert data.fingerprint() != opened(tmp_path / "d", graph, Preprocess(layout=layout)).fingerprint()


def test_more_than_8_bits_are_refused(tmp_path):
    (tmp_path / "d").mkdir()
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "d" / "0.png")
    with pytest.raises(DataError, match=r"0\.png: it has more than 8 bits a channel"):
        gathered(opened(tmp_path / "d"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_kinds_of_pictures_become_rgb(mode, tmp_path):
    pictures(tmp_path / "d", SIZES[:1], ".jpg" if mode == "CMYK" else ".png", mode)
    feeds, _ = gathered(opened(tmp_path / "d"))
    assert feeds["image"].shape == (1, 3, 8, 8)


def test_labels_are_matched_by_file_name(tmp_path):
    pictures(tmp_path / "d", [(8, 8)] * 4)
    (tmp_path / "labels.csv").write_text("file,class\n3.png,7\n0.png,1\n2.png,0\n1.png,9\nother.png,5\n")
    data = opened(tmp_path / "d", labels=tmp_path / "labels.csv")
    assert gathered(data)[1].tolist() == [1, 9, 0, 7]
    assert data.classes == 10


def test_a_split_is_a_folder(tmp_path):
    (tmp_path / "d").mkdir()
    pictures(tmp_path / "d" / "test", [(8, 8)] * 2)
    assert opened(tmp_path / "d", split="test").samples == 2
    with pytest.raises(DataError, match=r"no split 'val'.*folders 'test'"):
        opened(tmp_path / "d", split="val")
    with pytest.raises(DataError, match="no split 'val'"):
        opened(tmp_path / "d" / "test", split="val")


def test_arrays_come_before_pictures(tmp_path):
    folder_of(tmp_path / "d", x=np.zeros((5, 3, 8, 8), np.float32))
    Image.new("RGB", (8, 8)).save(tmp_path / "d" / "preview.png")
    assert opened(tmp_path / "d", preprocess=None).samples == 5
    with pytest.raises(DataError, match="'preprocess' is for images, and these data are arrays"):
        opened(tmp_path / "d")
    with pytest.raises(DataError, match="'labels' is for images"):
        opened(tmp_path / "d", preprocess=None, labels=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("match", "graph", "preprocess"),
    [
        ("images need 'preprocess:", NET, None),
        (r"1.png: the image is 8x10 \(height x width\) after preprocessing; expected 8x8", NET, PLAIN),
        (
            r"0.png: the image is 8x8 \(height x width\), too small for 'crop: 9'",
            ANY_SIZE,
            Preprocess(crop=9),
        ),
        ("'crop: 9' does not fit the model, which takes 8x8", NET, Preprocess(crop=9)),
        (r"'resize: \[8, 9\]' does not fit the model, which takes 8x8", NET, Preprocess((8, 9))),
        (r"0.png: the image is 8x8 .* expected anyx9", model({"i": ("N", 3, "H", 9)}), PLAIN),
        (r"one input of shape \(N, 3, H, W\).*; set 'colour: gray'", model({"i": ("N", 1, 8, 8)}), PLAIN),
        (r"one input of shape \(N, 1, H, W\).*; set 'colour: rgb'", NET, Preprocess(colour=Colour.GRAY)),
        (r"one input of shape \(N, 3, H, W\).*; set 'layout: nhwc'", model({"i": ("N", 8, 8, 3)}), PLAIN),
        (r"one input of shape \(N, H, W, 3\).*; set 'layout: nchw'", NET, Preprocess(layout=Layout.NHWC)),
        (r"one input of shape \(N, 3, H, W\); the model has 'i' .*5, 8\)$", model({"i": ("N", 8, 5, 8)}), PLAIN),
        (r"one input of shape \(N, 3, H, W\)", model({"i": ("N", 3, 8, 8), "j": ("N",)}), PLAIN),
        ("images are float32", model({"i": ("N", 3, 8, 8)}, dtype=DType.UINT8), PLAIN),
    ],
)
def test_what_does_not_fit(match, graph, preprocess, tmp_path):
    pictures(tmp_path / "d")
    with pytest.raises(DataError, match=match):
        gathered(opened(tmp_path / "d", graph, preprocess))


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (r"no class for '1.png' \(1 of 2 images\)", "0.png,1\n"),
        ("line 2: got '1.png,cat'; expected a file name and a class number", "0.png,1\n1.png,cat\n"),
        ("line 2: got '1.png'", "0.png,1\n1.png\n"),
        ("line 2: '0.png' has two classes", "0.png,1\n0.png,2\n1.png,1\n"),
        ("has label 10 at sample 1; expected 0..9", "0.png,1\n1.png,10\n"),
        ("has label -1", "0.png,-1\n1.png,1\n"),
        ("is no .csv file", "\udcff"),
    ],
)
def test_labels_that_do_not_fit(match, text, tmp_path):
    pictures(tmp_path / "d", [(8, 8)] * 2)
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=match):
        opened(tmp_path / "d", labels=tmp_path / "labels.csv")


def test_labels_that_are_not_there(tmp_path):
    pictures(tmp_path / "d", [(8, 8)])
    with pytest.raises(DataError, match=r"none.csv: it cannot be read: No such file"):
        opened(tmp_path / "d", labels=tmp_path / "none.csv")


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_picture(data, tmp_path):
    pictures(tmp_path / "d", [(8, 8)])
    (tmp_path / "d" / "9.png").write_bytes(data)
    with pytest.raises(DataError, match=r"9.png: it is no image|9.png: it cannot be read"):
        gathered(opened(tmp_path / "d"))


def test_a_picture_cut_off(tmp_path):
    pictures(tmp_path / "d", [(300, 300)])
    whole = (tmp_path / "d" / "0.png").read_bytes()
    (tmp_path / "d" / "0.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"0\.png"):
        gathered(opened(tmp_path / "d", preprocess=Preprocess(crop=8)))


def test_without_pillow(tmp_path, monkeypatch):
    pictures(tmp_path / "d", [(8, 8)])
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"qtool\[images\]"):
        opened(tmp_path / "d")
