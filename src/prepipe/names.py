"""Names that come from outside: what a packet's file may be called, and nothing else."""

from __future__ import annotations

import re
from typing import NamedTuple

from prepipe.errors import PacketError

__all__ = ["CAMERA_PATTERN", "PacketName", "parse_name", "safe_name"]

CAMERA_PATTERN = r"[a-z][a-z0-9_-]{0,31}"

_PACKET = re.compile(
    rf"({CAMERA_PATTERN})_([0-9]{{8}}|[1-9][0-9]{{8,11}})_([0-9]{{2}}|[1-9][0-9]{{2,3}})\.packet"
)
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


class PacketName(NamedTuple):
    """What the name of a packet's file tells."""

    camera: str
    number: int
    ccd: int


def parse_name(file_name: str) -> PacketName:
    """Read ``decam_00941420_25.packet``.

    Raises
    ------
    PacketError
        If it is no such name; a path is none.
    """
    found = _PACKET.fullmatch(file_name)
    if found is None:
        raise PacketError(
            f"{file_name!r} is no packet's name; it must look like decam_00941420_25.packet"
        )
    return PacketName(found[1], int(found[2]), int(found[3]))


def safe_name(file_name: str) -> str:
    """`file_name` itself if it can be used in a directory of ours.

    Letters, digits and ``_.+-`` only, at most 200, not beginning with a dot or a dash,
    without two dots in a row: no path, no hidden file, no option, no control character.

    Raises
    ------
    PacketError
        If it is anything else.
    """
    if _SAFE.fullmatch(file_name) is None or ".." in file_name:
        raise PacketError(f"{file_name!r} is no safe file name; rename it at its source")
    return file_name
