"""The far side is another directory of this machine, or one that it mounts."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from prepipe.errors import LinkError, PacketError, StorageError
from prepipe.files import atomic_path, content_checksum, make_directory, storage_errors
from prepipe.link.base import ARCHIVE, REJECTED, Held, known_place
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
        Made if only its last element is missing.
    """

    concurrency = 2
    recognises = False

    def __init__(self, landing: Path) -> None:
        self.landing = landing

    def send(
        self, packet: Path, urgency: int = 0, place: str = "", *, may_be_there: bool = False
    ) -> bool:
        """Put a packet into the landing directory; see `Link.send`.

        Raises
        ------
        PacketError
            If the file has no packet's name, or there is no such place.
        StorageError
            If the landing directory's disk is full, or the packet vanished.
        LinkError
            If the landing directory cannot be written.
        """
        parse_name(packet.name)
        final = self.landing / known_place(place) / packet.name
        with storage_errors(packet):
            packet.stat()
        if place and _is_there(final, packet):
            return True
        try:
            make_directory(self.landing)
            with atomic_path(final) as partial:
                _link_or_copy(packet, partial)
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _FULL:
                raise
            raise LinkError(f"landing directory {error}") from error
        return False

    def prepare(self) -> None:
        """Nothing has to be got ready."""

    def inventory(self, since: int = 0) -> dict[str, Held]:
        """The packets there; see `Link.inventory`. A checksum is computed when it is asked for.

        Raises
        ------
        LinkError
            If the landing directory cannot be read.
        """
        found: dict[str, Held] = {}
        try:
            if not self.landing.parent.exists():
                make_directory(self.landing)  # which tells what is missing
            for entry in files_below(self.landing):
                if is_packet(entry.name):
                    # what has just landed replaces an older one of the same name
                    found.setdefault(entry.name, _Readable(entry))
        except StorageError as error:
            raise LinkError(f"landing directory {error}") from error
        except OSError as error:
            raise LinkError(
                f"landing directory {self.landing}: {error.strerror}; see that it can be read"
            ) from error
        return found

    def close(self) -> None:
        """Nothing is held open."""


class _Readable(Held):
    """A packet that lies within reach: a landing directory of many nights is not read in vain."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        object.__setattr__(self, "size", entry.stat().st_size)
        object.__setattr__(self, "_path", Path(entry.path))

    @cached_property
    def checksum(self) -> str:
        path: Path = self.__dict__["_path"]
        try:
            return content_checksum(path)
        except StorageError:
            # moved meanwhile
            return ""


def _is_there(final: Path, packet: Path) -> bool:
    """Whether it arrived before; one that cannot be read is written anew."""
    try:
        same_size = final.stat().st_size == packet.stat().st_size
    except OSError:
        return False
    return same_size and content_checksum(final) == content_checksum(packet)


def _link_or_copy(packet: Path, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    try:
        os.link(packet, partial)
    except OSError:
        shutil.copyfile(packet, partial)


def files_below(landing: Path) -> Iterator[os.DirEntry[str]]:
    """Files of the landing directory, then those further down, not rejected ones and originals.

    A packet only ever moves downwards, so that one that moves meanwhile is not missed.
    """
    pending = [landing]
    while pending:
        directory = pending.pop(0)
        for entry in _entries(directory):
            if entry.is_dir(follow_symlinks=False):
                if not (directory == landing and entry.name in (REJECTED, ARCHIVE)):
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
