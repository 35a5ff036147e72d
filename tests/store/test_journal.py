"""What each end remembers."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from prepipe.errors import ConfigError, DuplicateError, StorageError
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Night, Reduction, Stage
from prepipe.store import CcdKey, CcdRow, Journal, tables
from prepipe.store.database import open_engine

EVENING = datetime(2020, 3, 6, 0, 4, 15, 410235, tzinfo=UTC)
S1 = Ccd(25, "S1")
N1 = Ccd(32, "N1")


def exposure(number: int = 941420, **changes: object) -> Exposure:
    start = EVENING + timedelta(minutes=number - 941420)
    values: dict[str, object] = {
        "camera": "decam",
        "number": number,
        "kind": Kind.OBJECT,
        "field": "Prime, Ä field 1",
        "band": "g",
        "start": start,
        "exposure_s": 20.0,
        "night": Night.of(start),
    }
    return Exposure(**(values | changes))


@pytest.fixture
def journal(where: Path | str) -> Iterator[Journal]:
    opened = Journal(where)
    yield opened
    opened.close()


@pytest.fixture
def key(journal: Journal) -> CcdKey:
    return journal.add_exposure(exposure(), [S1], path=Path("raw.fits.fz"))[0]


def row(journal: Journal, key: CcdKey) -> CcdRow:
    found = journal.row(key)
    assert found is not None
    return found


def test_an_exposure_comes_back_as_it_was_given(journal: Journal, where: Path | str) -> None:
    journal.add_exposure(exposure(), [S1, N1], path=Path("raw.fits.fz"), size=5, checksum="ab")
    journal.close()
    again = Journal(where)
    rows = again.rows()
    again.close()
    assert [found.exposure for found in rows] == [exposure()] * 2
    assert [found.ccd for found in rows] == [S1, N1]
    assert {(found.stage, found.raw) for found in rows} == {(Stage.FOUND, Path("raw.fits.fz"))}


def test_only_ccds_not_known_yet_are_new(journal: Journal) -> None:
    assert len(journal.add_exposure(exposure(), [S1])) == 1
    assert journal.add_exposure(exposure(), [S1, N1]) == [CcdKey("decam", 941420, 32)]
    assert journal.add_exposure(exposure(), [S1, N1]) == []


def test_a_known_ccd_keeps_its_stage_when_it_is_added_again(journal: Journal, key: CcdKey) -> None:
    journal.advance(key, Stage.SENT)
    journal.add_exposure(exposure(), [S1])
    assert row(journal, key).stage is Stage.SENT


def test_two_cameras_may_have_the_same_exposure_number(journal: Journal) -> None:
    journal.add_exposure(exposure(), [S1], checksum="a")
    journal.add_exposure(exposure(camera="hsc"), [S1], checksum="b")
    assert len(journal.rows(exposure=941420)) == 2


def test_another_file_with_other_content_and_the_same_number_is_refused(
    journal: Journal, tmp_path: Path
) -> None:
    first = tmp_path / "a.fits"
    first.touch()
    journal.add_exposure(exposure(), [S1], path=first, checksum="a")
    with pytest.raises(DuplicateError, match=r"b\.fits.*already known from .*a\.fits"):
        journal.add_exposure(exposure(), [S1, N1], path=Path("b.fits"), checksum="b")
    assert len(journal.rows()) == 1, "nothing of a refused file is kept"


def test_once_the_first_file_is_removed_the_other_takes_its_place(
    journal: Journal, tmp_path: Path
) -> None:
    journal.add_exposure(exposure(), [S1], path=tmp_path / "removed.fits", checksum="a")
    fresh = journal.add_exposure(exposure(), [S1, N1], path=tmp_path / "b.fits", checksum="b")
    assert [found.ccd for found in fresh] == [25, 32]


def test_a_rewritten_file_makes_its_ccds_begin_anew(journal: Journal) -> None:
    path = Path("a.fits")
    (key,) = journal.add_exposure(exposure(), [S1], path=path, checksum="a")
    journal.advance(key, Stage.PACKED)
    journal.fail(key, Stage.SENT, "broken")
    fresh = journal.add_exposure(exposure(band="r"), [S1, N1], path=path, checksum="b")
    assert [found.ccd for found in fresh] == [25, 32]
    assert {found.stage for found in journal.rows()} == {Stage.FOUND}
    assert {found.reason for found in journal.rows()} == {""}
    assert row(journal, key).exposure.band == "r"
    assert journal.add_exposure(exposure(), [S1], path=path, checksum="b") == []


def test_rows_come_newest_exposure_first_and_as_filtered(journal: Journal) -> None:
    for number in (941421, 941420, 942420):
        journal.add_exposure(exposure(number), [S1, N1])
    journal.advance(CcdKey("decam", 941421, 25), Stage.PACKED)
    assert [found.key.exposure for found in journal.rows()] == [942420] * 2 + [941421] * 2 + [
        941420
    ] * 2
    assert [found.key.ccd for found in journal.rows(Stage.PACKED)] == [25]
    assert len(journal.rows(Stage.FOUND, Stage.PACKED)) == 6
    assert len(journal.rows(exposure=941420, ccd=32)) == 1
    assert len(journal.rows(night=exposure(941420).night)) == 4


def test_advancing_notes_when_how_long_and_what_became_known(journal: Journal, key: CcdKey) -> None:
    journal.begin(key, Stage.PACKED)
    journal.fail(key, Stage.PACKED, "hiccup", traceback="trace", limit=3)
    journal.advance(key, Stage.PACKED, 0.5, packet="x.packet", packet_bytes=7, codec="rice")
    journal.advance(key, Stage.SENT, 0.25)
    found = row(journal, key)
    assert (found.stage, found.packet, found.packet_bytes) == (Stage.SENT, "x.packet", 7)
    assert found.seconds == {"packed": 0.5, "sent": 0.25}
    assert found.found_at <= found.packed_at <= found.sent_at
    assert (found.tries, found.reason, found.traceback) == (0, "", "")


def test_a_ccd_is_quarantined_when_it_failed_too_often(journal: Journal, key: CcdKey) -> None:
    journal.advance(key, Stage.PACKED)
    assert [journal.fail(key, Stage.SENT, "no", limit=3) for _ in range(3)] == [False, False, True]
    found = row(journal, key)
    assert (found.stage, found.failed_stage, found.tries) == (Stage.QUARANTINED, Stage.PACKED, 3)
    assert found.reason == "no"


def test_a_released_ccd_goes_on_where_it_failed(journal: Journal, key: CcdKey) -> None:
    assert not journal.release(key)
    journal.advance(key, Stage.PACKED)
    journal.fail(key, Stage.SENT, "no")
    assert journal.release(key)
    found = row(journal, key)
    assert (found.stage, found.failed_stage, found.tries) == (Stage.PACKED, None, 0)


def test_failing_again_in_quarantine_does_not_forget_where_it_was(
    journal: Journal, key: CcdKey
) -> None:
    journal.advance(key, Stage.PACKED)
    journal.fail(key, Stage.SENT, "no")
    journal.fail(key, Stage.SENT, "still no")
    journal.release(key)
    assert row(journal, key).stage is Stage.PACKED


def test_what_got_on_meanwhile_is_not_taken_out_of_the_queue(journal: Journal, key: CcdKey) -> None:
    journal.advance(key, Stage.CALIBRATED)
    taken = journal.fail(key, Stage.CALIBRATED, "cancelled by hand", only_at=Stage.LANDED)
    row = journal.row(key)
    assert (taken, row.stage, row.tries, row.reason) == (False, Stage.CALIBRATED, 0, "")


def test_waiting_is_no_failure(journal: Journal, key: CcdKey) -> None:
    journal.wait(key, Stage.SENT, "the link is down")
    found = row(journal, key)
    assert (found.stage, found.tries, found.reason) == (Stage.FOUND, 0, "the link is down")
    journal.advance(key, Stage.SENT)
    assert row(journal, key).reason == ""


def test_a_reduction_and_its_grade_are_kept(journal: Journal, key: CcdKey) -> None:
    reduction = Reduction(941420, 25, flags=("NO_BIAS",), seeing_arcsec=1.1)
    journal.calibrated(key, reduction, Grade(Colour.YELLOW, ("no bias",)), 0.4)
    found = row(journal, key)
    assert (found.stage, found.grade, found.reasons) == (
        Stage.CALIBRATED,
        "yellow",
        ("no bias",),
    )
    assert found.reduction["seeing_arcsec"] == 1.1


def test_an_unknown_ccd_has_no_row(journal: Journal) -> None:
    assert journal.row(CcdKey("decam", 1, 1)) is None


def test_a_file_is_known_only_in_the_state_it_was_in(journal: Journal) -> None:
    path = Path("raw.fits.fz")
    journal.remember_file(path, 10, 111)
    assert journal.known_file(path, 10, 111)
    assert not journal.known_file(path, 10, 112)
    assert not journal.known_file(path, 11, 111)
    assert journal.known_files() == {"raw.fits.fz": (10, 111)}
    journal.remember_file(path, 11, 112)
    assert journal.known_files() == {"raw.fits.fz": (11, 112)}


def test_a_quarantined_file_can_be_taken_anew(journal: Journal) -> None:
    path = Path("raw.fits.fz")
    journal.remember_file(path, 10, 111, reason="truncated", traceback="trace")
    (found,) = journal.quarantined_files()
    assert (found.path, found.reason, found.quarantined) == ("raw.fits.fz", "truncated", True)
    assert journal.forget_file(path)
    assert not journal.forget_file(path)
    assert journal.quarantined_files() == []


def test_a_file_mended_leaves_quarantine(journal: Journal) -> None:
    journal.remember_file(Path("raw.fits.fz"), 10, 111, reason="truncated")
    journal.remember_file(Path("raw.fits.fz"), 20, 222)
    assert journal.quarantined_files() == []


def test_every_change_leaves_an_event(journal: Journal, key: CcdKey, where: Path | str) -> None:
    journal.begin(key, Stage.PACKED)
    journal.advance(key, Stage.PACKED, 0.1)
    journal.wait(key, Stage.SENT, "down")
    journal.fail(key, Stage.SENT, "no")
    journal.release(key)
    events = tables.events
    query = select(events.c.stage, events.c.outcome, events.c.detail).order_by(events.c.id)
    with open_engine(where).connect() as connection:
        told = [tuple(event) for event in connection.execute(query)]
    assert told == [
        ("found", "done", ""),
        ("packed", "begun", ""),
        ("packed", "done", ""),
        ("sent", "waits", "down"),
        ("sent", "failed", "no"),
        ("packed", "released", ""),
    ]


def test_a_change_that_fails_leaves_nothing_half_done(journal: Journal, key: CcdKey) -> None:
    with pytest.raises(StorageError):
        journal.advance(key, Stage.PACKED, packet=object())
    assert row(journal, key).stage is Stage.FOUND


def _count(where: Path | str, begin: threading.Event, ccd: int) -> None:
    journal = Journal(where)
    begin.wait()
    for _ in range(20):
        journal.fail(CcdKey("decam", 941420, ccd), Stage.PACKED, "x", limit=1000)
    journal.close()


def test_several_processes_write_at_once_and_no_change_is_lost(
    journal: Journal, where: Path | str, key: CcdKey
) -> None:
    context = multiprocessing.get_context("spawn")
    begin = context.Event()
    workers = [context.Process(target=_count, args=(where, begin, 25)) for _ in range(3)]
    for worker in workers:
        worker.start()
    begin.set()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert row(journal, key).tries == 60


def test_several_threads_write_at_once(journal: Journal, key: CcdKey) -> None:
    threads = [
        threading.Thread(
            target=lambda: [journal.fail(key, Stage.PACKED, "x", limit=1000) for _ in range(20)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert row(journal, key).tries == 80


STEPS = st.lists(
    st.sampled_from(["advance", "fail", "release", "return", "wait"]), min_size=1, max_size=12
)


NUMBERS = itertools.count(1)


# each example has an exposure of its own
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_a_ccd_is_always_at_one_stage_and_can_always_be_brought_back(
    journal: Journal, steps: list[str]
) -> None:
    (key,) = journal.add_exposure(exposure(next(NUMBERS)), [S1])
    way = [Stage.PACKED, Stage.SENT]
    for step in steps:
        match step:
            case "advance":
                journal.advance(key, way[0])
                way.reverse()
            case "fail":
                journal.fail(key, Stage.SENT, "no", limit=2)
            case "release":
                journal.release(key)
            case "return":
                journal.return_to(key, Stage.FOUND)
            case "wait":
                journal.wait(key, Stage.SENT, "down")
        found = row(journal, key)
        assert (found.stage is Stage.QUARANTINED) == (found.failed_stage is not None)
        if found.stage is Stage.QUARANTINED:
            assert found.tries >= 2
            assert found.reason
    journal.release(key)
    assert row(journal, key).stage is not Stage.QUARANTINED


def test_a_journal_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot"):
        Journal(tmp_path / "file" / "journal.sqlite")


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is no database, but long enough to be taken for one" * 100)
    with pytest.raises(StorageError, match="not a database"):
        Journal(path)


def test_a_wrong_url_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError):
        Journal("nonsense")


def sent(journal: Journal, number: int, codec: str = "jpeg2000") -> CcdRow:
    (key,) = journal.add_exposure(
        exposure(number), [S1], path=Path("raw.fits"), checksum=str(number)
    )
    journal.advance(key, Stage.SENT, codec=codec)
    return row(journal, key)


def test_originals_wait_of_what_was_sent_with_a_loss_the_newest_first(journal: Journal) -> None:
    for number, codec in enumerate(("jpeg2000", "none", "rice", "", "jpeg2000"), start=941420):
        sent(journal, number, codec)
    journal.advance(journal.add_exposure(exposure(941430), [S1])[0], Stage.PACKED, codec="jpeg2000")
    assert [found.exposure.number for found in journal.originals()] == [941424, 941420]


def test_originals_of_one_night_can_be_asked_for(journal: Journal) -> None:
    nights = {sent(journal, number).exposure.night for number in (941420, 941420 + 1440)}
    for night in nights:
        assert [found.exposure.night for found in journal.originals(night)] == [night]


def test_an_archived_original_waits_no_more_not_even_after_its_packet_was_sent_again(
    journal: Journal,
) -> None:
    found = sent(journal, 941420)
    assert journal.archived(found, 7)
    journal.return_to(found.key, Stage.FOUND)
    journal.advance(found.key, Stage.SENT)
    assert journal.originals() == []
    again = row(journal, found.key)
    assert again.archived_at is not None
    assert again.archive_bytes == 7


def test_the_original_of_a_rewritten_file_waits_again(journal: Journal) -> None:
    found = sent(journal, 941420)
    journal.archived(found, 7)
    journal.add_exposure(exposure(), [S1], path=Path("raw.fits"), checksum="other")
    journal.advance(found.key, Stage.SENT)
    assert [waiting.key for waiting in journal.originals()] == [found.key]


def test_an_original_read_before_its_file_was_rewritten_is_not_noted(journal: Journal) -> None:
    read = sent(journal, 941420)
    journal.add_exposure(exposure(), [S1], path=Path("raw.fits"), checksum="other")
    assert not journal.archived(read, 7)
    journal.advance(read.key, Stage.SENT)
    assert not journal.archived(read, 7)
    assert row(journal, read.key).archived_at is None


def test_the_newest_start_is_that_of_the_newest_exposure(journal: Journal) -> None:
    assert journal.newest_start() == 0.0
    for number in (941421, 941420):
        journal.add_exposure(exposure(number), [S1])
    assert journal.newest_start() == exposure(941421).start.timestamp()
