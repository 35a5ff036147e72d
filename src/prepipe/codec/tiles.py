"""Image HDUs and pixels: plain arrays and the tile-compressed tables of FITS.

Rice tiles are read and written here, one tile a row of the image, because a table of
integers is a few lines and fast; the bytes equal those of cfitsio and of the archives.
All other compressions are left to astropy. Convention: FITS Standard 4.0, section 10.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import imagecodecs
import numpy as np
from astropy.io import fits

from prepipe.codec.base import Pixels, Unit
from prepipe.codec.cards import join_cards, make_card, padding_to_block
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.pixels import MAX_PIXELS, from_stored, stored_dtype, to_stored
from prepipe.errors import FitsError

__all__ = ["RICE_BLOCK", "RiceTable", "decode_unit", "image_dtype", "rice_pixels", "rice_table"]

RICE_BLOCK = 32
"""Pixels per Rice block; the default of fpack and what DECam writes."""

_MAX_SHRINKING = 1100
"""Pixels a byte; gzip shrinks a constant image by 1032, Rice by less."""

_DESCRIPTOR = np.dtype(">i4")
_LONG_DESCRIPTOR = np.dtype(">i8")


@dataclass(frozen=True)
class RiceTable:
    """Data unit of a Rice-compressed image, one tile a row.

    Parameters
    ----------
    content : bytes
        Descriptors (length, offset: two big-endian 32-bit integers a row), then heap;
        without padding.
    rows : int
    """

    content: bytes
    rows: int

    @property
    def descriptors(self) -> Pixels:
        """Length and heap offset of each tile, shape (rows, 2)."""
        return np.frombuffer(self.content, _DESCRIPTOR, 2 * self.rows).reshape(self.rows, 2)

    @property
    def max_tile(self) -> int:
        """Length of the longest tile, bytes."""
        return int(self.descriptors[:, 0].max())

    @property
    def heap_bytes(self) -> int:
        """Length of the heap."""
        return len(self.content) - 8 * self.rows

    @property
    def unit(self) -> bytes:
        """The data unit with its padding of zeros."""
        return self.content + bytes(padding_to_block(len(self.content)))


def rice_table(pixels: Pixels) -> RiceTable:
    """Compress integer `pixels` of 8, 16 or 32 bits, shape (rows, columns), losslessly."""
    stored = to_stored(pixels)
    tiles = [imagecodecs.rcomp_encode(row, nblock=RICE_BLOCK) for row in stored]
    lengths = np.array([len(tile) for tile in tiles], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1])])
    descriptors = np.stack([lengths, offsets], axis=1).astype(_DESCRIPTOR)
    return RiceTable(b"".join([descriptors.tobytes(), *tiles]), len(tiles))


def rice_pixels(table: RiceTable, shape: tuple[int, int], dtype: str) -> Pixels:
    """Inverse of `rice_table`.

    Raises
    ------
    FitsError
        If a tile lies outside the table or is broken.
    """
    heap = table.content[8 * table.rows :]
    empty = np.empty(0, dtype)
    stored = np.empty(shape, to_stored(empty).dtype)
    _read_tiles(table.descriptors, heap, stored, RICE_BLOCK)
    unsigned = {"uint16": 2.0**15, "uint32": 2.0**31, "int8": -128.0}
    return from_stored(stored, unsigned.get(dtype, 0.0), 1.0)


def image_dtype(span: HduSpan) -> str:
    """numpy name of the type of the image's pixels, from its header alone.

    Raises
    ------
    FitsError
        If BITPIX, BZERO or BSCALE make no sense.
    """
    bitpix = span.value("ZBITPIX" if span.compressed else "BITPIX")
    empty = np.empty(0, stored_dtype(bitpix if isinstance(bitpix, int) else 0))
    return from_stored(empty, *_scaling(span)).dtype.name


def decode_unit(unit: Unit) -> Pixels:
    """Pixels of an image HDU, plain or tile-compressed.

    Parameters
    ----------
    unit : Unit

    Returns
    -------
    ndarray, shape (rows, columns)
        Native byte order; the type that `image_dtype` tells.

    Raises
    ------
    FitsError
        If the HDU holds no image of two dimensions, or it cannot be decompressed.
    """
    span = HduSpan(0, 0, unit.header, len(unit.data))
    shape = span.image_shape
    if len(shape) != 2 or shape[0] * shape[1] > MAX_PIXELS:
        raise FitsError(f"the HDU holds no image of rows and columns (shape {shape}); skip it")
    if not span.compressed:
        stored = _plain_pixels(span, unit.data, (shape[0], shape[1]))
    elif _rice_rows(span):
        stored = _rice_unit(span, unit.data, (shape[0], shape[1]))
    else:
        return _by_astropy(unit)
    return from_stored(stored, *_scaling(span))


def _scaling(span: HduSpan) -> tuple[float, float]:
    """BZERO and BSCALE."""
    found = []
    for keyword, default in (("BZERO", 0.0), ("BSCALE", 1.0)):
        value = span.value(keyword) if span.has(keyword) else default
        if not isinstance(value, int | float):
            raise FitsError(f"{keyword} is {value!r}, not a number; the header is damaged")
        found.append(float(value))
    return found[0], found[1]


def _plain_pixels(span: HduSpan, data: bytes, shape: tuple[int, int]) -> Pixels:
    bitpix = span.value("BITPIX")
    kind = stored_dtype(bitpix if isinstance(bitpix, int) else 0)
    count = shape[0] * shape[1]
    if len(data) < count * kind.itemsize:
        raise FitsError("the image has fewer pixels than its header promises; fetch it again")
    return np.frombuffer(data, kind, count).reshape(shape)


def _rice_rows(span: HduSpan) -> bool:
    """Whether `_rice_unit` can read this table: Rice, integers, one tile a row."""
    return (
        span.value("ZCMPTYPE") in ("RICE_1", "RICE_ONE")
        and span.value("ZBITPIX") in (8, 16, 32)
        and span.value("TFIELDS") == 1
        and span.value("ZTILE1") in (None, span.value("ZNAXIS1"))
        and span.value("ZTILE2") in (None, 1)
        and span.value("NAXIS2") == span.value("ZNAXIS2")
        and str(span.value("TFORM1")).lstrip("1")[:2] in ("PB", "QB")
        and not span.has("THEAP")
        and _bytes_per_pixel(span) == abs(int(span.value("ZBITPIX") or 0)) // 8
    )


def _bytes_per_pixel(span: HduSpan) -> int:
    """BYTEPIX of the Rice algorithm; 4 where it is not stated (the standard's default)."""
    return _algorithm_value(span, "BYTEPIX", 4)


def _algorithm_value(span: HduSpan, name: str, default: int) -> int:
    number = 1
    while span.has(f"ZNAME{number}"):
        if span.value(f"ZNAME{number}") == name:
            value = span.value(f"ZVAL{number}")
            return value if isinstance(value, int) else default
        number += 1
    return default


def _rice_unit(span: HduSpan, data: bytes, shape: tuple[int, int]) -> Pixels:
    long = "Q" in str(span.value("TFORM1"))
    kind = _LONG_DESCRIPTOR if long else _DESCRIPTOR
    rows = shape[0]
    if len(data) < 2 * kind.itemsize * rows:
        raise FitsError("the table of tiles ends too early; fetch the file again")
    descriptors = np.frombuffer(data, kind, 2 * rows).reshape(rows, 2)
    heap = data[2 * kind.itemsize * rows :]
    bitpix = span.value("ZBITPIX")
    stored = np.empty(shape, stored_dtype(int(bitpix or 0)).newbyteorder("="))
    _read_tiles(descriptors, heap, stored, _algorithm_value(span, "BLOCKSIZE", RICE_BLOCK))
    return stored


def _read_tiles(descriptors: Pixels, heap: bytes, into: Pixels, block: int) -> None:
    """Decompress every tile into its row."""
    lengths = descriptors[:, 0].astype(np.int64)
    offsets = descriptors[:, 1].astype(np.int64)
    smallest = into.dtype.itemsize
    # written so that huge values cannot overflow
    outside = (lengths <= smallest) | (offsets < 0) | (offsets > len(heap) - lengths)
    if outside.any() or not 0 < block <= 1 << 16:
        raise FitsError("a compressed tile lies outside its table; fetch the file again")
    for row, (length, offset) in enumerate(zip(lengths.tolist(), offsets.tolist(), strict=True)):
        try:
            imagecodecs.rcomp_decode(
                heap[offset : offset + length],
                shape=into[row].shape,
                dtype=into.dtype,
                nblock=block,
                out=into[row],
            )
        except (imagecodecs.RcompError, ValueError) as error:
            raise FitsError(
                f"row {row} cannot be decompressed ({error}); fetch the file again"
            ) from error


def _check_table(unit: Unit) -> None:
    """Refuse a table whose header would make astropy take memory that no image needs."""
    span = HduSpan(0, 0, unit.header, len(unit.data))
    rows, columns = span.image_shape
    tile = [span.value(f"ZTILE{axis}") for axis in (1, 2)]
    table = [span.value(keyword) for keyword in ("NAXIS1", "NAXIS2", "PCOUNT")]
    width, height, heap = (size if isinstance(size, int) else -1 for size in table)
    if (
        min(width, height, heap) < 0
        or width * height + heap > len(unit.data)
        or rows * columns > _MAX_SHRINKING * len(unit.data)
        or not all(
            size is None or (isinstance(size, int) and 0 < size <= axis)
            for size, axis in zip(tile, (columns, rows), strict=True)
        )
    ):
        raise FitsError("the table of tiles contradicts its header; fetch the file again")


def _by_astropy(unit: Unit) -> Pixels:
    """Any other tile compression, by astropy."""
    _check_table(unit)
    primary = [make_card("SIMPLE", True), make_card("BITPIX", 8), make_card("NAXIS", 0)]
    content = join_cards(primary) + unit.header + unit.data
    try:
        with fits.open(io.BytesIO(content), memmap=False, uint=True) as hdus:
            pixels = hdus[1].data
    except Exception as error:  # astropy raises whatever its codecs do
        raise FitsError(f"the image cannot be decompressed ({error}); fetch it again") from error
    if pixels is None or pixels.ndim != 2:
        raise FitsError("the image cannot be decompressed; fetch it again")
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))
