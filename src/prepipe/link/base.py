"""`Link`: how packets reach the far side; a link is four methods wide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prepipe.errors import PacketError

__all__ = ["ARCHIVE", "DONE", "PLACES", "REJECTED", "Held", "Link", "known_place"]

ARCHIVE = "archive"
"""Directory below the landing directory for originals: kept, never calibrated."""

DONE = "done"
"""Directory below the landing directory for packets that were registered."""

REJECTED = "rejected"
"""Directory below the landing directory for packets that were damaged."""

PLACES = ("", ARCHIVE)
"""Where a sender may put something: the landing directory itself, and what lies below it."""


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
    recognises : bool
        Whether `send` can ask what the far side holds of a packet, wherever it came from: then
        nobody needs an inventory before sending.
    """

    concurrency: int
    recognises: bool

    def send(
        self, packet: Path, urgency: int = 0, place: str = "", *, may_be_there: bool = False
    ) -> bool:
        """Put a packet into the landing directory, whole, under its own name.

        Parameters
        ----------
        packet : Path
        urgency : int
            Of several packets under way the one with the highest goes first, where the link
            can tell them apart.
        place : str
            One of `PLACES`. An original that the archive has already is not sent again, where the
            link can tell by its checksum.
        may_be_there : bool
            Whether somebody may have sent it before, in part or whole: a link that recognises it
            asks first, and sends what is missing.

        Returns
        -------
        bool
            Whether it was there already, as far as the link can tell, and nothing had to be sent.

        Raises
        ------
        LinkError
            If the far side cannot be reached, or the link was closed; the packet may be sent
            again.
        StorageError
            If the far side's disk is full, or the packet vanished here.
        """
        ...

    def prepare(self) -> None:
        """Packets will come within seconds: get the line ready. Nothing is waited for."""
        ...

    def inventory(self, since: int = 0) -> dict[str, Held]:
        """The packets that the far side has, by name, registered ones included.

        Originals in its archive bear the same names, and are left out.

        Parameters
        ----------
        since : int
            Nobody asks for exposures with lower numbers: a link that has to read its packets to
            tell of them may leave those out.

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


def known_place(place: str) -> str:
    """`place` itself if it is one of `PLACES`.

    Raises
    ------
    PacketError
    """
    if place not in PLACES:
        raise PacketError(f"{place!r} is no place in a landing directory; give '' or {ARCHIVE!r}")
    return place
