"""What all tables of ``prepipe.toml`` share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """A table: no unknown settings, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
