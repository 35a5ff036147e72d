"""From a packet back to a FITS file whose header cards are the original ones."""

from __future__ import annotations

from pathlib import Path

from prepipe.codec.cards import join_cards, keyword_of, make_card
from prepipe.codec.checksums import with_new_sums
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.headers import funpack_header, rice_cards, without_data
from prepipe.codec.packet import OpenPacket, open_packet
from prepipe.codec.tiles import RiceTable, rice_table
from prepipe.files import atomic_write
from prepipe.model import Packet
from prepipe.names import safe_name

__all__ = ["image_hdu", "primary_hdu", "unpack", "unpack_opened"]

_LOSS_CARDS = {
    "PPRATIO": ("ratio", "bytes of the pixels over bytes sent"),
    "PPRMS": ("rms_error_adu", "[adu] rms error of the pixels"),
    "PPMAXERR": ("max_error_adu", "[adu] largest error of a pixel"),
    "PPRMSSIG": ("rms_error_sigma", "rms error over noise of the frame"),
}
_PRIMARY_ONLY = (
    make_card("SIMPLE", True, "conforms to FITS standard"),
    make_card("BITPIX", 8, "array data type"),
    make_card("NAXIS", 0, "number of array dimensions"),
    make_card("EXTEND", True, "the image is in the extension"),
)


def unpack(packet_path: Path, out_dir: Path, *, verbatim: bool = False) -> Path:
    """Write the FITS file of a packet.

    The primary HDU has its original cards, and one extension holds the CCD with its own.
    With `none`, that HDU is byte for byte the original one, unless funpack would refuse it
    for the order of its cards (`funpack_header`). With `rice`, so it is if the original was
    packed the same way; else the cards that describe the structure change, and DATASUM and
    CHECKSUM are made right. With a lossy codec, the decoded pixels are written as Rice tiles,
    and cards that tell of the loss follow the original ones. An image that was a primary
    HDU comes back as one, from `none` or from funpack.

    Parameters
    ----------
    packet_path : Path
    out_dir : Path
        Made if needed.
    verbatim : bool
        Keep the order of the original's cards even if funpack refuses it.

    Returns
    -------
    Path
        ``<exposure>_<ccd>.fits.fz``, or ``.fits`` if the image is not compressed.

    Raises
    ------
    PacketError
        If the packet is damaged.
    StorageError
        If the disk is full, or a directory cannot be read or written.
    """
    return unpack_opened(open_packet(packet_path), out_dir, verbatim=verbatim)


def unpack_opened(opened: OpenPacket, out_dir: Path, *, verbatim: bool = False) -> Path:
    """The same of a packet that is open; raises as `unpack`."""
    header, data, compressed = image_hdu(opened)
    if compressed and not verbatim:
        header = funpack_header(header)
    name = opened.packet.file_name.removesuffix(".packet") + (".fits.fz" if compressed else ".fits")
    path = out_dir / safe_name(name)
    with atomic_write(path) as stream:
        stream.write(primary_hdu(opened, compressed))
        stream.write(header)
        stream.write(data)
    return path


def primary_hdu(opened: OpenPacket, compressed: bool) -> bytes:
    """What comes before the image; nothing if the image is itself the primary HDU."""
    if opened.primary_header:
        return without_data(opened.primary_header)
    return join_cards(_PRIMARY_ONLY) if compressed else b""


def image_hdu(opened: OpenPacket) -> tuple[bytes, bytes, bool]:
    """Header unit and data unit of the image, and whether it is tile-compressed.

    Raises
    ------
    PacketError
        If the pixels are not those that were packed.
    """
    packet = opened.packet
    pixels = opened.pixels()
    span = HduSpan(opened.hdu, 0, opened.image_header, 0)
    if packet.codec == "none":
        return opened.image_header, opened.payload, span.compressed
    if packet.codec == "rice":
        table = RiceTable(opened.payload, packet.shape[0])
        if packet.parameters.get("as_in_file"):
            return opened.image_header, table.unit, True
        cards = rice_cards(span, table, pixels.dtype.itemsize)
        return _summed(cards, table), table.unit, True
    table = rice_table(pixels)
    cards = rice_cards(span, table, pixels.dtype.itemsize)
    return _summed(_with_loss(cards, packet), table), table.unit, True


def _summed(cards: list[bytes], table: RiceTable) -> bytes:
    return join_cards(with_new_sums(cards, table.unit))


def _with_loss(cards: list[bytes], packet: Packet) -> list[bytes]:
    """The cards without the sums of the lost pixels, and with what was lost."""
    replaced = ("ZHECKSUM", "ZDATASUM", "PPCODEC", *_LOSS_CARDS)
    told = [card for card in cards if keyword_of(card) not in replaced]
    told.append(make_card("PPCODEC", packet.codec, "codec that brought the pixels"))
    for keyword, (name, comment) in _LOSS_CARDS.items():
        value = packet.parameters.get(name)
        if isinstance(value, int | float):
            told.append(make_card(keyword, float(value), comment))
    text = "HISTORY pixels packed with loss by prepipe, PP cards tell how much"
    told.append(text.encode("ascii").ljust(80))
    return told
