"""The tables of a journal are those of this version, whichever version made it."""

from __future__ import annotations

from sqlalchemy import Column, Connection, MetaData, String, Table, func, inspect, select
from sqlalchemy.engine import Engine

from prepipe.errors import ConfigError
from prepipe.store import tables

__all__ = ["EMPTY", "HEAD", "make_or_revise", "revision"]

HEAD = "0003"
"""Last revision in `migrations`: alembic, slow to import, is asked only where another is met."""

EMPTY, UNCOUNTED = "", "uncounted"
"""No journal yet; a journal from before revisions were counted."""

VERSION = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))

LOCK = 0x70726570697065
"""Of PostgreSQL: one process at a time makes or revises tables."""


def make_or_revise(engine: Engine, what: str) -> None:
    """Make the tables that a database lacks, and revise those of an older version.

    Raises
    ------
    ConfigError
        If the journal is of a newer version.
    """
    with engine.execution_options(reads_only=True).begin() as connection:
        if revision(connection) == HEAD:
            return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
        found = revision(connection)  # another process may have been quicker
        if found == EMPTY:
            tables.metadata.create_all(connection)
            VERSION.create(connection)
            connection.execute(VERSION.insert().values(version_num=HEAD))
        elif found != HEAD:
            # alembic is slow to load, and hardly ever needed
            from prepipe.store.migrate import upgrade  # noqa: PLC0415

            _require_known(found, what)
            upgrade(connection)


def revision(connection: Connection) -> str:
    """Which revision the tables are of; `EMPTY` where there are none."""
    there = set(inspect(connection).get_table_names())
    if VERSION.name in there:
        found: str | None = connection.execute(select(VERSION.c.version_num)).scalar()
        if found is not None:
            return found
    return UNCOUNTED if tables.exposures.name in there else EMPTY


def _require_known(found: str, what: str) -> None:
    from prepipe.store.migrate import knows  # noqa: PLC0415

    if found != UNCOUNTED and not knows(found):
        raise ConfigError(
            f"{what} was made by a newer prepipe (its tables are of revision {found}, this "
            f"version knows {HEAD}): install that version here, too"
        )
