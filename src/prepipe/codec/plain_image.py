"""An image HDU that is not compressed, with its checksums: every bit of floating-point pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.cards import join_cards, make_card, padding_to_block
from prepipe.codec.checksums import with_new_sums
from prepipe.errors import PixelError

__all__ = ["plain_image"]


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
