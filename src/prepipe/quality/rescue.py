"""The rescue ladder: where a CCD whose WCS failed may have looked, told by those that solved.

The rungs are those of the Deeper, Wider, Faster programme's photpipe runs: the same CCD
in the same field a few exposures away, then neighbouring CCDs of the same exposure, then
any CCD of it; each first with the usual limits, then with relaxed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean

from prepipe.model import PointingHint, Reduction, WcsTry

__all__ = [
    "ANY_CCD",
    "CCDS_AWAY",
    "EXPOSURES_AWAY",
    "NEIGHBOURS",
    "SAME_CCD",
    "Pointing",
    "can_be_helped",
    "new_hints",
    "rescue_hints",
    "with_every_rung",
]

SAME_CCD, NEIGHBOURS = "same CCD, other exposures", "neighbouring CCDs"
ANY_CCD = "any CCD of the exposure"

EXPOSURES_AWAY = 7
"""Exposures of the same field fewer numbers away than this share their pointing error."""

CCDS_AWAY = 3
"""CCDs fewer numbers away than this count as neighbours."""

HOPELESS = frozenset(
    {
        *("DEAD", "BLANK", "SATURATED_FRAME", "NO_SOURCES", "NO_NOMINAL_WCS", "NO_REFERENCE"),
        # Around a hint only one of a doubled exposure's two images would be seen.
        "AMBIGUOUS",
    }
)
"""Flags of CCDs that no hint can help."""


@dataclass(frozen=True)
class Pointing:
    """What one CCD tells of the pointing.

    Parameters
    ----------
    exposure, ccd : int
    field : str
    shift : tuple of float or None
        Pointing error east and north, arcsec; None where the WCS failed.
    """

    exposure: int
    ccd: int
    field: str
    shift: tuple[float, float] | None


def rescue_hints(failed: Pointing, others: Iterable[Pointing]) -> tuple[PointingHint, ...]:
    """Shifts worth trying for a CCD whose WCS failed, best first.

    Parameters
    ----------
    failed : Pointing
    others : iterable of Pointing
        Any CCDs; those that did not solve are passed over.

    Returns
    -------
    tuple of PointingHint
        Two a rung: usual, then relaxed.
    """
    solved = [other for other in others if other.shift is not None]
    same_exposure = [other for other in solved if other.exposure == failed.exposure]
    rungs = {
        SAME_CCD: [
            other
            for other in solved
            if other.ccd == failed.ccd
            and other.field == failed.field
            and 0 < abs(other.exposure - failed.exposure) < EXPOSURES_AWAY
        ],
        NEIGHBOURS: [other for other in same_exposure if abs(other.ccd - failed.ccd) < CCDS_AWAY],
        ANY_CCD: same_exposure,
    }
    hints = []
    for rung, told in rungs.items():
        shifts = [other.shift for other in told if other.shift is not None]
        if shifts:
            east, north = (fmean(shift[axis] for shift in shifts) for axis in (0, 1))
            hints += [PointingHint(rung, east, north, relaxed) for relaxed in (False, True)]
    return tuple(hints)


def can_be_helped(flags: Iterable[str]) -> bool:
    """Whether a CCD with these flags has failed for want of a pointing."""
    told = set(flags)
    return "NO_WCS" in told and not told & HOPELESS


def new_hints(
    failed: Pointing, others: Iterable[Pointing], tried: Iterable[str]
) -> tuple[PointingHint, ...]:
    """The ladder for a failed CCD; nothing if all its rungs were tried before.

    Parameters
    ----------
    failed : Pointing
    others : iterable of Pointing
    tried : iterable of str
        Rungs of its earlier tries.

    Returns
    -------
    tuple of PointingHint
        The whole ladder, so that its end tells of every rung.
    """
    hints = rescue_hints(failed, others)
    known = set(tried)
    return hints if any(hint.rung not in known for hint in hints) else ()


def with_every_rung(reduction: Reduction, hints: Iterable[PointingHint]) -> Reduction:
    """A reduction without a WCS names all rungs: one that it leaves out would come for ever.

    Parameters
    ----------
    reduction : Reduction
    hints : iterable of PointingHint
        What its engine was given.
    """
    if not can_be_helped(reduction.flags):
        return reduction
    known = {tried.rung for tried in reduction.wcs_tries}
    left = dict.fromkeys(hint.rung for hint in hints if hint.rung not in known)
    passed_over = (WcsTry(rung, False, False, ("PASSED_OVER",)) for rung in left)
    return replace(reduction, wcs_tries=(*reduction.wcs_tries, *passed_over))
