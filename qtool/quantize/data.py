"""Data for calibration, evaluation and inference, as a stream of checked batches.

``data_layout`` says how arrays are named in files and folders; ``data_images`` reads folders of pictures,
``data_audio`` sound, and ``data_state`` sets the inputs that are constant or carried from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Graph, Value
from qtool.ir.limits import shown
from qtool.quantize.data_audio import find_audio, has_audio
from qtool.quantize.data_combine import ChosenSource, Numbers, chosen_numbers, starts_of
from qtool.quantize.data_encoded import find_encoded
from qtool.quantize.data_hash import Fingerprint, fingerprint
from qtool.quantize.data_images import ImageSource, find_images, has_images
from qtool.quantize.data_layout import Found, Wanted, enter_split, find
from qtool.quantize.data_sources import VARIES, Source
from qtool.quantize.data_state import Extra, Stream, extra_inputs, measured_outputs, spelt
from qtool.recipe.schema import DataConfig

__all__ = ["Batch", "Dataset", "Fingerprint", "fingerprint", "open_data"]

Batch = tuple[dict[str, Array], Array | None]
"""Arrays by input name, and labels (int64 classes or float targets) where there are some."""

UNSCORED = -100
"""The label of a token that is not to be scored, as in PyTorch's cross entropy."""
_LABEL_CHUNK = 1 << 16


