"""What all tables of ``prepipe.toml`` share."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

__all__ = ["JournalUrl", "Section"]

SCHEMES = ("postgresql", "postgresql+psycopg")


class Section(BaseModel):
    """A table: no unknown settings, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_of_postgresql(told: str) -> str:
    """A URL of a PostgreSQL database, without the password: settings are shown and copied."""
    url = urlsplit(told)
    if url.scheme not in SCHEMES:
        raise ValueError("write postgresql+psycopg://USER@HOST/DATABASE")
    if url.password is not None or "password" in parse_qs(url.query):
        raise ValueError("leave the password out: it belongs in ~/.pgpass or PGPASSWORD")
    return told


JournalUrl = Annotated[str, AfterValidator(_is_of_postgresql)]
