"""Which CCDs to try again once their exposure is through, and with what hints."""

from __future__ import annotations

from collections.abc import Iterator

from prepipe.model import Kind, PointingHint, Stage
from prepipe.quality.rescue import EXPOSURES_AWAY, Pointing, can_be_helped, new_hints
from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["second_tries"]


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
        if can_be_helped(row.reduction.get("flags", ())):
            tried = (attempt["rung"] for attempt in row.reduction.get("wcs_tries", ()))
            hints = new_hints(pointings[row.key], pointings.values(), tried)
            if hints:
                yield row, hints


def _pointing(row: CcdRow) -> Pointing:
    east = row.reduction.get("offset_east_arcsec")
    north = row.reduction.get("offset_north_arcsec")
    shift = None if east is None or north is None else (east, north)
    return Pointing(row.key.exposure, row.key.ccd, row.exposure.field, shift)
