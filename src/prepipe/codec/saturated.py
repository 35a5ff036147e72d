"""Pixels that must come back bit for bit from a lossy codec: where they are, and their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.codec.numbers import LONGEST_NUMBER, read_number, write_number
from prepipe.model import Box

__all__ = ["HIGHEST", "Samples", "SaturatedReader", "saturated_pixels"]

HIGHEST = 65535

Samples = NDArray[np.uint16]


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
