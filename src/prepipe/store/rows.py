"""What the journal gives back: rows as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import null, select

from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store import tables

__all__ = [
    "LOSSLESS",
    "NOT_ARCHIVED",
    "CcdKey",
    "CcdRow",
    "FileRow",
    "ccd_rows",
    "exposure_of",
    "joined",
]

LOSSLESS = ("", "none", "rice")
"""Codecs of packets that stand for the original; of an empty one nothing is known."""

NOT_ARCHIVED: Mapping[str, Any] = {"archived_at": None, "archive_bytes": 0, "archive_base": ""}
"""Columns of a CCD whose original is still to go to the archive."""

_LONG = ("reduction", "reasons", "traceback")


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
    asked: Mapping[str, Any] | None = None
    archive_base: str = ""

    @property
    def preset(self) -> str:
        """What the codec was told of its presets; empty if it has none."""
        return str((self.asked or {}).get("preset", ""))

    @property
    def is_lossy(self) -> bool:
        """Whether it was sent with a loss, so that its original belongs into the archive."""
        return self.stage is Stage.SENT and self.codec not in LOSSLESS


_AS_THEY_ARE = tuple(each.name for each in fields(CcdRow)[6:])
"""Fields of `CcdRow` that are columns of the table, in the order of both."""
_COUNT = len(_AS_THEY_ARE)
_REASONS = _AS_THEY_ARE.index("reasons")
_TRACEBACK = _AS_THEY_ARE.index("traceback")
_MAPPINGS = (_AS_THEY_ARE.index("reduction"), _AS_THEY_ARE.index("seconds"))
_STAGES = {stage.value: stage for stage in Stage}


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


def joined(*, whole: bool = True) -> Any:
    """Select every CCD with its exposure, newest exposure first, for `ccd_rows`.

    Parameters
    ----------
    whole : bool
        False leaves out what is long.
    """
    exposures, ccds = tables.exposures, tables.ccds
    told = [
        ccds.c[name] if whole or name not in _LONG else null().label(name) for name in _AS_THEY_ARE
    ]
    return (
        select(
            ccds.c.exposure_id,
            ccds.c.number,
            ccds.c.name,
            ccds.c.stage,
            ccds.c.failed_stage,
            *told,
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
        .order_by(ccds.c.start.desc(), exposures.c.number.desc(), ccds.c.id)
    )


def ccd_rows(found: Iterable[Any]) -> list[CcdRow]:
    """Turn rows of `joined` into `CcdRow`s, which share what they have in common.

    There may be many thousands: columns are taken by their place, once.
    """
    exposures: dict[int, tuple[Exposure, Path]] = {}
    ccds: dict[tuple[int, str], Ccd] = {}
    rows = []
    for each in found:
        exposure_id, number, name, stage, failed_stage, *told = each
        shared = exposures.get(exposure_id)
        if shared is None:
            shared = exposure_of(each, each.exposure_number), Path(each.path)
            exposures[exposure_id] = shared
        exposure, raw = shared
        ccd = ccds.get((number, name))
        if ccd is None:
            ccd = ccds[number, name] = Ccd(number, name)
        key = CcdKey(exposure.camera, exposure.number, number)
        told[_REASONS] = tuple(told[_REASONS] or ())
        for place in _MAPPINGS:
            told[place] = told[place] or {}
        if told[_TRACEBACK] is None:
            told[_TRACEBACK] = ""
        failed = _STAGES[failed_stage] if failed_stage else None
        rows.append(CcdRow(key, exposure, ccd, raw, _STAGES[stage], failed, *told[:_COUNT]))
    return rows


def exposure_of(found: Any, number: int) -> Exposure:
    """Turn a row with the columns of an exposure into an `Exposure`."""
    return Exposure(
        camera=found.camera,
        number=number,
        kind=Kind(found.kind),
        field=found.field,
        band=found.band,
        start=datetime.fromtimestamp(found.start, UTC),
        exposure_s=found.exposure_s,
        night=Night(date.fromisoformat(found.night)),
    )
