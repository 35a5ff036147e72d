"""Compression to Rice tiles: compiled kernels behind two functions.

The bytes equal those of cfitsio. Floating-point pixels are quantised in the same pass,
row by row, so that no integer image is ever made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.codec.base import Allocate
from prepipe.codec.rice_bits import FULL_SPLIT, SELECTOR_BITS, Bytes, leading_zeros, store_word

__all__ = ["LARGEST_STEP", "RICE_BLOCK", "encode_quantised", "encode_tiles"]

RICE_BLOCK = 32
"""Pixels per Rice block; the default of fpack and what DECam writes."""

LARGEST_STEP = 2_147_483_000
"""Quantised values end here; cfitsio keeps the last few of the range for itself."""

_SELECTOR_BITS = SELECTOR_BITS[4]
_FULL_SPLIT = FULL_SPLIT[4]
_PIXEL_BITS = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_NOTHING = np.uint64(0)
_ONE = np.uint64(1)
_WORD = np.uint64(64)
_WHOLE_BLOCK = np.uint64(RICE_BLOCK)
_WORD_BYTES = 8
_SHORT_CODE = np.uint64(14)
"""Four codes of this length and seven bits left over fit into a word."""

_LONG_RUN = np.uint64(32)
"""A code with a shorter run of zeros fits into a word beside seven bits left over."""


def encode_tiles(
    pixels: NDArray[Any], allocate: Allocate = np.empty
) -> tuple[Bytes, NDArray[np.int64]]:
    """Compress integers without loss, one tile a row.

    Parameters
    ----------
    pixels : ndarray of uint8, int16 or int32, shape (rows, columns)
        As FITS stores them, in native byte order.
    allocate : callable
        Gives the memory for the tiles, as much as they could need at worst.

    Returns
    -------
    heap : ndarray of uint8
        The tiles, one after the other.
    lengths : ndarray of int64, shape (rows,)
    """
    size = pixels.dtype.itemsize
    heap, lengths = _room(pixels.shape, size, allocate)
    length = _encode_rows(
        np.ascontiguousarray(pixels),
        SELECTOR_BITS[size],
        FULL_SPLIT[size],
        np.uint64(8 * size),
        heap,
        lengths,
    )
    return heap[:length], lengths


def encode_quantised(
    pixels: NDArray[np.float32], step: float, allocate: Allocate = np.empty
) -> tuple[Bytes, NDArray[np.int64]]:
    """Compress floating-point pixels as 32-bit multiples of `step`, one tile a row.

    Zero stays zero. What is not finite becomes zero too, and what lies beyond
    `LARGEST_STEP` steps is put there; nothing wraps around.

    Parameters
    ----------
    pixels : ndarray of float32, shape (rows, columns)
    step : float
        In the unit of the pixels.
    allocate : callable
        As `encode_tiles` takes it.

    Returns
    -------
    heap : ndarray of uint8
        The tiles, one after the other.
    lengths : ndarray of int64, shape (rows,)
    """
    if not 0.0 < step < np.inf:
        raise ValueError(f"the quantisation step is {step}, no positive number")
    heap, lengths = _room(pixels.shape, 4, allocate)
    length = _encode_quantised_rows(
        np.ascontiguousarray(pixels, np.float32), np.float32(1.0 / step), heap, lengths
    )
    return heap[:length], lengths


def _room(shape: tuple[int, ...], size: int, allocate: Allocate) -> tuple[Bytes, NDArray[np.int64]]:
    """Room for tiles that do not shrink: no block takes more bits than its pixels and nine."""
    rows, columns = shape
    if columns == 0:
        raise ValueError("no tiles can be made of an image without columns")
    blocks = -(-columns // RICE_BLOCK)
    tile = size * (columns + 1) + 2 * blocks + 1
    return allocate((rows * tile + _WORD_BYTES,), np.uint8), np.empty(rows, np.int64)


@njit(cache=True)
def _flush(
    stream: Bytes, place: np.uint64, word: np.uint64, filled: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write the whole bytes of a word; new place, and what is left over of the word."""
    store_word(stream, place, word)
    whole = filled >> np.uint64(3)
    # in two shifts, since all eight bytes may be full
    half = whole << np.uint64(2)
    return place + whole, (word << half) << half, filled & np.uint64(7)


