"""Pixels that say nothing of the sky: bleed trails, bad columns, dead amplifiers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.detector.overscan import Raw, raw_pixels
from prepipe.calibrate.flags import Mask
from prepipe.model import Box, Layout

__all__ = ["blind_edges", "find_dead", "grow_saturation", "interpolate_bad", "saturated_fraction"]

TRAIL_ROWS = 10
"""A column with so many saturated pixels in line is a bleed trail, not a star's core."""

TRAIL_MARGIN = 8
"""A trail reaches so many rows farther than its saturated pixels, and across such gaps."""

INTERPOLATION_REACH = 64
"""Pixels farther than this from any good one take the frame's median."""

CONSTANT_FRACTION = 0.95
"""So many equal neighbours show that no noise was read: at 0.3 ADU rms it would be 0.76."""

_COUNTED = 128
"""Pixels counted in one byte."""

_SATURATED = np.uint8(Mask.SATURATED)
_EDGE = np.uint8(Mask.EDGE)
_DEAD = np.uint8(Mask.DEAD)
_UNUSABLE = np.uint8(Mask.BAD | Mask.DEAD | Mask.NO_FLAT | Mask.CORRUPT)


def saturated_fraction(mask: NDArray[np.uint8]) -> float:
    """Fraction of the pixels that are saturated.

    Parameters
    ----------
    mask : ndarray of uint8, shape (ny, nx)

    Returns
    -------
    float
        NaN if there is no pixel.
    """
    if mask.size == 0:
        return float("nan")
    return float(_count(mask, _SATURATED)) / mask.size


@njit(cache=True)
def _count(mask: NDArray[np.uint8], bits: np.uint8) -> int:
    """Pixels with one of the bits."""
    total = 0
    for y in range(mask.shape[0]):
        total += _count_in_row(mask[y], bits)
    return total


@njit(cache=True)
def _count_in_row(row: NDArray[np.uint8], bits: np.uint8) -> int:
    """Pixels of a row with one of the bits."""
    total = 0
    for x0 in range(0, row.size, _COUNTED):
        # Counted in bytes, which is four times as fast as in longer numbers.
        block = row[x0 : x0 + _COUNTED]
        found = np.uint8(0)
        for x in range(block.size):
            found += np.uint8((block[x] & bits) != 0)
        total += int(found)
    return total


