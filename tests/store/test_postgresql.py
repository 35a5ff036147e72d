"""A journal in PostgreSQL: what differs from a file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from postgresql_server import Server
from sqlalchemy import event
from sqlalchemy.engine import Engine

from prepipe.errors import ConfigError, StorageError
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Night, Reduction, Stage
from prepipe.store import Journal

START = datetime(2020, 3, 6, 3, 30, tzinfo=UTC)
CCDS = [Ccd(number, f"S{number}") for number in range(1, 9)]
THREADS = 6
NO_SERVER = r"^the journal, postgresql.*, cannot be used: .*; check that its server runs"


def exposure(number: int = 941420, **changes: object) -> Exposure:
    values: dict[str, object] = {
        "camera": "decam",
        "number": number,
        "kind": Kind.OBJECT,
        "field": "f",
        "band": "g",
        "start": START,
        "exposure_s": 20.0,
        "night": Night.of(START),
    }
    return Exposure(**(values | changes))


@pytest.fixture
def journal(where: Path | str) -> Iterator[Journal]:
    opened = Journal(where)
    yield opened
    opened.close()


def at_once(where: Path | str, work: Callable[[Journal, int], object]) -> list[object]:
    """Results of threads that begin together, each with a journal of its own."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> object:
        journal = Journal(where)
        try:
            barrier.wait(30)
            return work(journal, number)
        finally:
            journal.close()

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(begin, range(THREADS)))


def test_of_several_that_find_an_exposure_at_once_each_ccd_is_new_to_one(
    journal: Journal, where: Path | str
) -> None:
    found = at_once(where, lambda own, _: own.add_exposure(exposure(), CCDS, checksum="a"))
    assert sorted(key.ccd for keys in found for key in keys) == [ccd.number for ccd in CCDS]
    assert len(journal.rows()) == len(CCDS)


def test_failures_that_are_noted_at_once_all_count(journal: Journal, where: Path | str) -> None:
    (key,) = journal.add_exposure(exposure(), CCDS[:1])

    def fail(own: Journal, _: int) -> list[bool]:
        return [own.fail(key, Stage.PACKED, "no", limit=5 * THREADS) for _ in range(5)]

    quarantined = [each for told in at_once(where, fail) for each in told]
    assert journal.row(key).tries == 5 * THREADS
    assert quarantined.count(True) == 1


def test_times_of_stages_that_are_reached_at_once_are_all_kept(
    journal: Journal, where: Path | str
) -> None:
    (key,) = journal.add_exposure(exposure(), CCDS[:1])
    way = [Stage.PACKED, Stage.SENT, Stage.LANDED, Stage.CALIBRATED]
    at_once(where, lambda own, number: own.advance(key, way[number % 4], 1.0))
    assert set(journal.row(key).seconds) == {stage.value for stage in way}


def test_an_account_that_several_close_at_once_is_written_once(
    journal: Journal, where: Path | str
) -> None:
    for number in range(1, 6):
        for key in journal.add_exposure(exposure(number), CCDS):
            journal.advance(key, Stage.SENT, 1.0)
    at_once(where, lambda own, _: own.close_accounts())
    assert sorted(account.exposure for account in journal.transfers()) == [1, 2, 3, 4, 5]


def test_a_file_that_several_remember_at_once_is_remembered(
    journal: Journal, where: Path | str
) -> None:
    path = Path("raw.fits")
    at_once(where, lambda own, number: own.remember_file(path, number, number))
    assert list(journal.known_files()) == ["raw.fits"]


def test_an_original_is_noted_once(journal: Journal, where: Path | str) -> None:
    (key,) = journal.add_exposure(exposure(), CCDS[:1], path=Path("raw.fits"), checksum="a")
    journal.advance(key, Stage.SENT, codec="wavelet")
    read = journal.row(key)

    def note_or_rewrite(own: Journal, number: int) -> object:
        if number:
            return own.archived(read, 7)
        return own.add_exposure(exposure(), CCDS[:1], path=Path("raw.fits"), checksum="b")

    at_once(where, note_or_rewrite)
    assert journal.row(key).archived_at is None


def test_a_rewritten_file_and_progress_of_its_ccds_do_not_wait_for_each_other(
    journal: Journal, where: Path | str
) -> None:
    keys = journal.add_exposure(exposure(), CCDS, path=Path("raw.fits"), checksum="a")

    def work(own: Journal, number: int) -> None:
        for turn in range(5):
            if number:
                for key in keys[number:] + keys[:number]:
                    own.advance(key, Stage.PACKED)
            else:
                own.add_exposure(exposure(), CCDS, path=Path("raw.fits"), checksum=str(turn))

    at_once(where, work)
    assert len(journal.rows()) == len(CCDS)


