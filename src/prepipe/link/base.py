"""`Link`: how packets reach the far side; a link is three methods wide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["DONE", "REJECTED", "Held", "Link"]

DONE = "done"
"""Directory below the landing directory for packets that were registered."""

REJECTED = "rejected"
"""Directory below the landing directory for packets that were damaged."""


@dataclass(frozen=True)
class Held:
    """A packet that the far side holds.

    Parameters
    ----------
    size : int
        bytes
    checksum : str
        xxh3-128 of the file, hexadecimal; empty where the far side cannot tell.
    """

    size: int
    checksum: str


class Link(Protocol):
    """A way to one landing directory; may be used by several threads at a time.

    Attributes
    ----------
    concurrency : int
        Packets that may be under way at the same time, and are worth it.
    """

    concurrency: int

    def send(self, packet: Path, urgency: int = 0) -> None:
        """Put a packet into the landing directory, whole, under its own name.

        Parameters
        ----------
        packet : Path
        urgency : int
            Of several packets under way the one with the highest goes first, where the link
            can tell them apart.

        Raises
        ------
        LinkError
            If the far side cannot be reached, or the link was closed; the packet may be sent
            again.
        StorageError
            If the far side's disk is full, or the packet vanished here.
        """
        ...

    def inventory(self) -> dict[str, Held]:
        """The packets that the far side has, by name, registered ones included.

        Raises
        ------
        LinkError
            If the far side cannot be asked, or the link was closed.
        """
        ...

    def close(self) -> None:
        """Give up what the link holds open; whoever still waits for it gets a `LinkError`.

        May be called by any thread, and more than once.
        """
        ...
