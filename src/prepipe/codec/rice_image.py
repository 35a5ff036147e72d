"""A tile-compressed image HDU made of pixels and cards, with its checksums.

Integers are kept as they are; floating-point pixels are quantised in steps, without
dither, so that zero stays zero. The order of the cards is that of cfitsio: what describes
the structure comes first, or funpack refuses the file. Convention: FITS Standard 4.0,
sections 10.1 to 10.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prepipe.codec.base import Allocate, Unit
from prepipe.codec.cards import CardValue, join_cards, make_card, padding_to_block
from prepipe.codec.checksums import with_new_sums
from prepipe.codec.rice_bits import Bytes, ones_complement_sum
from prepipe.codec.rice_encoder import RICE_BLOCK, encode_quantised, encode_tiles
from prepipe.codec.tiles import decode_unit
from prepipe.errors import PixelError

__all__ = ["compile_kernels", "compressed_image"]

_TILE = [("tile", ">i4", 2)]
_QUANTISED_TILE = [*_TILE, ("scale", ">f8"), ("zero", ">f8")]
_LARGEST_HEAP = (1 << 31) - 1


def compressed_image(
    pixels: NDArray[Any],
    cards: Iterable[bytes],
    step: float | None = None,
    allocate: Allocate = np.empty,
) -> list[bytes | memoryview]:
    """Compress an image by RICE_1, one tile a row.

    Parameters
    ----------
    pixels : ndarray of uint8, int16, int32 or float32, shape (rows, columns)
    cards : iterable of bytes
        What the header says besides the structure; EXTNAME is best the first.
    step : float, optional
        Quantisation step of float32 pixels, in their unit. What is not finite becomes 0.
    allocate : callable
        Gives the memory that the tiles lie in.

    Returns
    -------
    list of bytes and memoryview
        The HDU: header, descriptors, tiles, padding.

    Raises
    ------
    PixelError
        If the pixels have another type or shape, or floats have no step.
    """
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise PixelError(f"pixels of shape {pixels.shape} are no image; give rows and columns")
    if pixels.dtype.name not in ("uint8", "int16", "int32", "float32"):
        raise PixelError(f"pixels of {pixels.dtype.name} are not compressed; give float32")
    floating = pixels.dtype.kind == "f"
    if floating != (step is not None):
        raise PixelError("pixels of float32, and no others, are compressed in steps: give one")
    if step is None:
        heap, lengths = encode_tiles(pixels, allocate)
    else:
        heap, lengths = encode_quantised(pixels, step, allocate)
    if heap.size > _LARGEST_HEAP:
        raise PixelError("the compressed image has more than 2 GiB; cut it into parts")
    table = np.zeros(len(pixels), _TILE if step is None else _QUANTISED_TILE)
    table["tile"][:, 0] = lengths
    table["tile"][:, 1] = np.cumsum(lengths) - lengths
    if step is not None:
        table["scale"] = step
    descriptors = table.tobytes()
    padding = bytes(padding_to_block(len(descriptors) + heap.size))
    header = [*_structure(pixels, table, heap, lengths), *cards]
    header += [make_card("CHECKSUM", "0" * 16), make_card("DATASUM", "0")]
    header = with_new_sums(header, _with_same_sum(descriptors, heap))
    return [join_cards(header), descriptors, heap.data, padding]


def compile_kernels() -> None:
    """Run every kernel of the Rice codec once, lest the first exposure wait for them."""
    for name in ("uint8", "int16", "int32", "float32"):
        step = 1.0 if name == "float32" else None
        header, *data = compressed_image(np.zeros((4, 64), name), (), step)
        decode_unit(Unit(bytes(header), b"".join(data)))


def _with_same_sum(descriptors: bytes, heap: Bytes) -> bytes:
    """Four bytes with the sum of the whole data unit, which spares joining its parts."""
    total = ones_complement_sum(np.frombuffer(descriptors, np.uint8), np.uint64(0))
    return int(ones_complement_sum(heap, np.uint64(total))).to_bytes(4, "big")


def _structure(
    pixels: NDArray[Any], table: NDArray[Any], heap: Bytes, lengths: NDArray[np.int64]
) -> list[bytes]:
    """Cards that describe the table and the image in it."""
    rows, columns = pixels.shape
    size = pixels.dtype.itemsize
    quantised = pixels.dtype.kind == "f"
    cards: list[tuple[str, CardValue, str]] = [
        ("XTENSION", "BINTABLE", "binary table extension"),
        ("BITPIX", 8, "8-bit bytes"),
        ("NAXIS", 2, "2-dimensional binary table"),
        ("NAXIS1", table.dtype.itemsize, "width of table in bytes"),
        ("NAXIS2", rows, "number of rows in table"),
        ("PCOUNT", heap.size, "size of the heap"),
        ("GCOUNT", 1, "one data group"),
        ("TFIELDS", 3 if quantised else 1, "number of fields in each row"),
        ("TTYPE1", "COMPRESSED_DATA", "tiles"),
        ("TFORM1", f"1PB({int(lengths.max())})", "variable-length array of bytes"),
    ]
    if quantised:
        cards += [
            ("TTYPE2", "ZSCALE", "quantisation step"),
            ("TFORM2", "1D", "double precision"),
            ("TTYPE3", "ZZERO", "value of zero steps"),
            ("TFORM3", "1D", "double precision"),
        ]
    cards += [
        ("ZIMAGE", True, "extension contains compressed image"),
        ("ZTENSION", "IMAGE", "image extension"),
        ("ZBITPIX", -32 if quantised else 8 * size, "bits per pixel of the image"),
        ("ZNAXIS", 2, "dimensions of the image"),
        ("ZNAXIS1", columns, "columns"),
        ("ZNAXIS2", rows, "rows"),
        ("ZPCOUNT", 0, "no group parameters"),
        ("ZGCOUNT", 1, "one group"),
        ("ZTILE1", columns, "a tile is a row"),
        ("ZTILE2", 1, "a tile is a row"),
        ("ZCMPTYPE", "RICE_1", "compression algorithm"),
        ("ZNAME1", "BLOCKSIZE", "compression block size"),
        ("ZVAL1", RICE_BLOCK, "pixels per block"),
        ("ZNAME2", "BYTEPIX", "bytes per pixel"),
        ("ZVAL2", size, "bytes per pixel"),
    ]
    if quantised:
        cards.append(("ZQUANTIZ", "NO_DITHER", "plain quantisation"))
    return [make_card(*card) for card in cards]
