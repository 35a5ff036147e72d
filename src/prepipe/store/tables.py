"""The tables of a journal, and that of a library of masters. Times are seconds since 1970 (UTC)."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = [
    "ccds",
    "events",
    "exposures",
    "fidelity",
    "files",
    "library",
    "masters",
    "metadata",
    "transfers",
]


class Words(TypeDecorator[str]):
    """Text from anywhere: characters that a database refuses are written out as escapes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escape NUL and halves of surrogate pairs."""
        if value is None:
            return None
        return value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def _name(length: int) -> TypeEngine[str]:
    """A word of a header; SQLite minds no length, and PostgreSQL shall not refuse a long one."""
    return String(length).with_variant(Text(), "postgresql")


metadata = MetaData()
library = MetaData()

exposures = Table(
    "exposures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("camera", _name(40), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("field", Words, nullable=False),
    Column("band", _name(20), nullable=False),
    Column("start", Float, nullable=False),
    Column("exposure_s", Float, nullable=False),
    Column("night", String(10), nullable=False),
    Column("path", Text, nullable=False, default=""),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("checksum", String(40), nullable=False, default=""),
    UniqueConstraint("camera", "number"),
    Index("exposures_by_night", "night"),
    Index("exposures_by_number", "number"),
    Index("exposures_by_start", "start"),
)

TO_ARCHIVE = text("stage = 'sent' AND archived_at IS NULL")

ccds = Table(
    "ccds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("exposure_id", ForeignKey("exposures.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", _name(20), nullable=False),
    Column("stage", String(20), nullable=False),
    Column("failed_stage", String(20)),
    Column("tries", Integer, nullable=False, default=0),
    Column("reason", Words, nullable=False, default=""),
    Column("traceback", Words, nullable=False, default=""),
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
    # xxh3-128 of the packet's file.
    Column("file_checksum", String(40), nullable=False, server_default=""),
    # Of the bit-exact original, where what was sent is not.
    Column("archived_at", Float),
    Column("archive_bytes", BigInteger, nullable=False, server_default="0"),
    # Of its exposure, once more: what waits is found newest first along one index.
    Column("start", Float, nullable=False, server_default="0"),
    # What the codec was asked when the packet was made.
    Column("asked", JSON),
    # Of an original that went as a residual the file_checksum of the packet it belongs to.
    Column("archive_base", String(40), nullable=False, server_default=""),
    UniqueConstraint("exposure_id", "number"),
    Index("ccds_in_turn", "stage", "start"),
    # All that is counted, so that counting reads no rows.
    Index("ccds_by_exposure", "exposure_id", "stage", "grade"),
    Index(
        "ccds_to_archive",
        *("stage", "archived_at", "start"),
        sqlite_where=TO_ARCHIVE,
        postgresql_where=TO_ARCHIVE,
    ),
)

files = Table(
    "files",
    metadata,
    Column("path", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("quarantined", Boolean, nullable=False),
    Column("reason", Words, nullable=False, default=""),
    Column("traceback", Words, nullable=False, default=""),
    Column("at", Float, nullable=False),
)

events = Table(
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
    Column("detail", Words, nullable=False, default=""),
)

transfers = Table(
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

fidelity = Table(
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
    # By the names of `quality.fidelity.Fidelity`; what could not be told is null.
    Column("figures", JSON, nullable=False),
    Column("at", Float, nullable=False),
    Index("fidelity_by_night", "night"),
)

masters = Table(
    "masters",
    library,
    Column("id", Integer, primary_key=True),
    # Below the library's root, so that it can be moved as a whole.
    Column("path", Text, nullable=False),
    # Of the file that the row is about; another file may bear its name later.
    Column("fingerprint", String(40), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("ccd", Integer, nullable=False),
    Column("band", String(20), nullable=False),
    Column("night", String(10), nullable=False),
    Column("mark", String(10), nullable=False),
    Column("why", Text, nullable=False, default=""),
    Column("by_hand", Boolean, nullable=False, default=False),
    Column("valid_from", String(10)),
    Column("valid_until", String(10)),
    Column("previous", Text, nullable=False, default=""),
    Column("shift", Float),
    Column("rms", Float),
    Column("noise", Float),
    Column("deviating", Float),
    Column("changed_at", Float, nullable=False),
    UniqueConstraint("path", "fingerprint"),
    Index("masters_by_ccd", "ccd"),
)
