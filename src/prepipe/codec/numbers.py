"""Whole numbers of any size as bytes: zigzag, seven bits a byte, lowest first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["LONGEST_NUMBER", "read_number", "write_number"]

LONGEST_NUMBER = 5
"""Bytes of a number of 35 bits."""


@njit(cache=True, nogil=True)
def write_number(number: int, numbers: Any, place: int) -> int:
    """A signed number as zigzag and seven bits a byte, lowest first; the place after it."""
    rest = 2 * number if number >= 0 else -2 * number - 1
    while rest >= 128:
        numbers[place] = 128 | (rest & 127)
        rest >>= 7
        place += 1
    numbers[place] = rest
    return place + 1


@njit(cache=True, nogil=True)
def read_number(numbers: Any, place: int) -> tuple[Any, int]:
    """Inverse of `write_number`; the place is -1 if no whole number stands there."""
    rest: Any = 0
    for byte in range(LONGEST_NUMBER):
        if place >= numbers.size:
            return 0, -1
        bits = np.int64(numbers[place])
        place += 1
        rest |= (bits & 127) << (7 * byte)
        if bits < 128:
            return ((rest >> 1) if rest & 1 == 0 else -((rest + 1) >> 1)), place
    return 0, -1
