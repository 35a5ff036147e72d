"""What the cluster's end tells while it works, and at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from prepipe.model import Grade
from prepipe.store import CcdKey

__all__ = ["Event", "Report", "What"]


class What(StrEnum):
    """Kinds of event."""

    LANDED = "landed"
    REPEATED = "repeated"
    REPLACED = "replaced"
    REJECTED = "rejected"
    READMITTED = "readmitted"
    BEGUN = "begun"
    CALIBRATED = "calibrated"
    AWAITING = "awaiting"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    TROUBLE = "trouble"


@dataclass(frozen=True)
class Event:
    """Something happened.

    Parameters
    ----------
    what : What
    name : str
        The CCD or the file it happened to.
    text : str
        One sentence; empty where `what` says it all.
    key : CcdKey or None
        The CCD, where it is known.
    grade : Grade or None
        Of a calibrated CCD.
    """

    what: What
    name: str
    text: str = ""
    key: CcdKey | None = None
    grade: Grade | None = None


@dataclass
class Report:
    """What a run did.

    Parameters
    ----------
    calibrated : dict
        Grades of the CCDs that were calibrated.
    awaiting : list of CcdKey
        Zeros and dome flats that await being made into masters.
    quarantined : dict
        CCDs that will not be tried again, with the reason.
    rejected : dict
        Names of damaged packets, with the reason.
    troubles : list of str
        What kept the run from finishing, if it gave up.
    held_up : dict
        CCDs that wait for something that is no fault of theirs, with what it is.
    """

    calibrated: dict[CcdKey, Grade] = field(default_factory=dict)
    awaiting: list[CcdKey] = field(default_factory=list)
    quarantined: dict[CcdKey, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    held_up: dict[CcdKey, str] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Everything that went wrong: what, and why. Empty if all went through."""
        ccds = self.quarantined | self.held_up
        named = {str(key): reason for key, reason in ccds.items()}
        troubles = {f"trouble {n}": text for n, text in enumerate(self.troubles, 1)}
        return named | self.rejected | troubles

    def note(self, event: Event) -> None:
        """Take an event into account."""
        if event.what is What.REJECTED:
            self.rejected[event.name] = event.text
        if event.key is None:
            return
        if event.what is What.CALIBRATED and event.grade is not None:
            self.calibrated[event.key] = event.grade
            self.quarantined.pop(event.key, None)
            self.held_up.pop(event.key, None)
        elif event.what is What.TROUBLE:
            self.held_up[event.key] = event.text
        elif event.what is What.AWAITING:
            self.awaiting.append(event.key)
        elif event.what is What.QUARANTINED:
            self.quarantined[event.key] = event.text
