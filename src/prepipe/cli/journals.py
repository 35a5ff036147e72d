"""The journals of a site, as far as they lie on this machine."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.config import Site
    from prepipe.config.cluster import Cluster
    from prepipe.config.telescope import Telescope
    from prepipe.model import Night
    from prepipe.store import Journal, NightCounts
    from prepipe.store.status import NightStatus

__all__ = [
    "ARCHIVE_LOCK",
    "FINISHED",
    "INGEST_LOCK",
    "JOURNAL_NAME",
    "PUSH_LOCK",
    "Journals",
    "journal_of",
    "open_journals",
]

JOURNAL_NAME = "journal.sqlite"
PUSH_LOCK = "push.lock"
ARCHIVE_LOCK = "archive.lock"
INGEST_LOCK = "ingest.lock"

FINISHED = {
    "telescope": (Stage.SENT, Stage.QUARANTINED),
    "cluster": (Stage.CALIBRATED, Stage.QUARANTINED),
}
"""Where the work of each end ends, well or not."""


def journal_of(end: Telescope | Cluster) -> Path | str:
    """Where the journal of an end is, or will be: a file, or a database URL."""
    return end.journal or end.work / JOURNAL_NAME


@dataclass(frozen=True)
class Journals:
    """The journal of each end; None where this machine has none."""

    telescope: Journal | None
    cluster: Journal | None

    @property
    def present(self) -> dict[str, Journal]:
        """Those that are here, by the name of their end."""
        ends = {"telescope": self.telescope, "cluster": self.cluster}
        return {end: journal for end, journal in ends.items() if journal is not None}

    def nights(self) -> list[Night]:
        """Nights that either end knows, the newest first."""
        known = {night for journal in self.present.values() for night in journal.nights()}
        return sorted(known, reverse=True)

    def counts(self) -> dict[str, list[NightCounts]]:
        """Every night in figures, by end."""
        return {end: journal.counts() for end, journal in self.present.items()}

    def in_quarantine(self) -> int:
        """How many CCDs of any night are in quarantine."""
        return sum(journal.number_at(Stage.QUARANTINED) for journal in self.present.values())

    def status(self, exposure: int | None = None, night: Night | None = None) -> NightStatus:
        """Where everything is.

        Parameters
        ----------
        exposure : int, optional
            Only this one; of the files in quarantine, those whose name has its number.
        night : Night, optional
            Only this one, if neither is given the newest; a file in quarantine may be of any.
        """
        if exposure is None and night is None:
            night = next(iter(self.nights()), None)
        with _without_collector():
            return self._status(exposure, night)

    def _status(self, exposure: int | None, night: Night | None) -> NightStatus:
        from prepipe.store.status import night_status

        # nothing long is told of a whole night
        whole = exposure is not None
        rows = {
            end: journal.rows(exposure=exposure, night=night, whole=whole)
            for end, journal in self.present.items()
        }
        files = {
            end: [file for file in journal.quarantined_files() if _is_about(file.path, exposure)]
            for end, journal in self.present.items()
        }
        sender = self.telescope
        found = night_status(
            rows.get("telescope", ()),
            rows.get("cluster", ()),
            files.get("telescope", ()),
            files.get("cluster", ()),
            sender.transfers(exposure=exposure, night=night) if sender else (),
            sender.checks(night) if sender and exposure is None else (),
        )
        if exposure is not None:
            return found
        own = sum(row.stage is Stage.QUARANTINED for end in rows.values() for row in end)
        return replace(found, night=night, quarantined_elsewhere=max(0, self.in_quarantine() - own))


@contextmanager
def open_journals(site: Site, *, read_only: bool = False) -> Iterator[Journals]:
    """Open the journals that exist; none is made.

    Parameters
    ----------
    site : Site
    read_only : bool
        Nothing will be changed.

    Raises
    ------
    StorageError
        If one exists and cannot be used.
    """
    from prepipe.store import Journal

    journals = Journals(
        Journal.existing(journal_of(site.telescope), read_only=read_only),
        Journal.existing(journal_of(site.cluster), read_only=read_only),
    )
    try:
        yield journals
    finally:
        for journal in journals.present.values():
            journal.close()


@contextmanager
def _without_collector() -> Iterator[None]:
    """Spare a night's many objects, which all stay, a search for garbage among them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_about(path: str, exposure: int | None) -> bool:
    numbers = re.findall(r"[0-9]+", Path(path).name)
    return exposure is None or any(int(number) == exposure for number in numbers)
