"""What the cluster's end makes of a failed WCS once the exposure is through."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from prepipe.cluster.rescue import second_tries
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Night, Reduction, Stage, WcsTry
from prepipe.store import CcdKey, Journal

START = datetime(2020, 3, 6, 4, tzinfo=UTC)
FAILED = ("NO_WCS", "NO_MATCH")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


def land(journal: Journal, number: int, *ccds: int, field: str = "COSMOS") -> list[CcdKey]:
    exposure = Exposure("decam", number, Kind.OBJECT, field, "g", START, 20.0, Night.of(START))
    names = [Ccd(ccd, f"S{ccd}") for ccd in ccds]
    return journal.add_exposure(exposure, names, stage=Stage.LANDED)


def calibrate(
    journal: Journal, key: CcdKey, flags: tuple[str, ...] = (), tries: tuple[WcsTry, ...] = ()
) -> None:
    shift = None if flags else 12.0
    reduction = Reduction(
        key.exposure,
        key.ccd,
        flags=flags,
        wcs_tries=tries,
        offset_east_arcsec=shift,
        offset_north_arcsec=shift,
    )
    colour = Colour.RED if flags else Colour.GREEN
    journal.calibrated(key, reduction, Grade(colour), 0.1)


def test_nothing_is_tried_before_the_exposure_is_through(journal: Journal) -> None:
    first, second, _ = land(journal, 100, 25, 26, 27)
    calibrate(journal, first, FAILED)
    calibrate(journal, second)
    assert list(second_tries(journal, second)) == []


def test_a_failed_ccd_gets_the_shift_of_its_neighbours(journal: Journal) -> None:
    first, second = land(journal, 100, 25, 26)
    calibrate(journal, first, FAILED)
    calibrate(journal, second)
    ((row, hints),) = second_tries(journal, second)
    assert row.key == first
    assert hints[0].rung == "neighbouring CCDs"
    assert (hints[0].east_arcsec, hints[0].north_arcsec) == (12.0, 12.0)


def test_a_rung_is_tried_once(journal: Journal) -> None:
    first, second = land(journal, 100, 25, 26)
    rungs = ("header", "neighbouring CCDs", "any CCD of the exposure")
    calibrate(journal, first, FAILED, tuple(WcsTry(rung, True, False) for rung in rungs))
    calibrate(journal, second)
    assert list(second_tries(journal, second)) == []


def test_a_later_exposure_of_the_field_helps_too(journal: Journal) -> None:
    (alone,) = land(journal, 100, 25)
    calibrate(journal, alone, FAILED)
    assert list(second_tries(journal, alone)) == []
    (later,) = land(journal, 102, 25)
    calibrate(journal, later)
    ((row, hints),) = second_tries(journal, later)
    assert (row.key, hints[0].rung) == (alone, "same CCD, other exposures")


@pytest.mark.parametrize("flag", ["AMBIGUOUS", "DEAD", "NO_REFERENCE", "NO_SOURCES"])
def test_what_no_hint_can_help_is_left_alone(journal: Journal, flag: str) -> None:
    first, second = land(journal, 100, 25, 26)
    calibrate(journal, first, (*FAILED, flag))
    calibrate(journal, second)
    assert list(second_tries(journal, second)) == []
