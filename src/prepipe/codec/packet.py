"""The packet: one CCD of one exposure in one file that describes itself.

docs/packet.md tells the format byte for byte. Every byte is under a checksum.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import xxhash
import zstandard
from astropy.io.fits import Header

from prepipe.codec.base import RESIDUAL, Pixels, get_codec
from prepipe.codec.cards import BLOCK, header_from_cards, split_cards
from prepipe.codec.fits_bytes import MAX_HEADER_BYTES, HduSpan
from prepipe.codec.head import PacketHead
from prepipe.codec.headers import image_cards
from prepipe.codec.pixels import MAX_PIXELS, pixel_checksum
from prepipe.codec.tiles import image_dtype
from prepipe.errors import ConfigError, FitsError, PacketError
from prepipe.files import atomic_write, storage_errors
from prepipe.model import Packet
from prepipe.names import parse_name

__all__ = [
    "DecodedCcd",
    "OpenPacket",
    "PackedCcd",
    "build_packet",
    "decode",
    "open_packet",
    "opened",
    "read_cards",
    "read_hdu",
    "read_header",
    "repack",
    "verify",
    "write_packet",
]

MAGIC = b"\x89PPKT\r\n\x1a"
"""As PNG's: not text, and broken by any transfer that takes it for text."""
VERSION = 1

_PREFIX = struct.Struct("<8sIIIIQ")
_CHECKSUM_BYTES = 16
_START = _PREFIX.size + _CHECKSUM_BYTES
_MAX_JSON = 1 << 20
_MAX_CARDS = 2 * MAX_HEADER_BYTES
_MAX_PAYLOAD = 9 * MAX_PIXELS
_READ_BYTES = 1 << 20
_ZSTD_LEVEL = 6


@dataclass(frozen=True)
class PackedCcd:
    """A packet in memory.

    Parameters
    ----------
    packet : Packet
    content : bytes
        The whole file.
    """

    packet: Packet
    content: bytes = field(repr=False)


class DecodedCcd(NamedTuple):
    """A CCD as it comes out of its packet.

    Attributes
    ----------
    pixels : ndarray, shape (rows, columns)
        Native byte order.
    primary : Header
        Primary header of the exposure.
    extension : Header
        Header of the image, as of an uncompressed one: NAXIS1 counts columns. Where the
        image was itself the primary HDU, both headers are that one.
    packet : Packet
    """

    pixels: Pixels
    primary: Header
    extension: Header
    packet: Packet


@dataclass(frozen=True)
class OpenPacket:
    """All that is in a packet, checksums compared.

    Parameters
    ----------
    packet : Packet
    hdu : int
        Number of the HDU in the file it came from.
    primary_header : bytes
        Header unit of the primary HDU; empty if the image was itself that.
    image_header : bytes
        Header unit of the image.
    payload : bytes
    """

    packet: Packet
    hdu: int
    primary_header: bytes = field(repr=False)
    image_header: bytes = field(repr=False)
    payload: bytes = field(repr=False)

    def pixels(self) -> Pixels:
        """Decoded pixels, compared with their checksum.

        Raises
        ------
        PacketError
            If the codec is unknown, or does not give back what was packed.
        """
        packet = self.packet
        if packet.codec == RESIDUAL:
            raise PacketError(
                f"{packet.file_name}: is a residual, which has no pixels without the packet it was "
                "made for; `prepipe restore` puts the two together"
            )
        try:
            codec = get_codec(packet.codec)
        except ConfigError as error:
            raise PacketError(f"{packet.file_name}: {error}") from error
        pixels = codec.decode(self.payload, packet, self.image_header)
        if (pixels.shape, pixels.dtype.name) != (packet.shape, packet.dtype):
            raise PacketError(
                f"{packet.file_name}: holds {pixels.dtype.name} {pixels.shape}, "
                f"not {packet.dtype} {packet.shape} as it says; send it again"
            )
        if pixel_checksum(pixels) != packet.pixel_checksum:
            raise PacketError(
                f"{packet.file_name}: the decoded pixels are not those that were packed (made by "
                f"{packet.parameters.get('by', 'prepipe')}); send it again"
            )
        return pixels


