"""The far side is another directory of this machine, or one that it mounts."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from prepipe.errors import LinkError, PacketError, StorageError
from prepipe.files import atomic_path, storage_errors
from prepipe.link.base import REJECTED
from prepipe.names import parse_name

__all__ = ["LocalLink", "files_below", "is_packet"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class LocalLink:
    """Directory to directory.

    On one file system a packet is linked, not copied: it is never changed after it was
    written, and its name here goes away once it is sent.

    Parameters
    ----------
    landing : Path
        Made if missing.
    """

    def __init__(self, landing: Path) -> None:
        self.landing = landing

    def send(self, packet: Path) -> None:
        """Put a packet into the landing directory; see `Link.send`.

        Raises
        ------
        PacketError
            If the file has no packet's name.
        StorageError
            If the landing directory's disk is full, or the packet vanished.
        LinkError
            If the landing directory cannot be written.
        """
        parse_name(packet.name)
        with storage_errors(packet):
            packet.stat()
        try:
            with atomic_path(self.landing / packet.name) as partial:
                _link_or_copy(packet, partial)
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise
            raise LinkError(f"landing directory {error}") from error

    def inventory(self) -> dict[str, int]:
        """Names and bytes of the packets there; see `Link.inventory`.

        Raises
        ------
        LinkError
            If the landing directory cannot be read.
        """
        found: dict[str, int] = {}
        try:
            for entry in files_below(self.landing):
                if is_packet(entry.name):
                    # what has just landed replaces an older one of the same name
                    found.setdefault(entry.name, entry.stat().st_size)
        except OSError as error:
            raise LinkError(
                f"landing directory {self.landing}: {error.strerror}; see that it can be read"
            ) from error
        return found

    def close(self) -> None:
        """Nothing is held open."""


def _link_or_copy(packet: Path, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    try:
        os.link(packet, partial)
    except OSError:
        shutil.copyfile(packet, partial)


def files_below(landing: Path) -> Iterator[os.DirEntry[str]]:
    """Files of the landing directory first, then those further down but for rejected ones.

    A packet only ever moves downwards, so that one that moves meanwhile is not missed.
    """
    pending = [landing]
    while pending:
        directory = pending.pop(0)
        for entry in _entries(directory):
            if entry.is_dir(follow_symlinks=False):
                if not (directory == landing and entry.name == REJECTED):
                    pending.append(Path(entry.path))
            elif entry.is_file():
                yield entry


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def is_packet(name: str) -> bool:
    """Whether a file is called as packets are."""
    try:
        parse_name(name)
    except PacketError:
        return False
    return True
