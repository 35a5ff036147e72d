"""Opening a database so that a crash leaves it whole and its errors read plainly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from prepipe.errors import ConfigError, StorageError

__all__ = ["open_engine", "plain_errors"]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a database error into a `StorageError` of one sentence."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise StorageError(
            f"the journal cannot be used: {cause}; check its disk and that it can be written"
        ) from error


def open_engine(where: Path | str) -> Engine:
    """Open a SQLite file or a database URL.

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
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin_immediately)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    # The driver would open transactions by itself, and too late to serialise writers.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "busy_timeout=30000",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: Connection) -> None:
    # A writer that upgraded from a read lock could meet another one and fail at once.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
