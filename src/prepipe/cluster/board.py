"""The board: what runs where, in a file that other processes read, and the order to drain.

::

    WORK/compute/board.json     written by the ingest while it runs
    WORK/compute/running/NAME   written by a worker while it is at the packet of that name
    WORK/compute/drain          there while nothing shall be begun
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prepipe.compute import DIRECTORY, Job
from prepipe.errors import StorageError
from prepipe.files import atomic_write, storage_errors
from prepipe.store import CcdKey

__all__ = ["Board", "Shown", "UnderWay"]

_OLD_S = 1.0


@dataclass(frozen=True)
class UnderWay:
    """A CCD that is with the workers, since when (seconds since 1970)."""

    key: CcdKey
    since: float


@dataclass(frozen=True)
class Shown:
    """What was on the board.

    Parameters
    ----------
    at : float
        When it was written, seconds since 1970.
    pid : int
        Of the ingest.
    place : str
    jobs : tuple of Job
    under_way : tuple of UnderWay
    trouble : str
        What keeps jobs from being had, or all CCDs from going on; empty if nothing does.
    draining : bool
        Whether the ingest knows that nothing shall be begun.
    """

    at: float
    pid: int
    place: str
    jobs: tuple[Job, ...]
    under_way: tuple[UnderWay, ...]
    trouble: str
    draining: bool


class Board:
    """The board of one cluster's work directory."""

    def __init__(self, work: Path) -> None:
        self._directory = work / DIRECTORY
        self._path = self._directory / "board.json"
        self._drain = self._directory / "drain"
        self.notes = self._directory / "running"
        """Where workers note what they are at."""
        self._last: tuple[Any, ...] = ()
        self._written = 0.0

    @property
    def draining(self) -> bool:
        """Whether nothing shall be begun."""
        return os.path.lexists(self._drain)

    def drain(self, on: bool) -> None:
        """Let nothing be begun from now on; or let it go on.

        Raises
        ------
        StorageError
        """
        if on:
            with atomic_write(self._drain) as stream:
                stream.write(b"nothing is begun while this file is here\n")
        else:
            with storage_errors(self._drain):
                self._drain.unlink(missing_ok=True)

    def where(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Notes of the workers that are at packets of these names: node, pid, job and since."""
        notes = {}
        for name in names:
            with suppress(OSError, ValueError):
                note = json.loads((self.notes / name).read_bytes())
                if isinstance(note, dict):
                    notes[name] = note
        return notes

    def forget(self, name: str) -> None:
        """Take away the note of a worker that could not."""
        with suppress(OSError):
            (self.notes / name).unlink()

    def wipe(self) -> None:
        """Forget what an earlier ingest had under way."""
        with suppress(OSError):
            for note in self.notes.iterdir():
                note.unlink()

    def show(
        self, place: str, jobs: Sequence[Job], under_way: Sequence[UnderWay], trouble: str
    ) -> None:
        """Write what is under way, if it changed, at most once a second."""
        told = (tuple(jobs), tuple(under_way), trouble, self.draining)
        now = time.time()
        if told == self._last or now - self._written < _OLD_S:
            return
        shown = Shown(now, os.getpid(), place, *told)
        # what cannot be shown is no reason to stop
        with suppress(StorageError), atomic_write(self._path) as stream:
            stream.write(json.dumps(asdict(shown)).encode())
        self._last, self._written = told, now

    def read(self) -> Shown | None:
        """What was shown last; None if nothing can be made of it."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            told = json.loads(self._path.read_bytes())
            under_way = [
                UnderWay(CcdKey(**one["key"]), one["since"]) for one in told.pop("under_way")
            ]
            jobs = [Job(**job) for job in told.pop("jobs")]
            return Shown(jobs=tuple(jobs), under_way=tuple(under_way), **told)
        return None
