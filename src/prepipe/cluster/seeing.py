"""The seeing of shortly before, for engines that begin with a guess."""

from __future__ import annotations

from statistics import median

from prepipe.model import Exposure, Kind, Stage
from prepipe.store import Journal

__all__ = ["recent_seeing"]

NEWEST = 200
"""CCDs looked at: two exposures of a large camera."""

ENOUGH = 20
"""CCDs of the band whose median is taken, the newest ones."""

A_NIGHT_S = 43200.0
"""No exposure of the same night begins so much later, s."""


def recent_seeing(journal: Journal, exposure: Exposure) -> float | None:
    """Median seeing of the newest calibrated CCDs of an exposure's night and band.

    Parameters
    ----------
    journal : Journal
    exposure : Exposure

    Returns
    -------
    float or None
        FWHM, arcsec; None if none was measured.
    """
    # asked for by night, all its CCDs would be read and sorted, for each that is begun
    dawn = exposure.start.timestamp() + A_NIGHT_S
    rows = journal.rows(Stage.CALIBRATED, before=dawn, limit=NEWEST)
    known = [
        row.reduction["seeing_arcsec"]
        for row in rows
        if row.exposure.kind is Kind.OBJECT
        and row.exposure.night == exposure.night
        and (row.exposure.camera, row.exposure.band) == (exposure.camera, exposure.band)
        and row.reduction.get("seeing_arcsec")
    ]
    return median(known[:ENOUGH]) if known else None
