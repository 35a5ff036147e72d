"""What each end remembers: tables and queries; SQLite by default, any SQLAlchemy URL otherwise."""

from prepipe.store.checks import CheckRow
from prepipe.store.journal import Journal
from prepipe.store.masters import MasterRow, MasterRows
from prepipe.store.rows import CcdKey, CcdRow, FileRow
from prepipe.store.transfers import TransferRow

__all__ = [
    "CcdKey",
    "CcdRow",
    "CheckRow",
    "FileRow",
    "Journal",
    "MasterRow",
    "MasterRows",
    "TransferRow",
]
