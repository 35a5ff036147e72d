"""Nights in figures, counted by the database along its indices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import Connection, func, select

from prepipe.model import Night, Stage
from prepipe.store import tables

__all__ = ["NightCounts", "counts_by_night"]


@dataclass(frozen=True)
class NightCounts:
    """What one end knows of a night.

    Parameters
    ----------
    night : Night
    exposures : int
    stages : mapping
        CCDs at each stage.
    grades : mapping
        Calibrated CCDs of each colour.
    """

    night: Night
    exposures: int
    stages: Counter[Stage] = field(default_factory=Counter)
    grades: Counter[str] = field(default_factory=Counter)


def counts_by_night(connection: Connection) -> list[NightCounts]:
    """Figures of every night, the newest first."""
    exposures, ccds = tables.exposures, tables.ccds
    # by exposure first, which needs the index alone
    each = (
        select(ccds.c.exposure_id, ccds.c.stage, ccds.c.grade, func.count().label("ccds"))
        .group_by(ccds.c.exposure_id, ccds.c.stage, ccds.c.grade)
        .subquery()
    )
    together = (
        select(exposures.c.night, each.c.stage, each.c.grade, func.sum(each.c.ccds))
        .join(exposures, each.c.exposure_id == exposures.c.id)
        .group_by(exposures.c.night, each.c.stage, each.c.grade)
    )
    # nights last: one that begins in between must not be missing among them
    found = connection.execute(together).all()
    nights = select(exposures.c.night, func.count()).group_by(exposures.c.night)
    counts = {
        night: NightCounts(Night.parse(night), number)
        for night, number in connection.execute(nights)
    }
    for night, stage, grade, number in found:
        counts[night].stages[Stage(stage)] += int(number)
        if grade and stage == Stage.CALIBRATED:
            counts[night].grades[grade] += int(number)
    return [counts[night] for night in sorted(counts, reverse=True)]
