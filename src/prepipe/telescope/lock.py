"""Only one push may work in a directory: two would send everything twice."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prepipe.errors import ConfigError
from prepipe.files import storage_errors

__all__ = ["sole_user"]


@contextmanager
def sole_user(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when this process ends, however it ends.

    Raises
    ------
    ConfigError
        If another process holds it.
    StorageError
        If the file cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise ConfigError(
            f"another push (process {holder}) works in {path.parent}; stop it first"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
