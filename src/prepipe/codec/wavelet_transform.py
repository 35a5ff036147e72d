"""The CDF 9/7 wavelet, one level at a time, in arithmetic that no machine does otherwise.

Single precision, each product rounded before it is added, in a fixed order: no ``fastmath``
and no fused multiply-add, so that a packet decodes to the same bits everywhere. Lifting
steps: Daubechies & Sweldens 1998 (J. Fourier Anal. Appl. 4, 247), as in JPEG 2000 (ISO/IEC
15444-1, F.4.8), without its scaling: the size of a subband's numbers is left to its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "HIGH_GAIN",
    "LIFTING",
    "LOW_GAIN",
    "Arena",
    "Plane",
    "analyse",
    "half_shapes",
    "synthesise",
]

Plane = NDArray[np.float32]
"""Image or subband, contiguous, ``[row, column]``."""

LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
LOW_GAIN = 1.149604398
"""White noise of sigma 1 comes out of the low-pass steps with sigma 1 / 1.1496 ..."""
HIGH_GAIN = 1 / LOW_GAIN
"""... and out of the high-pass steps with sigma 1.1496: by such factors the bands are off."""

_A, _B, _C, _D = (np.float32(step) for step in LIFTING)
_MINUS_A, _MINUS_B, _MINUS_C, _MINUS_D = (np.float32(-step) for step in LIFTING)
_RING = 4
"""Pairs of rows under way; a pair is done two pairs after it came."""


_ALIGNED = 16
"""Numbers to a cache line."""


class Arena:
    """Memory for planes, all of it given back at once.

    Taken in one piece the system hands it out in large pages; plane by plane, that costs as
    much as the transform itself.

    Parameters
    ----------
    pixels : int
        Of the largest plane that will be split, or put together, in it.
    """

    def __init__(self, pixels: int) -> None:
        # a plane, its bands, those of the low-pass planes, and of each detail its four
        self._memory = np.empty(4 * pixels + 256 * _ALIGNED, np.float32)
        self._used = 0

    def plane(self, shape: tuple[int, int]) -> Plane:
        """A plane with any content."""
        size = shape[0] * shape[1]
        start = self._used
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return self._memory[start : start + size].reshape(shape)

    def clear(self) -> None:
        """Take all planes back."""
        self._used = 0


def half_shapes(shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Shapes of the four bands of a plane: low, horizontal, vertical, diagonal detail."""
    rows, columns = shape
    low, high = ((rows + 1) // 2, (columns + 1) // 2), (rows // 2, columns // 2)
    return low, (low[0], high[1]), (high[0], low[1]), high


def analyse(plane: Plane, arena: Arena) -> tuple[Plane, Plane, Plane, Plane]:
    """Split a plane into bands.

    Parameters
    ----------
    plane : ndarray of float32, shape (rows, columns)
        Of any size; what is one pixel wide has no detail in that direction.
    arena : Arena
        Where the bands will lie.

    Returns
    -------
    tuple of ndarray of float32
        Low-pass, then detail across columns, across rows, across both.
    """
    low, horizontal, vertical, diagonal = map(arena.plane, half_shapes(plane.shape))
    ring = np.empty((2 * _RING, plane.shape[1]), np.float32)
    _analyse(plane, low, horizontal, vertical, diagonal, ring)
    return low, horizontal, vertical, diagonal


def synthesise(bands: Sequence[Plane], arena: Arena) -> Plane:
    """Put four bands together, inverse of `analyse`."""
    low, horizontal, vertical, diagonal = bands
    shape = low.shape[0] + vertical.shape[0], low.shape[1] + horizontal.shape[1]
    plane = arena.plane(shape)
    ring = np.empty((2 * _RING, shape[1]), np.float32)
    _synthesise(low, horizontal, vertical, diagonal, plane, ring)
    return plane


@njit(cache=True, nogil=True)
def _add(row: Any, above: Any, below: Any, factor: Any) -> None:
    """One lifting step across rows."""
    for x in range(row.size):
        row[x] += factor * (above[x] + below[x])


@njit(cache=True, nogil=True)
def _lift_high(high: Any, low: Any, factor: Any) -> None:
    """One lifting step along a row: odd pixels by their even neighbours, mirrored at the end."""
    inner = low.size - 1
    for x in range(inner):
        high[x] += factor * (low[x] + low[x + 1])
    if high.size > inner:
        high[inner] += factor * (low[inner] + low[inner])


@njit(cache=True, nogil=True)
def _lift_low(low: Any, high: Any, factor: Any) -> None:
    """The same of even pixels by their odd neighbours."""
    if high.size == 0:
        return
    low[0] += factor * (high[0] + high[0])
    last = high.size - 1
    for x in range(last):
        low[x + 1] += factor * (high[x] + high[x + 1])
    if low.size > high.size:
        low[last + 1] += factor * (high[last] + high[last])


@njit(cache=True, nogil=True)
def _split_row(row: Any, out: Any) -> None:
    """A row into its low half and its high half."""
    half = (row.size + 1) // 2
    low, high = out[:half], out[half:]
    for x in range(high.size):
        low[x] = row[2 * x]
        high[x] = row[2 * x + 1]
    if low.size > high.size:
        low[half - 1] = row[2 * half - 2]
    _lift_high(high, low, _A)
    _lift_low(low, high, _B)
    _lift_high(high, low, _C)
    _lift_low(low, high, _D)


@njit(cache=True, nogil=True)
def _join_row(halves: Any, row: Any) -> None:
    """Inverse of `_split_row`; `halves` is used up."""
    half = (row.size + 1) // 2
    low, high = halves[:half], halves[half:]
    _lift_low(low, high, _MINUS_D)
    _lift_high(high, low, _MINUS_C)
    _lift_low(low, high, _MINUS_B)
    _lift_high(high, low, _MINUS_A)
    for x in range(high.size):
        row[2 * x] = low[x]
        row[2 * x + 1] = high[x]
    if low.size > high.size:
        row[2 * half - 2] = low[half - 1]


@njit(cache=True, nogil=True)
def _even(ring: Any, pair: int, pairs: int) -> Any:
    """Even row of a pair in the ring; beyond the last, the last."""
    return ring[2 * (min(pair, pairs - 1) % _RING)]


@njit(cache=True, nogil=True)
def _odd(ring: Any, pair: int, pairs: int) -> Any:
    """Odd row of a pair in the ring; beyond either end, the one at that end."""
    return ring[2 * (max(0, min(pair, pairs - 1)) % _RING) + 1]


@njit(cache=True, nogil=True)
def _analyse(
    plane: Any, low: Any, horizontal: Any, vertical: Any, diagonal: Any, ring: Any
) -> None:
    """Rows come in pairs, and each pair runs through the lifting steps as its neighbours come."""
    evens, odds, half = low.shape[0], vertical.shape[0], low.shape[1]
    for pair in range(evens + 2):
        if pair < evens:
            _split_row(plane[2 * pair], _even(ring, pair, evens))
        if pair < odds:
            _split_row(plane[2 * pair + 1], _odd(ring, pair, odds))
        first, second = pair - 1, pair - 2
        if 0 <= first < evens and odds:
            if first < odds:
                above, below = _even(ring, first, evens), _even(ring, pair, evens)
                _add(_odd(ring, first, odds), above, below, _A)
            above, below = _odd(ring, first - 1, odds), _odd(ring, first, odds)
            _add(_even(ring, first, evens), above, below, _B)
        if second < 0:
            continue
        if odds:
            if second < odds:
                above, below = _even(ring, second, evens), _even(ring, first, evens)
                _add(_odd(ring, second, odds), above, below, _C)
            above, below = _odd(ring, second - 1, odds), _odd(ring, second, odds)
            _add(_even(ring, second, evens), above, below, _D)
        row = _even(ring, second, evens)
        low[second] = row[:half]
        horizontal[second] = row[half:]
        if second < odds:
            row = _odd(ring, second, odds)
            vertical[second] = row[:half]
            diagonal[second] = row[half:]


@njit(cache=True, nogil=True)
def _synthesise(
    low: Any, horizontal: Any, vertical: Any, diagonal: Any, plane: Any, ring: Any
) -> None:
    """`_analyse` backwards."""
    evens, odds, half = low.shape[0], vertical.shape[0], low.shape[1]
    for pair in range(evens + 2):
        if pair < evens:
            row = _even(ring, pair, evens)
            row[:half] = low[pair]
            row[half:] = horizontal[pair]
        if pair < odds:
            row = _odd(ring, pair, odds)
            row[:half] = vertical[pair]
            row[half:] = diagonal[pair]
        first, second = pair - 1, pair - 2
        if pair < evens and odds:
            above, below = _odd(ring, pair - 1, odds), _odd(ring, pair, odds)
            _add(_even(ring, pair, evens), above, below, _MINUS_D)
        if 0 <= first < evens and odds:
            if first < odds:
                above, below = _even(ring, first, evens), _even(ring, pair, evens)
                _add(_odd(ring, first, odds), above, below, _MINUS_C)
            above, below = _odd(ring, first - 1, odds), _odd(ring, first, odds)
            _add(_even(ring, first, evens), above, below, _MINUS_B)
        if second < 0:
            continue
        if second < odds:
            above, below = _even(ring, second, evens), _even(ring, first, evens)
            _add(_odd(ring, second, odds), above, below, _MINUS_A)
        _join_row(_even(ring, second, evens), plane[2 * second])
        if second < odds:
            _join_row(_odd(ring, second, odds), plane[2 * second + 1])
