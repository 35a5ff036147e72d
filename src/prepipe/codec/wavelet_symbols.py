"""Coefficients of a subband to bytes that zstd packs well, and back.

A band that is mostly zero is told by the lengths of its runs of zeros and the values
between; one with more in it as bytes, one or two coefficients each; the last low-pass plane
by differences. What does not fit is told aside. A band is written piece by piece, one a
tile. No stream of bytes can make a kernel read or write outside its arrays.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.codec.numbers import LONGEST_NUMBER, read_number, write_number
from prepipe.codec.wavelet_transform import Plane

__all__ = [
    "FILL_SIGMA",
    "NUMBER_BYTES",
    "WHOLE",
    "BandReader",
    "BandWriter",
    "Coding",
    "coding_for",
]


class Coding(IntEnum):
    """How the coefficients of a band become bytes."""

    BYTES = 0
    PAIRS = 1
    RUNS = 2
    DIFFERENCES = 3


_WIDEST_BYTES = 0.55
"""Steps, in sigma of the band, up to which two coefficients are too many for a byte."""

_BYTE_LIMIT, _PAIR_LIMIT = 127, 7
_PAIR_BASE = 2 * _PAIR_LIMIT + 1
_ESCAPE = 255
NUMBER_BYTES = LONGEST_NUMBER + 1
"""Most bytes aside for a coefficient; the last of an odd number of pairs has two numbers."""

_HALF, _ONE = np.float32(0.5), np.float32(1)
_CODES, _NUMBERS, _RUN = 0, 1, 2
"""What a state holds: places in the two streams, and zeros since, or until, a value."""
_NO_RUN = -1

WHOLE: Plane = np.ones((1, 1), np.float32)
"""A whole step everywhere."""

_SEED_STEP = 0x9E3779B9
_MIX_1, _MIX_2 = 0x85EBCA6B, 0xC2B2AE35
_MASK = 0xFFFFFFFF
_MEAN_OF_FOUR = 510
FILL_SIGMA = 147.80053  # sqrt(4 (256^2 - 1) / 12)
"""Standard deviation of the sum of four random bytes."""


def coding_for(relative_step: float, *, zeros_prevail: bool) -> Coding:
    """The best coding of white noise with a step of so many sigma."""
    if zeros_prevail:
        return Coding.RUNS
    return Coding.PAIRS if relative_step > _WIDEST_BYTES else Coding.BYTES


class BandWriter:
    """Quantises the pieces of a band and collects their bytes.

    Parameters
    ----------
    coding : Coding
    count : int
        Coefficients of all pieces together.
    """

    def __init__(self, coding: Coding, count: int) -> None:
        self._coding = coding
        self._codes = np.empty(count + 1, np.uint8)
        self._numbers = np.empty(NUMBER_BYTES * count + 1, np.uint8)
        self._state = np.zeros(3, np.int64)
        self._ones = np.zeros(2, np.float64)

    def add(self, band: Plane, step: np.float32, least: Plane = WHOLE) -> None:
        """Quantise one piece to the nearest multiples of `step`.

        Parameters
        ----------
        band : ndarray of float32, shape (rows, columns)
        step : float32
        least : ndarray of float32
            Map of the piece, of any resolution: what is less than so many steps, half a one or
            more, becomes zero (runs only).
        """
        inverse = np.float32(1) / step
        streams = self._codes, self._numbers, self._state
        if self._coding == Coding.RUNS:
            _write_runs(band, inverse, least, *streams, self._ones)
        elif self._coding == Coding.PAIRS:
            _write_pairs(band.reshape(-1), inverse, *streams)
        elif self._coding == Coding.BYTES:
            _write_bytes(band.reshape(-1), inverse, *streams)
        else:
            _write_differences(band, inverse, self._numbers, self._state)

    @property
    def centroid(self) -> float:
        """Mean size, in steps, of what was a step and quantised to one; of runs only, else 1."""
        total, count = self._ones
        return float(total / count) if count else 1.0

    @property
    def streams(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Codes, and numbers aside."""
        codes, numbers, _ = self._state
        return self._codes[:codes], self._numbers[:numbers]


