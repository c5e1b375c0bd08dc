"""Writes files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qtool.errors import OutputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends well, and leaves no trace when it does not.

    It is a temporary file in the same folder, synchronized and renamed. A symbolic link stays one: its target is
    replaced. Whatever the block raises (KeyboardInterrupt too) passes through after the temporary file is removed;
    an OSError becomes OutputError that names the path.
    """
    target = Path(os.path.realpath(path))
    try:
        _check_target(target)
        temporary = target.with_name(f".qtool-{secrets.token_hex(6)}.tmp")
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """OutputError where ``atomic_write`` could not even begin; for asking before long work. Nothing is left behind."""
    target = Path(os.path.realpath(path))
    try:
        _check_target(target)
        probe = target.with_name(f".qtool-{secrets.token_hex(6)}.tmp")
        try:
            open(probe, "xb").close()
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _check_target(target: Path) -> None:
    # A rename over /dev/null or a pipe would put a file in its place.
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; name a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"cannot write {target}: it is not a regular file")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")


def _sync_folder(folder: Path) -> None:
    """Makes the rename last through a power cut where the system can; the file itself is already complete."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
