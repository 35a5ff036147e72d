"""What a push tells while it works, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from prepipe.model import Exposure
from prepipe.store import CcdKey, TransferRow

__all__ = ["Event", "Failure", "Happening", "Report", "transfer_line", "unexpected"]


class Happening(StrEnum):
    """What kind of thing happened."""

    FOUND = "found"
    """An exposure was registered."""
    IGNORED = "ignored"
    """A file holds nothing to calibrate."""
    SENT = "sent"
    """A CCD is at the far side."""
    COMPLETE = "complete"
    """All of an exposure that can be sent is at the far side."""
    TAKEN_OVER = "taken over"
    """An exposure that another host began is this one's now."""
    CHECKED = "checked"
    """A packet was held against its original, or could not be."""
    ARCHIVED = "archived"
    """An original is in the far side's archive."""
    WHOLE = "whole"
    """An original went whole that might have been a residual; once for each reason."""
    WAITS = "waits"
    """Nothing is begun now, as it should be: it is night, or others go first."""
    PACKING = "packing"
    """Exposures are packed by another preset from now on."""
    FAILED = "failed"
    """A CCD or file could not be worked on; it is tried again."""
    QUARANTINED = "quarantined"
    """A CCD or file was given up."""
    OBSTACLE = "obstacle"
    """Nothing can go on: link down, disk full, directory unreadable. It is tried again."""
    CLEARED = "cleared"
    """The obstacle is gone."""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Parameters
    ----------
    what : Happening
    text : str
        One sentence.
    key : CcdKey, optional
    path : Path, optional
        The raw file.
    ccds : int
        Found: CCDs that wait now.
    packet_bytes : int
        Sent: size of the packet.
    seconds : float
        Sent: since the raw file was found, s.
    """

    what: Happening
    text: str
    key: CcdKey | None = None
    path: Path | None = None
    ccds: int = 0
    packet_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """What did not go through, and why."""

    what: str
    reason: str


@dataclass
class Report:
    """What a run did.

    Parameters
    ----------
    exposures, ccds : int
        Found.
    sent : int
        CCDs sent.
    sent_bytes : int
    already_there : int
        CCDs that the far side had already, and that were not sent again.
    waiting : int
        CCDs that are still queued.
    failures : list of Failure
        Files and CCDs given up in this run; after a run of what is there, also what
        could not be done.
    """

    exposures: int = 0
    ccds: int = 0
    sent: int = 0
    sent_bytes: int = 0
    already_there: int = 0
    waiting: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


def transfer_line(exposure: Exposure, transfer: TransferRow, rate: float | str) -> str:
    """How an exposure crossed, in one line.

    Parameters
    ----------
    exposure : Exposure
    transfer : TransferRow
    rate : float or str
        What the line carries, Mbit/s, if that is known.
    """
    name = f"{exposure.number} {exposure.field or exposure.kind.value} {exposure.band}".rstrip()
    line = (
        f"exposure {name}: {transfer.ccds} sent, {transfer.bytes / 1e6:.1f} MB in "
        f"{transfer.seconds:.1f} s, {transfer.mbit_s:.1f} Mbit/s"
    )
    return line if isinstance(rate, str) else f"{line}, {transfer.mbit_s / rate:.2f} of the rate"


def unexpected(error: Exception) -> str:
    """What is said of an error that nobody foresaw."""
    return f"unexpected {type(error).__name__}: {error}; please report it with its traceback"
