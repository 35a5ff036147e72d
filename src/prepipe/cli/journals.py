"""The journals of a site, as far as they lie on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.config import Site
    from prepipe.model import Night
    from prepipe.store import Journal
    from prepipe.store.status import NightStatus

__all__ = [
    "ARCHIVE_LOCK",
    "FINISHED",
    "INGEST_LOCK",
    "JOURNAL_NAME",
    "PUSH_LOCK",
    "Journals",
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

    def status(self, exposure: int | None = None, night: Night | None = None) -> NightStatus:
        """Where everything is.

        Parameters
        ----------
        exposure : int, optional
            Only this one; of the files in quarantine, those whose name has its number.
        night : Night, optional
            Only this one; a file in quarantine may be of any.
        """
        from prepipe.store.status import night_status

        rows = {
            end: journal.rows(exposure=exposure, night=night)
            for end, journal in self.present.items()
        }
        files = {
            end: [file for file in journal.quarantined_files() if _is_about(file.path, exposure)]
            for end, journal in self.present.items()
        }
        sender = self.telescope
        return night_status(
            rows.get("telescope", ()),
            rows.get("cluster", ()),
            files.get("telescope", ()),
            files.get("cluster", ()),
            sender.transfers(exposure=exposure, night=night) if sender else (),
            sender.checks(night) if sender and exposure is None else (),
        )


@contextmanager
def open_journals(site: Site) -> Iterator[Journals]:
    """Open the journals that exist; none is made.

    Raises
    ------
    StorageError
        If one exists and cannot be used.
    """
    journals = Journals(_opened(site.telescope.work), _opened(site.cluster.work))
    try:
        yield journals
    finally:
        for journal in journals.present.values():
            journal.close()


def _is_about(path: str, exposure: int | None) -> bool:
    numbers = re.findall(r"[0-9]+", Path(path).name)
    return exposure is None or any(int(number) == exposure for number in numbers)


def _opened(work: Path) -> Journal | None:
    from prepipe.store import Journal

    path = work / JOURNAL_NAME
    return Journal(path) if path.is_file() else None