@njit(cache=True)
def _split_bits(count: np.uint64, total: np.uint64) -> np.uint64:
    """How many low bits to split off, from the mean of the codes; as cfitsio chooses."""
    less = (count >> _ONE) + _ONE
    above = total - less if total > less else _NOTHING
    mean = above >> np.uint64(5) if count == _WHOLE_BLOCK else above // count
    # as often as half of it can be halved
    split: np.uint64 = np.uint64(63) - leading_zeros(mean | _ONE)
    return split


@njit(cache=True)
def _put_full(
    stream: Bytes,
    place: np.uint64,
    word: np.uint64,
    filled: np.uint64,
    codes: NDArray[np.uint32],
    pixel_bits: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write codes in full."""
    for code in codes:
        place, word, filled = _flush(stream, place, word, filled)
        filled += pixel_bits
        word |= np.uint64(code) << (_WORD - filled)
    return place, word, filled


@njit(cache=True)
def _put_long(
    stream: Bytes,
    place: np.uint64,
    word: np.uint64,
    filled: np.uint64,
    codes: NDArray[np.uint32],
    split: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write codes of any length: zeros, a one, the low bits."""
    one = _ONE << split
    for code in codes:
        place, word, filled = _flush(stream, place, word, filled)
        zeros = np.uint64(code) >> split
        while zeros >= _LONG_RUN:
            place, word, filled = _flush(stream, place, word, filled + _LONG_RUN)
            zeros -= _LONG_RUN
        filled += zeros + _ONE + split
        word |= ((np.uint64(code) & (one - _ONE)) | one) << (_WORD - filled)
    return place, word, filled


@njit(cache=True)
def _put_short(
    stream: Bytes,
    place: np.uint64,
    word: np.uint64,
    filled: np.uint64,
    codes: NDArray[np.uint32],
    split: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Write a multiple of four codes, none longer than `_SHORT_CODE`."""
    one = _ONE << split
    mask = one - _ONE
    shortest = _ONE + split
    for k in range(np.uint64(0), np.uint64(codes.size), np.uint64(4)):
        # Joined in pairs, and these in pairs, so that few steps have to wait for the word before.
        a, b = np.uint64(codes[k]), np.uint64(codes[k + _ONE])
        c, d = np.uint64(codes[k + np.uint64(2)]), np.uint64(codes[k + np.uint64(3)])
        length_b, length_d = (b >> split) + shortest, (d >> split) + shortest
        length = (c >> split) + shortest + length_d
        first = (((a & mask) | one) << length_b) | (b & mask) | one
        second = (((c & mask) | one) << length_d) | (d & mask) | one
        filled += (a >> split) + shortest + length_b + length
        word |= ((first << length) | second) << (_WORD - filled)
        place, word, filled = _flush(stream, place, word, filled)
    return place, word, filled


@njit(cache=True)
def _put_row(
    stream: Bytes,
    start: np.uint64,
    first: np.uint64,
    codes: NDArray[np.uint32],
    selector_bits: np.uint64,
    full_split: np.uint64,
    pixel_bits: np.uint64,
) -> np.uint64:
    """Write one tile from byte `start` on; the byte after its end."""
    place, filled = start, pixel_bits
    word = first << (_WORD - pixel_bits)
    for begin in range(0, codes.size, RICE_BLOCK):
        block = codes[begin : begin + RICE_BLOCK]
        total = np.uint64(0)
        for index in range(block.size):
            total += np.uint64(block[index])
        place, word, filled = _flush(stream, place, word, filled)
        filled += selector_bits
        if total == _NOTHING:
            continue
        highest = np.uint32(0)
        for index in range(block.size):
            highest = max(highest, block[index])
        split = _split_bits(np.uint64(block.size), total)
        if split >= full_split:
            word |= (full_split + _ONE) << (_WORD - filled)
            place, word, filled = _put_full(stream, place, word, filled, block, pixel_bits)
            continue
        word |= (split + _ONE) << (_WORD - filled)
        longest = (np.uint64(highest) >> split) + _ONE + split
        if longest <= _SHORT_CODE and block.size % 4 == 0:
            place, word, filled = _flush(stream, place, word, filled)
            place, word, filled = _put_short(stream, place, word, filled, block, split)
        else:
            place, word, filled = _put_long(stream, place, word, filled, block, split)
    place, word, filled = _flush(stream, place, word, filled)
    store_word(stream, place, word)
    end: np.uint64 = place + (filled + np.uint64(7)) // np.uint64(8)
    return end


@njit(cache=True)
def _fold(row: NDArray[Any], unused: np.int32, codes: NDArray[np.uint32]) -> None:
    """Number the differences of neighbours 0, -1, 1, -2, 2, ...; the first is zero.

    They wrap around as pixels of 32 bits less `unused` do.
    """
    left, right, folded = row[:-1], row[1:], codes[1:]
    codes[0] = 0
    for x in range(folded.size):
        difference = np.int32(np.int32(right[x]) - np.int32(left[x]))
        difference = np.int32(np.int32(difference << unused) >> unused)
        folded[x] = np.uint32(np.int32(difference << 1) ^ np.int32(difference >> 31))


@njit(cache=True)
def _same(row: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two rows are equal."""
    if row[0] != other[0]:
        return False
    difference = row[0] ^ row[0]
    for x in range(row.size):
        difference |= row[x] ^ other[x]
    return bool(difference == 0)


@njit(cache=True)
def _encode_rows(
    pixels: NDArray[Any],
    selector_bits: np.uint64,
    full_split: np.uint64,
    pixel_bits: np.uint64,
    heap: Bytes,
    lengths: NDArray[np.int64],
) -> int:
    """Compress integers; length of the heap."""
    rows, columns = pixels.shape
    codes = np.empty(columns, np.uint32)
    mask = (_ONE << pixel_bits) - _ONE
    unused = np.int32(32) - np.int32(pixel_bits)
    place = np.uint64(0)
    for y in range(rows):
        if y > 0 and _same(pixels[y - 1], pixels[y]):
            # as most rows of a mask are: the same tile again
            lengths[y] = lengths[y - 1]
            for k in range(np.uint64(lengths[y])):
                heap[place + k] = heap[place + k - np.uint64(lengths[y])]
            place += np.uint64(lengths[y])
            continue
        _fold(pixels[y], unused, codes)
        start = place
        first = np.uint64(np.int64(pixels[y, 0])) & mask
        place = _put_row(heap, start, first, codes, selector_bits, full_split, pixel_bits)
        lengths[y] = place - start
    return int(place)


@njit(cache=True)
def _quantise(row: NDArray[np.float32], scale: np.float32, quantised: NDArray[np.int32]) -> None:
    """Round to the nearest step; see `encode_quantised`."""
    half = np.float32(0.5)
    limit = np.float32(LARGEST_STEP)
    infinite = np.float32(np.inf)
    for x in range(row.size):
        value = row[x] if abs(row[x]) < infinite else np.float32(0.0)
        value = min(max(value * scale, -limit), limit)
        quantised[x] = np.int32(value + np.copysign(half, value))


@njit(cache=True)
def _encode_quantised_rows(
    pixels: NDArray[np.float32], scale: np.float32, heap: Bytes, lengths: NDArray[np.int64]
) -> int:
    """Quantise and compress; length of the heap."""
    rows, columns = pixels.shape
    quantised = np.empty(columns, np.int32)
    codes = np.empty(columns, np.uint32)
    place = np.uint64(0)
    for y in range(rows):
        _quantise(pixels[y], scale, quantised)
        _fold(quantised, np.int32(0), codes)
        start = place
        first = np.uint64(np.int64(quantised[0])) & _LOW_HALF
        place = _put_row(heap, start, first, codes, _SELECTOR_BITS, _FULL_SPLIT, _PIXEL_BITS)
        lengths[y] = place - start
    return int(place)
