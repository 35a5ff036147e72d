"""The sky that is left over once the stars are subtracted."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["sky_left", "subtract_mesh"]

Image = NDArray[np.float32]
Line = NDArray[np.float32]
Floats = NDArray[np.float64]

CLIP = 3.0
"""Standard deviations beyond which a pixel is no sky."""

_ROUNDS = 3
_EVERY = 8
_LEAST_USED = 0.1


def sky_left(
    left: Image, mask: NDArray[np.uint8], unfit: np.uint8, sigma: float, box: int
) -> Floats:
    """Mean of an image on a mesh, without what stands out of the noise; smoothed.

    The mean and not the mode: stars too faint to be found lie under the stars that
    are measured as they do beside them, and their light must be subtracted from both.

    Parameters
    ----------
    left : (ny, nx) float32 ndarray
        Image without sky and stars, e-.
    mask : (ny, nx) uint8 ndarray
    unfit : uint8
        Bits of pixels that are left out.
    sigma : float
        Noise of an empty pixel, e-.
    box : int
        Side of an element, pixels.

    Returns
    -------
    (my, mx) float64 ndarray
        e-; the mean of 3 x 3 elements, 0 where none of them tells.
    """
    mesh = np.empty((max(1, left.shape[0] // box), max(1, left.shape[1] // box)))
    _clipped_means(left, mask, unfit, np.float32(CLIP * sigma), mesh)
    known = np.isfinite(mesh)
    total, count = _sum_of_nine(np.where(known, mesh, 0.0)), _sum_of_nine(known.astype(np.float64))
    return np.asarray(total / np.maximum(count, 1.0))


def _sum_of_nine(mesh: Floats) -> Floats:
    """Each element with its eight neighbours."""
    rows, columns = mesh.shape
    padded = np.pad(mesh, 1)
    shifted = [padded[j : j + rows, i : i + columns] for j in range(3) for i in range(3)]
    return np.asarray(np.sum(shifted, axis=0))


@njit(cache=True)
def _clipped_means(
    left: Image, mask: NDArray[np.uint8], unfit: np.uint8, limit: np.float32, mesh: Floats
) -> None:
    """Mean in each element, within `limit` of itself; NaN where few pixels are."""
    ny, nx = left.shape
    my, mx = mesh.shape
    values = np.empty((ny // my + 2) * (nx // mx + 2), np.float32)
    for b in range(my):
        top, bottom = b * ny // my, (b + 1) * ny // my
        for a in range(mx):
            begin, end = a * nx // mx, (a + 1) * nx // mx
            count = 0
            for j in range(top, bottom, _EVERY):
                _copy(left[j, begin:end], mask[j, begin:end], unfit, values[count:])
                count += end - begin
            level, used = np.float32(0), np.float32(0)
            for _ in range(_ROUNDS):
                level, used = _mean_within(values[:count], level, limit)
            mesh[b, a] = level if used > _LEAST_USED * count else np.nan


@njit(cache=True)
def _copy(pixels: Line, bits: NDArray[np.uint8], unfit: np.uint8, out: Line) -> None:
    """Copy a line, with infinity for what is masked."""
    for i in range(pixels.size):
        out[i] = np.float32(np.inf) if bits[i] & unfit else pixels[i]


@njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _mean_within(
    values: Line, level: np.float32, limit: np.float32
) -> tuple[np.float32, np.float32]:
    """Mean of the values that lie near a level, and how many they are."""
    total, used = np.float32(0), np.float32(0)
    for i in range(values.size):
        near = abs(values[i] - level) < limit
        total += values[i] if near else np.float32(0)
        used += np.float32(1) if near else np.float32(0)
    return total / max(used, np.float32(1)), used


@njit(cache=True)
def subtract_mesh(left: Image, mesh: Floats) -> None:
    """Subtract a mesh, interpolated linearly between the middles of its elements.

    Parameters
    ----------
    left : (ny, nx) float32 ndarray
        Changed.
    mesh : (my, mx) float64 ndarray
    """
    ny, nx = left.shape
    my, mx = mesh.shape
    across = np.empty(mx)
    line = np.empty(nx, np.float32)
    for j in range(ny):
        at = min(max((j + 0.5) * my / ny - 0.5, 0.0), my - 1.0)
        b = min(int(at), max(my - 2, 0))
        for a in range(mx):
            across[a] = mesh[b, a] + (at - b) * (mesh[min(b + 1, my - 1), a] - mesh[b, a])
        _interpolate_line(across, line)
        row = left[j]
        for i in range(nx):
            row[i] -= line[i]


@njit(cache=True)
def _interpolate_line(across: Floats, line: Line) -> None:
    """Straight pieces between the middles of the elements; level before and after them."""
    size, mx = line.size, across.size
    step = size / mx
    begin = 0
    for a in range(-1, mx):
        low, high = across[max(a, 0)], across[min(a + 1, mx - 1)]
        middle = (a + 0.5) * step - 0.5
        slope = np.float32((high - low) / step)
        end = size if a == mx - 1 else min(size, int(np.ceil((a + 1.5) * step - 0.5)))
        at_begin = np.float32(low + slope * (begin - middle))
        piece = line[begin:end]
        for i in range(piece.size):
            piece[i] = at_begin + slope * np.float32(i)
        begin = end
