"""Both ends' journals seen as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store.rows import CcdKey, CcdRow, FileRow
from prepipe.store.status import Spread, night_status

START = datetime(2020, 3, 6, 3, 30, tzinfo=UTC)
T0 = 1_000_000.0


def row(
    ccd: int, stage: Stage, times: Mapping[str, float] | None = None, number: int = 941420
) -> CcdRow:
    start = START + timedelta(minutes=number - 941420)
    exposure = Exposure("decam", number, Kind.OBJECT, "f", "g", start, 20.0, Night.of(start))
    reached = {f"{name}_at": T0 + after for name, after in (times or {}).items()}
    return CcdRow(
        key=CcdKey("decam", number, ccd),
        exposure=exposure,
        ccd=Ccd(ccd, f"C{ccd}"),
        raw=Path("raw.fits"),
        stage=stage,
        failed_stage=None,
        tries=0,
        reason="",
        traceback="",
        packet="",
        packet_bytes=0,
        codec="",
        checksum="",
        grade=None,
        reasons=(),
        reduction={},
        seconds={},
        **{f"{s}_at": None for s in ("found", "packed", "sent", "landed", "calibrated")} | reached,
    )


SENT = {"found": 0.0, "packed": 2.0, "sent": 5.0}
DONE = {"found": 6.0, "landed": 6.0, "calibrated": 10.0}


def test_nothing_known_is_nothing_shown():
    found = night_status()
    assert found.exposures == ()
    assert found.latency is None
    assert [stage.ccds for stage in found.stages] == [0, 0, 0, 0]


def test_what_has_landed_is_where_the_cluster_says():
    found = night_status([row(1, Stage.SENT, SENT)], [row(1, Stage.CALIBRATED, DONE)])
    (ccd,) = found.exposures[0].ccds
    assert (ccd.end, ccd.stage) == ("cluster", Stage.CALIBRATED)


def test_what_has_not_landed_is_where_the_telescope_says():
    found = night_status([row(1, Stage.SENT, SENT), row(2, Stage.PACKED, SENT)], [])
    assert found.totals == {Stage.PACKED: 1, Stage.SENT: 1}


def test_latency_counts_from_the_telescopes_first_sight():
    found = night_status([row(1, Stage.SENT, SENT)], [row(1, Stage.CALIBRATED, DONE)])
    assert found.exposures[0].latency_s == pytest.approx(10.0)
    assert found.latency == Spread(10.0, 10.0)


def test_without_the_telescopes_journal_latency_counts_from_the_landing():
    found = night_status([], [row(1, Stage.CALIBRATED, DONE)])
    assert found.exposures[0].latency_s == pytest.approx(4.0)


def test_without_the_telescopes_journal_the_packet_may_tell_when_it_was_found():
    told = {**DONE, "found": 0.0}
    found = night_status([], [row(1, Stage.CALIBRATED, told)])
    assert found.exposures[0].latency_s == pytest.approx(10.0)


def test_a_ccd_that_only_waits_did_not_fail():
    waiting = replace(row(1, Stage.FOUND), reason="the disk is full")
    assert night_status([waiting]).failing == ()


def test_the_time_to_each_stage_counts_from_the_stage_before():
    found = night_status([row(1, Stage.SENT, SENT)], [row(1, Stage.CALIBRATED, DONE)])
    waits = {stage.stage: stage.since_last.p50 for stage in found.stages}
    expected = {Stage.PACKED: 2.0, Stage.SENT: 3.0, Stage.LANDED: 1.0, Stage.CALIBRATED: 4.0}
    assert waits == pytest.approx(expected)


def test_the_work_of_both_ends_is_told():
    here = replace(row(1, Stage.SENT, SENT), seconds={"packed": 0.5, "sent": 0.25})
    there = replace(row(1, Stage.CALIBRATED, DONE), seconds={"calibrated": 1.5})
    work = {stage.stage: stage.work for stage in night_status([here], [there]).stages}
    assert work[Stage.PACKED] == Spread(0.5, 0.5)
    assert work[Stage.CALIBRATED] == Spread(1.5, 1.5)
    assert work[Stage.LANDED] is None


def test_times_of_a_stage_that_must_be_reached_again_do_not_count():
    found = night_status([row(1, Stage.FOUND, SENT)], [row(2, Stage.LANDED, DONE)])
    assert [stage.ccds for stage in found.stages] == [0, 0, 1, 0]
    assert found.latency is None


def test_exposures_come_newest_first_and_their_ccds_in_order():
    rows = [
        row(31, Stage.FOUND, number=941420),
        row(7, Stage.FOUND, number=941420),
        row(1, Stage.FOUND, number=941422),
    ]
    found = night_status(rows)
    assert [exposure.exposure.number for exposure in found.exposures] == [941422, 941420]
    assert [ccd.key.ccd for ccd in found.exposures[1].ccds] == [7, 31]


def test_grades_are_counted_best_first():
    rows = [
        replace(row(ccd, Stage.CALIBRATED, DONE), grade=grade)
        for ccd, grade in enumerate(["red", "green", "green", "yellow"])
    ]
    grades = night_status([], rows).exposures[0].grades
    assert list(grades.items()) == [("green", 2), ("yellow", 1), ("red", 1)]


def test_the_grade_of_a_ccd_that_is_calibrated_again_does_not_count():
    again = replace(row(1, Stage.LANDED, DONE), grade="red")
    assert night_status([], [again]).exposures[0].grades == {}


def test_ccds_that_failed_are_listed_with_their_reason():
    bad = replace(
        row(1, Stage.QUARANTINED, SENT), failed_stage=Stage.PACKED, reason="flipped bit", tries=5
    )
    (failing,) = night_status([bad, row(2, Stage.SENT, SENT)]).failing
    assert (failing.reason, failing.failed_stage) == ("flipped bit", Stage.PACKED)
    assert set(failing.times) == {Stage.FOUND, Stage.PACKED}


def test_files_in_quarantine_of_both_ends_come_newest_first():
    old = FileRow("/raw/a", 0, 0, True, "empty", "", 1.0)
    new = FileRow("/landing/b", 0, 0, True, "no packet", "", 2.0)
    files = night_status((), (), [old], [new]).files
    assert [(file.end, file.path) for file in files] == [
        ("cluster", "/landing/b"),
        ("telescope", "/raw/a"),
    ]


def test_a_spread_is_median_and_95th_percentile():
    assert Spread.of([float(n) for n in range(101)]) == Spread(50.0, 95.0)
    assert Spread.of([]) is None
