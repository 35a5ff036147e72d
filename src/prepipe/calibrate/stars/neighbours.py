"""Finding the peaks near a peak: a grid of cells with the peaks in each."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["CELL", "HALO_BETA", "cells_of_peaks", "moffat_core"]

CELL = 32
"""Side of a cell, pixels."""

HALO_BETA = 3.0
"""Moffat exponent assumed for the wings of a star, between the 2.5 of SDSS and DECam
frames in poor focus and the 4.765 of pure turbulence (Trujillo et al. 2001, MNRAS 328, 977)."""


def moffat_core(fwhm_px: float) -> float:
    """Core radius of a Moffat profile of exponent `HALO_BETA`.

    Parameters
    ----------
    fwhm_px : float
        Full width at half maximum, pixels.

    Returns
    -------
    float
        alpha in ``(1 + (r / alpha)**2)**-beta``, pixels.
    """
    return float(0.5 * fwhm_px / np.sqrt(2.0 ** (1.0 / HALO_BETA) - 1.0))


@njit(cache=True)
def cells_of_peaks(
    y: NDArray[np.int32], x: NDArray[np.int32], rows: int, columns: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sort peaks into cells of `CELL` x `CELL` pixels.

    Parameters
    ----------
    y, x : (n,) int32 ndarray
        Pixel of each peak.
    rows, columns : int
        Cells along each axis.

    Returns
    -------
    first : (rows * columns + 1,) int32 ndarray
        The peaks of cell k are ``members[first[k]:first[k + 1]]``.
    members : (n,) int32 ndarray
        Indices into `y` and `x`, ascending within a cell.
    """
    first = np.zeros(rows * columns + 1, np.int32)
    for k in range(y.size):
        first[(y[k] // CELL) * columns + x[k] // CELL + 1] += 1
    for cell in range(rows * columns):
        first[cell + 1] += first[cell]
    members = np.empty(y.size, np.int32)
    filled = first.copy()
    for k in range(y.size):
        cell = (y[k] // CELL) * columns + x[k] // CELL
        members[filled[cell]] = k
        filled[cell] += 1
    return first, members
