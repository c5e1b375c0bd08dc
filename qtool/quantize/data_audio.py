"""Sound as a stream of frames: ``.wav`` files cut into windows, as samples or as magnitudes of their spectrum."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, DType, Value
from qtool.ir.limits import shown
from qtool.quantize.data_combine import joined
from qtool.quantize.data_layout import Found, files_of
from qtool.quantize.data_sources import Cursor, data_errors
from qtool.quantize.data_state import spelt
from qtool.recipe.schema import Audio, DataConfig

SUFFIX = ".wav"
MAGNITUDE = "magnitude"


def has_audio(path: Path) -> bool:
    """Whether this is a ``.wav`` file, or a folder of them without arrays that would be meant instead."""
    if path.is_dir():
        files = files_of(path)
        return SUFFIX in files and not {".npz", ".npy"} & files.keys()
    return path.suffix.lower() == SUFFIX


def find_audio(path: Path, split: str, config: DataConfig, inputs: Mapping[str, Value]) -> Found:
    """The frames of a file, or of the files of a folder in the order of their names.

    Raises DataError where the recipe or the model does not fit sound, or a file is no PCM of the rate expected.
    """
    if split:
        raise DataError(f"{path}: there is no split {shown(split)}: a folder of .wav files has one folder a split")
    if config.audio is None:
        raise DataError(f"{path}: sound needs 'audio: {{rate: ..., window: ..., hop: ...}}', the same as in training")
    for key, given in (("preprocess", config.preprocess), ("labels", config.labels)):
        if given is not None:
            raise DataError(f"{path}: '{key}' is for images, and these data are sound; leave it out")
    name, axes = _audio_input(path, inputs)
    with data_errors(str(path)):
        files = files_of(path)[SUFFIX] if path.is_dir() else [path]
        sources = [_audio_source(file, config.audio, axes) for file in files]
    return Found({name: joined(sources)}, None)


def _audio_input(path: Path, inputs: Mapping[str, Value]) -> tuple[str, int]:
    """The only input that is neither carried nor constant, and how many axes of size 1 a frame of it has."""
    value = next(iter(inputs.values()), None)
    if value is None or len(inputs) != 1:
        names = ", ".join(map(shown, inputs)) or "none"
        raise DataError(
            f"{path}: sound is fed to one input; beside those that 'carry' and 'constants' set the model has {names}"
        )
    if value.dtype is not DType.FLOAT32 or len(value.shape) < 2:
        raise DataError(
            f"{path}: frames of sound are float32 (N, samples), and the model's input {shown(value.name)} is "
            f"{value.dtype.value} of shape {spelt(value)}"
        )
    return value.name, len(value.shape) - 2


def _opened(path: Path) -> wave.Wave_read:
    with _wave_errors(path):
        return wave.open(str(path), "rb")


@contextmanager
def _wave_errors(path: Path) -> Iterator[None]:
    """As ``data_errors``, and for what the library says of a file; RuntimeError is of pieces longer than the file."""
    with data_errors(str(path)):
        try:
            yield
        except (wave.Error, RuntimeError) as error:
            detail = str(error) or "the lengths in it do not agree"
            raise DataError(f"{path}: it is no .wav file of PCM samples: {detail}") from error


def _audio_source(path: Path, audio: Audio, axes: int) -> AudioSource:
    with _opened(path) as file:
        rate, width, samples = file.getframerate(), file.getsampwidth(), file.getnframes()
    if rate != audio.rate:
        raise DataError(f"{path}: it has {rate} samples a second; expected {audio.rate} ('audio.rate'): resample it")
    if width not in _DECODERS:
        raise DataError(f"{path}: its samples have {8 * width} bits; expected 8, 16, 24 or 32")
    if samples == 0:
        raise DataError(f"{path} is empty: it has no samples")
    return AudioSource(path, audio, samples, axes)


@dataclass(frozen=True)
class AudioSource:
    """The frames of one file: float32 of shape (frames, 1, ..., length), with ``axes`` axes of size 1.

    Frame k is of the samples k * hop - context to k * hop + window, with zeros before the file's start and behind its
    end. The last frame is the first that reaches the end, and begins before it. Samples are -1 to 1; of several
    channels, the mean is taken.
    """

    path: Path
    audio: Audio
    samples: int
    axes: int

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        hop, size = self.audio.hop or self.audio.window, self.audio.window + self.audio.context
        reach = 1 + max(0, -(-(self.samples - self.audio.window) // hop))
        frames = min(reach, -(-self.samples // hop))  # fewer where the end is between two frames
        return (frames, *(1,) * self.axes, size // 2 + 1 if self.audio.features == MAGNITUDE else size)

    def open(self) -> Cursor:
        return _AudioCursor(self)


class _AudioCursor:
    def __init__(self, source: AudioSource) -> None:
        self._source, self._at, self._wave = source, 0, _opened(source.path)

    def take(self, count: int) -> Array:
        self._at += count
        return self._frames(self._at - count, count)

    def skip(self, count: int) -> None:
        self._at += count

    def pick(self, numbers: Array) -> Array:
        return np.concatenate([self._frames(int(number), 1) for number in numbers])

    def close(self) -> None:
        self._wave.close()

    def _frames(self, first: int, count: int) -> Array:
        audio = self._source.audio
        hop, size = audio.hop or audio.window, audio.window + audio.context
        samples = self._samples(first * hop - audio.context, (count - 1) * hop + size)
        windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
        # In float64, which every version of NumPy has; newer ones transform float32 in float32.
        frames = np.abs(np.fft.rfft(windows.astype(np.float64))) if audio.features == MAGNITUDE else windows
        return np.array(frames, np.float32, order="C").reshape(count, *self._source.shape[1:])

    def _samples(self, begin: int, count: int) -> Array:
        """float32 (count,): those of the file from ``begin`` on, and zeros outside of it."""
        low, high = max(begin, 0), min(begin + count, self._source.samples)
        width, channels = self._wave.getsampwidth(), self._wave.getnchannels()
        with _wave_errors(self._source.path):
            self._wave.setpos(low)
            raw = self._wave.readframes(high - low)
        if len(raw) != (high - low) * width * channels:
            raise DataError(f"{self._source.where}: it ends before its last sample: is it cut off?")
        whole = _DECODERS[width](raw).reshape(-1, channels).mean(axis=1, dtype=np.float64)
        samples = np.zeros(count, np.float32)
        samples[low - begin : high - begin] = whole / 2.0 ** (8 * width - 1)
        return samples


def _from_24_bits(raw: bytes) -> Array:
    """Little-endian integers of three bytes: each goes into the upper ones of four, and is shifted down again."""
    wide = np.zeros((len(raw) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    return np.asarray(wide.view("<i4").reshape(-1) >> 8)


_DECODERS: Mapping[int, Callable[[bytes], Array]] = {
    1: lambda raw: np.frombuffer(raw, np.uint8).astype(np.int16) - 128,
    2: lambda raw: np.frombuffer(raw, "<i2"),
    3: _from_24_bits,
    4: lambda raw: np.frombuffer(raw, "<i4"),
}
"""Bytes a sample -> what makes signed integers of them; those of one byte are stored without a sign."""
