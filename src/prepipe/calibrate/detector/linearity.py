"""Linearity: what a pixel would have counted, had the amplifier's answer been proportional.

A table gives for every whole ADU above the bias the linear ADU. DESDM (``pixcorrect``) and LSST
(``ip_isr``) apply it after the bias was subtracted and before the gain; so does `detrend`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prepipe.errors import PixelError

__all__ = ["TABLE_SIZE", "linear_table", "linearise"]

TABLE_SIZE = 65536
"""One entry for each value of a 16-bit converter."""


def linear_table(adu: NDArray[np.float64], linear: NDArray[np.float64]) -> NDArray[np.float32]:
    """Spread measured points over every whole ADU.

    Parameters
    ----------
    adu : ndarray, shape (n,)
        Measured ADU above the bias, ascending.
    linear : ndarray, shape (n,)
        Linear ADU. What is added or taken away is interpolated between the points and kept
        constant beyond them.

    Returns
    -------
    ndarray of float32, shape (`TABLE_SIZE`,)
        Linear ADU of 0, 1, 2, ... ADU.

    Raises
    ------
    PixelError
        If there are no points, they are not finite, or do not ascend.
    """
    if len(adu) == 0 or adu.shape != linear.shape:
        raise PixelError("a linearity table needs as many linear as measured ADU, at least one")
    if not (np.isfinite(adu).all() and np.isfinite(linear).all()):
        raise PixelError("a value of the linearity table is not a finite number")
    if not (np.diff(adu) > 0).all():
        raise PixelError("the measured ADU of the linearity table do not ascend")
    whole = np.arange(TABLE_SIZE, dtype=np.float64)
    return (whole + np.interp(whole, adu, linear - adu)).astype(np.float32)


def linearise(adu: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Look values up in a table, linearly between its entries.

    The plain form of what `detrend` does in its one pass; values beyond the table's ends keep
    the correction of the end.

    Parameters
    ----------
    adu : ndarray of float32
        ADU above the bias.
    table : ndarray of float32, shape (n,)
        As `linear_table` gives it.

    Returns
    -------
    ndarray of float32, same shape
    """
    whole = np.arange(len(table), dtype=np.float64)
    within = np.clip(adu.astype(np.float64), 0.0, len(table) - 1.0)
    linear: NDArray[np.float64] = np.interp(within, whole, table) + (adu - within)
    return linear.astype(np.float32)