class BandReader:
    """Gives the pieces of a band back, in the order they were written.

    Parameters
    ----------
    coding : Coding
    codes, numbers : ndarray of uint8
        Streams of a `BandWriter`, or anything.
    """

    def __init__(self, coding: Coding, codes: NDArray[Any], numbers: NDArray[Any]) -> None:
        self._coding = coding
        self._codes = codes
        self._numbers = numbers
        self._state = np.array([0, 0, _NO_RUN], np.int64)

    def read(
        self, band: Plane, step: np.float32, one: np.float32, fill: np.float32, seed: int
    ) -> bool:
        """Fill `band` with the next piece, and tell whether the streams are sound.

        Parameters
        ----------
        band : ndarray of float32, shape (rows, columns)
        step, one : float32
            Size of a step, and of what was quantised to one step (runs only).
        fill : float32
            Noise in the place of zeros, its sigma over `FILL_SIGMA`; 0 for none (runs only).
        seed : int
            Of the noise, below 2^32.
        """
        flat = band.reshape(-1)
        streams = self._codes, self._numbers, self._state
        if self._coding == Coding.RUNS:
            _fill(flat, fill, seed)
            sound = _read_runs(flat, step, one, *streams)
        elif self._coding == Coding.PAIRS:
            sound = _read_pairs(flat, step, *streams)
        elif self._coding == Coding.BYTES:
            sound = _read_bytes(flat, step, *streams)
        else:
            sound = _read_differences(band, step, self._numbers, self._state)
        return bool(sound)

    @property
    def finished(self) -> bool:
        """Whether every byte was used."""
        codes, numbers, run = self._state
        return bool(codes == self._codes.size and numbers == self._numbers.size and run == _NO_RUN)


@njit(cache=True, nogil=True)
def _quantise(value: Any, inverse: Any) -> Any:
    steps = np.int64(abs(value) * inverse + _HALF)
    return -steps if value < 0 else steps


