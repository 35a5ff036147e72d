"""Journals of earlier versions, revised by alembic; imported only where there is one."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

__all__ = ["known_head", "knows", "upgrade"]

MIGRATIONS = Path(__file__).parent / "migrations"


def knows(revision: str) -> bool:
    """Whether a revision is one of this version's."""
    try:
        return ScriptDirectory.from_config(_config()).get_revision(revision) is not None
    except CommandError:
        return False


def known_head() -> str | None:
    """The last revision that this version knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables behind a connection to a revision, within its transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
