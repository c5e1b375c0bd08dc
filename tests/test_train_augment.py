"""Augmentation: what it may change, and that it is the same every time; tests/peers has the interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from qtool.quantize.qat.augment import augmented
from qtool.quantize.qat.streams import Use, permutation, uniform
from qtool.recipe.training import Augment

IMAGES = np.random.default_rng(0).normal(size=(200, 2, 6, 5)).astype(np.float32)
ALL = Augment(flip=True, crop=2, rotate=30, scale=0.2, shift=1.5)


@pytest.mark.parametrize("config", [Augment(flip=True), Augment(crop=2), Augment(rotate=20), ALL], ids=str)
def test_the_same_place_in_training_gives_the_same_images_and_another_place_others(config) -> None:
    kept = IMAGES.copy()
    found = augmented(IMAGES, config, 1, 2, 3)
    assert np.array_equal(IMAGES, kept)
    assert (found.dtype, found.shape) == (np.float32, IMAGES.shape)
    assert np.array_equal(found, augmented(IMAGES, config, 1, 2, 3))
    for place in ((0, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(found, augmented(IMAGES, config, *place))
    assert len(np.unique(augmented(np.repeat(IMAGES[:1], 50, 0), config, 1, 2, 3), axis=0)) > 1


def test_nothing_asked_for_is_nothing_done() -> None:
    assert np.array_equal(augmented(IMAGES, Augment(), 1, 2, 3), IMAGES)


def test_half_of_the_images_are_flipped_whole() -> None:
    found = augmented(IMAGES, Augment(flip=True), 0, 0, 0)
    flipped = [np.array_equal(image, original[..., ::-1]) for image, original in zip(found, IMAGES, strict=True)]
    same = [np.array_equal(image, original) for image, original in zip(found, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 70 < sum(flipped) < 130


def test_crops_are_shifts_into_zeros_and_all_of_them_come() -> None:
    found = augmented(IMAGES, Augment(crop=1), 0, 0, 0)
    framed = np.pad(IMAGES, ((0, 0), (0, 0), (1, 1), (1, 1)))
    seen = set()
    for image, frame in zip(found, framed, strict=True):
        fits = [(r, c) for r in range(3) for c in range(3) if np.array_equal(image, frame[:, r : r + 6, c : c + 5])]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 9


def test_one_change_does_not_move_another() -> None:
    both = augmented(IMAGES, Augment(flip=True, crop=2), 0, 0, 0)
    assert np.array_equal(both, augmented(augmented(IMAGES, Augment(flip=True), 0, 0, 0), Augment(crop=2), 0, 0, 0))


def test_moving_keeps_flat_images_flat_and_turns_about_the_middle() -> None:
    flat = np.full((8, 1, 5, 9), 3.5, np.float32)
    np.testing.assert_allclose(augmented(flat, Augment(rotate=90, scale=0.5, shift=3), 0, 0, 0), flat, rtol=1e-6)
    round_ = np.hypot(*np.meshgrid(np.arange(-7, 8), np.arange(-7, 8))).astype(np.float32)[None, None]
    turned = augmented(np.repeat(round_, 8, 0), Augment(rotate=180), 0, 0, 0)
    inside = round_[0, 0] <= 6
    assert np.abs(turned - round_)[:, 0, inside].max() < 0.25  # interpolated between distances


def test_how_many_images_are_moved_at_once_changes_nothing(monkeypatch) -> None:
    found = augmented(IMAGES, Augment(rotate=20, shift=1), 0, 0, 0)
    monkeypatch.setattr("qtool.quantize.qat.augment._POINTS", 3 * 30)
    assert np.array_equal(found, augmented(IMAGES, Augment(rotate=20, shift=1), 0, 0, 0))


def test_pixels_stay_square_in_images_that_are_not() -> None:
    image = np.zeros((1, 1, 9, 33), np.float32)
    image[0, 0, 4, 12:21] = 1  # a line through the middle, as long as the image is high
    longest = 0.0
    for batch in range(40):
        turned = augmented(image, Augment(rotate=90), 0, 0, batch)
        rows, columns = np.nonzero(turned[0, 0] > 0.3)
        longest = max(longest, np.hypot(np.ptp(rows), np.ptp(columns)))
        assert np.hypot(np.ptp(rows), np.ptp(columns)) > 6.5
    assert longest < 9.5


# Streams of random numbers


def test_streams_are_for_ever() -> None:
    assert permutation(0, Use.ORDER, 0, count=8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert uniform(7, Use.AUGMENT, 1, 2, count=2).tolist() == [0.9567947447756819, 0.4800703530271436]


def test_uses_and_places_have_streams_of_their_own() -> None:
    keys = [(0, Use.ORDER, 0), (0, Use.ORDER, 1), (1, Use.ORDER, 0), (0, Use.AUGMENT, 0, 0), (0, Use.HEAD)]
    drawn = np.stack([uniform(*key, count=1000) for key in keys])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(drawn.mean(1) - 0.5).max() < 0.05
    assert np.abs(np.corrcoef(drawn) - np.eye(len(keys))).max() < 0.15
    assert sorted(permutation(3, Use.ORDER, 5, count=100)) == list(range(100))
