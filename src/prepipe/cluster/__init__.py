"""The cluster's end: packets that land become calibrated CCDs.

What loads the engines is loaded when it is asked for: the board is read by commands that must
be quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prepipe.cluster.events import Event, Report, What
    from prepipe.cluster.ingest import Ingest

__all__ = ["Event", "Ingest", "Report", "What"]

_HOMES = {"Event": "events", "Ingest": "ingest", "Report": "events", "What": "events"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
