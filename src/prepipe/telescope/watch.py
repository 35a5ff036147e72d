"""Watching the raw directory: which files have appeared, and which are complete.

By polling with scandir, because inotify never fires on NFS, Lustre or SSHFS, where raw
data lives.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from prepipe.codec.fits_bytes import scan_fits
from prepipe.errors import FitsError, StorageError
from prepipe.files import PARTIAL_SUFFIX

__all__ = ["UNFINISHED_S", "Arrival", "KnownFiles", "Watcher"]

UNFINISHED_S = 15.0
"""Longer than an instrument pauses between two HDUs."""


class KnownFiles(Protocol):
    """What remembers the files that were dealt with; a `Journal` does."""

    def known_files(self) -> Mapping[str, tuple[int, int]]:
        """Size (bytes) and mtime (ns) of each, by path."""
        ...

    def known_file(self, path: Path, size: int, mtime_ns: int) -> bool:
        """Whether a file was dealt with in just this state."""
        ...


@dataclass(frozen=True)
class Arrival:
    """A file that will not change any more.

    Parameters
    ----------
    path : Path
    size : int
        bytes
    mtime_ns : int
    fault : str
        Why it can never be read; empty if it is complete.
    """

    path: Path
    size: int
    mtime_ns: int
    fault: str = ""


@dataclass
class _Pending:
    """A file that is not known yet.

    `since` is when it last changed, by the watcher's clock; `unfinished`, whether its primary
    header promises more extensions than it holds.
    """

    size: int
    mtime_ns: int
    since: float
    stable: bool = False
    scanned: bool = False
    fault: str = ""
    unfinished: bool = False


class Watcher:
    """Looks into one directory, again and again.

    A file is complete when its size and mtime held over two looks and its FITS
    structure reaches exactly its end. What is there at the start counts as new unless it
    is known in just this state. A file stays an arrival until it is known, so that one
    that could not be registered comes again.

    A file whose primary header promises (NEXTEND) more extensions than it holds counts as
    growing until it has been at rest for `unfinished_s`: its writer may only pause between two
    HDUs. Then it is taken, for parts of an exposure are exposures too.

    Parameters
    ----------
    directory : Path
        Not searched further down.
    pattern : str
        Shell pattern of the names.
    give_up_s : float
        A file that is incomplete and unchanged this long never will be complete, s.
    known : KnownFiles
    clock : callable
        Seconds, never set back.
    wall_clock : callable
        Seconds since 1970: tells how long a file at rest had been so when first seen.

    Attributes
    ----------
    trouble : str
        Why the directory could not be read at the last look; empty if it could.
    unfinished_s : float
        See above, s; 0 takes every sound file that is at rest.
    """

    def __init__(
        self,
        directory: Path,
        pattern: str,
        give_up_s: float,
        known: KnownFiles,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.trouble = ""
        self.unfinished_s = UNFINISHED_S
        self._pattern = pattern
        self._give_up_s = give_up_s
        self._known = known
        self._clock = clock
        self._wall_clock = wall_clock
        self._pending: dict[Path, _Pending] = {}

    def poll(self) -> list[Arrival]:
        """Look once.

        Returns
        -------
        list of Arrival
            Complete files and hopeless ones that are not known yet, newest first.

        Raises
        ------
        StorageError
            If what is known cannot be asked.
        """
        try:
            entries = list(self._entries())
            self.trouble = ""
        except OSError as error:
            self.trouble = (
                f"{self.directory}: {error.strerror or error}; see that it is mounted and can be "
                "read, it is looked at again and again"
            )
            return []
        known = self._known.known_files()
        fresh = {
            path: status
            for path, status in entries
            if known.get(str(path)) != (status.st_size, status.st_mtime_ns)
        }
        self._pending = {path: self._seen(path, status) for path, status in fresh.items()}
        arrivals = [arrival for path in list(self._pending) if (arrival := self._judge(path))]
        return sorted(arrivals, key=lambda arrival: arrival.mtime_ns, reverse=True)

    def waiting(self) -> dict[Path, str]:
        """Files that are not complete yet, and why."""
        return {
            path: pending.fault or f"{path}: was still growing when last looked at"
            for path, pending in self._pending.items()
            if pending.fault or not pending.stable
        }

    @property
    def expects_a_file(self) -> bool:
        """Whether a file that is not known yet appeared or grew within the last seconds."""
        now = self._clock()
        return any(now - pending.since < UNFINISHED_S for pending in self._pending.values())

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Regular files of the right name, and links to such."""
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if not self._wanted(entry.name):
                    continue
                try:
                    status = entry.stat()
                except OSError:
                    # vanished, a link to nowhere or to itself
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield Path(entry.path), status

    def _wanted(self, name: str) -> bool:
        if name.startswith(".") or name.endswith(PARTIAL_SUFFIX) or not name.isprintable():
            return False
        return fnmatchcase(name, self._pattern)

    def _seen(self, path: Path, status: os.stat_result) -> _Pending:
        """What is known of a file after this look at it."""
        before = self._pending.get(path)
        if before is None:
            rest = max(0.0, self._wall_clock() - status.st_mtime)
            return _Pending(status.st_size, status.st_mtime_ns, self._clock() - rest)
        if (before.size, before.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return _Pending(status.st_size, status.st_mtime_ns, self._clock())
        before.stable = True
        return before

    def _judge(self, path: Path) -> Arrival | None:
        """An arrival if the file at rest is complete, or if it never will be."""
        pending = self._pending[path]
        if not pending.stable:
            return None
        rest = self._clock() - pending.since
        hopeless = rest >= self._give_up_s
        if not pending.scanned or (pending.fault and hopeless):
            self._scan(path, pending)
        if path not in self._pending or (pending.fault and not hopeless):
            return None
        if pending.unfinished and rest < self.unfinished_s:
            return None
        return Arrival(path, pending.size, pending.mtime_ns, pending.fault)

    def _scan(self, path: Path, pending: _Pending) -> None:
        pending.scanned = True
        try:
            spans = scan_fits(path)
            pending.fault = ""
            promised = spans[0].value("NEXTEND")
            pending.unfinished = isinstance(promised, int) and promised >= len(spans)
        except FitsError as error:
            pending.fault = str(error)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                del self._pending[path]
            else:
                # it may become readable without being changed
                pending.scanned = False
                pending.fault = str(error)
