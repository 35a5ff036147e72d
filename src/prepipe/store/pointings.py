"""What calibrated CCDs tell of the telescope's pointing, without the rest of their reductions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from prepipe.model import Kind, Stage
from prepipe.store import tables
from prepipe.store.rows import CcdKey

__all__ = ["PointingRow", "pointings"]


@dataclass(frozen=True)
class PointingRow:
    """One calibrated CCD of an object.

    Parameters
    ----------
    key : CcdKey
    field : str
    flags : tuple of str
        Of its reduction.
    rungs : tuple of str
        Where its WCS was looked for.
    shift : tuple of float or None
        Pointing error east and north, arcsec; None where the WCS failed.
    """

    key: CcdKey
    field: str
    flags: tuple[str, ...]
    rungs: tuple[str, ...]
    shift: tuple[float, float] | None


def pointings(connection: Connection, camera: str, first: int, last: int) -> list[PointingRow]:
    """Calibrated CCDs of the exposures of some numbers, both ends included, newest first."""
    exposures, ccds = tables.exposures, tables.ccds
    told = ccds.c.reduction
    query = (
        select(
            exposures.c.number.label("exposure"),
            exposures.c.field,
            ccds.c.number,
            told["flags"].label("flags"),
            told["wcs_tries"].label("tries"),
            told["offset_east_arcsec"].as_float().label("east"),
            told["offset_north_arcsec"].as_float().label("north"),
        )
        .join(exposures, ccds.c.exposure_id == exposures.c.id)
        .where(
            exposures.c.camera == camera,
            exposures.c.number.between(first, last),
            exposures.c.kind == Kind.OBJECT.value,
            ccds.c.stage == Stage.CALIBRATED.value,
        )
        .order_by(exposures.c.start.desc(), exposures.c.number.desc(), ccds.c.id)
    )
    return [_row(camera, found) for found in connection.execute(query)]


def _row(camera: str, found: Any) -> PointingRow:
    solved = found.east is not None and found.north is not None
    return PointingRow(
        key=CcdKey(camera, found.exposure, found.number),
        field=found.field,
        flags=tuple(found.flags or ()),
        rungs=tuple(attempt["rung"] for attempt in found.tries or ()),
        shift=(found.east, found.north) if solved else None,
    )
