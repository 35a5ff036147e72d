"""Files that survive a crash: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import xxhash

from prepipe.errors import ConfigError, StorageError

__all__ = [
    "PARTIAL_SUFFIX",
    "atomic_path",
    "atomic_write",
    "content_checksum",
    "is_in_use",
    "make_directory",
    "sole_user",
    "storage_errors",
    "sweep_partials",
    "sync_directory",
]

PARTIAL_SUFFIX = ".part"

_READ_BYTES = 1 << 22
_LOCK_TRIES = 3
_LOCK_PAUSE_S = 0.02


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a `StorageError` that names `path` and says what to do.

    Raises
    ------
    StorageError
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_advice(path, error)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success sync it and rename it to `path`.

    For libraries that insist on opening a file by name. On failure nothing is left behind.

    Parameters
    ----------
    path : Path
        Final name. Its directory is made if needed.

    Raises
    ------
    StorageError
        If the disk is full or the directory cannot be written.
    """
    # two nodes may be at the same name at the same time, with the same process id
    mark = f"{os.getpid()}-{os.urandom(3).hex()}"
    partial = path.with_name(f".{path.name}.{mark}{PARTIAL_SUFFIX}")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open `path` for writing bytes; it appears whole under its name, or not at all.

    Raises
    ------
    StorageError
        If the disk is full or the directory cannot be written.
    """
    with atomic_path(path) as partial, partial.open("wb") as stream:
        yield stream
        stream.flush()


def content_checksum(path: Path) -> str:
    """xxh3-128 of a file, hexadecimal.

    Raises
    ------
    StorageError
    """
    digest = xxhash.xxh3_128()
    with storage_errors(path), path.open("rb", buffering=0) as stream:
        while part := stream.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def make_directory(directory: Path) -> None:
    """Make a directory in one that is there; where more is missing, a disk may not be mounted.

    Raises
    ------
    StorageError
        If its parent does not exist, or it cannot be made.
    """
    with storage_errors(directory):
        try:
            directory.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            raise StorageError(
                f"{directory.parent} does not exist: look whether its disk is mounted, or make it"
            ) from error


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partials(root: Path, older_than_s: float = 86400.0) -> int:
    """Remove the temporary files that killed writers left below `root`.

    Parameters
    ----------
    root : Path
    older_than_s : float
        Younger ones may still be written, by somebody else too.

    Returns
    -------
    int
        Files removed.
    """
    before = time.time() - older_than_s
    removed = 0
    for partial in root.rglob(f".*{PARTIAL_SUFFIX}"):
        with suppress(OSError):
            if partial.is_file() and partial.stat().st_mtime < before:
                partial.unlink()
                removed += 1
    return removed


@contextmanager
def sole_user(path: Path) -> Iterator[None]:
    """Hold a lock file that the system lets go of when this process ends, however it ends.

    Parameters
    ----------
    path : Path
        In the directory that only one may work in.

    Raises
    ------
    ConfigError
        If another process holds it.
    StorageError
        If it cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Look, without waiting, whether somebody holds the lock file of `sole_user`.

    Parameters
    ----------
    path : Path
        The lock file; if it cannot be read, nobody is known to hold it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    """Try to lock; more than once, for `is_in_use` holds it for an instant."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def _lock(descriptor: int, path: Path) -> None:
    if not _taken(descriptor):
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise ConfigError(
            f"{path.parent} is in use by process {holder}: stop that one first, "
            "or give this one another directory"
        )
    with storage_errors(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _advice(path: Path, error: OSError) -> str:
    remedies = {
        errno.ENOSPC: "free some space, then it goes on by itself",
        errno.EDQUOT: "the quota is used up: free some space, then it goes on by itself",
        errno.EACCES: "give this user the permission to read and write there",
        errno.EROFS: "the file system is mounted read-only",
        errno.EFBIG: "this user's files may not be so large; see `ulimit -f`",
        errno.ELOOP: "a symbolic link stands where none belongs; remove it",
        errno.EEXIST: "a file stands where a directory belongs; look at its name",
        errno.ENOTDIR: "a file stands where a directory belongs; look at its name",
    }
    if error.errno == errno.ENOENT:
        return f"{path} does not exist; look at its name, and whether its disk is mounted"
    reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
    remedy = remedies.get(error.errno or 0, "see the system's log")
    return f"{path}: {reason}; {remedy}"
