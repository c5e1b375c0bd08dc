"""A hash of the data that were really used, recorded with what was made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from qtool.ir import Array


class Fingerprint:
    """SHA-256 of samples as they pass by.

    It covers each input's name, element type, sample shape and values in order. It depends neither on how the samples
    were cut into batches, nor on the file they came from, nor on labels, which calibration does not see.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, hashlib._Hash] = {}
        self._kinds: dict[str, str] = {}
        self._samples = 0

    def update(self, feeds: Mapping[str, Array]) -> None:
        """Takes one batch; the first axis of every array counts samples."""
        for name, array in feeds.items():
            little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            digest = self._hashes.setdefault(name, hashlib.sha256())
            kind = f"{little.dtype.name}{little.shape[1:]};"
            if self._kinds.get(name) != kind:
                self._kinds[name] = kind
                digest.update(kind.encode())
            digest.update(little.reshape(-1).view(np.uint8).data)
        self._samples += len(next(iter(feeds.values()))) if feeds else 0

    def hexdigest(self) -> str:
        """64 hexadecimal digits."""
        whole = hashlib.sha256(f"{self._samples};".encode())
        for name in sorted(self._hashes):
            whole.update(f"{name}={self._hashes[name].hexdigest()};".encode())
        return whole.hexdigest()


def fingerprint(batches: Iterable[Mapping[str, Array]]) -> str:
    """The hash of all batches, as 64 hexadecimal digits."""
    hashed = Fingerprint()
    for feeds in batches:
        hashed.update(feeds)
    return hashed.hexdigest()
