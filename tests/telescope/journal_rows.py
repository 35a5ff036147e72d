"""CCDs as a journal would give them, without a journal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store import CcdKey, CcdRow

EVENING = datetime(2020, 3, 6, tzinfo=UTC)


def row(number: int, ccd: int, stage: Stage = Stage.FOUND) -> CcdRow:
    exposure = Exposure(
        camera="decam",
        number=number,
        kind=Kind.OBJECT,
        field="field",
        band="g",
        start=EVENING + timedelta(minutes=number),
        exposure_s=20.0,
        night=Night.of(EVENING),
    )
    return CcdRow(
        key=CcdKey("decam", number, ccd),
        exposure=exposure,
        ccd=Ccd(ccd, f"X{ccd}"),
        raw=Path(f"DECam_{number:08d}.fits.fz"),
        stage=stage,
        failed_stage=None,
        tries=0,
        reason="",
        traceback="",
        packet="",
        packet_bytes=0,
        codec="",
        checksum="",
        found_at=0.0,
        packed_at=None,
        sent_at=1.0 if stage is Stage.SENT else None,
        landed_at=None,
        calibrated_at=None,
        grade=None,
        reasons=(),
        reduction={},
        seconds={},
    )


def rows(*numbers: int, ccds: Sequence[int] = (1, 2, 3)) -> list[CcdRow]:
    return [row(number, ccd) for number in numbers for ccd in ccds]


def numbers(chosen: Sequence[CcdRow]) -> list[int]:
    return [found.exposure.number for found in chosen]
