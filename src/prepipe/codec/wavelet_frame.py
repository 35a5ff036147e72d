"""Tiles of a raw frame to planes of numbers and back.

Across saturated pixels, which are kept aside, a line is drawn, so that neither their edges
cost bits nor anything near them is blurred.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from prepipe.codec.saturated import Samples
from prepipe.codec.wavelet_transform import Plane
from prepipe.model import Box

__all__ = ["least_steps", "load_tile", "store_tile"]

_HALF, _ONE = np.float32(0.5), np.float32(1)
_BLOCK = 4


def load_tile(samples: Samples, box: Box, offset: int, saturation: int, plane: Plane) -> int:
    """Fill `plane` with the tile's pixels above `offset`, and count those that are saturated.

    Parameters
    ----------
    samples : ndarray of uint16
        The whole frame, contiguous.
    box : Box
    offset, saturation : int
        ADU; from `saturation` on, pixels are saturated.
    plane : ndarray of float32
        Of the shape of the box.
    """
    level = np.uint16(saturation)
    return int(_load(samples, box.y0, box.x0, np.float32(offset), level, plane))


def store_tile(plane: Plane, samples: Samples, box: Box, offset: int, saturation: int) -> None:
    """Round the numbers of a tile to pixels, none of them saturated."""
    _store(plane, samples, box.y0, box.x0, np.float32(offset), np.float32(saturation))


def least_steps(plane: Plane, level: np.float32) -> Plane:
    """Below how many steps bands that are mostly zero become zero, block by block of pixels.

    One; in and beside blocks with pixels above `level` half a one, which is plain rounding, lest
    small coefficients be missing of a bright star's light.

    Parameters
    ----------
    plane : ndarray of float32
        Of a tile, as `load_tile` filled it.
    level : float32
        ADU above the tile's median.
    """
    rows, columns = plane.shape
    # a block more on every side, so that what lies beside the frame need not be asked for
    bright = np.zeros((-(-rows // _BLOCK) + 2, -(-columns // _BLOCK) + 2), np.bool_)
    _find_bright(plane, level, bright)
    tall = bright[:-2] | bright[1:-1] | bright[2:]
    return np.where(tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:], _HALF, _ONE)


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
def _find_bright(plane: Any, level: Any, bright: Any) -> None:
    for y in range(plane.shape[0]):
        row, here = plane[y], bright[y // _BLOCK + 1]
        for x in range(row.size):
            if row[x] > level:
                here[x // _BLOCK + 1] = True
