"""Run by alembic: revises the journal behind the connection that `migrate.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from prepipe.store import tables

context.configure(
    connection=context.config.attributes["connection"], target_metadata=tables.metadata
)
with context.begin_transaction():
    context.run_migrations()
