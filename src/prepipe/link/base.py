"""`Link`: how packets reach the far side; a link is three methods wide."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

__all__ = ["DONE", "REJECTED", "Link"]

DONE = "done"
"""Directory below the landing directory for packets that were registered."""

REJECTED = "rejected"
"""Directory below the landing directory for packets that were damaged."""


class Link(Protocol):
    """A way to one landing directory."""

    def send(self, packet: Path) -> None:
        """Put a packet into the landing directory, whole, under its own name.

        Raises
        ------
        LinkError
            If the far side cannot be reached; the packet may be sent again.
        StorageError
            If the far side's disk is full, or the packet vanished here.
        """
        ...

    def inventory(self) -> dict[str, int]:
        """Names and bytes of the packets that the far side has, registered ones included.

        Raises
        ------
        LinkError
            If the far side cannot be asked.
        """
        ...

    def close(self) -> None:
        """Give up what the link holds open."""
        ...
