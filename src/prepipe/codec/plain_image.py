"""Images that are not compressed: floats to the last bit as an extension, integers as a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.cards import CardValue, join_cards, make_card, padding_to_block
from prepipe.codec.checksums import with_new_sums
from prepipe.codec.pixels import to_stored
from prepipe.errors import PixelError

__all__ = ["plain_file", "plain_image"]

_ZERO = {"uint16": 1 << 15, "uint32": 1 << 31, "int8": -128}


def plain_image(pixels: NDArray[Any], cards: Iterable[bytes]) -> list[bytes]:
    """Make an image extension of pixels and cards.

    Parameters
    ----------
    pixels : ndarray of float32, shape (rows, columns)
    cards : iterable of bytes
        What the header says besides the structure; EXTNAME is best the first.

    Returns
    -------
    list of bytes
        The HDU: header, pixels with their padding.

    Raises
    ------
    PixelError
        If the pixels have another type or shape.
    """
    if pixels.ndim != 2 or pixels.dtype != np.float32:
        raise PixelError(
            f"pixels of {pixels.dtype.name} and shape {pixels.shape} are not written as they are:"
            " give rows and columns of float32"
        )
    rows, columns = pixels.shape
    data = pixels.astype(">f4").tobytes()
    data += bytes(padding_to_block(len(data)))
    structure = (
        make_card("XTENSION", "IMAGE", "image extension"),
        make_card("BITPIX", -32, "single precision"),
        make_card("NAXIS", 2, "dimensions of the image"),
        make_card("NAXIS1", columns, "columns"),
        make_card("NAXIS2", rows, "rows"),
        make_card("PCOUNT", 0, "no group parameters"),
        make_card("GCOUNT", 1, "one group"),
    )
    sums = make_card("CHECKSUM", "0" * 16), make_card("DATASUM", "0")
    return [join_cards(with_new_sums([*structure, *cards, *sums], data)), data]


def plain_file(pixels: NDArray[Any], cards: Iterable[bytes] = ()) -> bytes:
    """Make a FITS file of one image of integers.

    Parameters
    ----------
    pixels : ndarray of 8, 16 or 32 bits, shape (rows, columns)
    cards : iterable of bytes
        What the header says besides the structure.
    """
    rows, columns = pixels.shape
    stored = to_stored(pixels)
    structure: list[tuple[str, CardValue]] = [
        ("SIMPLE", True),
        ("BITPIX", 8 * stored.dtype.itemsize),
        ("NAXIS", 2),
        ("NAXIS1", columns),
        ("NAXIS2", rows),
    ]
    if pixels.dtype.name in _ZERO:
        structure += [("BSCALE", 1), ("BZERO", _ZERO[pixels.dtype.name])]
    made = [make_card(keyword, value) for keyword, value in structure]
    data = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    return join_cards([*made, *cards]) + data + bytes(padding_to_block(len(data)))
