"""Histograms of 16-bit pixels and of the differences of neighbours: median and noise in one look.

In kernels, ``np.int64`` makes signed numbers of unsigned ones; ``int`` leaves them unsigned.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.model import Box

__all__ = ["compare", "count_pixels", "median_of_counts", "noise_of_counts"]

_VALUES = 1 << 16
_MAD_TO_SIGMA = 1.482602218505602

Counts = NDArray[np.int64]


def count_pixels(samples: NDArray[np.uint16], box: Box, most: int) -> tuple[Counts, ...]:
    """How often each value, and each difference of neighbours, occurs in a box.

    Parameters
    ----------
    samples : ndarray of uint16, shape (rows, columns)
        Contiguous.
    box : Box
    most : int
        About so many pixels are looked at, in rows evenly spread.

    Returns
    -------
    values, across, along : ndarray of int64, shape (65536,)
        Pixels, and absolute differences to the neighbours in the row and in the column.
    """
    rows, columns = box.shape
    counts = np.zeros((3, _VALUES), np.int64)
    step = max(1, rows * columns // most)
    _count(samples, box.y0, box.y1, box.x0, box.x1, step, *counts)
    return tuple(counts)


def median_of_counts(values: Counts) -> int:
    """Upper median: of an even number of values the higher of the middle two; 0 of none."""
    total = int(values.sum())
    return int(np.searchsorted(np.cumsum(values), total // 2, side="right")) if total else 0


def noise_of_counts(differences: Counts) -> float:
    """Noise of pixels by their differences, as if each were spread over its step.

    Without that a noise of 2 ADU would be known to 30 % only.

    Parameters
    ----------
    differences : ndarray of int64
        How often 0, 1, 2 ... ADU occur.

    Returns
    -------
    float
        1.4826 / sqrt(2) times their median; 0 of a constant frame.
    """
    total = int(differences.sum())
    if not total:
        return 0.0
    median = median_of_counts(differences)
    inside = int(differences[median])
    if median == 0:
        # |difference| = 0 is half a step wide; a constant frame has no noise at all
        middle = 0.0 if inside == total else 0.5 * (total / 2) / inside
    else:
        middle = median - 0.5 + (total / 2 - int(differences[:median].sum())) / inside
    return _MAD_TO_SIGMA * middle / sqrt(2)


def compare(original: NDArray[np.uint16], decoded: NDArray[np.uint16]) -> tuple[int, int]:
    """Sum of the squares of all differences, and the largest."""
    squares, largest = _compare(original.reshape(-1), decoded.reshape(-1))
    return int(squares), int(largest)


@njit(cache=True, nogil=True)
def _count(
    samples: Any,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    step: int,
    values: Any,
    across: Any,
    along: Any,
) -> None:
    for y in range(y0, y1, step):
        last = np.int64(samples[y, x0])
        values[last] += 1
        for x in range(x0 + 1, x1):
            value = np.int64(samples[y, x])
            values[value] += 1
            across[abs(value - last)] += 1
            last = value
        if y + 1 == y1:
            break
        for x in range(x0, x1):
            along[abs(np.int64(samples[y + 1, x]) - np.int64(samples[y, x]))] += 1


@njit(cache=True, nogil=True)
def _compare(original: Any, decoded: Any) -> tuple[int, int]:
    squares: Any = 0
    largest: Any = 0
    for index in range(original.size):
        error = abs(np.int64(original[index]) - np.int64(decoded[index]))
        largest = max(largest, error)
        squares += error * error
    return squares, largest