@njit(cache=True, nogil=True)
def _write_runs(
    band: Any, inverse: Any, least: Any, codes: Any, numbers: Any, state: Any, ones: Any
) -> None:
    """Lengths of runs of zeros, 255 meaning that many and more; the values behind them."""
    code, place, run = state[_CODES], state[_NUMBERS], state[_RUN]
    rows, columns = band.shape
    places = np.arange(columns) * least.shape[1] // max(1, columns)
    start = -run
    total, count = ones[0], ones[1]
    for y in range(rows):
        row, least_here = band[y], least[y * least.shape[0] // rows]
        for x in range(columns):
            size = abs(row[x]) * inverse
            if size < least_here[places[x]]:
                continue
            run = y * columns + x - start
            start = y * columns + x + 1
            while run >= _ESCAPE:
                codes[code] = _ESCAPE
                code += 1
                run -= _ESCAPE
            codes[code] = run
            code += 1
            value = _quantise(row[x], inverse)
            # the smaller ones, told near stars alone, shall be told as large as these: that makes
            # up for what is zero there
            if abs(value) == 1 and size >= _ONE:
                total += size
                count += 1
            # no value is zero, so that the positive ones can count from zero
            place = write_number(value - 1 if value > 0 else value, numbers, place)
    state[_CODES], state[_NUMBERS], state[_RUN] = code, place, band.size - start
    ones[0], ones[1] = total, count


@njit(cache=True, nogil=True)
def _read_runs(band: Any, step: Any, one: Any, codes: Any, numbers: Any, state: Any) -> bool:
    code, place, run = state[_CODES], state[_NUMBERS], state[_RUN]
    index = 0
    while True:
        if run == _NO_RUN:
            if code >= codes.size:
                break
            run = 0
            while code < codes.size and codes[code] == _ESCAPE:
                run += _ESCAPE
                code += 1
            if code >= codes.size:
                return False
            run += np.int64(codes[code])
            code += 1
        if run >= band.size - index:
            run -= band.size - index
            break
        index += run
        run = _NO_RUN
        value, place = read_number(numbers, place)
        if place < 0:
            return False
        if value >= 0:
            value += 1
        band[index] = np.float32(value) * step
        if value == 1:
            band[index] = one
        elif value == -1:
            band[index] = -one
        index += 1
    state[_CODES], state[_NUMBERS], state[_RUN] = code, place, run
    return True


@njit(cache=True, nogil=True)
def _write_bytes(band: Any, inverse: Any, codes: Any, numbers: Any, state: Any) -> None:
    code, place = state[_CODES], state[_NUMBERS]
    for index in range(band.size):
        value = _quantise(band[index], inverse)
        if abs(value) <= _BYTE_LIMIT:
            codes[code + index] = value + _BYTE_LIMIT
        else:
            codes[code + index] = _ESCAPE
            place = write_number(value, numbers, place)
    state[_CODES], state[_NUMBERS] = code + band.size, place


@njit(cache=True, nogil=True)
def _read_bytes(band: Any, step: Any, codes: Any, numbers: Any, state: Any) -> bool:
    code, place = state[_CODES], state[_NUMBERS]
    if band.size > codes.size - code:
        return False
    for index in range(band.size):
        value = np.int64(codes[code + index]) - _BYTE_LIMIT
        if value > _BYTE_LIMIT:
            value, place = read_number(numbers, place)
            if place < 0:
                return False
        band[index] = np.float32(value) * step
    state[_CODES], state[_NUMBERS] = code + band.size, place
    return True


@njit(cache=True, nogil=True)
def _write_pairs(band: Any, inverse: Any, codes: Any, numbers: Any, state: Any) -> None:
    """Two coefficients a byte; the last of an odd number is paired with zero."""
    code, place = state[_CODES], state[_NUMBERS]
    for index in range(0, band.size, 2):
        first = _quantise(band[index], inverse)
        second = _quantise(band[index + 1], inverse) if index + 1 < band.size else 0
        if abs(first) <= _PAIR_LIMIT and abs(second) <= _PAIR_LIMIT:
            codes[code] = (first + _PAIR_LIMIT) * _PAIR_BASE + second + _PAIR_LIMIT
        else:
            codes[code] = _ESCAPE
            place = write_number(first, numbers, place)
            place = write_number(second, numbers, place)
        code += 1
    state[_CODES], state[_NUMBERS] = code, place


@njit(cache=True, nogil=True)
def _read_pairs(band: Any, step: Any, codes: Any, numbers: Any, state: Any) -> bool:
    code, place = state[_CODES], state[_NUMBERS]
    if (band.size + 1) // 2 > codes.size - code:
        return False
    for index in range(0, band.size, 2):
        pair = np.int64(codes[code])
        code += 1
        if pair < _PAIR_BASE * _PAIR_BASE:
            first, second = pair // _PAIR_BASE - _PAIR_LIMIT, pair % _PAIR_BASE - _PAIR_LIMIT
        else:
            first, place = read_number(numbers, place)
            if place < 0:
                return False
            second, place = read_number(numbers, place)
            if place < 0:
                return False
        band[index] = np.float32(first) * step
        if index + 1 < band.size:
            band[index + 1] = np.float32(second) * step
    state[_CODES], state[_NUMBERS] = code, place
    return True


@njit(cache=True, nogil=True)
def _write_differences(band: Any, inverse: Any, numbers: Any, state: Any) -> None:
    """Difference to the neighbour on the left, of the first column to that above."""
    place = state[_NUMBERS]
    above = 0
    for y in range(band.shape[0]):
        left = above
        for x in range(band.shape[1]):
            value = _quantise(band[y, x], inverse)
            place = write_number(value - left, numbers, place)
            left = value
            if x == 0:
                above = value
    state[_NUMBERS] = place


@njit(cache=True, nogil=True)
def _read_differences(band: Any, step: Any, numbers: Any, state: Any) -> bool:
    place = state[_NUMBERS]
    above = 0
    for y in range(band.shape[0]):
        value = above
        for x in range(band.shape[1]):
            difference, place = read_number(numbers, place)
            if place < 0:
                return False
            value += difference
            band[y, x] = np.float32(value) * step
            if x == 0:
                above = value
    state[_NUMBERS] = place
    return True


@njit(cache=True, nogil=True)
def _fill(band: Any, fill: Any, seed: Any) -> None:
    """Zeros, or noise: a hash of each place (the finaliser of MurmurHash3), its bytes summed."""
    if fill == np.float32(0):
        for index in range(band.size):
            band[index] = np.float32(0)
        return
    for index in range(band.size):
        bits = ((index + 1) * _SEED_STEP + seed) & _MASK
        bits = ((bits ^ (bits >> 16)) * _MIX_1) & _MASK
        bits = ((bits ^ (bits >> 13)) * _MIX_2) & _MASK
        bits ^= bits >> 16
        total = (bits & 255) + ((bits >> 8) & 255) + ((bits >> 16) & 255) + (bits >> 24)
        band[index] = np.float32(total - _MEAN_OF_FOUR) * fill
