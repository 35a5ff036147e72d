"""What waits is found newest first, and all is counted, along indices."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Float, text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the start of its exposure to each CCD, and the indices."""
    op.add_column("ccds", Column("start", Float, nullable=False, server_default="0"))
    op.execute(
        "UPDATE ccds SET start = "
        "(SELECT exposures.start FROM exposures WHERE exposures.id = ccds.exposure_id)"
    )
    op.drop_index("ccds_by_stage", "ccds", if_exists=True)
    op.create_index("ccds_in_turn", "ccds", ["stage", "start"])
    op.create_index("ccds_by_exposure", "ccds", ["exposure_id", "stage", "grade"])
    waits = text("stage = 'sent' AND archived_at IS NULL")
    op.create_index(
        "ccds_to_archive",
        "ccds",
        ["stage", "archived_at", "start"],
        sqlite_where=waits,
        postgresql_where=waits,
    )
    for column in ("night", "number", "start"):
        op.create_index(f"exposures_by_{column}", "exposures", [column])
