"""What the legacy system shipped: an exposure as a ``.tar`` of ``.jp2`` files, a CCD each."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import imagecodecs

from prepipe.codec.base import Pixels
from prepipe.codec.cards import CARD, keyword_of
from prepipe.codec.codestream import read_head
from prepipe.codec.pixels import MAX_PIXELS, native
from prepipe.codec.plain_image import plain_file
from prepipe.errors import PacketError
from prepipe.files import atomic_write, storage_errors
from prepipe.names import safe_name

__all__ = ["unpack_legacy"]

_MAX_MEMBERS = 1000
_MAX_MEMBER_BYTES = 9 * MAX_PIXELS
_BOX = struct.Struct(">I4s")
_LONG_BOX = struct.Struct(">Q")
_MAX_BOXES = 1000
_FIRST_CARD = b"SIMPLE  ="
_END = b"END".ljust(CARD)
_STRUCTURE = ("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT", "EXTEND", "BZERO")
_STRUCTURE_TOO = ("BSCALE", "CHECKSUM", "DATASUM")


@dataclass(frozen=True)
class _Member:
    """One file of the archive."""

    name: str
    content: bytes


def unpack_legacy(archive: Path, out_dir: Path) -> list[Path]:
    """Write a FITS file for each JPEG 2000 file of an archive.

    Parameters
    ----------
    archive : Path
        A ``.tar`` of files whose names end in ``.jp2``, ``.j2k``, ``.j2c`` or ``.jpx``.
    out_dir : Path
        Made if needed. A file ``x.jp2`` becomes ``x.fits``; its header cards are kept if
        the file holds them as text, as f2j writes them.

    Raises
    ------
    PacketError
        If the archive or a file in it is damaged, has an unsafe name or no image; what came
        before it has been written.
    StorageError
        If the disk is full, or a directory cannot be read or written.
    """
    written: list[Path] = []
    with storage_errors(archive):
        for member in _members(archive):
            where = f"{archive}: {member.name}"
            path = out_dir / safe_name(Path(member.name).stem + ".fits")
            if path in written:
                raise PacketError(f"{where}: the archive holds this name twice; unpack it by hand")
            pixels = _image(member.content, where)
            with atomic_write(path) as stream:
                stream.write(plain_file(pixels, _header_cards(member.content)))
            written.append(path)
    if not written:
        raise PacketError(f"{archive}: holds no .jp2 file")
    return written


def _members(archive: Path) -> Iterator[_Member]:
    """The JPEG 2000 files of an archive, read into memory one by one."""
    try:
        with tarfile.open(archive, "r:") as tar:
            for count, entry in enumerate(tar):
                if count >= _MAX_MEMBERS:
                    raise PacketError(f"{archive}: holds more than {_MAX_MEMBERS} files")
                name = entry.name.removeprefix("./")
                if not name.lower().endswith((".jp2", ".j2k", ".j2c", ".jpx")):
                    continue
                safe_name(name)
                stream = tar.extractfile(entry) if entry.isreg() else None
                if stream is None or entry.size > _MAX_MEMBER_BYTES:
                    raise PacketError(f"{archive}: {name} is no file, or too big; remove it")
                yield _Member(name, stream.read())
    except tarfile.TarError as error:
        raise PacketError(f"{archive}: is no tar archive, or truncated ({error})") from error


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes of a JP2 file (ISO/IEC 15444-1, I.4)."""
    place = 0
    for _ in range(_MAX_BOXES):
        if place + _BOX.size > len(content):
            return
        length, kind = _BOX.unpack_from(content, place)
        start = place + _BOX.size
        if length == 1 and start + _LONG_BOX.size <= len(content):
            length = _LONG_BOX.unpack_from(content, start)[0]
            start += _LONG_BOX.size
        end = len(content) if length == 0 else min(len(content), place + length)
        if end < start:
            return
        yield kind, content[start:end]
        place = end


def _image(content: bytes, where: str) -> Pixels:
    streams = [box for kind, box in _boxes(content) if kind == b"jp2c"] or [content]
    head = read_head(streams[0])
    # the library would take memory for whatever size is stated
    if (
        head is None
        or not 0 < prod(head.shape) <= MAX_PIXELS
        or head.components != 1
        or head.bits > 16
        or any(head.origins)
        or prod(head.tile) == 0
    ):
        raise PacketError(f"{where} is no JPEG 2000 image of one plane of 16 bits; remove it")
    try:
        pixels = imagecodecs.jpeg2k_decode(streams[0], numthreads=1)
    except (imagecodecs.Jpeg2kError, ValueError) as error:
        raise PacketError(f"{where} cannot be decoded ({error})") from error
    if pixels.size != prod(head.shape) or pixels.dtype.itemsize > 2:
        raise PacketError(f"{where} does not hold what it says; remove it")
    return native(pixels.reshape(head.shape))


def _header_cards(content: bytes) -> list[bytes]:
    """Header cards that lie as text in a box of the file, without those of the structure."""
    for kind, box in _boxes(content):
        start = box.find(_FIRST_CARD) if kind in (b"uuid", b"xml ", b"jp2h") else -1
        if start < 0:
            continue
        cards = [box[place : place + CARD] for place in range(start, len(box) - CARD + 1, CARD)]
        if _END not in cards:
            continue
        return [card for card in cards[: cards.index(_END)] if _is_plain(card)]
    return []


def _is_plain(card: bytes) -> bool:
    """Whether a card is text, and tells nothing of the structure."""
    keyword = keyword_of(card) if all(32 <= byte < 127 for byte in card) else "NAXIS"
    return not keyword.startswith(_STRUCTURE) and keyword not in _STRUCTURE_TOO
