"""`MasterRows`: what is known of the masters in a directory beyond what their files tell.

A row belongs to one file: to its path and the fingerprint of its content. It is written
before the file gets its name, so that whatever is killed when, a file found under a name
is judged by the row made for it, and a row whose file never came says nothing.

Writers use a rollback journal: the table must be readable where the directory is mounted
read-only, or on another host than the one that writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Engine

from prepipe.model import Kind, Mark, Night
from prepipe.store import tables
from prepipe.store.database import open_engine, open_for_reading, plain_errors

__all__ = ["MasterRow", "MasterRows", "first_mark"]

_IDENTITY = ("path", "fingerprint")


@dataclass(frozen=True)
class MasterRow:
    """What is known of one master.

    Parameters
    ----------
    path : str
        Below the root of the library, with ``/``.
    fingerprint : str
        Of the file's content.
    kind : Kind
    ccd : int
    band : str
        Empty for a bias.
    night : Night
        Of its frames.
    mark : Mark
        HELD is not used until a person has looked at it.
    why : str
    by_hand : bool
        Whether a person set the mark.
    valid_from, valid_until : Night or None
        First and last night that it may be used for, both included; None leaves it open.
    previous : str
        Path of the master it was compared with; empty if there was none.
    shift, rms, noise, deviating : float or None
        How it differs from that one (`calibrate.master_change.Difference`).
    changed_at : float
        Seconds since 1970 (UTC).
    """

    path: str
    fingerprint: str
    kind: Kind
    ccd: int
    band: str
    night: Night
    mark: Mark = Mark.GOOD
    why: str = ""
    by_hand: bool = False
    valid_from: Night | None = None
    valid_until: Night | None = None
    previous: str = ""
    shift: float | None = None
    rms: float | None = None
    noise: float | None = None
    deviating: float | None = None
    changed_at: float = 0.0

    def valid_on(self, night: Night) -> bool:
        """Whether it may be used for an exposure of `night`, as far as time goes."""
        begun = self.valid_from is None or self.valid_from <= night
        return begun and (self.valid_until is None or night <= self.valid_until)


def first_mark(row: MasterRow, others: Sequence[MasterRow]) -> MasterRow:
    """The row of a file that has none yet, as the rows of earlier files of its name allow.

    Parameters
    ----------
    row : MasterRow
    others : sequence of MasterRow
        Of files that bore the same name before.

    Returns
    -------
    MasterRow
        HELD where a person called the last one bad: the new one may have the same fault.
    """
    told = [other for other in others if other.by_hand]
    last = max(told, key=lambda other: other.changed_at, default=None)
    if last is None or last.mark is not Mark.BAD:
        return row
    reason = f"one made before under its name was marked bad: {last.why}"
    return replace(row, mark=Mark.HELD, why="; ".join(why for why in (row.why, reason) if why))


class MasterRows:
    """The table of a library.

    Parameters
    ----------
    path : Path
        A SQLite file; it is made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: Engine | None = None

    def rows(self, ccd: int | None = None) -> list[MasterRow]:
        """All rows, or those of one CCD, in the order in which they were made.

        Raises
        ------
        StorageError
            If the file is there but cannot be read.
        """
        if not self.path.exists():
            return []
        table = tables.masters
        query = select(table).order_by(table.c.id)
        if ccd is not None:
            query = query.where(table.c.ccd == ccd)
        with self._reading() as connection:
            if not inspect(connection).has_table(table.name):
                return []
            return [_row(found) for found in connection.execute(query)]

    def record(self, row: MasterRow) -> MasterRow:
        """Remember a master that was just made.

        Parameters
        ----------
        row : MasterRow

        Returns
        -------
        MasterRow
            As it stands: the mark that a person gave the very same file holds, and so do its
            limits in time.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        with self._transaction() as connection:
            known = _of_path(connection, row.path)
            same = [each for each in known if each.fingerprint == row.fingerprint]
            if same:
                (old,) = same
                row = replace(row, valid_from=old.valid_from, valid_until=old.valid_until)
                if old.by_hand:
                    row = replace(row, mark=old.mark, why=old.why, by_hand=True)
            else:
                row = first_mark(row, known)
            row = replace(row, changed_at=time.time())
            _write(connection, row)
        return row

    def change(self, rows: Sequence[MasterRow], **values: Any) -> None:
        """Set the same columns of some rows, all at once or none; a row not yet there is added.

        Parameters
        ----------
        rows : sequence of MasterRow
        **values
            Fields of `MasterRow`.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        now = time.time()
        with self._transaction() as connection:
            for row in rows:
                known = _of_path(connection, row.path)
                same = [each for each in known if each.fingerprint == row.fingerprint]
                _write(connection, replace(same[0] if same else row, **values, changed_at=now))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        engine = open_engine(self.path, journal_mode="DELETE")
        try:
            with self._plain_errors(), engine.begin() as connection:
                tables.library.create_all(connection)
                yield connection
        finally:
            engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._reader is None:
            self._reader = open_for_reading(self.path)
        engine = self._reader.execution_options(reads_only=True)
        with self._plain_errors(), engine.begin() as connection:
            yield connection

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        with plain_errors(f"the table of masters, {self.path},"):
            yield


def _of_path(connection: Connection, path: str) -> list[MasterRow]:
    table = tables.masters
    return [_row(each) for each in connection.execute(select(table).where(table.c.path == path))]


def _write(connection: Connection, row: MasterRow) -> None:
    values = {name: _plain(value) for name, value in asdict(row).items()}
    values["night"] = str(row.night)
    for name in ("valid_from", "valid_until"):
        night = getattr(row, name)
        values[name] = None if night is None else str(night)
    statement = sqlite.insert(tables.masters).values(values)
    fresh = {name: value for name, value in values.items() if name not in _IDENTITY}
    connection.execute(statement.on_conflict_do_update(index_elements=_IDENTITY, set_=fresh))


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _row(found: Any) -> MasterRow:
    values = dict(found._mapping)
    del values["id"]
    values |= {"kind": Kind(found.kind), "mark": Mark(found.mark)}
    values |= {name: _night(values[name]) for name in ("night", "valid_from", "valid_until")}
    return MasterRow(**values)


def _night(text: str | None) -> Night | None:
    return None if text is None else Night(date.fromisoformat(text))
