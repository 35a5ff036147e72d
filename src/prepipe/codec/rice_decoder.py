"""Decompression of Rice tiles: compiled kernels behind one function.

Four rows are decoded side by side, for the place of a pixel in the stream is known only
when the one before it was read, and a processor that waits for one row can work on three
others. What is rare (constant blocks, differences stored in full, long runs of zeros, the
last bytes of the heap) takes a careful way that checks every step. No stream of bytes can
make a kernel read or write outside its arrays, or run for longer than its pixels last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.codec.rice_bits import FULL_SPLIT, SELECTOR_BITS, Bytes, leading_zeros, load_word

__all__ = ["TILE_LONGER", "TILE_SHORTER", "TILE_SOUND", "decode_quantised", "decode_tiles"]

TILE_SOUND = 0
"""The pixels took exactly the tile's bytes."""

TILE_SHORTER = 1
"""Bytes were left over, which no known encoder leaves."""

TILE_LONGER = 2
"""The tile ended before its pixels, or lies outside the heap."""

_ROWS_IN_CACHE = 32
_ONE = np.uint64(1)
_BYTE = np.uint64(8)
_WORD = np.uint64(64)
_SELECTOR_PLACE = np.uint64(63)
_SURE_BITS = np.uint64(56)
"""Bits of a word that are there wherever in its first byte the stream stands."""

_LONGEST_CODE = np.uint64(64 + 25)
"""Bits of one pixel in the quick kernel: a word of zeros, the one, and 24 split bits."""


def decode_tiles(
    heap: Bytes,
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    out: NDArray[Any],
    block: int = 32,
    first_offset: int = 0,
) -> NDArray[np.uint8]:
    """Decompress one tile a row.

    Parameters
    ----------
    heap : ndarray of uint8
    lengths, offsets : ndarray of int64, shape (rows,)
        Of the tiles in `heap`, bytes.
    out : ndarray of int8, int16 or int32 or their unsigned kin, shape (rows, columns)
        Is filled, contiguous. Its item size is RICE_1's BYTEPIX.
    block : int
        RICE_1's BLOCKSIZE, pixels.
    first_offset : int
        Is added to every pixel; wraps around as the type does.

    Returns
    -------
    ndarray of uint8, shape (rows,)
        `TILE_SOUND`, `TILE_SHORTER` or `TILE_LONGER`. The pixels of a row that is not
        sound may be anything; those of a tile that lies outside the heap are not touched.
    """
    size = out.dtype.itemsize
    state = np.empty(out.shape[0], np.uint8)
    if out.shape[1] == 0 or block <= 0:
        raise ValueError(f"no tiles of {out.shape[1]} columns in blocks of {block}")
    stored = out.view(f"i{size}") if size > 1 else out.view("u1")
    _decode_rows(
        heap,
        lengths,
        offsets,
        stored,
        min(block, out.shape[1]),
        first_offset,
        SELECTOR_BITS[size],
        FULL_SPLIT[size],
        np.uint64(8 * size),
        state,
    )
    return state