def test_words_of_headers_may_have_any_length_and_any_character(journal: Journal) -> None:
    told = exposure(band="g" * 100, field="nul \0, half a pair \udc80")
    (key,) = journal.add_exposure(told, [Ccd(1, "a long name of a detector " * 3)])
    journal.fail(key, Stage.PACKED, "bytes \0 in a card", traceback="\udcff")
    found = journal.row(key)
    assert found.exposure.band == "g" * 100
    assert found.exposure.field == "nul \\x00, half a pair \\udc80"
    assert found.reason == "bytes \\x00 in a card"


def test_a_figure_that_is_no_number_is_kept_as_none(journal: Journal) -> None:
    (key,) = journal.add_exposure(exposure(), CCDS[:1])
    reduction = Reduction(941420, 1, seeing_arcsec=float("nan"), zero_point=25.5)
    journal.calibrated(key, reduction, Grade(Colour.RED), 0.1)
    found = journal.row(key).reduction
    assert (found["seeing_arcsec"], found["zero_point"]) == (None, 25.5)


def test_two_ends_share_a_server_each_in_a_schema_of_its_own(postgresql: Server) -> None:
    here, there = Journal(postgresql.new_schema()), Journal(postgresql.new_schema())
    here.add_exposure(exposure(), CCDS)
    assert there.rows() == []
    assert len(here.rows()) == len(CCDS)


def test_a_server_that_is_killed_is_one_clear_error_and_once_it_is_back_work_goes_on(
    postgresql_programs: Path,
) -> None:
    server = Server(postgresql_programs)
    try:
        journal = Journal(server.url)
        first, second = journal.add_exposure(exposure(), CCDS[:2])
        journal.advance(first, Stage.PACKED)
        server.kill()
        for call in (lambda: journal.advance(second, Stage.PACKED), journal.rows):
            with pytest.raises(StorageError, match=NO_SERVER) as told:
                call()
            assert "\n" not in str(told.value)
        server.start()
        journal.advance(second, Stage.PACKED)
        assert [row.stage for row in journal.rows()] == [Stage.PACKED] * 2
    finally:
        server.close()


def test_a_server_that_dies_within_a_transaction_leaves_all_or_nothing(
    postgresql_programs: Path,
) -> None:
    server = Server(postgresql_programs)
    try:
        journal = Journal(server.url)
        (key,) = journal.add_exposure(exposure(), CCDS[:1])
        noted = 0
        killer = threading.Timer(0.3, server.kill)
        killer.start()
        with pytest.raises(StorageError):
            while True:
                journal.fail(key, Stage.PACKED, "no", limit=10**9)
                noted += 1
        killer.join()
        server.start()
        # the last one may have been written, though its answer never came
        assert journal.row(key).tries in (noted, noted + 1)
    finally:
        server.close()


def test_a_night_that_begins_while_nights_are_counted_breaks_nothing(
    journal: Journal, where: Path | str
) -> None:
    journal.add_exposure(exposure(), CCDS[:1])
    other, begun = Journal(where), iter([exposure(941421, night=Night.parse("2020-03-06"))])

    def begin(*_: object) -> None:
        for told in begun:
            other.add_exposure(told, CCDS[:1])

    event.listen(Engine, "after_cursor_execute", begin)
    try:
        figures = journal.counts()
    finally:
        event.remove(Engine, "after_cursor_execute", begin)
        other.close()
    assert figures[-1].stages == {Stage.FOUND: 1}
    assert len(journal.counts()) == 2


def test_a_server_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=NO_SERVER):
        Journal(f"postgresql+psycopg://prepipe@/postgres?host={tmp_path}")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql//me:secret@host/db",
        "mysql://me:secret@host/db",
        "mysql://me:and@secret@host/db",
        "mysql://me:x@host/db?password=secret",
    ],
)
def test_a_wrong_url_is_a_wrong_setting_and_its_password_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="me:") as told:
        Journal(url)
    assert "secret" not in str(told.value)


def test_a_password_is_not_shown_where_the_server_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as told:
        Journal(f"postgresql://me:secret@/postgres?host={tmp_path}")
    assert "secret" not in str(told.value)
