"""The preset that each CCD was packed by is kept."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, String

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the preset; of what was packed before, none is known."""
    op.add_column("ccds", Column("preset", String(20), nullable=False, server_default=""))
