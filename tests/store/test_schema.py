"""Tables of a journal are those of this version, whichever version made it."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, text

from prepipe.errors import ConfigError, StorageError
from prepipe.model import Ccd, Exposure, Kind, Night, Stage
from prepipe.store import CcdKey, Journal, schema, tables
from prepipe.store.database import open_engine
from prepipe.store.migrate import known_head, upgrade
from prepipe.store.migrations.versions import first_journals

START = datetime(2020, 3, 6, 3, 30, tzinfo=UTC)
EXPOSURE = Exposure("decam", 941420, Kind.OBJECT, "f", "g", START, 20.0, Night.of(START))
KEY = CcdKey("decam", 941420, 25)
SINCE = ("file_checksum", "archived_at", "archive_bytes")


def differences(connection: Connection) -> list[object]:
    """What alembic would change to make the tables those of this version."""
    found = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    return [each for each in found if "alembic_version" not in str(each)]


def make_early_journal(where: Path | str) -> None:
    """One as the first version made it, with a CCD that was sent."""
    early = first_journals.metadata
    exposure = {
        "camera": "decam",
        "number": 941420,
        "kind": "object",
        "field": "f",
        "band": "g",
        "start": START.timestamp(),
        "exposure_s": 20.0,
        "night": str(EXPOSURE.night),
    }
    with open_engine(where).begin() as connection:
        early.create_all(connection)
        for column in SINCE:
            connection.execute(text(f"ALTER TABLE ccds DROP COLUMN {column}"))
        for table in ("transfers", "fidelity"):
            connection.execute(text(f"DROP TABLE {table}"))
        connection.execute(insert(early.tables["exposures"]).values(exposure))
        connection.execute(
            text(
                "INSERT INTO ccds (exposure_id, number, name, stage, tries, reason, traceback, "
                "packet, packet_bytes, codec, checksum, sent_at) VALUES "
                "(1, 25, 'S1', 'sent', 0, '', '', 'x.packet', 7, 'rice', 'ab', 1.5)"
            )
        )


def test_the_revision_that_is_looked_for_is_the_last_one() -> None:
    assert known_head() == schema.HEAD


def test_a_new_journal_has_the_tables_of_this_version(where: Path | str) -> None:
    Journal(where).close()
    with open_engine(where).connect() as connection:
        assert differences(connection) == []


def test_all_revisions_together_make_the_tables_of_this_version(where: Path | str) -> None:
    with open_engine(where).begin() as connection:
        upgrade(connection)
        assert differences(connection) == []
        assert schema.revision(connection) == schema.HEAD


def test_a_difference_would_be_seen(where: Path | str) -> None:
    Journal(where).close()
    with open_engine(where).connect() as connection:
        connection.execute(text("DROP INDEX ccds_in_turn"))
        assert len(differences(connection)) == 1


def test_a_journal_from_before_revisions_were_counted_comes_through_with_its_rows(
    where: Path | str,
) -> None:
    make_early_journal(where)
    journal = Journal(where)
    (row,) = journal.rows()
    assert (row.key, row.exposure, row.stage) == (KEY, EXPOSURE, Stage.SENT)
    assert (row.packet, row.packet_bytes, row.sent_at) == ("x.packet", 7, 1.5)
    assert (row.file_checksum, row.archived_at, row.archive_bytes) == ("", None, 0)
    journal.advance(KEY, Stage.PACKED, file_checksum="ab")
    assert journal.row(KEY).file_checksum == "ab"
    journal.close()
    with open_engine(where).connect() as connection:
        assert differences(connection) == []


def test_ccds_of_an_older_journal_wait_in_their_turn(where: Path | str) -> None:
    make_early_journal(where)
    journal = Journal(where)
    older = replace(EXPOSURE, number=1, start=START.replace(year=2019))
    journal.add_exposure(older, [Ccd(25, "S1")], stage=Stage.SENT)
    assert [row.key.exposure for row in journal.rows(Stage.SENT)] == [941420, 1]
    journal.close()


def test_a_journal_of_a_newer_version_is_refused_in_a_sentence_and_left_alone(
    where: Path | str,
) -> None:
    Journal(where).close()
    with open_engine(where).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for opened in (Journal, Journal.existing):
        with pytest.raises(ConfigError, match=r"newer prepipe .*revision 9999.*install"):
            opened(where)
    with open_engine(where).connect() as connection:
        assert schema.revision(connection) == "9999"


def _open(where: Path | str, barrier: object, failures: object) -> None:
    barrier.wait()
    try:
        Journal(where).close()
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.parametrize("early", [False, True], ids=["new", "early"])
def test_several_processes_that_open_it_at_once_do_not_clash(
    where: Path | str, early: bool
) -> None:
    if early:
        make_early_journal(where)
    context = multiprocessing.get_context("spawn")
    barrier, failures = context.Barrier(4), context.Queue()
    openers = [context.Process(target=_open, args=(where, barrier, failures)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)
    told = [failures.get() for opener in openers if opener.exitcode]
    assert told == []
    with open_engine(where).connect() as connection:
        assert differences(connection) == []
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1


def test_a_revision_that_fails_leaves_the_journal_as_it_was(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_early_journal(where)
    with open_engine(where).begin() as connection:
        # in the way of the last revision's
        connection.execute(text("CREATE INDEX exposures_by_start ON exposures (band)"))
    with pytest.raises(StorageError, match="exposures_by_start"):
        Journal(where)
    with open_engine(where).begin() as connection:
        assert schema.revision(connection) == schema.UNCOUNTED
        connection.execute(text("DROP INDEX exposures_by_start"))
    assert Journal(where).row(KEY).stage is Stage.SENT


def test_a_journal_of_this_version_is_opened_without_alembic(where: Path | str) -> None:
    Journal(where).close()
    code = (
        "import sys; from pathlib import Path; from prepipe.store import Journal; "
        "where = sys.argv[1]; Journal(where if '://' in where else Path(where)).rows(); "
        "print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(where)]
    assert subprocess.run(command, check=True, capture_output=True).stdout.strip() == b"False"


def test_a_journal_that_is_not_there_is_not_made(where: Path | str) -> None:
    assert Journal.existing(where) is None
    assert Journal.existing(where, read_only=True) is None
    if isinstance(where, Path):
        assert not where.parent.exists()


def test_a_journal_open_for_reading_cannot_be_written(where: Path | str) -> None:
    Journal(where).add_exposure(EXPOSURE, [Ccd(25, "S1")])
    journal = Journal.existing(where, read_only=True)
    assert len(journal.rows()) == 1
    if not isinstance(where, Path):
        with pytest.raises(StorageError, match="read-only"):
            journal.begin(KEY, Stage.PACKED)


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_a_file_that_can_only_be_read_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_elsewhere: bool
) -> None:
    path = tmp_path / "journal.sqlite"
    writer = Journal(path)
    writer.add_exposure(EXPOSURE, [Ccd(25, "S1")])
    if not open_elsewhere:
        writer.close()
    # Whoever may write everything (root) opens it as others would.
    monkeypatch.setattr(os, "access", lambda *_: False)
    there = sorted(tmp_path.iterdir())
    journal = Journal.existing(path, read_only=True)
    assert len(journal.rows()) == 1
    assert sorted(tmp_path.iterdir()) == there
    with pytest.raises(StorageError, match="readonly"):
        journal.begin(KEY, Stage.PACKED)
    writer.close()


def test_a_journal_that_was_never_finished_is_none(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    sqlite3.connect(path).close()
    path.touch()
    assert Journal.existing(path) is None
