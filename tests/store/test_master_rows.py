"""What is remembered of masters: one row a file, safe with several processes and kill -9."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from prepipe.errors import StorageError
from prepipe.model import Kind, Mark, Night
from prepipe.store import MasterRow, MasterRows

NIGHT = Night(date(2020, 3, 5))


def row(path: str = "a", fingerprint: str = "1", **changes: object) -> MasterRow:
    return MasterRow(path, fingerprint, Kind.ZERO, 25, "", NIGHT, **changes)


def without_time(rows: list[MasterRow]) -> list[MasterRow]:
    return [replace(each, changed_at=0.0) for each in rows]


@pytest.fixture
def rows(tmp_path: Path) -> MasterRows:
    return MasterRows(tmp_path / "masters.db")


def test_reading_makes_no_file(rows: MasterRows) -> None:
    assert rows.rows() == []
    assert not rows.path.exists()


def test_what_is_recorded_is_read_back(rows: MasterRows) -> None:
    told = row(
        mark=Mark.HELD,
        why="shifted",
        valid_from=NIGHT,
        previous="b",
        shift=1.5,
        rms=0.2,
        noise=0.1,
        deviating=1e-3,
    )
    rows.record(told)
    rows.record(replace(row("c"), ccd=31))
    assert without_time(rows.rows(25)) == [told]
    assert [each.path for each in rows.rows()] == ["a", "c"]


def test_the_same_file_made_again_keeps_what_a_person_said(rows: MasterRows) -> None:
    rows.record(row())
    rows.change(rows.rows(), mark=Mark.BAD, why="haze", by_hand=True, valid_until=NIGHT)
    again = rows.record(row(shift=0.1))
    assert (again.mark, again.why, again.valid_until) == (Mark.BAD, "haze", NIGHT)
    assert again.shift == 0.1
    assert len(rows.rows()) == 1


def test_the_same_file_made_again_loses_a_mark_that_no_person_gave(rows: MasterRows) -> None:
    rows.record(row(mark=Mark.HELD, why="shifted"))
    assert rows.record(row()).mark is Mark.GOOD


def test_another_file_under_a_name_called_bad_waits_for_a_person(rows: MasterRows) -> None:
    rows.record(row())
    rows.change(rows.rows(), mark=Mark.BAD, why="haze", by_hand=True)
    assert rows.record(row(fingerprint="2")).mark is Mark.HELD
    rows.change([row(fingerprint="2")], mark=Mark.GOOD, why="looked at", by_hand=True)
    assert rows.record(row(fingerprint="3")).mark is Mark.GOOD


def test_marks_of_several_are_set_all_or_none(rows: MasterRows) -> None:
    rows.record(row())
    broken = replace(row("b"), ccd=None)
    with pytest.raises(StorageError, match="NOT NULL"):
        rows.change([*rows.rows(), broken], mark=Mark.BAD, why="haze", by_hand=True)
    assert [each.mark for each in rows.rows()] == [Mark.GOOD]


@pytest.mark.parametrize(
    ("night", "valid"), [(4, False), (5, True), (6, True), (7, True), (8, False)]
)
def test_limits_in_time_include_their_nights(night: int, valid: bool) -> None:
    limited = row(valid_from=NIGHT, valid_until=Night(date(2020, 3, 7)))
    assert limited.valid_on(Night(date(2020, 3, night))) is valid


def test_a_table_can_be_read_where_nothing_can_be_written(
    rows: MasterRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.record(row())
    # Whoever may write everything (root) opens it as others would.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(rows.rows()) == 1
    assert sorted(rows.path.parent.iterdir()) == [rows.path]


@pytest.mark.parametrize("content", [b"no database at all, by far" * 100, b"SQLite format 3\0"])
def test_a_damaged_table_is_one_clear_error(rows: MasterRows, content: bytes) -> None:
    rows.path.write_bytes(content)
    with pytest.raises(StorageError, match=r"the table of masters, .*masters\.db, cannot be used"):
        rows.rows()


def test_a_table_made_but_not_filled_holds_nothing(rows: MasterRows) -> None:
    rows.path.touch()
    assert rows.rows() == []


def record_many(path: Path, name: str) -> None:
    rows = MasterRows(path)
    for number in range(20):
        rows.record(row(f"{name}{number}"))
        rows.record(row("shared", str(number % 5), why=name))


def test_two_processes_write_at_once(rows: MasterRows) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=record_many, args=(rows.path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    paths = [each.path for each in rows.rows()]
    assert len(paths) == 2 * 20 + 5
    assert paths.count("shared") == 5


HALF_DONE = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=1")
connection.execute("BEGIN IMMEDIATE")
# So many pages that some are written to the file before the transaction ends.
connection.execute("UPDATE masters SET mark='bad', why=?", ("x" * 100000,))
print("half", flush=True)
time.sleep(60)
"""


def test_a_writer_killed_half_way_leaves_what_was_before(rows: MasterRows) -> None:
    for number in range(50):
        rows.record(row(f"m{number}"))
    command = [sys.executable, "-c", HALF_DONE, str(rows.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    assert {each.mark for each in rows.rows()} == {Mark.GOOD}
    with sqlite3.connect(rows.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
