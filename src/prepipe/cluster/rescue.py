"""Which CCDs to try again once their exposure is through, and with what hints."""

from __future__ import annotations

from collections.abc import Iterator

from prepipe.model import Kind, PointingHint, Stage
from prepipe.quality.rescue import EXPOSURES_AWAY, Pointing, rescue_hints
from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["second_tries"]

HOPELESS = frozenset(
    {
        *("DEAD", "BLANK", "SATURATED_FRAME", "NO_SOURCES", "NO_NOMINAL_WCS", "NO_REFERENCE"),
        # Around a hint only one of a doubled exposure's two images would be seen.
        "AMBIGUOUS",
    }
)
"""Flags of CCDs that no hint can help."""


def second_tries(
    journal: Journal, key: CcdKey
) -> Iterator[tuple[CcdRow, tuple[PointingHint, ...]]]:
    """CCDs to try again now that `key` is calibrated; none before its exposure is through.

    Parameters
    ----------
    journal : Journal
    key : CcdKey
        Calibrated just now.

    Yields
    ------
    CcdRow
        A CCD whose WCS failed, of this exposure or of one near it in the same field.
    tuple of PointingHint
        The ladder; at least one rung of it was not tried before.
    """
    if journal.rows(Stage.LANDED, exposure=key.exposure, limit=1):
        return
    around = (key.exposure - EXPOSURES_AWAY, key.exposure + EXPOSURES_AWAY)
    rows = [
        row
        for row in journal.rows(Stage.CALIBRATED, between=around)
        if row.exposure.kind is Kind.OBJECT and row.key.camera == key.camera
    ]
    pointings = {row.key: _pointing(row) for row in rows}
    for row in rows:
        if _can_be_helped(row):
            hints = rescue_hints(pointings[row.key], pointings.values())
            tried = {attempt["rung"] for attempt in row.reduction.get("wcs_tries", ())}
            # The whole ladder again, so that its end tells of every rung.
            if any(hint.rung not in tried for hint in hints):
                yield row, hints


def _pointing(row: CcdRow) -> Pointing:
    east = row.reduction.get("offset_east_arcsec")
    north = row.reduction.get("offset_north_arcsec")
    shift = None if east is None or north is None else (east, north)
    return Pointing(row.key.exposure, row.key.ccd, row.exposure.field, shift)


def _can_be_helped(row: CcdRow) -> bool:
    flags = set(row.reduction.get("flags", ()))
    return "NO_WCS" in flags and not flags & HOPELESS