@dataclass(frozen=True)
class Dataset:
    """Where batches come from. Shapes, types, counts and labels were checked on opening; values are in passing."""

    path: Path
    columns: Mapping[str, Source]
    labels: Source | None
    batch_size: int
    numbers: Numbers
    """Which samples of the file or folder are used, after the limit on batches, in their order."""
    classes: int | None = None
    """Number of classes that labels are drawn from, where the model tells."""
    residual: bool = False
    """Whether the first input less the model's output is what is judged."""
    outputs: tuple[str, ...] = ()
    """The outputs that an evaluation looks at."""
    extra: Extra = field(default_factory=Extra)
    starts: tuple[int, ...] = (0,)
    """The places, among those that are used, of the samples at which state begins anew."""

    @property
    def samples(self) -> int:
        """How many samples are used."""
        return len(self.numbers)

    @property
    def carry(self) -> Mapping[str, str]:
        """Output -> the input that it becomes in the next step, for a model with state."""
        return self.extra.carry

    def __len__(self) -> int:
        """Number of batches; the last one may be smaller."""
        return sum(1 for _ in self._spans())

    def _spans(self) -> Iterator[tuple[int, int, bool]]:
        """The first sample of each batch, how many it has, and whether a stream begins: no batch is of two streams."""
        for begin, end in zip(self.starts, (*self.starts[1:], self.samples), strict=True):
            for start in range(begin, end, self.batch_size):
                yield start, min(self.batch_size, end - start), start == begin

    def batches(self) -> Iterator[Batch]:
        """Every batch in order, from the first one each time. Arrays may be read-only views of the mapped file.

        A batch at the start of a stream holds zeros for the inputs that are carried; later ones leave them out (see
        ``data_state.Stream``). DataError that names the file, the array and the sample where there is NaN or infinity.
        """
        return self._read(self.labels)

    def _read(self, targets: Source | None) -> Iterator[Batch]:
        with ExitStack() as stack:
            cursors = {name: stack.enter_context(closing(source.open())) for name, source in self.columns.items()}
            labels = stack.enter_context(closing(targets.open())) if targets else None
            for start, count, first in self._spans():
                feeds = {name: cursor.take(count) for name, cursor in cursors.items()}
                for name, array in feeds.items():
                    check_finite(array, self.columns[name].where, self.numbers[start:])
                feeds |= self.extra.feeds(feeds, first=first)
                taken = labels.take(count) if labels else None
                yield feeds, as_labels(taken)

    def feeds(self) -> Stream:
        """The batches without their labels."""
        return Stream((feeds for feeds, _ in self._read(None)), self.carry)

    def fingerprint(self) -> str:
        """SHA-256 of the samples that are used (64 hexadecimal digits); reads them all."""
        return fingerprint(map(self.read_of, self.feeds()))

    def read_of(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What of a batch was read from the data."""
        return {name: feeds[name] for name in self.columns}

    def require_labels(self, purpose: str) -> None:
        """DataError unless there are labels, which ``purpose`` (a metric's name) needs."""
        if self.labels is None:
            raise DataError(
                f"{self.path}: {purpose} needs labels, and there are none; expected an array 'y' or '<split>_y'"
            )


def open_data(config: DataConfig, graph: Graph) -> Dataset:
    """Opens the data of a recipe for the inputs of a model.

    Raises DataError for data that are missing, empty or do not fit the model (which file and array, what was got and
    expected), and MissingExtraError for images without Pillow. Reads headers and labels only.
    """
    _check_limits(config)
    extra, outputs = extra_inputs(config, graph), measured_outputs(config, graph)
    inputs, judged = extra.read, graph.values[outputs[0]]
    found = _find(config, inputs)
    total = _check_columns(found.columns, inputs, config.data)
    if found.labels is not None:
        _check_label_shape(found.labels, judged, total)
    numbers = chosen_numbers(config, total)
    size = _batch_size(config, inputs, found.columns, len(numbers))
    if config.batches:
        numbers = numbers[: size * config.batches]
    columns = {name: _chosen(source, numbers, total) for name, source in found.columns.items()}
    labels, classes = None, None
    if found.labels is not None:
        labels = _chosen(found.labels, numbers, total)
        classes = _classes(labels, judged)
        if not isinstance(found.labels, ImageSource):  # whose numbers come from bytes, and take long to read
            _check_label_values(labels, classes, numbers)
    starts = starts_of(next(iter(found.columns.values())), numbers) if extra.carry else (0,)
    return Dataset(
        config.data, columns, labels, size, numbers, classes, config.residual, outputs, extra=extra, starts=starts
    )


def _chosen(source: Source, numbers: Numbers, total: int) -> Source:
    whole = isinstance(numbers, range) and numbers == range(total)
    return source if whole else ChosenSource(source, numbers)


def _check_limits(config: DataConfig) -> None:
    if config.batch_size < 1:
        raise DataError(f"batch_size is {config.batch_size}; expected at least 1")
    if config.batches is not None and config.batches < 1:
        raise DataError(f"batches is {config.batches}; expected at least 1, or nothing for all there are")


def _find(config: DataConfig, inputs: Mapping[str, Value]) -> Found:
    path, split = config.data, config.split
    if path.is_dir():
        path, split = enter_split(path, split)
        if has_images(path):
            return find_images(path, split, config, inputs)
    if has_audio(path):
        return find_audio(path, split, config, inputs)
    images = find_encoded(path, split, config, inputs) if path.suffix == ".npz" and path.is_file() else None
    if images is not None:
        return images
    arrays = find(path, Wanted({name: value.shape for name, value in inputs.items()}, split))
    for key, given in (("preprocess", config.preprocess), ("labels", config.labels), ("audio", config.audio)):
        if given is not None:
            kind = "sound" if key == "audio" else "images"
            raise DataError(f"{path}: '{key}' is for {kind}, and these data are arrays; leave it out")
    return arrays


def _check_columns(columns: Mapping[str, Source], inputs: Mapping[str, Value], path: Path) -> int:
    """The number of samples, which all inputs must have."""
    sizes: dict[str, tuple[int, str]] = {}
    total: tuple[int, str] | None = None
    for name, source in columns.items():
        _check_column(source, inputs[name], sizes)
        total = total or (source.shape[0], source.where)
        if source.shape[0] != total[0]:
            raise DataError(
                f"{source.where} has {source.shape[0]} samples and {total[1]} has {total[0]}; expected as many"
            )
    if total is None:
        raise DataError(f"{path}: the model has no inputs, so there is nothing to feed")
    if total[0] == 0:
        raise DataError(f"{total[1]} is empty: it has no samples")
    return total[0]


def _check_column(source: Source, value: Value, sizes: dict[str, tuple[int, str]]) -> None:
    expected = f"{value.dtype.value} of shape {spelt(value)} for the model's input {shown(value.name)}"
    if source.dtype != value.dtype.numpy:
        hint = f"; convert it with .astype(numpy.{value.dtype.value}), scaled as in training"
        raise DataError(f"{source.where} has dtype {source.dtype.name}; expected {expected}{hint}")
    if not value.shape:
        raise DataError(
            f"the model's input {shown(value.name)} is a single number, which has no batch axis to stream along;"
            f" set it with 'constants: {{{value.name}: ...}}'"
        )
    if len(source.shape) != len(value.shape):
        raise DataError(f"{source.where} has shape {source.shape}; expected {expected}")
    for got, size in zip(source.shape[1:], value.shape[1:], strict=True):
        if isinstance(size, int) and got != size:
            raise DataError(f"{source.where} has shape {source.shape}; expected {expected}")
        if got == 0:
            raise DataError(f"{source.where} is empty: it has shape {source.shape}")
        if isinstance(size, str) and got != VARIES:
            known, where = sizes.setdefault(size, (got, source.where))
            if got != known:
                raise DataError(f"{source.where} has {size} = {got} where {where} has {known}; expected the same")


def _batch_size(config: DataConfig, inputs: Mapping[str, Value], columns: Mapping[str, Source], total: int) -> int:
    """The recipe's batch size, or that of a model which takes no other; 1 for samples of different shapes."""
    for name, value in inputs.items():
        fixed = value.shape[0]
        if isinstance(fixed, int):
            used = total if config.batches is None else min(total, fixed * config.batches)
            if used % fixed:
                raise DataError(
                    f"{config.data}: the model takes batches of exactly {fixed} (input {shown(name)}), "
                    f"and {used} samples cannot be cut into those; set 'batches: {used // fixed}'"
                    if used >= fixed
                    else f"{config.data}: the model takes batches of {fixed} samples, and there are {total}"
                )
            return fixed
    return 1 if any(VARIES in source.shape for source in columns.values()) else config.batch_size


def _check_label_shape(labels: Source, output: Value, total: int) -> None:
    """Checks count, kind and shape of the labels."""
    if not labels.shape or labels.shape[0] != total:
        raise DataError(f"{labels.where} has shape {labels.shape}; expected labels for {total} samples")
    whole = labels.dtype.kind in "iu"
    if not whole and labels.dtype.kind != "f":
        raise DataError(f"{labels.where} has dtype {labels.dtype.name}; expected class numbers or float targets")
    shape = output.shape[:-1] if whole and len(output.shape) == 2 else output.shape
    fits = len(shape) == len(labels.shape) and all(
        isinstance(size, str) or got == size for got, size in zip(labels.shape[1:], shape[1:], strict=True)
    )
    if not fits and (not whole or len(output.shape) == 2):
        kind = "class numbers" if whole else "targets"
        raise DataError(
            f"{labels.where} has shape {labels.shape}; expected {kind} of shape ({', '.join(map(str, shape))}) "
            f"for the model's output {shown(output.name)} of shape {spelt(output)}"
        )


def _classes(labels: Source, output: Value) -> int | None:
    """The number of classes where labels are class numbers and the model tells."""
    last = output.shape[-1] if len(output.shape) == len(labels.shape) + 1 else None
    return last if labels.dtype.kind in "iu" and isinstance(last, int) else None


def _check_label_values(labels: Source, classes: int | None, numbers: Numbers) -> None:
    """Checks the labels in use."""
    with closing(labels.open()) as cursor:
        for start in range(0, len(numbers), _LABEL_CHUNK):
            chunk = cursor.take(min(_LABEL_CHUNK, len(numbers) - start))
            check_finite(chunk, labels.where, numbers[start:])
            if classes is None or chunk.dtype.kind not in "iu":
                continue
            wrong = (chunk < 0) | (chunk >= classes)
            if chunk.ndim > 1:
                wrong &= chunk != UNSCORED
            if wrong.any():
                place = tuple(int(i) for i in np.argwhere(wrong)[0])
                raise DataError(
                    f"{labels.where} has label {chunk[place]} at sample {numbers[start + place[0]]}; "
                    f"expected 0..{classes - 1}, as the model has {classes} classes"
                )


def check_finite(array: Array, where: str, numbers: Numbers) -> None:
    """DataError that names the first sample with NaN or infinity; ``numbers`` are those of the array's samples."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    raise DataError(f"{where} has {array[place]} in sample {numbers[place[0]]}; expected finite numbers")


def as_labels(taken: Array | None) -> Array | None:
    """Labels as batches have them: class numbers are int64."""
    if taken is None or taken.dtype.kind == "f":
        return taken
    return taken.astype(np.int64)
