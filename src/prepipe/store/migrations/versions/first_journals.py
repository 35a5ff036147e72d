"""The tables as they were before revisions were counted.

A journal made in those days has some of them, or older forms with fewer columns.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    inspect,
)
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None

metadata = MetaData()


def _name(length: int) -> TypeEngine[str]:
    return String(length).with_variant(Text(), "postgresql")


Table(
    "exposures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("camera", _name(40), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("field", Text, nullable=False),
    Column("band", _name(20), nullable=False),
    Column("start", Float, nullable=False),
    Column("exposure_s", Float, nullable=False),
    Column("night", String(10), nullable=False),
    Column("path", Text, nullable=False, default=""),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("checksum", String(40), nullable=False, default=""),
    UniqueConstraint("camera", "number"),
)

Table(
    "ccds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("exposure_id", ForeignKey("exposures.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", _name(20), nullable=False),
    Column("stage", String(20), nullable=False),
    Column("failed_stage", String(20)),
    Column("tries", Integer, nullable=False, default=0),
    Column("reason", Text, nullable=False, default=""),
    Column("traceback", Text, nullable=False, default=""),
    Column("packet", Text, nullable=False, default=""),
    Column("packet_bytes", BigInteger, nullable=False, default=0),
    Column("codec", _name(20), nullable=False, default=""),
    Column("checksum", String(40), nullable=False, default=""),
    Column("found_at", Float),
    Column("packed_at", Float),
    Column("sent_at", Float),
    Column("landed_at", Float),
    Column("calibrated_at", Float),
    Column("grade", String(10)),
    Column("reasons", JSON),
    Column("reduction", JSON),
    Column("seconds", JSON),
    Column("file_checksum", String(40), nullable=False, server_default=""),
    Column("archived_at", Float),
    Column("archive_bytes", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("exposure_id", "number"),
    Index("ccds_by_stage", "stage"),
)

Table(
    "files",
    metadata,
    Column("path", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("quarantined", Boolean, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("traceback", Text, nullable=False, default=""),
    Column("at", Float, nullable=False),
)

Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("camera", _name(40), nullable=False),
    Column("exposure", BigInteger, nullable=False),
    Column("ccd", Integer, nullable=False),
    Column("stage", String(20), nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("seconds", Float),
    Column("detail", Text, nullable=False, default=""),
)

Table(
    "transfers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("night", String(10), nullable=False),
    Column("camera", _name(40), nullable=False),
    Column("exposure", BigInteger, nullable=False),
    Column("ccds", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("began", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Index("transfers_by_exposure", "exposure"),
)

Table(
    "fidelity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("night", String(10), nullable=False),
    Column("camera", _name(40), nullable=False),
    Column("exposure", BigInteger, nullable=False),
    Column("ccd", Integer, nullable=False),
    Column("codec", _name(20), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("ratio", Float),
    Column("figures", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Index("fidelity_by_night", "night"),
)


def upgrade() -> None:
    """Make what is missing."""
    connection = op.get_bind()
    metadata.create_all(connection)
    for table in metadata.sorted_tables:
        _add_missing_columns(connection, table)


def _add_missing_columns(connection: Connection, table: Table) -> None:
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            op.add_column(table.name, column._copy())