def build_packet(
    packet: Packet, hdu: int, primary_header: bytes, image_header: bytes, payload: bytes
) -> PackedCcd:
    """Put a packet together.

    Parameters
    ----------
    packet : Packet
        Its payload length and checksum are set here.
    hdu : int
        Number of the HDU in its file.
    primary_header : bytes
        Empty if the image is itself the primary HDU.
    image_header : bytes
    payload : bytes

    Raises
    ------
    PacketError
        If something cannot be written, e.g. a number that is not finite.
    """
    cards = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(primary_header + image_header)
    head = PacketHead.of(packet, hdu, len(primary_header))
    text = head.to_json()
    if len(text) > _MAX_JSON or len(payload) > _MAX_PAYLOAD:
        raise PacketError(f"{packet.file_name} is too big for a packet; choose another codec")
    start = _PREFIX.pack(MAGIC, VERSION, len(text), len(cards), 0, len(payload))
    checksum = xxhash.xxh3_128_digest(start + text + cards)
    return PackedCcd(head.packet(len(payload)), b"".join([start, checksum, text, cards, payload]))


def repack(opened: OpenPacket) -> PackedCcd:
    """A packet as it was before it was opened."""
    headers = opened.primary_header, opened.image_header
    return build_packet(opened.packet, opened.hdu, *headers, opened.payload)


def write_packet(directory: Path, packed: PackedCcd) -> Path:
    """Write a packet under its own name; it appears whole or not at all.

    Raises
    ------
    PacketError
        If it would have a name that is no packet's.
    StorageError
        If the disk is full or the directory cannot be written.
    """
    path = directory / packed.packet.file_name
    parse_name(path.name)
    with atomic_write(path) as stream:
        stream.write(packed.content)
    return path


def read_header(path: Path) -> Packet:
    """What a packet says of itself; its payload is not read.

    Raises
    ------
    PacketError
        If magic, version, lengths or the checksum of the header are wrong.
    StorageError
        If the file vanished or may not be read.
    """
    with storage_errors(path), path.open("rb") as stream:
        head, _, payload_bytes = _read_start(stream, path)
        return head.packet(payload_bytes)


def read_hdu(path: Path) -> int:
    """Number of the HDU, in its raw file, that a packet was made of; raises as `read_header`."""
    with storage_errors(path), path.open("rb") as stream:
        return _read_start(stream, path)[0].hdu


def read_cards(path: Path) -> tuple[bytes, bytes]:
    """Header units of the primary HDU and of the image; raises as `read_header`."""
    with storage_errors(path), path.open("rb") as stream:
        head, cards, _ = _read_start(stream, path)
        return _split_headers(head, cards, path)


def verify(path: Path, *, check_name: bool = True) -> Packet:
    """Read a packet to its end and compare every checksum but that of the pixels.

    Parameters
    ----------
    path : Path
    check_name : bool
        Whether the file must bear the packet's own name.

    Raises
    ------
    PacketError
        If a bit is wrong, bytes are missing or left over, or the name belongs to another
        exposure or CCD.
    StorageError
        If the file vanished or may not be read.
    """
    with storage_errors(path), path.open("rb") as stream:
        head, cards, payload_bytes = _read_start(stream, path)
        digest = xxhash.xxh3_128()
        while part := stream.read(_READ_BYTES):
            digest.update(part)
    _compare_payload(digest.hexdigest(), head, path)
    _split_headers(head, cards, path)
    packet = head.packet(payload_bytes)
    if check_name:
        _compare_name(packet, path)
    return packet


def open_packet(path: Path) -> OpenPacket:
    """Read a whole packet and compare its checksums; the pixels are not decoded yet.

    Raises
    ------
    PacketError
        As `verify`; the name is not looked at.
    StorageError
        If the file vanished or may not be read.
    """
    with storage_errors(path), path.open("rb") as stream:
        return _opened(stream, path)


def opened(packed: PackedCcd) -> OpenPacket:
    """The same of a packet in memory."""
    return _opened(io.BytesIO(packed.content), Path(packed.packet.file_name))


def _opened(stream: IO[bytes], path: Path) -> OpenPacket:
    head, cards, payload_bytes = _read_start(stream, path)
    payload = stream.read()
    _compare_payload(xxhash.xxh3_128_hexdigest(payload), head, path)
    primary, image = _split_headers(head, cards, path)
    return OpenPacket(head.packet(payload_bytes), head.hdu, primary, image, payload)


