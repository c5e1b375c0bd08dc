"""Training data: every epoch all samples, each once, in an order of its own.

Samples are kept in memory where they take little, so that a picture is decoded and a file unpacked once only; else they
are picked where they lie. Either way a batch is the same for the same seed, epoch and number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from qtool.errors import DataError
from qtool.ir import Array, Graph
from qtool.quantize.data import Batch, Dataset, as_labels, check_finite, open_data
from qtool.quantize.data_combine import ChosenSource
from qtool.quantize.data_sources import VARIES, Cursor, Source
from qtool.quantize.qat.augment import augmented
from qtool.quantize.qat.streams import Use, permutation
from qtool.recipe.schema import Layout, TrainConfig

MAX_BYTES = 2 << 30
"""Samples that take more are left where they are."""


class Store(Protocol):
    """Gives samples by their places among those that are used."""

    def pick(self, places: Array) -> tuple[dict[str, Array], Array | None]:
        """The inputs that were read, and labels."""

    def close(self) -> None:
        """Lets go of files."""


@dataclass(frozen=True)
class TrainBatches:
    """The batches of a training; to be closed, as by a ``with`` block.

    The last batch of an epoch is as large as what is left, but for a single sample, which is left out of that epoch: it
    has no variance for batch norms to learn from. (A batch size of 1 is taken at its word.)
    """

    dataset: Dataset
    config: TrainConfig
    store: Store
    images: str = ""
    """The input that is augmented."""

    @property
    def batch_size(self) -> int:
        """The recipe's, or that of a model that takes no other."""
        return self.dataset.batch_size

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.dataset.samples, self.batch_size)
        return full + (rest > 1 or (rest == 1 and not full))

    @property
    def samples_per_epoch(self) -> int:
        return min(self.dataset.samples, self.steps_per_epoch * self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, from 0. DataError, with the sample, where there is NaN or infinity."""
        order = permutation(self.config.seed, Use.ORDER, epoch, count=self.dataset.samples)
        for batch in range(self.steps_per_epoch):
            feeds, labels = self.store.pick(order[batch * self.batch_size :][: self.batch_size])
            if self.images:
                feeds[self.images] = self._augmented(feeds[self.images], epoch, batch)
            yield feeds | self.dataset.extra.feeds(feeds, first=True), labels

    def _augmented(self, images: Array, epoch: int, batch: int) -> Array:
        preprocess = self.config.data.preprocess
        last = preprocess is not None and preprocess.layout is Layout.NHWC
        images = np.moveaxis(images, -1, 1) if last else images
        images = augmented(images, self.config.augment, self.config.seed, epoch, batch)
        return np.ascontiguousarray(np.moveaxis(images, 1, -1) if last else images)

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_batches(config: TrainConfig, graph: Graph, max_bytes: int = MAX_BYTES) -> TrainBatches:
    """The training data of a recipe for a model; up to ``max_bytes`` of them are read into memory at once.

    DataError where they do not fit the model, the loss or the augmentation.
    """
    dataset = open_data(config.data, graph)
    if config.loss.needs_labels:
        dataset.require_labels(f"the loss {config.loss.name.value}")
    images = _images(config, dataset) if config.augment.any else ""
    sources = [*dataset.columns.values(), *([dataset.labels] if dataset.labels is not None else [])]
    varies = any(VARIES in source.shape for source in sources)
    kept = not varies and sum(map(_bytes_of, sources)) <= max_bytes
    return TrainBatches(dataset, config, _Kept(dataset) if kept else _Picked(dataset), images)


def _images(config: TrainConfig, dataset: Dataset) -> str:
    """The input that augmentation changes."""
    found = [name for name, source in dataset.columns.items() if source.dtype == np.float32 and len(source.shape) == 4]
    if len(found) != 1:
        shapes = ", ".join(f"{name} of shape {source.shape}" for name, source in dataset.columns.items())
        raise DataError(
            f"{dataset.path}: 'augment' is for one input of float32 images (N, C, height, width), and the model has "
            f"{shapes}; leave it out"
        )
    if config.loss.needs_labels and dataset.labels is not None and dataset.labels.dtype.kind == "f":
        raise DataError(
            f"{dataset.path}: 'augment' changes the images, and their targets (float numbers, of shape "
            f"{dataset.labels.shape}) would stay as they are; leave it out"
        )
    return found[0]


def _bytes_of(source: Source) -> int:
    return int(np.prod(source.shape, dtype=np.int64)) * source.dtype.itemsize


class _Kept:
    """All samples in memory."""

    def __init__(self, dataset: Dataset) -> None:
        self._feeds: dict[str, Array] = {}
        self._labels: Array | None = None
        start = 0
        for feeds, labels in dataset.batches():
            for name, array in dataset.read_of(feeds).items():
                kept = self._feeds.setdefault(name, np.empty((dataset.samples, *array.shape[1:]), array.dtype))
                kept[start : start + len(array)] = array
            if labels is not None:
                if self._labels is None:
                    self._labels = np.empty((dataset.samples, *labels.shape[1:]), labels.dtype)
                self._labels[start : start + len(labels)] = labels
            start += len(next(iter(dataset.read_of(feeds).values())))

    def pick(self, places: Array) -> tuple[dict[str, Array], Array | None]:
        feeds = {name: array[places] for name, array in self._feeds.items()}
        return feeds, None if self._labels is None else self._labels[places]

    def close(self) -> None:
        self._feeds, self._labels = {}, None


class _Picked:
    """Samples where they lie."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._numbers = np.asarray(dataset.numbers, np.int64)
        self._cursors = {name: _whole(source).open() for name, source in dataset.columns.items()}
        self._labels: Cursor | None = None if dataset.labels is None else _whole(dataset.labels).open()

    def pick(self, places: Array) -> tuple[dict[str, Array], Array | None]:
        numbers = self._numbers[places]
        feeds = {name: cursor.pick(numbers) for name, cursor in self._cursors.items()}
        for name, array in feeds.items():
            check_finite(array, self._dataset.columns[name].where, numbers)
        return feeds, None if self._labels is None else as_labels(self._labels.pick(numbers))

    def close(self) -> None:
        for cursor in (*self._cursors.values(), *filter(None, [self._labels])):
            cursor.close()


def _whole(source: Source) -> Source:
    """The source that a choice of samples was made from; numbers of samples are its numbers."""
    return source.source if isinstance(source, ChosenSource) else source
