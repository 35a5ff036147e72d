"""Opening a database so that a crash leaves it whole and its errors read plainly."""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from prepipe.errors import ConfigError, StorageError

__all__ = ["open_engine", "open_for_reading", "plain_errors"]

DISK = "check its disk and that it can be written"
SERVER = "check that its server runs and lets this user in"

PATIENCE_S = 30
"""How long a transaction waits for another one, s."""

POSTGRESQL = {
    "connect_timeout": "10",
    # A server that vanished without a word shall not hold anyone up for hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "application_name": "prepipe",
}
"""What libpq is told unless the URL says otherwise."""

SESSION = f"-c lock_timeout={PATIENCE_S}s -c jit=off"

_WAL_MARK = b"\2\2"


@contextmanager
def plain_errors(what: str = "the journal", remedy: str = DISK) -> Iterator[None]:
    """Turn a database error into a `StorageError` of one sentence about `what`."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        raise StorageError(f"{what} cannot be used: {cause}; {remedy}") from error


def open_engine(where: Path | str, *, journal_mode: str = "WAL", read_only: bool = False) -> Engine:
    """Open a SQLite file or a database URL.

    Parameters
    ----------
    where : Path or str
    journal_mode : str
        How SQLite makes transactions safe.
    read_only : bool
        Nothing will be written; a SQLite file must be there.

    Raises
    ------
    ConfigError
        If `where` is no usable URL.
    StorageError
        If the SQLite file's directory cannot be made.
    """
    if isinstance(where, Path) and read_only:
        return open_for_reading(where)
    url = _file_url(where) if isinstance(where, Path) else _url(where)
    if url.get_backend_name() == "postgresql":
        return _open_postgresql(url, read_only=read_only)
    engine = create_engine(url, **_JSON)
    # A rollback journal is only safe against a power cut when it is synced in full.
    synchronous = "NORMAL" if journal_mode == "WAL" else "FULL"
    _behave(engine, f"journal_mode={journal_mode}", f"synchronous={synchronous}")
    return engine


def open_for_reading(path: Path) -> Engine:
    """Open a SQLite file that is there, anew for each use, even where nothing can be written.

    Where it can, a transaction that a killed writer left half-done is undone.
    """

    def connect() -> sqlite3.Connection:
        uri = f"{path.absolute().as_uri()}?{_mode(path)}"
        return sqlite3.connect(uri, uri=True, check_same_thread=False)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool, **_JSON)
    _behave(engine)
    return engine


def _mode(path: Path) -> str:
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return "mode=rw"
    # Without a writer SQLite would have to make the files that its write-ahead log needs.
    return "mode=ro&immutable=1" if _is_at_rest(path) else "mode=ro"


def _is_at_rest(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            keeps_log = stream.read(20)[18:] == _WAL_MARK
    except OSError:
        return False
    return keeps_log and not path.with_name(path.name + "-wal").exists()


def _file_url(path: Path) -> URL:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path.parent}: {error.strerror}; cannot keep a journal there"
        ) from error
    return URL.create("sqlite", database=str(path))


def _url(told: str) -> URL:
    # no password on a screen or in a log
    shown = re.sub(r"(//[^:/@]*):.*@", r"\1:***@", told.partition("?")[0])
    try:
        url = make_url(told)
    except (SQLAlchemyError, ValueError) as error:
        raise ConfigError(f"{shown!r} is no database URL") from error
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise ConfigError(
            f"{shown!r}: a journal is kept in PostgreSQL (postgresql+psycopg://USER@HOST/DATABASE) "
            "or in a file"
        )
    return url


def _open_postgresql(url: URL, *, read_only: bool) -> Engine:
    own = " ".join(_words(url.query.get("options")))
    session = f"{SESSION} -c default_transaction_read_only=on" if read_only else SESSION
    query: Mapping[str, Any] = {**POSTGRESQL, **url.query, "options": f"{session} {own}".strip()}
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg", query=query),
            # a plan made for a common stage would be a bad one for a rare one
            connect_args={"prepare_threshold": None},
            pool_pre_ping=True,
            **_JSON,
        )
    except ImportError as error:
        raise ConfigError(
            f"a journal in PostgreSQL needs psycopg ({error}): pip install 'dwf-prepipe[postgres]'"
        ) from error


def _words(option: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (option,) if isinstance(option, str) else option or ()


def _to_json(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: object) -> object:
    """What JSON has no word for becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return value


_JSON: dict[str, Any] = {"json_serializer": _to_json, "json_deserializer": from_json}
"""A night has tens of thousands of small documents: the reader is a fast one."""


def _behave(engine: Engine, *pragmas: str) -> None:
    def set_pragmas(connection: Any, _record: Any) -> None:
        # The driver would open transactions by itself, and too late to serialise writers.
        connection.isolation_level = None
        for pragma in (f"busy_timeout={1000 * PATIENCE_S}", *pragmas, "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", set_pragmas)
    event.listen(engine, "begin", _begin_immediately)


def _begin_immediately(connection: Connection) -> None:
    # A writer that upgraded from a read lock could meet another one and fail at once.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
