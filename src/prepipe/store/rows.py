"""What the journal gives back: rows as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store import tables

__all__ = ["LOSSLESS", "CcdKey", "CcdRow", "FileRow", "ccd_row", "joined"]

LOSSLESS = ("", "none", "rice")
"""Codecs of packets that stand for the original; of an empty one nothing is known."""


@dataclass(frozen=True, order=True)
class CcdKey:
    """Which CCD of which exposure."""

    camera: str
    exposure: int
    ccd: int

    def __str__(self) -> str:
        return f"{self.camera} {self.exposure} CCD {self.ccd}"


@dataclass(frozen=True)
class CcdRow:
    """A CCD as the journal knows it, with its exposure."""

    key: CcdKey
    exposure: Exposure
    ccd: Ccd
    raw: Path
    stage: Stage
    failed_stage: Stage | None
    tries: int
    reason: str
    traceback: str
    packet: str
    packet_bytes: int
    codec: str
    checksum: str
    found_at: float | None
    packed_at: float | None
    sent_at: float | None
    landed_at: float | None
    calibrated_at: float | None
    grade: str | None
    reasons: tuple[str, ...]
    reduction: Mapping[str, Any]
    seconds: Mapping[str, float]
    file_checksum: str = ""
    archived_at: float | None = None
    archive_bytes: int = 0
    preset: str = ""

    @property
    def is_lossy(self) -> bool:
        """Whether it was sent with a loss, so that its original belongs into the archive."""
        return self.stage is Stage.SENT and self.codec not in LOSSLESS


@dataclass(frozen=True)
class FileRow:
    """A file that the watcher has dealt with."""

    path: str
    bytes: int
    mtime_ns: int
    quarantined: bool
    reason: str
    traceback: str
    at: float


def joined() -> Any:
    """Select every CCD with its exposure, newest exposure first."""
    exposures, ccds = tables.exposures, tables.ccds
    return (
        select(
            ccds,
            exposures.c.camera,
            exposures.c.number.label("exposure_number"),
            exposures.c.kind,
            exposures.c.field,
            exposures.c.band,
            exposures.c.start,
            exposures.c.exposure_s,
            exposures.c.night,
            exposures.c.path,
        )
        .join(exposures, ccds.c.exposure_id == exposures.c.id)
        .order_by(exposures.c.start.desc(), exposures.c.number.desc(), ccds.c.id)
    )


def ccd_row(found: Any) -> CcdRow:
    """Turn a row of `joined` into a `CcdRow`."""
    exposure = Exposure(
        camera=found.camera,
        number=found.exposure_number,
        kind=Kind(found.kind),
        field=found.field,
        band=found.band,
        start=datetime.fromtimestamp(found.start, UTC),
        exposure_s=found.exposure_s,
        night=Night(date.fromisoformat(found.night)),
    )
    return CcdRow(
        key=CcdKey(found.camera, found.exposure_number, found.number),
        exposure=exposure,
        ccd=Ccd(found.number, found.name),
        raw=Path(found.path),
        stage=Stage(found.stage),
        failed_stage=Stage(found.failed_stage) if found.failed_stage else None,
        tries=found.tries,
        reason=found.reason,
        traceback=found.traceback,
        packet=found.packet,
        packet_bytes=found.packet_bytes,
        codec=found.codec,
        checksum=found.checksum,
        found_at=found.found_at,
        packed_at=found.packed_at,
        sent_at=found.sent_at,
        landed_at=found.landed_at,
        calibrated_at=found.calibrated_at,
        grade=found.grade,
        reasons=tuple(found.reasons or ()),
        reduction=found.reduction or {},
        seconds=found.seconds or {},
        file_checksum=found.file_checksum,
        archived_at=found.archived_at,
        archive_bytes=found.archive_bytes,
        preset=found.preset,
    )
