"""Pictures with noise added: inputs, targets, and models that give the noise."""

from __future__ import annotations

import numpy as np
import pytest
from data_samples import model

from qtool.analysis.evaluate import EngineOptions, measure_accuracy
from qtool.errors import DataError
from qtool.ops.builder import Builder
from qtool.quantize.data import open_data
from qtool.recipe.schema import Colour, DataConfig, Noise, Preprocess

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

SIZES = ((8, 8), (12, 9), (7, 16))
NOISY = Preprocess(colour=Colour.GRAY, noise=Noise(25.0, 3))


@pytest.fixture
def pictures(tmp_path):
    made = []
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        made.append(pixels)
    return tmp_path, made


def any_size(op: str = "relu", **attrs: object):
    builder = Builder("net")
    x = builder.input("x", ("N", 1, "H", "W"))
    return builder.finish([builder.node(op, [x], **attrs)])


def test_noise_is_drawn_for_every_picture_anew(pictures):
    folder, made = pictures
    data = open_data(DataConfig(folder, preprocess=NOISY), any_size())
    for (feeds, target), pixels in zip(data.batches(), made, strict=True):
        noise = np.random.RandomState(3).normal(0.0, 25.0, pixels.shape)
        assert np.array_equal(target, (pixels / np.float32(255))[None, None])
        assert np.allclose(feeds["x"][0, 0], (pixels + noise) / 255, rtol=0, atol=1e-7)
        assert feeds["x"].dtype == target.dtype == np.float32


def test_noise_is_part_of_the_fingerprint(pictures):
    folder, _ = pictures
    kinds = (NOISY, Preprocess(colour=Colour.GRAY), Preprocess(colour=Colour.GRAY, noise=Noise(25.0)))
    assert len({open_data(DataConfig(folder, preprocess=kind), any_size()).fingerprint() for kind in kinds}) == 3


@pytest.mark.parametrize("residual", [False, True])
def test_psnr_of_what_is_left(residual, pictures):
    """A net that gives its input has the noise's PSNR, and judged as the noise, that of a black picture."""
    folder, made = pictures
    graph = any_size("leaky_relu", negative_slope=1.0)
    data = open_data(DataConfig(folder, preprocess=NOISY, residual=residual), graph)
    (found,) = measure_accuracy([EngineOptions().session(graph)], data, "psnr")
    noises = [np.random.RandomState(3).normal(0.0, 25.0, pixels.shape) for pixels in made]
    errors = [pixels.astype(float) for pixels in made] if residual else noises
    expected = np.mean([10 * np.log10(255**2 / np.mean(np.square(error))) for error in errors])
    assert found.value == pytest.approx(expected, abs=1e-4)
    assert (found.n, found.unit) == (3, "dB")


def test_a_residual_has_the_shape_of_the_input(pictures):
    folder, _ = pictures
    graph = any_size("max_pool2d", kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)))
    data = open_data(DataConfig(folder, preprocess=Preprocess(colour=Colour.GRAY), residual=True), graph)
    with pytest.raises(DataError, match=r"residual: .* \(1, 1, 8, 8\) and its output \(1, 1, 4, 4\)"):
        measure_accuracy([EngineOptions().session(graph)] * 2, data, "mse")


def test_a_classifier_has_no_use_for_noise(pictures):
    folder, _ = pictures
    with pytest.raises(DataError, match=r"expected targets of shape \(N, 10\) for the model's output"):
        open_data(DataConfig(folder, preprocess=NOISY), model({"x": ("N", 1, "H", "W")}))
