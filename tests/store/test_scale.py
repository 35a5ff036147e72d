"""A journal of many nights is asked along its indices: what is read is what is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.engine import Engine

from prepipe.cli.journals import Journals
from prepipe.cluster.rescue import second_tries
from prepipe.cluster.seeing import recent_seeing
from prepipe.model import Colour, Grade, Night, Reduction, Stage
from prepipe.store import CcdKey, Journal, tables
from prepipe.store.database import open_engine

FIRST = datetime(2020, 3, 6, 3, 30, tzinfo=UTC)
CCDS = 10
EXPOSURES, A_NIGHT = 120, 10
NEWEST = Night.of(FIRST + timedelta(days=EXPOSURES // A_NIGHT - 1))


def rows_of(number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An exposure and its CCDs: all are calibrated but the newest, which have landed."""
    night, place = divmod(number, A_NIGHT)
    start = FIRST + timedelta(days=night, minutes=place)
    exposure = {
        "id": number + 1,
        "camera": "decam",
        "number": number,
        "kind": "object",
        "field": "f",
        "band": "g",
        "start": start.timestamp(),
        "exposure_s": 20.0,
        "night": str(Night.of(start)),
    }
    ccd = {
        "exposure_id": number + 1,
        "name": "S1",
        "stage": "landed" if number == EXPOSURES - 1 else "calibrated",
        "traceback": "x" * 1000,
        "reduction": {},
        "seconds": {},
        "start": start.timestamp(),
    }
    return exposure, [ccd | {"number": number} for number in range(1, CCDS + 1)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    """A journal of many nights, in turn of either kind."""
    if request.param == "sqlite":
        place: Path | str = tmp_path_factory.mktemp("many") / "journal.sqlite"
    else:
        place = request.getfixturevalue("postgresql").new_schema()
    Journal(place).close()
    told = [rows_of(number) for number in range(EXPOSURES)]
    engine = open_engine(place)
    with engine.begin() as connection:
        connection.execute(insert(tables.exposures), [exposure for exposure, _ in told])
        connection.execute(insert(tables.ccds), [ccd for _, ccds in told for ccd in ccds])
    with engine.begin() as connection:
        connection.execute(text("ANALYZE" if isinstance(place, str) else "SELECT 1"))
    return place


@pytest.fixture
def journal(where: Path | str) -> Iterator[Journal]:
    opened = Journal(where)
    yield opened
    opened.close()


@contextmanager
def asked() -> Iterator[list[tuple[str, Any]]]:
    """Every statement that reads tables, with its values."""
    statements: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        if statement.lstrip().startswith("SELECT") and "ccds" in statement:
            statements.append((statement, values))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def plans(where: Path | str, call: Callable[[], object]) -> list[str]:
    """How the database goes about what a call asks it."""
    with asked() as statements:
        call()
    assert statements
    explain = "EXPLAIN " if isinstance(where, str) else "EXPLAIN QUERY PLAN "
    told = []
    with open_engine(where).connect() as connection:
        if isinstance(where, str):
            # a table that is as small as this one is not worth an index
            connection.execute(text("SET enable_seqscan = off"))
        for statement, values in statements:
            found = connection.exec_driver_sql(explain + statement, values)
            told.append("\n".join(str(step[-1]) for step in found))
    return told


def reads_all(plan: str) -> bool:
    """Whether a plan goes through the rows of all CCDs."""
    return any(
        step.strip(" ->").startswith(("SCAN ccds", "Seq Scan on ccds")) and "COVERING" not in step
        for step in plan.splitlines()
    )


CALLS = {
    "the queue of an ingest": lambda j: j.rows(Stage.LANDED, limit=4),
    "whether nothing waits": lambda j: j.rows(Stage.FOUND, limit=1),
    "a night": lambda j: j.rows(night=NEWEST, whole=False),
    "what is through of a night": lambda j: j.rows(Stage.CALIBRATED, night=NEWEST),
    "what waits of an exposure": lambda j: j.rows(Stage.LANDED, exposure=5, limit=1),
    "an exposure": lambda j: j.rows(exposure=5),
    "a CCD": lambda j: j.row(CcdKey("decam", 5, 1)),
    "the packets of a night": lambda j: j.packets(NEWEST),
    "the pointings around an exposure": lambda j: list(second_tries(j, CcdKey("decam", 50, 1))),
    "what waits for the archive": lambda j: j.originals(),
    "the seeing of shortly before": lambda j: recent_seeing(j, j.exposure("decam", 50)),
    "how many are in quarantine": lambda j: j.number_at(Stage.QUARANTINED),
    "the status of the newest night": lambda j: Journals(None, j).status(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_question_of_every_day_goes_through_all_ccds(
    journal: Journal, where: Path | str, call: Callable[[Journal], object]
) -> None:
    for plan in plans(where, lambda: call(journal)):
        assert not reads_all(plan), plan


def test_the_queue_is_a_walk_along_an_index(journal: Journal, where: Path | str) -> None:
    (plan,) = plans(where, lambda: journal.rows(Stage.LANDED, limit=4))
    assert "ccds_in_turn" in plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan


def test_what_waits_for_the_archive_has_an_index_of_its_own(
    journal: Journal, where: Path | str
) -> None:
    (plan,) = plans(where, journal.originals)
    assert "ccds_to_archive" in plan


def test_a_question_without_an_index_would_be_seen(where: Path | str) -> None:
    def ask() -> None:
        with open_engine(where).connect() as connection:
            connection.execute(text("SELECT * FROM ccds WHERE reason = 'no'"))

    assert [reads_all(plan) for plan in plans(where, ask)] == [True]


def test_nights_are_counted_from_an_index(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    (plan,) = plans(path, journal.counts)
    assert "COVERING INDEX ccds_by_exposure" in plan


def test_a_night_is_told_without_what_is_long(journal: Journal) -> None:
    key = CcdKey("decam", EXPOSURES - 1, 1)
    journal.fail(key, Stage.CALIBRATED, "no", traceback="a trace", limit=9)
    rows = journal.rows(night=NEWEST, whole=False)
    assert len(rows) == A_NIGHT * CCDS
    assert {row.traceback for row in rows} == {""}
    assert "no" in {row.reason for row in rows}


def test_nights_in_figures(journal: Journal) -> None:
    key = CcdKey("decam", 0, 1)
    journal.calibrated(key, Reduction(0, 1), Grade(Colour.YELLOW), 1.0)
    nights = journal.counts()
    assert [figures.night for figures in nights] == journal.nights()
    newest, oldest = nights[0], nights[-1]
    assert newest.stages == {Stage.CALIBRATED: 90, Stage.LANDED: 10}
    assert (oldest.exposures, oldest.stages) == (A_NIGHT, {Stage.CALIBRATED: 100})
    assert oldest.grades == {"yellow": 1}


def test_the_seeing_of_shortly_before_is_found_along_an_index(
    journal: Journal, where: Path | str
) -> None:
    (plan,) = plans(where, lambda: journal.rows(Stage.CALIBRATED, before=2e9, limit=200))
    assert "ccds_in_turn" in plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan


def test_what_waits_comes_in_the_order_of_time_whatever_was_registered_first(
    journal: Journal,
) -> None:
    keys = [CcdKey("decam", number, 1) for number in (3, 7)]
    for key in keys:
        journal.return_to(key, Stage.SENT)
    assert [row.exposure.number for row in journal.rows(Stage.SENT)] == [7, 3]
    for key in keys:
        journal.return_to(key, Stage.CALIBRATED)


def test_status_is_told_while_another_writes(journal: Journal, where: Path | str) -> None:
    with open_engine(where).begin() as writer:
        writer.execute(text("UPDATE ccds SET tries = 7"))
        reader = Journal.existing(where, read_only=True)
        assert len(Journals(None, reader).status().exposures) == A_NIGHT
        reader.close()
        writer.rollback()
