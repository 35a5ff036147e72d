"""Originals may be residuals, which need the packet that was sent."""

from __future__ import annotations

from alembic import op
from sqlalchemy import JSON, Column, String

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what the codec was asked, and the packet that an original needs."""
    op.add_column("ccds", Column("asked", JSON))
    op.add_column("ccds", Column("archive_base", String(40), nullable=False, server_default=""))
