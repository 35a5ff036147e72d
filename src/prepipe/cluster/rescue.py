"""Which CCDs to try again once their exposure is through, and with what hints."""

from __future__ import annotations

from collections.abc import Iterator

from prepipe.model import PointingHint, Stage
from prepipe.quality.rescue import EXPOSURES_AWAY, Pointing, can_be_helped, new_hints
from prepipe.store import CcdKey, Journal, PointingRow

__all__ = ["second_tries"]


def second_tries(
    journal: Journal, key: CcdKey
) -> Iterator[tuple[PointingRow, tuple[PointingHint, ...]]]:
    """CCDs to try again now that `key` is calibrated; none before its exposure is through.

    Parameters
    ----------
    journal : Journal
    key : CcdKey
        Calibrated just now.

    Yields
    ------
    PointingRow
        A CCD whose WCS failed, of this exposure or of one near it in the same field.
    tuple of PointingHint
        The ladder; at least one rung of it was not tried before.
    """
    if journal.rows(Stage.LANDED, exposure=key.exposure, limit=1):
        return
    rows = journal.pointings(
        key.camera, key.exposure - EXPOSURES_AWAY, key.exposure + EXPOSURES_AWAY
    )
    solved = [_pointing(row) for row in rows if row.shift is not None]
    for row in rows:
        if can_be_helped(row.flags) and (hints := new_hints(_pointing(row), solved, row.rungs)):
            yield row, hints


def _pointing(row: PointingRow) -> Pointing:
    return Pointing(row.key.exposure, row.key.ccd, row.field, row.shift)