@njit(cache=True)
def _positions(
    mask: NDArray[np.uint8], bits: np.uint8
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows and columns of the pixels with one of the bits, row by row."""
    counts = np.empty(mask.shape[0], dtype=np.int64)
    for y in range(mask.shape[0]):
        counts[y] = _count_in_row(mask[y], bits)
    ys = np.empty(counts.sum(), dtype=np.int32)
    xs = np.empty_like(ys)
    n = 0
    for y in range(mask.shape[0]):
        if counts[y] == 0:
            continue
        for x0 in range(0, mask.shape[1], 64):
            # Nearly all blocks are clean: one vectorised look dismisses them.
            block = mask[y, x0 : x0 + 64]
            seen = np.uint8(0)
            for x in range(block.size):
                seen |= block[x]
            if seen & bits:
                for x in range(block.size):
                    if block[x] & bits:
                        ys[n] = y
                        xs[n] = x0 + x
                        n += 1
    return ys, xs


@njit(cache=True)
def _trail(mask: NDArray[np.uint8], x: int, y: int) -> int:
    """End (exclusive) of the trail that begins at row `y`, gaps up to the margin included."""
    end = y + 1
    last = min(mask.shape[0], end + TRAIL_MARGIN)
    row = end
    while row < last:
        if mask[row, x] & _SATURATED:
            end = row + 1
            last = min(mask.shape[0], end + TRAIL_MARGIN)
        row += 1
    return end


@njit(cache=True)
def _mark_saturated(mask: NDArray[np.uint8], x0: int, x1: int, y0: int, y1: int) -> int:
    """Set the bit in a rectangle, as far as it lies in the frame; pixels that did not have it."""
    fresh = 0
    for y in range(max(y0, 0), min(y1, mask.shape[0])):
        for x in range(max(x0, 0), min(x1, mask.shape[1])):
            fresh += int((mask[y, x] & _SATURATED) == 0)
            mask[y, x] |= _SATURATED
    return fresh


@njit(cache=True)
def _trails(
    mask: NDArray[np.uint8], ys: NDArray[np.int32], xs: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Rows (x, begin, end) of the bleed trails."""
    trails = np.empty((ys.size, 3), dtype=np.int64)
    reached = np.zeros(mask.shape[1], dtype=np.int64)
    n = 0
    for k in range(ys.size):
        y = ys[k]
        x = xs[k]
        if y < reached[x]:
            continue
        end = _trail(mask, x, y)
        reached[x] = end
        if end - y >= TRAIL_ROWS:
            trails[n, 0] = x
            trails[n, 1] = y
            trails[n, 2] = end
            n += 1
    return trails[:n]


@njit(cache=True)
def _grow(
    mask: NDArray[np.uint8],
    ys: NDArray[np.int32],
    xs: NDArray[np.int32],
    trails: NDArray[np.int64],
) -> int:
    """Mark the eight neighbours of each pixel and the surroundings of each trail; fresh ones."""
    fresh = 0
    for k in range(ys.size):
        fresh += _mark_saturated(mask, xs[k] - 1, xs[k] + 2, ys[k] - 1, ys[k] + 2)
    for k in range(trails.shape[0]):
        x = trails[k, 0]
        fresh += _mark_saturated(
            mask, x - 1, x + 2, trails[k, 1] - TRAIL_MARGIN, trails[k, 2] + TRAIL_MARGIN
        )
    return fresh


def grow_saturation(mask: NDArray[np.uint8]) -> int:
    """Mark what a saturated pixel spoils: its neighbours, and the bleed trail it is part of.

    Every saturated pixel is dilated by 3 x 3. Where `TRAIL_ROWS` or more stand in
    one column, the gaps between them are closed and the trail is prolonged by
    `TRAIL_MARGIN` rows at both ends, as its tail fades below saturation.

    Parameters
    ----------
    mask : ndarray of uint8, shape (ny, nx)
        Changed in place.

    Returns
    -------
    int
        Saturated pixels after growing.
    """
    ys, xs = _positions(mask, _SATURATED)
    if ys.size in (0, mask.size):
        return int(ys.size)
    return int(ys.size + _grow(mask, ys, xs, _trails(mask, ys, xs)))


@njit(cache=True)
def _along_row(
    image: NDArray[np.float32], mask: NDArray[np.uint8], avoid: np.uint8, y: int, x: int
) -> float:
    """Linear interpolation between the nearest good pixels of a row; NaN if there is none."""
    left = x - 1
    while left >= max(0, x - INTERPOLATION_REACH) and mask[y, left] & avoid:
        left -= 1
    right = x + 1
    while right < min(image.shape[1], x + 1 + INTERPOLATION_REACH) and mask[y, right] & avoid:
        right += 1
    has_left = left >= max(0, x - INTERPOLATION_REACH)
    has_right = right < min(image.shape[1], x + 1 + INTERPOLATION_REACH)
    if has_left and has_right:
        weight = (x - left) / (right - left)
        return float((1.0 - weight) * image[y, left] + weight * image[y, right])
    if has_left:
        return float(image[y, left])
    if has_right:
        return float(image[y, right])
    return np.nan


@njit(cache=True)
def _interpolate(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    avoid: np.uint8,
    ys: NDArray[np.int32],
    xs: NDArray[np.int32],
) -> int:
    """Fill each listed pixel along its row, else along its column; return how many got NaN."""
    lost = 0
    for k in range(ys.size):
        y = ys[k]
        x = xs[k]
        value = _along_row(image, mask, avoid, y, x)
        if np.isnan(value):
            value = _along_row(image.T, mask.T, avoid, x, y)
        lost += np.isnan(value)
        image[y, x] = value
    return lost


def _median_of_good(
    image: NDArray[np.float32], mask: NDArray[np.uint8], avoid: np.uint8
) -> np.float32:
    """Median of the good pixels in a sample of the rows; 0 if there is none."""
    step = max(1, image.shape[0] // 256)
    good = image[::step][(mask[::step] & avoid) == 0]
    return np.float32(np.median(good)) if good.size else np.float32(0.0)


def interpolate_bad(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    bits: Mask = Mask.BAD | Mask.NO_FLAT | Mask.CORRUPT,
) -> int:
    """Replace defects by what their neighbours suggest, so that a filter does not ring on them.

    The mask keeps its bits: an interpolated pixel is no measurement. Along the
    row, since most defects are columns; else along the column; pixels more than
    `INTERPOLATION_REACH` from any good one take the median of the good pixels.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Changed in place.
    mask : ndarray of uint8, shape (ny, nx)
    bits : Mask
        Which pixels to replace. Their donors are free of these bits, of BAD,
        DEAD, NO_FLAT and CORRUPT.

    Returns
    -------
    int
        Pixels replaced.
    """
    ys, xs = _positions(mask, np.uint8(bits))
    avoid = np.uint8(np.uint8(bits) | _UNUSABLE)
    if ys.size > image.size // 2:
        image[ys, xs] = _median_of_good(image, mask, avoid)
    elif _interpolate(image, mask, avoid, ys, xs):
        hopeless = np.isnan(image[ys, xs])
        image[ys[hopeless], xs[hopeless]] = _median_of_good(image, mask, avoid)
    return int(ys.size)


@njit(cache=True)
def _blind_edges(mask: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Fill `out`."""
    nothing = np.uint8(0)
    for y in range(mask.shape[0]):
        bits, row = mask[y], out[y]
        for x in range(bits.size):
            row[x] = bits[x] | (_DEAD if bits[x] & _EDGE else nothing)


def blind_edges(mask: NDArray[np.uint8], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """The mask with DEAD wherever it has EDGE.

    Parameters
    ----------
    mask : ndarray of uint8, shape (ny, nx)
    out : ndarray of uint8, shape (ny, nx), optional
        Where to write; not `mask` itself.

    Returns
    -------
    ndarray of uint8, shape (ny, nx)
        `out`, or a new array.
    """
    out = np.empty_like(mask) if out is None else out
    _blind_edges(mask, out)
    return out


def _has_no_noise(raw: Raw, box: Box, saturation: float) -> bool:
    """Whether almost all neighbours in a sample of the rows have one value."""
    step = max(1, box.shape[0] // 64)
    sample = raw[box.slices][::step]
    if not np.isfinite(sample).any():
        return True
    axis = 1 if sample.shape[1] > 1 else 0
    differences = np.diff(sample, axis=axis)
    if differences.size < 8:
        return False
    if float(np.mean((differences == 0) | ~np.isfinite(differences))) < CONSTANT_FRACTION:
        return False
    return bool(np.median(sample[np.isfinite(sample)]) < saturation)


def find_dead(raw: NDArray[Any], layout: Layout) -> tuple[str, ...]:
    """Amplifiers that deliver a constant instead of noise.

    A saturated amplifier is constant too but not dead, and is not reported.

    Parameters
    ----------
    raw : ndarray, shape `layout.shape`
        ADU.
    layout : Layout

    Returns
    -------
    tuple of str
        Their names, as `detrend.detrend` takes them.

    Raises
    ------
    PixelError
        If `raw` does not fit `layout`.
    """
    pixels = raw_pixels(raw, layout.shape)
    return tuple(
        amplifier.name
        for amplifier in layout.amplifiers
        if not amplifier.data.empty and _has_no_noise(pixels, amplifier.data, amplifier.saturation)
    )
