"""What each end remembers: tables and queries; a SQLite file, or PostgreSQL by URL."""

from prepipe.store.checks import CheckRow
from prepipe.store.counts import NightCounts
from prepipe.store.journal import Journal
from prepipe.store.masters import MasterRow, MasterRows
from prepipe.store.pointings import PointingRow
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
    "NightCounts",
    "PointingRow",
    "TransferRow",
]
