"""Sound as frames: every width of samples, every cut, and what does not fit."""

from __future__ import annotations

import wave
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from data_samples import gathered, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtool.errors import DataError
from qtool.ir import DType
from qtool.quantize.data import open_data
from qtool.recipe.schema import Audio, DataConfig

RATE = 8000
RNG = np.random.default_rng(0)
NET = model({"sound": ("N", "T")})
PLAIN = Audio(RATE, 16)


def packed(samples: np.ndarray, width: int) -> bytes:
    """Integers as a .wav file stores them: one byte with an offset of 128, more with a sign, the lowest first."""
    if width == 1:
        return (samples + 128).astype(np.uint8).tobytes()
    return b"".join(int(n).to_bytes(width, "little", signed=True) for n in samples.reshape(-1))


def recorded(path: Path, samples: np.ndarray, width: int = 2, rate: int = RATE) -> Path:
    """Integers (samples, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(packed(samples, width))
    return path


def noise(count: int, width: int = 2, channels: int = 1) -> np.ndarray:
    half = 2 ** (8 * width - 1)
    samples = RNG.integers(-half, half, (count, channels))
    samples[:2] = [[-half], [half - 1]]
    return samples


def opened(path: Path, graph=NET, audio: Audio | None = PLAIN, **config: object):
    return open_data(DataConfig(path, audio=audio, **config), graph)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_samples_are_scaled_to_one(width, channels, tmp_path):
    samples = noise(48, width, channels)
    feeds, labels = gathered(opened(recorded(tmp_path / "d.wav", samples, width)))
    expected = samples.mean(axis=1) / 2.0 ** (8 * width - 1)
    assert labels is None
    assert feeds["sound"].dtype == np.float32
    assert np.array_equal(feeds["sound"], expected.astype(np.float32).reshape(3, 16))
    if channels == 1:
        assert feeds["sound"][0, 0] == -1.0


def framed(x: np.ndarray, audio: Audio) -> np.ndarray:
    """The definition, one frame after another."""
    hop, frames, start = audio.hop or audio.window, [], 0
    while not frames or (start < len(x) and start - hop + audio.window < len(x)):
        places = range(start - audio.context, start + audio.window)
        frames.append([x[n] if 0 <= n < len(x) else 0.0 for n in places])
        start += hop
    made = np.array(frames, np.float32)
    return np.abs(np.fft.rfft(made)).astype(np.float32) if audio.features == "magnitude" else made


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(2, 60),
    window=st.integers(1, 20),
    hop=st.one_of(st.none(), st.integers(1, 30)),
    context=st.integers(0, 9),
    features=st.sampled_from(["waveform", "magnitude"]),
    size=st.integers(1, 7),
)
def test_frames_are_cut_as_defined(count, window, hop, context, features, size, tmp_path_factory):
    samples, audio = noise(count), Audio(RATE, window, hop, context, features)
    path = recorded(tmp_path_factory.mktemp("d") / "d.wav", samples)
    data = opened(path, audio=audio, batch_size=size)
    expected = framed(samples[:, 0] / 2.0**15, audio)
    feeds, _ = gathered(data)
    assert data.samples == len(expected)
    np.testing.assert_allclose(feeds["sound"], expected, rtol=1e-6, atol=1e-6)
    shuffled = opened(path, audio=audio, batch_size=size, shuffle=3)
    assert np.array_equal(gathered(shuffled)[0]["sound"], feeds["sound"][shuffled.numbers])
    later = opened(path, audio=audio, batch_size=size, samples=(len(expected) - 1, None))
    assert np.array_equal(gathered(later)[0]["sound"], feeds["sound"][-1:])


def test_a_folder_is_its_files_in_order(tmp_path):
    samples = noise(40)
    (tmp_path / "test").mkdir()
    for name, part in (("b.wav", samples[20:]), ("a.WAV", samples[:20])):
        recorded(tmp_path / "test" / name, part)
    x = (samples[:, 0] / 2.0**15).astype(np.float32)
    expected = np.zeros((4, 16), np.float32)
    for row, (start, end) in zip(expected, ((0, 16), (16, 20), (20, 36), (36, 40)), strict=True):
        row[: end - start] = x[start:end]
    feeds, _ = gathered(opened(tmp_path, split="test", batch_size=3))
    assert np.array_equal(feeds["sound"], expected), "no frame is of two files"


def test_frames_take_the_axes_of_the_input(tmp_path):
    path = recorded(tmp_path / "d.wav", noise(48))
    graph = model({"sound": (1, 1, 9)})
    feeds, _ = gathered(opened(path, graph, Audio(RATE, 16, features="magnitude")))
    assert feeds["sound"].shape == (3, 1, 9)


@pytest.mark.parametrize(
    ("match", "graph", "audio"),
    [
        (r"needs 'audio: \{rate:", NET, None),
        (r"8000 samples a second; expected 16000 \('audio.rate'\)", NET, Audio(16000, 16)),
        (r"shape \(3, 16\); expected float32 of shape \(N, 20\)", model({"sound": ("N", 20)}), Audio(RATE, 16)),
        (r"fed to one input; .* the model has 'a', 'b'", model({"a": ("N", 16), "b": ("N", 16)}), Audio(RATE, 16)),
        (r"input 'i' is int64 of shape \(N, 16\)", model({"i": ("N", 16)}, dtype=DType.INT64), Audio(RATE, 16)),
        (r"input 'i' is float32 of shape \(N\)", model({"i": ("N",)}), Audio(RATE, 16)),
    ],
)
def test_what_does_not_fit(match, graph, audio, tmp_path):
    path = recorded(tmp_path / "d.wav", noise(48))
    with pytest.raises(DataError, match=match):
        opened(path, graph, audio)


def test_labels_and_splits_are_refused(tmp_path):
    path = recorded(tmp_path / "d.wav", noise(48))
    with pytest.raises(DataError, match="'labels' is for images, and these data are sound"):
        opened(path, labels=tmp_path / "labels.csv")
    with pytest.raises(DataError, match="there is no split 'test'"):
        opened(path, split="test")


def test_audio_is_for_sound_only(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros((3, 16), np.float32))
    with pytest.raises(DataError, match="'audio' is for sound, and these data are arrays"):
        opened(tmp_path / "d.npy")


@pytest.mark.parametrize("raw", [b"", b"RIFF", b"not sound at all", b"RIFF\x04\x00\x00\x00WAVE"])
def test_what_is_no_sound(raw, tmp_path):
    (tmp_path / "d.wav").write_bytes(raw)
    with pytest.raises(DataError, match=r"d.wav: it (is no \.wav file|cannot be read)"):
        opened(tmp_path / "d.wav")


def test_floats_are_no_pcm(tmp_path):
    raw = bytearray(recorded(tmp_path / "d.wav", noise(48)).read_bytes())
    raw[20:22] = (3).to_bytes(2, "little")  # the format of floats
    (tmp_path / "d.wav").write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"it is no \.wav file of PCM samples: unknown format: 3"):
        opened(tmp_path / "d.wav")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, 47), st.integers(0, 255), min_size=1, max_size=4))
def test_a_damaged_header_is_an_error_or_none(changes, tmp_path):
    raw = bytearray(recorded(tmp_path / "d.wav", noise(48)).read_bytes())
    for place, byte in changes.items():
        raw[place] = byte
    (tmp_path / "d.wav").write_bytes(bytes(raw))
    with suppress(DataError):
        feeds, _ = gathered(opened(tmp_path / "d.wav", batches=4))
        assert np.abs(feeds["sound"]).max() <= 1


def test_sound_cut_off(tmp_path):
    path = recorded(tmp_path / "d.wav", noise(48))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="it ends before its last sample"):
        gathered(opened(path))


def test_empty_and_missing(tmp_path):
    with pytest.raises(DataError, match="it cannot be read: No such file"):
        opened(tmp_path / "none.wav")
    with pytest.raises(DataError, match=r"d\.wav is empty"):
        opened(recorded(tmp_path / "d.wav", np.zeros((0, 1), np.int64)))
