"""A repository that several nodes share has one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prepipe.errors import ConfigError, EngineError, StorageError
from prepipe.files import storage_errors

__all__ = ["LOCK", "sole_writer", "tried_again"]

LOCK = ".prepipe.lock"
"""In the repository's own directory, so that every node meets it."""

BUSY = ("database is locked", "database table is locked", "database is busy")
"""What logs say, in lower case, when somebody else, who knows nothing of the lock, writes."""

_PAUSE_S = 0.2
_TRIES = 4
_FIRST_REST_S = 1.0
_OF_THIS_PROCESS: dict[str, threading.Lock] = {}
_GUARD = threading.Lock()


@contextmanager
def sole_writer(root: Path, wait_s: float) -> Iterator[None]:
    """Hold the repository's lock; the system lets go of it when this process ends.

    It is a POSIX record lock: those reach over NFS, and over Lustre mounted with `flock`.

    Parameters
    ----------
    root : Path
        The repository; made if needed.
    wait_s : float
        How long to wait for others.

    Raises
    ------
    ConfigError
        If the file system knows no locks.
    StorageError
        If others hold it too long, or it cannot be made.
    """
    deadline = time.monotonic() + wait_s
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    # Record locks belong to the process: its threads need another one.
    with _GUARD:
        among_threads = _OF_THIS_PROCESS.setdefault(str(root.resolve()), threading.Lock())
    if not among_threads.acquire(timeout=wait_s):
        raise _too_long(root, wait_s)
    try:
        path = root / LOCK
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            while not _taken(descriptor, path):
                if time.monotonic() > deadline:
                    raise _too_long(root, wait_s)
                time.sleep(_PAUSE_S)
            yield
        finally:
            os.close(descriptor)
    finally:
        among_threads.release()


def tried_again(attempt: Callable[[], EngineError | None], rest_s: float = _FIRST_REST_S) -> None:
    """Make an attempt until it succeeds, with growing rests while the repository is busy.

    Parameters
    ----------
    attempt : callable
        Gives None, or what went wrong.
    rest_s : float
        The first rest.

    Raises
    ------
    EngineError
        What went wrong the last time.
    """
    for number in range(_TRIES):
        failure = attempt()
        if failure is None:
            return
        if number + 1 == _TRIES or not any(text in str(failure).lower() for text in BUSY):
            raise failure
        time.sleep(rest_s * 2**number)


def _taken(descriptor: int, path: Path) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise ConfigError(
                f"{path}: the file system knows no locks ({error.strerror}), so that only one may "
                "write there; mount it with locks (Lustre: -o flock), or unset the shared "
                "repository"
            ) from error
        with storage_errors(path):
            raise
    return True


def _too_long(root: Path, wait_s: float) -> StorageError:
    """No fault of the CCD: it, and the others, wait."""
    return StorageError(
        f"{root}: others have been writing into this repository for {wait_s:g} s; if none is, "
        f"look who holds {root / LOCK}"
    )
