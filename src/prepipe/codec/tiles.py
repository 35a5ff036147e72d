"""Image HDUs and pixels: plain arrays and the tile-compressed tables of FITS.

Rice tiles, one a row of the image, are read and written by kernels of our own, which is
fast; the bytes equal those of cfitsio and of the archives. All other compressions are left
to astropy. Convention: FITS Standard 4.0, section 10.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from prepipe.codec.base import Pixels, Unit
from prepipe.codec.cards import join_cards, make_card, padding_to_block
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.pixels import MAX_PIXELS, from_stored, stored_dtype, to_stored
from prepipe.codec.rice_bits import Bytes, ones_complement_sum
from prepipe.codec.rice_decoder import TILE_SHORTER, TILE_SOUND, decode_quantised, decode_tiles
from prepipe.codec.rice_encoder import RICE_BLOCK, encode_tiles
from prepipe.errors import FitsError

__all__ = [
    "RICE_BLOCK",
    "DecodedRows",
    "RiceTable",
    "decode_rows",
    "decode_unit",
    "image_dtype",
    "rice_pixels",
    "rice_table",
]

_MAX_SHRINKING = 1100
"""Pixels a byte; gzip shrinks a constant image by 1032, Rice by less."""

_DESCRIPTOR = np.dtype(">i4")
_LONG_DESCRIPTOR = np.dtype(">i8")
_UNSIGNED_OFFSET = {"uint16": 1 << 15, "uint32": 1 << 31, "int8": -128}
_NO_ROWS = np.empty(0, np.intp)
_QUANTISED_ROW = np.dtype([("tile", ">i4", 2), ("scale", ">f8"), ("zero", ">f8")])


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


@dataclass(frozen=True)
class DecodedRows:
    """Pixels of an image HDU, and what of it is damaged.

    Parameters
    ----------
    pixels : ndarray, shape (rows, columns)
        Native byte order; the type that `image_dtype` tells.
    corrupt : ndarray of intp
        Rows whose tiles are broken; they hold a copy of the nearest sound row.
    sum_fits : bool or None
        Whether the data have the DATASUM that the header states; None if it states none.
    """

    pixels: Pixels
    corrupt: NDArray[np.intp]
    sum_fits: bool | None


def rice_table(pixels: Pixels) -> RiceTable:
    """Compress integer `pixels` of 8, 16 or 32 bits, shape (rows, columns), losslessly."""
    heap, lengths = encode_tiles(to_stored(pixels))
    offsets = np.cumsum(lengths) - lengths
    descriptors = np.stack([lengths, offsets], axis=1).astype(_DESCRIPTOR)
    return RiceTable(b"".join([descriptors.data, heap.data]), len(lengths))


def rice_pixels(table: RiceTable, shape: tuple[int, int], dtype: str) -> Pixels:
    """Inverse of `rice_table`.

    Raises
    ------
    FitsError
        If a tile lies outside the table or is broken.
    """
    pixels = np.empty(shape, dtype)
    heap = np.frombuffer(table.content, np.uint8)[8 * table.rows :]
    offset = _UNSIGNED_OFFSET.get(dtype, 0)
    state = _read_tiles(table.descriptors, heap, pixels, RICE_BLOCK, offset)
    _require_sound(np.flatnonzero(state != TILE_SOUND))
    return pixels


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
    decoded = decode_rows(unit)
    _require_sound(decoded.corrupt)
    return decoded.pixels


def decode_rows(unit: Unit) -> DecodedRows:
    """Pixels of an image HDU, plain or tile-compressed, however many of its tiles are broken.

    Parameters
    ----------
    unit : Unit

    Returns
    -------
    DecodedRows

    Raises
    ------
    FitsError
        If the HDU holds no image of two dimensions, or nothing of it can be decompressed.
    """
    span = HduSpan(0, 0, unit.header, len(unit.data))
    axes = span.image_shape
    if len(axes) != 2 or axes[0] * axes[1] > MAX_PIXELS:
        raise FitsError(f"the HDU holds no image of rows and columns (shape {axes}); skip it")
    shape = axes[0], axes[1]
    sum_fits = _sum_fits(span, unit.data)
    if not span.compressed:
        stored = _plain_pixels(span, unit.data, shape)
        return DecodedRows(from_stored(stored, *_scaling(span)), _NO_ROWS, sum_fits)
    if _rice_rows(span):
        pixels, state = _rice_unit(span, unit.data, shape)
    elif _quantised_rows(span):
        pixels, state = _quantised_unit(unit.data, shape)
    else:
        return DecodedRows(_by_astropy(unit), _NO_ROWS, sum_fits)
    broken = state != TILE_SOUND
    if sum_fits:
        # an encoder that leaves bytes over is odd, but its sum vouches for it
        broken &= state != TILE_SHORTER
    corrupt = np.flatnonzero(broken)
    _patch(pixels, corrupt)
    return DecodedRows(pixels, corrupt, sum_fits)


def _sum_fits(span: HduSpan, data: bytes) -> bool | None:
    stated = str(span.value("DATASUM") or "").strip()
    if not stated.isdecimal():
        return None
    return int(ones_complement_sum(np.frombuffer(data, np.uint8), np.uint64(0))) == int(stated)


def _require_sound(corrupt: NDArray[np.intp]) -> None:
    if corrupt.size:
        raise FitsError(
            f"the tiles of {corrupt.size} rows, the first of them row {corrupt[0]}, are broken "
            "or a tile lies outside its table; fetch the file again"
        )


def _patch(pixels: Pixels, corrupt: NDArray[np.intp]) -> None:
    """Put the nearest sound row into the place of each broken one."""
    if not corrupt.size:
        return
    sound = np.setdiff1d(np.arange(len(pixels)), corrupt, assume_unique=True)
    if not sound.size:
        pixels[:] = 0
        return
    after = np.searchsorted(sound, corrupt)
    below = sound[np.maximum(after - 1, 0)]
    above = sound[np.minimum(after, sound.size - 1)]
    nearer = np.abs(corrupt - below) <= np.abs(above - corrupt)
    pixels[corrupt] = pixels[np.where(nearer, below, above)]


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


def _quantised_rows(span: HduSpan) -> bool:
    """Whether `_quantised_unit` can read this table: floats in steps, as we write them."""
    columns = {
        **{"TTYPE1": "COMPRESSED_DATA", "TTYPE2": "ZSCALE", "TTYPE3": "ZZERO"},
        **{"TFORM2": "1D", "TFORM3": "1D", "TFIELDS": 3, "NAXIS1": _QUANTISED_ROW.itemsize},
        **{"ZCMPTYPE": "RICE_1", "ZBITPIX": -32, "ZQUANTIZ": "NO_DITHER", "ZTILE2": 1},
        **{"ZTILE1": span.value("ZNAXIS1"), "NAXIS2": span.value("ZNAXIS2")},
    }
    return (
        all(span.value(keyword) == value for keyword, value in columns.items())
        and str(span.value("TFORM1")).lstrip("1").startswith("PB")
        and not any(span.has(keyword) for keyword in ("THEAP", "ZBLANK", "BZERO", "BSCALE"))
        and _algorithm_value(span, "BLOCKSIZE", RICE_BLOCK) == RICE_BLOCK
        and _bytes_per_pixel(span) == 4
    )


def _rice_unit(
    span: HduSpan, data: bytes, shape: tuple[int, int]
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Pixels of a table of Rice tiles, and the state of each tile."""
    long = "Q" in str(span.value("TFORM1"))
    kind = _LONG_DESCRIPTOR if long else _DESCRIPTOR
    descriptors = _table_rows(data, kind, 2 * shape[0]).reshape(shape[0], 2)
    heap = np.frombuffer(data, np.uint8)[descriptors.nbytes :]
    block = _algorithm_value(span, "BLOCKSIZE", RICE_BLOCK)
    zero, scale = _scaling(span)
    wanted = np.dtype(image_dtype(span))
    if wanted.kind == "f":
        stored = np.empty(shape, stored_dtype(int(span.value("ZBITPIX") or 0)).newbyteorder("="))
        state = _read_tiles(descriptors, heap, stored, block, 0)
        return from_stored(stored, zero, scale), state
    pixels = np.empty(shape, wanted)
    return pixels, _read_tiles(descriptors, heap, pixels, block, int(zero))