def decode(path: Path) -> DecodedCcd:
    """Pixels and headers of a packet.

    Raises
    ------
    PacketError
        As `verify`, and if the pixels are not those that were packed.
    StorageError
        If the file vanished or may not be read.
    """
    opened = open_packet(path)
    pixels = opened.pixels()
    image = HduSpan(opened.hdu, 0, opened.image_header, 0)
    extension = header_from_cards(image_cards(image))
    primary = extension
    if opened.primary_header:
        primary = HduSpan(0, 0, opened.primary_header, 0).astropy_header
    return DecodedCcd(pixels, primary, extension, opened.packet)


def _read_start(stream: IO[bytes], path: Path) -> tuple[PacketHead, bytes, int]:
    """Header, compressed cards, and the payload's length; the stream stands at the payload."""
    start = stream.read(_START)
    if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
        raise PacketError(f"{path}: is no packet (its first bytes are wrong); remove it")
    if len(start) < _START:
        raise PacketError(f"{path}: truncated inside its first {_START} bytes; send it again")
    _, version, json_bytes, cards_bytes, reserved, payload_bytes = _PREFIX.unpack(
        start[: _PREFIX.size]
    )
    if version != VERSION:
        raise PacketError(
            f"{path}: is a packet of version {version}, this program reads {VERSION}; update it"
        )
    if json_bytes > _MAX_JSON or cards_bytes > _MAX_CARDS or payload_bytes > _MAX_PAYLOAD:
        raise PacketError(f"{path}: says it has an absurd size; send it again")
    _compare_size(stream, path, _START + json_bytes + cards_bytes + payload_bytes)
    text = stream.read(json_bytes)
    cards = stream.read(cards_bytes)
    checksum = xxhash.xxh3_128_digest(start[: _PREFIX.size] + text + cards)
    if checksum != start[_PREFIX.size :] or reserved != 0:
        raise PacketError(f"{path}: its header was damaged on the way; send it again")
    try:
        return PacketHead.from_json(text), cards, payload_bytes
    except PacketError as error:
        raise PacketError(f"{path}: {error}") from error


def _compare_size(stream: IO[bytes], path: Path, wanted: int) -> None:
    position = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(position)
    if size < wanted:
        raise PacketError(f"{path}: truncated, {size} of {wanted} bytes are there; send it again")
    if size > wanted:
        raise PacketError(f"{path}: {size - wanted} bytes follow its end; send it again")


def _compare_payload(checksum: str, head: PacketHead, path: Path) -> None:
    if checksum != head.payload_checksum:
        raise PacketError(f"{path}: its payload was damaged on the way; send it again")


def _compare_name(packet: Packet, path: Path) -> None:
    told = packet.exposure.camera, packet.exposure.number, packet.ccd.number
    if parse_name(path.name) != told:
        raise PacketError(f"{path}: is in truth {packet.file_name}; send it again")


def _split_headers(head: PacketHead, cards: bytes, path: Path) -> tuple[bytes, bytes]:
    """Header units of the primary HDU and of the image."""
    try:
        # the decompressor believes the size stated in the frame, so it is looked at first
        size = zstandard.frame_content_size(cards)
        if not 0 < size <= _MAX_CARDS or size % BLOCK:
            raise PacketError(f"{path}: its cards have an absurd size; send it again")
        units = zstandard.ZstdDecompressor().decompress(cards, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PacketError(f"{path}: its cards are damaged ({error}); send it again") from error
    primary, image = units[: head.primary_bytes], units[head.primary_bytes :]
    if bool(head.hdu) != bool(primary) or not _fits(head, primary, image):
        raise PacketError(f"{path}: its cards do not fit its header; send it again")
    return primary, image


def _fits(head: PacketHead, primary: bytes, image: bytes) -> bool:
    """Whether the cards can be read and speak of an image of this shape and type."""
    span = HduSpan(head.hdu, 0, image, 0)
    try:
        if primary:
            split_cards(primary)
        return span.image_shape == tuple(head.shape) and image_dtype(span) == head.dtype
    except FitsError:
        return False
