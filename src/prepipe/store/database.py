"""Opening a database so that a crash leaves it whole and its errors read plainly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, event, inspect
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from prepipe.errors import ConfigError, StorageError

__all__ = ["add_missing_columns", "open_engine", "open_for_reading", "plain_errors"]


@contextmanager
def plain_errors(what: str = "the journal") -> Iterator[None]:
    """Turn a database error into a `StorageError` of one sentence about `what`."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise StorageError(
            f"{what} cannot be used: {cause}; check its disk and that it can be written"
        ) from error


def open_engine(where: Path | str, *, journal_mode: str = "WAL") -> Engine:
    """Open a SQLite file or a database URL.

    Parameters
    ----------
    where : Path or str
    journal_mode : str
        How SQLite makes transactions safe.

    Raises
    ------
    ConfigError
        If `where` is no usable URL.
    StorageError
        If the SQLite file's directory cannot be made.
    """
    if isinstance(where, Path):
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{where.parent}: {error.strerror}; cannot keep a journal there"
            ) from error
        url = URL.create("sqlite", database=str(where))
    else:
        try:
            url = make_url(where)
        except SQLAlchemyError as error:
            raise ConfigError(f"{where!r} is no database URL: {error}") from error
    engine = create_engine(url)
    if url.get_backend_name() == "sqlite":
        # A rollback journal is only safe against a power cut when it is synced in full.
        synchronous = "NORMAL" if journal_mode == "WAL" else "FULL"
        _behave(engine, f"journal_mode={journal_mode}", f"synchronous={synchronous}")
    return engine


def open_for_reading(path: Path) -> Engine:
    """Open a SQLite file that is there, anew for each use, even where nothing can be written.

    Where it can, a transaction that a killed writer left half-done is undone.
    """
    writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    query = {"mode": "rw" if writable else "ro", "uri": "true"}
    url = URL.create("sqlite", database=path.absolute().as_uri(), query=query)
    engine = create_engine(url, poolclass=NullPool)
    _behave(engine)
    return engine


def add_missing_columns(connection: Connection, table: Table) -> None:
    """Give a table that an older version made the columns that have come since."""
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            told = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {told}")


def _behave(engine: Engine, *pragmas: str) -> None:
    def set_pragmas(connection: Any, _record: Any) -> None:
        # The driver would open transactions by itself, and too late to serialise writers.
        connection.isolation_level = None
        for pragma in ("busy_timeout=30000", *pragmas, "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", set_pragmas)
    event.listen(engine, "begin", _begin_immediately)


def _begin_immediately(connection: Connection) -> None:
    # A writer that upgraded from a read lock could meet another one and fail at once.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
