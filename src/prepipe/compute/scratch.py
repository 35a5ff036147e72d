"""A node's own disk: a directory a CCD, cleaned up whatever happens, and turns at the shared disk.

What a killed worker leaves is known by its lock, which died with it, and is removed by the next
worker on that node.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from prepipe.errors import ConfigError, PlaceLostError

__all__ = ["scratch_directory", "scratch_root", "shared_turn", "sweep"]

_LOCK = "lock"
_PREFIX = "ccd-"
_GLANCE_S = 0.02
_UNLOCKED_S = 3600.0
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def scratch_root(told: str, environment: Mapping[str, str] | None = None) -> Path:
    """Directory of this user on the node's own disk.

    Parameters
    ----------
    told : str
        Path in which variables of the node's environment stand, such as ``"$JOBFS"``.
    environment : mapping, optional

    Raises
    ------
    ConfigError
        If a variable is not set on this node.
    PlaceLostError
        If the directory cannot be made here; another node may do better.
    """
    variables = os.environ if environment is None else environment

    def value(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        if not variables.get(name):
            raise ConfigError(
                f"compute.scratch is {told}, but ${name} is not set on {os.uname().nodename}: "
                "name a variable that jobs have there, or a directory"
            )
        return variables[name]

    root = Path(_VARIABLE.sub(value, told)) / f"prepipe-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise PlaceLostError(f"{_here(root)} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PlaceLostError(f"{_here(root)} belongs to somebody else")
    return root


@contextmanager
def scratch_directory(root: Path) -> Iterator[Path]:
    """A new directory below `root`, removed afterwards.

    Raises
    ------
    PlaceLostError
        If it cannot be made.
    """
    sweep(root)
    try:
        directory, lock = _new_directory(root)
    except OSError as error:
        raise PlaceLostError(f"{_here(root)} cannot be used: {error.strerror}") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _new_directory(root: Path) -> tuple[Path, int]:
    """A directory and its lock, which is held; neither, where one of them cannot be had."""
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    try:
        lock = os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            os.close(lock)
            raise
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory, lock


def sweep(root: Path) -> None:
    """Remove directories whose owner is dead."""
    for directory in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _is_left_over(directory):
                shutil.rmtree(directory, ignore_errors=True)


def _is_left_over(directory: Path) -> bool:
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        # just made, unless its owner died in between
        return time.time() - directory.stat().st_mtime > _UNLOCKED_S
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        # flock may have been asked for between the file's making and its owner's locking
        return time.time() - directory.stat().st_mtime > 1.0
    finally:
        os.close(lock)


@contextmanager
def shared_turn(root: Path, slots: int) -> Iterator[None]:
    """Wait until fewer than `slots` of this node's workers are at the shared disk; 0 for no limit.

    The turn of a worker that is killed ends with it.
    """
    if not slots:
        yield
        return
    try:
        lock = _free_slot(root, slots)
    except OSError as error:
        raise PlaceLostError(f"{_here(root)} cannot be used: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(lock)


def _free_slot(root: Path, slots: int) -> int:
    while True:
        for number in range(slots):
            path = root / f"turn-{number}"
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return lock
        time.sleep(_GLANCE_S)


def _here(path: Path) -> str:
    return f"{path} on {os.uname().nodename}"
