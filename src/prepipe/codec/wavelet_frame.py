"""Tiles of a raw frame to planes of numbers and back, and what of them is saturated.

Saturated pixels are kept aside, value by value, and a line is drawn across them, so that
neither their edges cost bits nor anything near them is blurred.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.codec.wavelet_symbols import LONGEST_NUMBER, read_number, write_number
from prepipe.codec.wavelet_transform import Plane
from prepipe.model import Box

__all__ = [
    "HIGHEST",
    "SaturatedReader",
    "load_tile",
    "saturated_pixels",
    "store_tile",
]

HIGHEST = 65535

Samples = NDArray[np.uint16]

_HALF = np.float32(0.5)


def load_tile(samples: Samples, box: Box, offset: int, saturation: int) -> tuple[Plane, int]:
    """Numbers of a tile above `offset`, and how many of its pixels are saturated.

    Parameters
    ----------
    samples : ndarray of uint16
        The whole frame, contiguous.
    box : Box
    offset, saturation : int
        ADU; from `saturation` on, pixels are saturated.
    """
    plane = np.empty(box.shape, np.float32)
    level = np.uint16(saturation)
    count = _load(samples, box.y0, box.x0, np.float32(offset), level, plane)
    return plane, int(count)


def store_tile(plane: Plane, samples: Samples, box: Box, offset: int, saturation: int) -> None:
    """Round the numbers of a tile to pixels, none of them saturated."""
    _store(plane, samples, box.y0, box.x0, np.float32(offset), np.float32(saturation))


def saturated_pixels(
    samples: Samples, box: Box, saturation: int, count: int
) -> tuple[NDArray[np.uint8], Samples]:
    """Where the `count` saturated pixels of a tile lie, as numbers, and their values."""
    places = np.empty(LONGEST_NUMBER * (2 * count + 1), np.uint8)
    values = np.empty(count, np.uint16)
    level = np.uint16(saturation)
    used = _write_saturated(samples, box.y0, box.x0, *box.shape, level, places, values)
    return places[:used], values


class SaturatedReader:
    """Puts saturated pixels back, tile by tile in the order they were written.

    Parameters
    ----------
    places : ndarray of uint8
    values : ndarray of uint16
    """

    def __init__(self, places: NDArray[np.uint8], values: Samples) -> None:
        self._places = places
        self._values = values
        self._state = np.zeros(2, np.int64)

    def restore(self, samples: Samples, box: Box) -> bool:
        """Whether the pixels of a tile could be put back."""
        streams = self._places, self._values, self._state
        return bool(_restore(samples, box.y0, box.x0, *box.shape, *streams))

    @property
    def finished(self) -> bool:
        """Whether all pixels were put back."""
        place, value = self._state
        return bool(place == self._places.size and value == self._values.size)


@njit(cache=True, nogil=True)
def _load(samples: Any, y0: int, x0: int, offset: Any, saturation: Any, plane: Any) -> int:
    rows, columns = plane.shape
    found = 0
    for y in range(rows):
        source, row = samples[y0 + y, x0 : x0 + columns], plane[y]
        here = 0
        for x in range(columns):
            here += source[x] >= saturation
            row[x] = np.float32(source[x]) - offset
        if here == columns:
            plane[y] = np.float32(0)
        elif here:
            _bridge(source, row, saturation)
        found += here
    return found


@njit(cache=True, nogil=True)
def _bridge(source: Any, row: Any, saturation: Any) -> None:
    """Draw lines across runs of saturated pixels, of which there are others in the row."""
    x = 0
    while x < row.size:
        if source[x] < saturation:
            x += 1
            continue
        start = x
        while x < row.size and source[x] >= saturation:
            x += 1
        left = row[start - 1] if start > 0 else row[x]
        right = row[x] if x < row.size else left
        slope = (right - left) / np.float32(x - start + 1)
        for column in range(start, x):
            row[column] = left + slope * np.float32(column - start + 1)


@njit(cache=True, nogil=True)
def _store(plane: Any, samples: Any, y0: int, x0: int, offset: Any, saturation: Any) -> None:
    rows, columns = plane.shape
    highest = np.int32(saturation) - np.int32(1)
    for y in range(rows):
        row, target = plane[y], samples[y0 + y, x0 : x0 + columns]
        for x in range(columns):
            value = row[x] + offset + _HALF
            # so written, a number that is none becomes zero
            whole = np.int32(value) if np.float32(0) < value < saturation else np.int32(0)
            target[x] = highest if value >= saturation else whole


@njit(cache=True, nogil=True)
def _write_saturated(
    samples: Any,
    y0: int,
    x0: int,
    rows: int,
    columns: int,
    saturation: Any,
    places: Any,
    values: Any,
) -> Any:
    """How many runs there are, then of each the pixels since the last one and its length."""
    runs = 0
    for y in range(rows if values.size else 0):
        row = samples[y0 + y, x0 : x0 + columns]
        runs += row[0] >= saturation
        for x in range(1, columns):
            runs += (row[x] >= saturation) & (row[x - 1] < saturation)
    place = write_number(runs, places, 0)
    count = end = 0
    for y in range(rows if runs else 0):
        row = samples[y0 + y, x0 : x0 + columns]
        found = 0
        for x in range(columns):
            found += row[x] >= saturation
        x = 0 if found else columns
        while x < columns:
            if row[x] < saturation:
                x += 1
                continue
            start = x
            while x < columns and row[x] >= saturation:
                values[count] = row[x]
                count += 1
                x += 1
            place = write_number(y * columns + start - end, places, place)
            place = write_number(x - start, places, place)
            end = y * columns + x
    return place


@njit(cache=True, nogil=True)
def _restore(
    samples: Any, y0: int, x0: int, rows: int, columns: int, places: Any, values: Any, state: Any
) -> bool:
    place, count = state[0], state[1]
    runs, place = read_number(places, place)
    if place < 0 or runs < 0:
        return False
    pixel = 0
    for _ in range(runs):
        gap, place = read_number(places, place)
        if place < 0:
            return False
        length, place = read_number(places, place)
        # numbers have 35 bits at most, so that nothing overflows
        if place < 0 or gap < 0 or length < 1:
            return False
        pixel += gap
        if pixel + length > rows * columns or count + length > values.size:
            return False
        for _ in range(length):
            samples[y0 + pixel // columns, x0 + pixel % columns] = values[count]
            pixel += 1
            count += 1
    state[0], state[1] = place, count
    return True
