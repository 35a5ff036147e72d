"""Bytes of a raw file: header blocks with checksums and Rice-compressed images."""

from __future__ import annotations

from collections.abc import Sequence

import imagecodecs
import numpy as np
from numpy.typing import NDArray

__all__ = ["card", "compressed_image", "header_block"]

BLOCK = 2880
CARD = 80
RICE_BLOCK = 32

_NO_CHECKSUM = "0" * 16


def card(keyword: str, value: bool | int | float | str, comment: str = "") -> str:
    """One header card of 80 characters, in fixed format as DECam's own software writes it."""
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, int):
        text = f"{value:>20d}"
    elif isinstance(value, float):
        text = f"{repr(value).upper():>20}"
    else:
        text = f"{_quoted(value):<20}"
    tail = f" / {comment}" if comment else ""
    return f"{keyword:<8}= {text}{tail}"[:CARD].ljust(CARD)


def header_block(cards: Sequence[str], data_sum: int) -> bytes:
    """A complete header, padded, whose CHECKSUM and DATASUM cards are set.

    Parameters
    ----------
    cards : sequence of str
        80 characters each; among them CHECKSUM and DATASUM with any value.
    data_sum : int
        Ones' complement sum of the data unit, see `data_checksum`.

    Returns
    -------
    bytes
        A multiple of 2880.
    """
    text = [_filled(c, "DATASUM", str(data_sum)) for c in cards]
    text = [_filled(c, "CHECKSUM", _NO_CHECKSUM) for c in text]
    joined = "".join([*text, "END".ljust(CARD)])
    padded = joined.ljust(-(-len(joined) // BLOCK) * BLOCK)
    total = ones_sum(np.frombuffer(padded.encode("ascii"), dtype=">u4"), data_sum)
    return padded.replace(_NO_CHECKSUM, encoded_checksum(total), 1).encode("ascii")


def compressed_image(
    pixels: NDArray[np.uint16], cards: Sequence[str], checksum_comments: tuple[str, str]
) -> bytes:
    """A tile-compressed image extension as fpack writes it: Rice, one row a tile.

    CHECKSUM and DATASUM hold for the extension as stored, ZHECKSUM and ZDATASUM
    for the image extension that funpack restores from it.

    Parameters
    ----------
    pixels : NDArray[np.uint16]
        Shape (rows, columns); the number of columns is even.
    cards : sequence of str
        The image's own cards, 80 characters each, without the structural ones
        and without checksums.
    checksum_comments : tuple of str
        Comments of CHECKSUM and of DATASUM.

    Returns
    -------
    bytes
        The whole extension, a multiple of 2880.
    """
    signed = (pixels ^ np.uint16(0x8000)).view(np.int16)
    tiles = [imagecodecs.rcomp_encode(row, nblock=RICE_BLOCK) for row in signed]
    lengths = np.array([len(tile) for tile in tiles])
    descriptors = np.empty((len(tiles), 2), dtype=">i4")
    descriptors[:, 0] = lengths
    descriptors[:, 1] = np.cumsum(lengths) - lengths
    data = b"".join([descriptors.tobytes(), *tiles])
    data = data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")
    sums = _image_sums(signed, cards, checksum_comments)
    structure = _table_cards(signed.shape, int(lengths.sum()), int(lengths.max()))
    tail = [
        card("CHECKSUM", _NO_CHECKSUM, checksum_comments[0]),
        card("DATASUM", "0", checksum_comments[1]),
        card("ZHECKSUM", sums[0], checksum_comments[0]),
        card("ZDATASUM", sums[1], checksum_comments[1]),
    ]
    header = header_block([*structure, *cards, *tail], ones_sum(np.frombuffer(data, ">u4")))
    return header + data


def ones_sum(words: NDArray[np.generic], start: int = 0) -> int:
    """32-bit ones' complement sum of big-endian words (FITS standard 4.0, appendix J)."""
    return _folded(int(words.sum(dtype=np.uint64)) + start)


def encoded_checksum(total: int) -> str:
    """The 16 characters that make the sum of an HDU vanish (FITS standard 4.0, appendix J.2)."""
    value = ~total & 0xFFFFFFFF
    characters = np.zeros((4, 4), dtype=np.int64)
    for position, shift in enumerate((24, 16, 8, 0)):
        quarter, remainder = divmod((value >> shift) & 0xFF, 4)
        group = np.full(4, quarter + ord("0"))
        group[0] += remainder
        while any(_is_punctuation(c) for c in group):
            for first in (0, 2):
                if _is_punctuation(group[first]) or _is_punctuation(group[first + 1]):
                    group[first] += 1
                    group[first + 1] -= 1
        characters[:, position] = group
    text = "".join(chr(c) for c in characters.ravel())
    return text[-1] + text[:-1]


# Unsigned 16-bit pixels as FITS knows them.
_SCALING = [
    card("BZERO", 32768, "offset data range to that of unsigned short"),
    card("BSCALE", 1, "default scaling factor"),
]


def _is_punctuation(code: int) -> bool:
    return 0x3A <= code <= 0x40 or 0x5B <= code <= 0x60


def _folded(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _quoted(value: str) -> str:
    doubled = value.replace("'", "''")
    return f"'{doubled:<8}'"


def _filled(line: str, keyword: str, value: str) -> str:
    if not line.startswith(f"{keyword:<8}="):
        return line
    comment = line.partition(" / ")[2].rstrip()
    return card(keyword, value, comment)


def _image_sums(
    signed: NDArray[np.int16], cards: Sequence[str], comments: tuple[str, str]
) -> tuple[str, str]:
    """CHECKSUM and DATASUM of the uncompressed image."""
    halves = signed.view(np.uint16)
    high = int(halves[:, 0::2].sum(dtype=np.uint64))
    low = int(halves[:, 1::2].sum(dtype=np.uint64))
    data_sum = _folded((high << 16) + low)
    tail = [card("CHECKSUM", _NO_CHECKSUM, comments[0]), card("DATASUM", "0", comments[1])]
    header = header_block([*_image_cards(signed.shape), *cards, *tail], data_sum)
    line = header.decode("ascii").partition("CHECKSUM= '")[2]
    return line[:16], str(data_sum)


def _image_cards(shape: tuple[int, ...]) -> list[str]:
    rows, columns = shape
    return [
        card("XTENSION", "IMAGE", "IMAGE extension"),
        card("BITPIX", 16, "number of bits per data pixel"),
        card("NAXIS", 2, "number of data axes"),
        card("NAXIS1", columns, "length of data axis 1"),
        card("NAXIS2", rows, "length of data axis 2"),
        card("PCOUNT", 0, "required keyword; must = 0"),
        card("GCOUNT", 1, "required keyword; must = 1"),
        *_SCALING,
    ]


def _table_cards(shape: tuple[int, ...], heap: int, longest: int) -> list[str]:
    """Structural cards in fpack's order.

    BZERO and BSCALE stand last, as in files never rewritten by astropy; before TTYPE1 they
    would make funpack fail.
    """
    rows, columns = shape
    return [
        card("XTENSION", "BINTABLE", "binary table extension"),
        card("BITPIX", 8, "8-bit bytes"),
        card("NAXIS", 2, "2-dimensional binary table"),
        card("NAXIS1", 8, "width of table in bytes"),
        card("NAXIS2", rows, "number of rows in table"),
        card("PCOUNT", heap, "size of special data area"),
        card("GCOUNT", 1, "one data group (required keyword)"),
        card("TFIELDS", 1, "number of fields in each row"),
        card("TTYPE1", "COMPRESSED_DATA", "label for field   1"),
        card("TFORM1", f"1PB({longest})", "data format of field: variable length array"),
        card("ZIMAGE", True, "extension contains compressed image"),
        card("ZTILE1", columns, "size of tiles to be compressed"),
        card("ZTILE2", 1, "size of tiles to be compressed"),
        card("ZCMPTYPE", "RICE_1", "compression algorithm"),
        card("ZNAME1", "BLOCKSIZE", "compression block size"),
        card("ZVAL1", RICE_BLOCK, "pixels per block"),
        card("ZNAME2", "BYTEPIX", "bytes per pixel (1, 2, 4, or 8)"),
        card("ZVAL2", 2, "bytes per pixel (1, 2, 4, or 8)"),
        card("ZTENSION", "IMAGE", "IMAGE extension"),
        card("ZBITPIX", 16, "number of bits per data pixel"),
        card("ZNAXIS", 2, "number of data axes"),
        card("ZNAXIS1", columns, "length of data axis 1"),
        card("ZNAXIS2", rows, "length of data axis 2"),
        card("ZPCOUNT", 0, "required keyword; must = 0"),
        card("ZGCOUNT", 1, "required keyword; must = 1"),
        *_SCALING,
    ]
