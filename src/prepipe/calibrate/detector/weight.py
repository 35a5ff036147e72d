"""The weight of each pixel, from its variance and its mask."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask

__all__ = ["WEIGHTLESS", "inverse_variance"]

WEIGHTLESS = ~np.uint8(Mask.EDGE)
"""Mask bits that leave a pixel without weight."""


@njit(cache=True, error_model="numpy")
def _inverse(
    variance: NDArray[np.float32],
    mask: NDArray[np.uint8],
    weightless: np.uint8,
    smallest: np.float32,
    weight: NDArray[np.float32],
) -> None:
    """Fill `weight`."""
    one = np.float32(1.0)
    nothing = np.float32(0.0)
    # a row of its own, since `weight` may be `variance`: what may overlap is no vector code
    row = np.empty(variance.shape[1], np.float32)
    for y in range(variance.shape[0]):
        noise, bits = variance[y], mask[y]
        for x in range(row.size):
            inverse = one / noise[x]
            usable = (bits[x] & weightless == 0) & (inverse > nothing)
            row[x] = max(inverse, smallest) if usable else nothing
        weight[y] = row


def inverse_variance(
    variance: NDArray[np.float32],
    mask: NDArray[np.uint8],
    smallest: float = 0.0,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Weight of each pixel: one over its variance, zero where it cannot be trusted.

    Parameters
    ----------
    variance : ndarray of float32, shape (ny, nx)
        Positive; infinite where nothing is known.
    mask : ndarray of uint8, shape (ny, nx)
        Bits of `Mask`; all but EDGE leave a pixel without weight.
    smallest : float
        Weights below this one, but not zero, are raised to it, lest they vanish when the
        plane is stored in steps.
    out : ndarray of float32, shape (ny, nx), optional
        Where to write; may be `variance` itself.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        In one over the unit of `variance`.
    """
    weight = np.empty_like(variance) if out is None else out
    _inverse(variance, mask, WEIGHTLESS, np.float32(smallest), weight)
    return weight
