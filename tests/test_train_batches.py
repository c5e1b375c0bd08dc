"""Batches of training: each sample once an epoch, in an order that is the same every time, wherever the data lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from data_samples import X, Y, folder_of, model, saved

from qtool.errors import DataError
from qtool.quantize.qat.augment import augmented
from qtool.quantize.qat.batches import MAX_BYTES, open_batches
from qtool.recipe.schema import DataConfig, Layout, Preprocess, TrainConfig
from qtool.recipe.training import Augment, Loss, LossConfig

GRAPH = model()


def config(path, batch_size=8, augment=Augment(), loss=LossConfig(), seed=0, **data) -> TrainConfig:  # noqa: B008
    return TrainConfig(DataConfig(path, batch_size=batch_size, **data), augment=augment, loss=loss, seed=seed)


def drawn(found, epoch):
    """The images and labels of an epoch, and the sizes of its batches."""
    batches = list(found.epoch(epoch))
    images, labels = (np.concatenate(each) for each in zip(*((f["image"], y) for f, y in batches), strict=True))
    return images, labels, [len(labels) for _, labels in batches]


def numbers_of(images):
    """The samples of X that images are."""
    return [int(np.flatnonzero((image == X).all((1, 2, 3)))[0]) for image in images]


@pytest.fixture(params=["plain", "packed", "folder"])
def data(request, tmp_path):
    if request.param == "folder":
        return folder_of(tmp_path / "d", image=X, y=Y)
    function = np.savez if request.param == "plain" else np.savez_compressed
    return saved(tmp_path / "d.npz", function, image=X, y=Y)


@pytest.mark.parametrize("max_bytes", [MAX_BYTES, 0], ids=["kept", "picked"])
def test_every_epoch_has_every_sample_once_in_another_order(data, max_bytes) -> None:
    with open_batches(config(data), GRAPH, max_bytes) as found:
        assert (found.steps_per_epoch, found.samples_per_epoch, found.batch_size) == (7, 50, 8)
        orders = []
        for epoch in range(3):
            images, labels, sizes = drawn(found, epoch)
            orders.append(numbers_of(images))
            assert sizes == [8] * 6 + [2]
            assert np.array_equal(labels, Y[orders[-1]])
            assert labels.dtype == np.int64
    for order in orders:
        assert sorted(order) == list(range(50))
    for one, other in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


@pytest.mark.parametrize(
    "chosen", [{}, {"samples": (10, 31)}, {"shuffle": 3, "samples": (5, 40)}, {"batches": 3}], ids=str
)
def test_where_the_data_lie_changes_nothing(data, tmp_path, chosen) -> None:
    everything = Augment(flip=True, crop=1, rotate=10)
    with (
        open_batches(config(data, augment=everything, seed=5, **chosen), GRAPH) as kept,
        open_batches(config(data, augment=everything, seed=5, **chosen), GRAPH, 0) as picked,
    ):
        for epoch in (0, 2):
            for one, other in zip(kept.epoch(epoch), picked.epoch(epoch), strict=True):
                assert np.array_equal(one[0]["image"], other[0]["image"])
                assert np.array_equal(one[1], other[1])


@pytest.mark.parametrize("max_bytes", [MAX_BYTES, 0])
def test_only_the_samples_of_the_recipe_are_used(data, max_bytes) -> None:
    with open_batches(config(data, samples=(10, 31)), GRAPH, max_bytes) as found:
        assert sorted(numbers_of(drawn(found, 0)[0])) == list(range(10, 31))


def test_an_epoch_is_the_same_whenever_it_is_asked_for(data) -> None:
    with open_batches(config(data), GRAPH) as found, open_batches(config(data, seed=1), GRAPH) as other:
        for _ in found.epoch(0):
            pass
        later = drawn(found, 1)[0]
        assert np.array_equal(later, drawn(found, 1)[0])
        assert not np.array_equal(later, drawn(other, 1)[0])
    with open_batches(config(data), GRAPH) as found:
        assert np.array_equal(later, drawn(found, 1)[0])


@pytest.mark.parametrize(
    ("batch_size", "samples", "sizes"),
    [(7, 50, [7] * 7), (7, 49, [7] * 7), (24, 50, [24, 24, 2]), (64, 50, [50]), (1, 3, [1, 1, 1]), (4, 1, [1])],
)
def test_a_single_sample_that_is_left_waits_for_another_epoch(data, batch_size, samples, sizes) -> None:
    with open_batches(config(data, batch_size, samples=(0, samples)), GRAPH) as found:
        assert drawn(found, 0)[2] == sizes
        assert (found.steps_per_epoch, found.samples_per_epoch) == (len(sizes), sum(sizes))
        seen = {number for epoch in range(12) for number in numbers_of(drawn(found, epoch)[0])}
    assert seen == set(range(samples))


def test_augmentation_is_of_the_epoch_and_the_batch(data) -> None:
    flip = Augment(flip=True, shift=1)
    with (
        open_batches(config(data, augment=flip, seed=3), GRAPH) as found,
        open_batches(config(data, seed=3), GRAPH) as raw,
    ):
        for number, (one, other) in enumerate(zip(found.epoch(2), raw.epoch(2), strict=True)):
            assert np.array_equal(one[0]["image"], augmented(other[0]["image"], flip, 3, 2, number))


def test_channels_may_come_last(tmp_path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (tmp_path / "d").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (6, 6, 8, 3), np.uint8)):
        image_module.fromarray(pixels).save(tmp_path / "d" / f"{number}.png")
    (tmp_path / "l.csv").write_text("".join(f"{n}.png,{n}\n" for n in range(6)))
    found = {}
    for layout, shape in ((Layout.NHWC, ("N", 6, 8, 3)), (Layout.NCHW, ("N", 3, 6, 8))):
        data = {"labels": tmp_path / "l.csv", "preprocess": Preprocess(layout=layout)}
        changed = config(tmp_path / "d", augment=Augment(flip=True, crop=1), **data)
        with open_batches(changed, model({"image": shape})) as batches:
            ((feeds, _),) = batches.epoch(0)
            found[layout] = feeds["image"]
    assert np.array_equal(np.moveaxis(found[Layout.NHWC], -1, 1), found[Layout.NCHW])


def test_constants_go_with_every_batch(tmp_path) -> None:
    graph = model({"image": ("N", 1, 4, 4), "scale": ("N",)})
    path = saved(tmp_path / "d.npz", image=X, y=Y)
    with open_batches(config(path, 32, constants={"scale": 0.5}), graph) as found:
        for feeds, labels in found.epoch(0):
            assert np.array_equal(feeds["scale"], np.full(len(labels), 0.5, np.float32))


def test_distillation_needs_no_labels_and_other_losses_do(tmp_path) -> None:
    path = saved(tmp_path / "d.npz", image=X)
    with open_batches(config(path, loss=LossConfig(Loss.DISTILLATION)), GRAPH) as found:
        assert all(labels is None for _, labels in found.epoch(0))
    with pytest.raises(DataError, match=r"d\.npz: the loss cross_entropy needs labels, and there are none"):
        open_batches(config(path), GRAPH)


@pytest.mark.parametrize("max_bytes", [MAX_BYTES, 0])
def test_samples_that_are_no_numbers_are_told(tmp_path, max_bytes) -> None:
    broken = X.copy()
    broken[33, 0, 1, 2] = np.nan
    path = saved(tmp_path / "d.npz", image=broken, y=Y)

    def read() -> None:
        with open_batches(config(path), GRAPH, max_bytes) as found:
            list(found.epoch(0))

    with pytest.raises(DataError, match=r"nan in sample 33; expected finite"):
        read()


def test_what_cannot_be_augmented_is_refused(tmp_path) -> None:
    path = saved(tmp_path / "d.npz", x=X.reshape(50, 16), y=Y)
    with pytest.raises(DataError, match=r"'augment' is for one input of float32 images .* x of shape \(50, 16\)"):
        open_batches(config(path, augment=Augment(flip=True)), model({"x": ("N", 16)}))
    path = saved(tmp_path / "e.npz", image=X, y=X)
    regression = config(path, augment=Augment(crop=1), loss=LossConfig(Loss.MSE))
    with pytest.raises(DataError, match=r"'augment' changes the images, and their targets .*\(50, 1, 4, 4\)"):
        open_batches(regression, model(output=("N", 1, 4, 4)))