def decode_quantised(
    heap: Bytes,
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    scales: NDArray[np.float64],
    zeros: NDArray[np.float64],
    out: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Decompress tiles of quantised floats, one a row, in blocks of 32.

    Parameters
    ----------
    heap : ndarray of uint8
    lengths, offsets : ndarray of int64, shape (rows,)
        Of the tiles in `heap`, bytes.
    scales, zeros : ndarray of float64, shape (rows,)
        ZSCALE and ZZERO of each row.
    out : ndarray of float32, shape (rows, columns)
        Is filled.

    Returns
    -------
    ndarray of uint8, shape (rows,)
        As `decode_tiles`.
    """
    rows, columns = out.shape
    state = np.empty(rows, np.uint8)
    # a few rows at a time stay in the processor's cache
    quantised = np.zeros((min(rows, _ROWS_IN_CACHE), columns), np.int32)
    for start in range(0, rows, _ROWS_IN_CACHE):
        some = slice(start, min(start + _ROWS_IN_CACHE, rows))
        part = quantised[: some.stop - start]
        state[some] = decode_tiles(heap, lengths[some], offsets[some], part)
        _scale_rows(part, scales[some], zeros[some], out[some])
    return state


@njit(cache=True)
def _scale_rows(
    quantised: NDArray[np.int32],
    scales: NDArray[np.float64],
    zeros: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Steps to values, in double precision as cfitsio does."""
    for y in range(out.shape[0]):
        steps, row, scale, zero = quantised[y], out[y], scales[y], zeros[y]
        for x in range(row.size):
            row[x] = np.float32(np.float64(steps[x]) * scale + zero)


@njit(cache=True)
def _bits_from(heap: Bytes, position: np.uint64) -> np.uint64:
    """At least 57 bits from bit `position` on, left-aligned; zeros behind the heap's end."""
    start = position // _BYTE
    shift = position % _BYTE
    if start + _BYTE <= np.uint64(heap.size):
        whole: np.uint64 = load_word(heap, start) << shift
        return whole
    word = np.uint64(0)
    for index in range(8):
        word <<= _BYTE
        if start + np.uint64(index) < np.uint64(heap.size):
            word |= np.uint64(heap[start + np.uint64(index)])
    return word << shift


@njit(cache=True)
def _signed(code: np.uint64) -> np.int64:
    """Difference from its folded form: 0, -1, 1, -2, 2, ... were numbered from 0."""
    return np.int64(code >> _ONE) ^ -np.int64(code & _ONE)


@njit(cache=True)
def _low_bits(word: np.uint64, split: np.uint64) -> np.uint64:
    """The first `split` bits of a word; in two shifts, since `split` may be zero."""
    return (word >> _ONE) >> (_SELECTOR_PLACE - split)


@njit(cache=True)
def _careful_code(
    heap: Bytes, position: np.uint64, end: np.uint64, split: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Read one code with a run of zeros of any length; new position and code."""
    zeros = np.uint64(0)
    word = _bits_from(heap, position)
    run = leading_zeros(word | _ONE)
    while run >= _SURE_BITS and position < end:
        zeros += _SURE_BITS
        position += _SURE_BITS
        word = _bits_from(heap, position)
        run = leading_zeros(word | _ONE)
    position += run + _ONE
    code = ((zeros + run) << split) | _low_bits(_bits_from(heap, position), split)
    return position + split, code


@njit(cache=True)
def _careful_block(
    heap: Bytes,
    position: np.uint64,
    end: np.uint64,
    value: np.int64,
    pixels: NDArray[Any],
    selector_bits: np.uint64,
    full_split: np.uint64,
    pixel_bits: np.uint64,
) -> tuple[np.uint64, np.int64]:
    """Decode any block into `pixels`, up to bit `end`; new position and last value."""
    selector = _bits_from(heap, position) >> (_WORD - selector_bits)
    position += selector_bits
    if selector == 0:
        pixels[:] = value
    elif selector == full_split + _ONE:
        for column in range(pixels.size):
            value += _signed(_bits_from(heap, position) >> (_WORD - pixel_bits))
            position += pixel_bits
            pixels[column] = value
    else:
        for column in range(pixels.size):
            if position > end:
                break
            position, code = _careful_code(heap, position, end, selector - _ONE)
            value += _signed(code)
            pixels[column] = value
    return position, value


@njit(cache=True)
def _quick_code(heap: Bytes, position: np.uint64, split: np.uint64) -> tuple[np.uint64, np.int64]:
    """Bits taken by the code at `position`, and its difference; wrong if more than 57 bits."""
    word = load_word(heap, position // _BYTE) << (position % _BYTE)
    run = leading_zeros(word | _ONE)
    low = _low_bits(word << run << _ONE, split)
    return run + _ONE + split, _signed((run << split) | low)


@njit(cache=True)
def _quick_blocks(
    heap: Bytes,
    bits: NDArray[np.uint64],
    splits: NDArray[np.uint64],
    values: NDArray[np.int64],
    rows: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]],
    start: int,
    stop: int,
) -> bool:
    """Decode one ordinary block of each of four rows; False and nothing moved if one is not."""
    row_a, row_b, row_c, row_d = rows
    at_a, at_b, at_c, at_d = bits[0], bits[1], bits[2], bits[3]
    split_a, split_b, split_c, split_d = splits[0], splits[1], splits[2], splits[3]
    a, b, c, d = values[0], values[1], values[2], values[3]
    longest = np.uint64(0)
    for column in range(np.uint64(start), np.uint64(stop)):
        taken, difference = _quick_code(heap, at_a, split_a)
        at_a += taken
        a += difference
        row_a[column] = a
        longest = max(longest, taken)
        taken, difference = _quick_code(heap, at_b, split_b)
        at_b += taken
        b += difference
        row_b[column] = b
        longest = max(longest, taken)
        taken, difference = _quick_code(heap, at_c, split_c)
        at_c += taken
        c += difference
        row_c[column] = c
        longest = max(longest, taken)
        taken, difference = _quick_code(heap, at_d, split_d)
        at_d += taken
        d += difference
        row_d[column] = d
        longest = max(longest, taken)
    if longest > _SURE_BITS:
        return False
    bits[0], bits[1], bits[2], bits[3] = at_a, at_b, at_c, at_d
    values[0], values[1], values[2], values[3] = a, b, c, d
    return True


@njit(cache=True)
def _decode_four(
    heap: Bytes,
    bits: NDArray[np.uint64],
    out: NDArray[Any],
    quad: NDArray[np.int64],
    block: int,
    first_offset: int,
    coding: tuple[np.uint64, np.uint64, np.uint64],
) -> None:
    """Decode four rows; `bits[0]`, where each begins, is moved to where it was left."""
    selector_bits, full_split, pixel_bits = coding
    position = bits[0]
    columns = out.shape[1]
    splits = np.empty(4, np.uint64)
    values = np.empty(4, np.int64)
    for place in range(4):
        values[place] = np.int64(_bits_from(heap, position[place]) >> (_WORD - pixel_bits))
        values[place] += first_offset
        position[place] += pixel_bits
    rows = out[quad[0]], out[quad[1]], out[quad[2]], out[quad[3]]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        # whatever the codes are, four quick blocks cannot leave the heap from here
        reach = np.uint64(stop - start) * _LONGEST_CODE + _WORD + _WORD
        quick = True
        for place in range(4):
            selector = _bits_from(heap, position[place]) >> (_WORD - selector_bits)
            splits[place] = selector - _ONE
            ordinary = (selector > 0) & (selector <= full_split)
            quick &= ordinary & (position[place] + reach <= _BYTE * np.uint64(heap.size))
        if quick:
            for place in range(4):
                position[place] += selector_bits
            if _quick_blocks(heap, position, splits, values, rows, start, stop):
                continue
            for place in range(4):
                position[place] -= selector_bits
        for place in range(4):
            position[place], values[place] = _careful_block(
                heap,
                position[place],
                bits[1, place],
                values[place],
                out[quad[place], start:stop],
                selector_bits,
                full_split,
                pixel_bits,
            )


@njit(cache=True)
def _decode_rows(
    heap: Bytes,
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    out: NDArray[Any],
    block: int,
    first_offset: int,
    selector_bits: np.uint64,
    full_split: np.uint64,
    pixel_bits: np.uint64,
    state: NDArray[np.uint8],
) -> None:
    """Decode all rows, four at a time; the last ones together with rows done already."""
    rows = out.shape[0]
    coding = selector_bits, full_split, pixel_bits
    bits = np.empty((2, 4), np.uint64)
    for row in range(rows):
        outside = (lengths[row] <= 0) | (offsets[row] < 0)
        outside |= offsets[row] > heap.size - lengths[row]
        state[row] = TILE_LONGER if outside else TILE_SOUND
    quad = np.empty(4, np.int64)
    waiting = 0
    for row in range(rows):
        if state[row] == TILE_SOUND:
            quad[waiting] = row
            waiting += 1
        if waiting == 4 or (row == rows - 1 and waiting > 0):
            for place in range(waiting, 4):
                quad[place] = quad[0]
            for place in range(4):
                bits[0, place] = np.uint64(8 * offsets[quad[place]])
                bits[1, place] = np.uint64(8 * (offsets[quad[place]] + lengths[quad[place]]))
            _decode_four(heap, bits, out, quad, block, first_offset, coding)
            for place in range(waiting):
                left = np.int64(bits[1, place]) - np.int64(bits[0, place])
                state[quad[place]] = (
                    TILE_LONGER if left < 0 else TILE_SHORTER if left > 7 else TILE_SOUND
                )
            waiting = 0