def _quantised_unit(data: bytes, shape: tuple[int, int]) -> tuple[Pixels, NDArray[np.uint8]]:
    """The same of a table of quantised floats."""
    table = _table_rows(data, _QUANTISED_ROW, shape[0])
    heap = np.frombuffer(data, np.uint8)[table.nbytes :]
    tiles = table["tile"].astype(np.int64)
    pixels = np.empty(shape, np.float32)
    scales, zeros = table["scale"].astype(np.float64), table["zero"].astype(np.float64)
    return pixels, decode_quantised(heap, tiles[:, 0], tiles[:, 1], scales, zeros, pixels)


def _table_rows(data: bytes, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    if len(data) < kind.itemsize * count:
        raise FitsError("the table of tiles ends too early; fetch the file again")
    return np.frombuffer(data, kind, count)


def _read_tiles(
    descriptors: Pixels, heap: Bytes, into: Pixels, block: int, offset: int
) -> NDArray[np.uint8]:
    """Decompress every tile into its row; the state of each."""
    if not 0 < block <= 1 << 16:
        raise FitsError(f"the tiles have blocks of {block} pixels; the header is damaged")
    tiles = descriptors.astype(np.int64)
    return decode_tiles(heap, tiles[:, 0], tiles[:, 1], into, block, offset)


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
