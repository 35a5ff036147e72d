"""The sky's level and noise on a mesh, and its subtraction.

The estimate is that of SExtractor (Bertin & Arnouts 1996): in each mesh the
clipped distribution's mode, 2.5 median - 1.5 mean, then a 3 x 3 median filter
over the meshes and a bicubic spline between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from prepipe.calibrate.flags import Mask
from prepipe.errors import ConfigError, PixelError

__all__ = ["Background", "mark_silent", "measure_background", "subtract"]

MINIMUM_PIXELS = 20
"""A mesh with fewer usable pixels is not measured."""

MINIMUM_FRACTION = 0.2
"""Nor is one with less than this part of its pixels usable."""

SILENT = 0.6
"""Sky noise below this many read noises cannot come from a working amplifier."""

_BINS = 256
_SAMPLE = 128
_HALVINGS = 30
_DEAD = np.uint8(Mask.DEAD)
_CLIPPED_SIGMA = 1.0135
"""True sigma over that of a normal law cut at 3 sigma."""


@dataclass(frozen=True)
class Background:
    """Sky on a mesh.

    Mesh ``[j, i]`` of ``(my, mx)`` covers the rows ``y`` with ``y * my // ny == j``,
    likewise the columns: all meshes have the same size, within a pixel.

    Parameters
    ----------
    level : ndarray of float32, shape (my, mx)
        Units of the image. 0 if nothing could be measured.
    rms : ndarray of float32, shape (my, mx)
        Noise per pixel. Infinite if nothing could be measured, so that nothing
        is detected on it.
    raw_rms : ndarray of float32, shape (my, mx)
        The same before empty meshes were filled and the meshes filtered; NaN where empty.
    box : int
        Side of a mesh that was asked for, pixels.
    shape : tuple of int
        Frame, (rows, columns).
    """

    level: NDArray[np.float32]
    rms: NDArray[np.float32]
    raw_rms: NDArray[np.float32]
    box: int
    shape: tuple[int, int]

    @property
    def measured(self) -> float:
        """Fraction of the meshes that had enough usable pixels of their own."""
        return float(np.mean(np.isfinite(self.raw_rms)))

    @property
    def median_level(self) -> float:
        """Median over the meshes; NaN if nothing could be measured."""
        return float(np.median(self.level)) if self.measured > 0 else float("nan")

    @property
    def median_rms(self) -> float:
        """Median over the meshes; NaN if nothing could be measured."""
        return float(np.median(self.rms)) if self.measured > 0 else float("nan")


@njit(cache=True)
def _count_up_to(values: NDArray[np.float32], limit: np.float32) -> np.int32:
    """How many values do not exceed the limit."""
    count = np.int32(0)
    for k in range(values.size):
        count = np.int32(count + np.int32(values[k] <= limit))
    return count


@njit(cache=True)
def _largest_up_to(values: NDArray[np.float32], limit: np.float32) -> np.float32:
    """Largest of the values that do not exceed the limit."""
    largest = np.float32(-np.inf)
    for k in range(values.size):
        largest = values[k] if (values[k] <= limit) & (values[k] > largest) else largest
    return largest


@njit(cache=True)
def _ranked(
    values: NDArray[np.float32], rank: int, low: np.float32, high: np.float32
) -> np.float32:
    """Value of rank `rank`, which lies between `low` and `high`.

    The interval is halved until one value is left in it: to count a few values is a matter
    of some vector instructions, where sorting waits for every wrongly guessed branch.
    """
    above, below = np.int32(values.size), np.int32(0)
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * low + np.float32(0.5) * high
        count = _count_up_to(values, middle)
        if count > rank:
            high, above = middle, count
        else:
            low, below = middle, count
        if above - below == 1:
            break
    ranked: np.float32 = _largest_up_to(values, high)
    return ranked


@njit(cache=True)
def _sample(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    mesh: tuple[int, int, int, int],
    pixels: NDArray[np.float32],
) -> int:
    """Fill `pixels` with usable ones spread over the mesh; return how many there are."""
    x0, x1, y0, y1 = mesh
    step = max(1, int(np.sqrt((y1 - y0) * (x1 - x0) / pixels.size)))
    n = 0
    shift = 0
    for y in range(y0, y1, step):
        # Shifting the columns from row to row keeps column patterns from being sampled alone.
        shift = shift + 1 if shift + 1 < step else 0
        for x in range(x0 + shift, x1, step):
            if mask[y, x] == 0 and n < pixels.size and abs(image[y, x]) < np.inf:
                pixels[n] = image[y, x]
                n += 1
    return n


@njit(cache=True)
def _range(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    mesh: tuple[int, int, int, int],
    pixels: NDArray[np.float32],
) -> tuple[np.float32, np.float32]:
    """Lower end and bin width of a mesh's histogram; NaN if it has too few usable pixels."""
    n = _sample(image, mask, mesh, pixels)
    area = (mesh[1] - mesh[0]) * (mesh[3] - mesh[2])
    if n < MINIMUM_PIXELS or n < MINIMUM_FRACTION * min(area, pixels.size):
        return np.float32(np.nan), np.float32(np.nan)
    values = pixels[:n]
    lowest = values.min()
    centre = _ranked(values, n // 2, lowest, values.max())
    # Sources lie above the sky: the lower quartile knows the noise better.
    quartile = (centre - _ranked(values, n // 4, lowest, centre)) / np.float32(0.6745)
    spread = max(quartile, np.float32(1e-6) * abs(centre), np.float32(1e-6))
    width = np.float32(12.0) * spread / np.float32(_BINS)
    return centre - np.float32(6.0) * spread, width


@njit(cache=True)
def _count(
    pixels: NDArray[np.float32],
    mask: NDArray[np.uint8],
    low: NDArray[np.float32],
    inverse_width: NDArray[np.float32],
    first: NDArray[np.int32],
    bins: NDArray[np.int32],
    counts: NDArray[np.int32],
) -> None:
    """Count a row's usable pixels, each in the histogram that begins at `first`.

    The outer bins take what is masked or out of range.
    """
    top = np.float32(_BINS + 1)
    zero = np.float32(0.0)
    one = np.float32(1.0)
    for x in range(pixels.size):
        value = (pixels[x] - low[x]) * inverse_width[x] + one
        value = value if value > zero else zero
        value = value if value < top else top
        bins[x] = first[x] + (np.int32(value) if mask[x] == 0 else np.int32(0))
    # of unsigned type, so that no index is looked at for being negative
    place = bins.view(np.uint32)
    for x in range(place.size):
        counts[place[x]] += 1


@njit(cache=True)
def _moments(counts: NDArray[np.int32], first: int, last: int) -> tuple[float, float, float]:
    """Sums of the counts, and of their positions and squared positions, in bins."""
    some = counts[first:last]
    total, moment, square = np.int64(0), np.int64(0), np.int64(0)
    # whole numbers, here of half bins, may be added in any order, so that this is vector code
    for k in range(some.size):
        halves = 2 * (first + k) - 1
        total += some[k]
        moment += some[k] * halves
        square += some[k] * halves * halves
    return float(total), 0.5 * float(moment), 0.25 * float(square)


@njit(cache=True)
def _clip(counts: NDArray[np.int32], centre: float, sigma: float) -> tuple[float, float, float]:
    """Mean, median and sigma, in bins, after cutting at 3 sigma until it stays."""
    mean = centre
    first = 1
    last = _BINS + 1
    total = 0.0
    for _ in range(8):
        first = max(1, int(mean - 3.0 * sigma) + 1)
        last = min(_BINS + 1, int(mean + 3.0 * sigma) + 2)
        total, moment, square = _moments(counts, first, last)
        if total == 0.0:
            return np.nan, np.nan, np.nan
        mean = moment / total
        # A bin's own width adds 1/12 to the variance (Sheppard).
        variance = max(square / total - mean * mean - 1.0 / 12.0, 1e-6)
        before = sigma
        sigma = _CLIPPED_SIGMA * np.sqrt(variance)
        if abs(sigma - before) < 0.002 * before:
            break
    passed = 0.0
    k = first
    while passed + counts[k] < 0.5 * total:
        passed += counts[k]
        k += 1
    return mean, k - 1 + (0.5 * total - passed) / max(1, counts[k]), sigma


@njit(cache=True)
def _measure(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    level: NDArray[np.float32],
    rms: NDArray[np.float32],
) -> None:
    """Measure all meshes, NaN for those with too few usable pixels.

    The pixels are counted row by row, for all meshes of a row side by side: mesh by mesh the
    processor would wait for every piece of every row.
    """
    ny, nx = image.shape
    my, mx = level.shape
    pixels = np.empty(_SAMPLE, dtype=np.float32)
    counts = np.empty((mx, _BINS + 2), dtype=np.int32)
    low, width = np.empty(mx, dtype=np.float32), np.empty(mx, dtype=np.float32)
    # the same for each column
    lows, inverse_widths = np.empty(nx, dtype=np.float32), np.empty(nx, dtype=np.float32)
    first, bins = np.empty(nx, dtype=np.int32), np.empty(nx, dtype=np.int32)
    for j in range(my):
        y0 = -((-j * ny) // my)
        y1 = -((-(j + 1) * ny) // my)
        for i in range(mx):
            x0, x1 = -((-i * nx) // mx), -((-(i + 1) * nx) // mx)
            low[i], width[i] = _range(image, mask, (x0, x1, y0, y1), pixels)
            lows[x0:x1] = low[i]
            inverse_widths[x0:x1] = np.float32(1.0) / width[i]
            first[x0:x1] = i * (_BINS + 2)
        counts[:] = 0
        row_step = 2 if (y1 - y0) * (nx // mx) >= 2048 else 1
        for y in range(y0, y1, row_step):
            _count(image[y], mask[y], lows, inverse_widths, first, bins, counts.reshape(-1))
        for i in range(mx):
            level[j, i], rms[j, i] = _mode(counts[i], low[i], width[i])


@njit(cache=True)
def _mode(counts: NDArray[np.int32], low: np.float32, width: np.float32) -> tuple[float, float]:
    """Mode and sigma of a mesh, in units of the image."""
    if np.isnan(width):
        return np.nan, np.nan
    mean, median, sigma = _clip(counts, _BINS / 2.0, _BINS / 12.0)
    # In a crowded mesh the mode's formula overshoots; its median is safer (SExtractor).
    mode = 2.5 * median - 1.5 * mean if abs(mean - median) < 0.3 * sigma else median
    return low + mode * width, sigma * width


@njit(cache=True)
def _median_around(mesh: NDArray[np.float32], j: int, i: int, down: int, across: int) -> float:
    """Median of the measured meshes within so many rows and columns; NaN if there is none."""
    window = mesh[max(0, j - down) : j + down + 1, max(0, i - across) : i + across + 1].copy()
    values = window.ravel()
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size > 0 else np.nan


@njit(cache=True)
def _filter(mesh: NDArray[np.float32]) -> NDArray[np.float32]:
    """3 x 3 median of the measured meshes; where there is none, of a wider window."""
    my, mx = mesh.shape
    result = np.empty_like(mesh)
    for j in range(my):
        for i in range(mx):
            # At the border the window shrinks towards both sides alike (as SExtractor's does):
            # a one-sided one would lag behind a sloping sky.
            down = min(1, j, my - 1 - j)
            across = min(1, i, mx - 1 - i)
            value = _median_around(mesh, j, i, down, across)
            reach = 1
            while np.isnan(value):
                value = _median_around(mesh, j, i, reach, reach)
                reach *= 2
            result[j, i] = value
    return result


def measure_background(
    image: NDArray[np.float32], mask: NDArray[np.uint8], box: int = 64
) -> Background:
    """Measure the sky on a mesh.

    In meshes of 2048 pixels or more only every second row is counted; that
    raises the noise of a 64 x 64 mesh's level from 0.034 to 0.048 sky sigma before
    the median filter, and halves the time.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Sky and sources.
    mask : ndarray of uint8, shape (ny, nx)
        Pixels with any bit are left out.
    box : int
        Wanted side of a mesh, pixels. A frame smaller than that is one mesh.

    Returns
    -------
    Background

    Raises
    ------
    ConfigError
        If `box` is not positive.
    PixelError
        If image and mask have different shapes, or no pixel.
    """
    if box < 1:
        raise ConfigError(f"background box {box} is not positive: take 64 pixels or so")
    if image.shape != mask.shape or image.ndim != 2 or image.size == 0:
        raise PixelError(
            f"image {image.shape} and mask {mask.shape} must have one shape of at least one pixel"
        )
    ny, nx = image.shape
    meshes = (max(1, round(ny / box)), max(1, round(nx / box)))
    level = np.empty(meshes, dtype=np.float32)
    rms = np.empty(meshes, dtype=np.float32)
    _measure(np.ascontiguousarray(image, dtype=np.float32), mask, level, rms)
    if not np.isfinite(rms).any():
        return Background(np.zeros_like(level), np.full_like(rms, np.inf), rms, box, (ny, nx))
    return Background(_filter(level), _filter(rms), rms, box, (ny, nx))


def mark_silent(mask: NDArray[np.uint8], background: Background, read_noise: float) -> float:
    """Mark meshes as DEAD whose noise is less than a working amplifier's own.

    Parameters
    ----------
    mask : ndarray of uint8, shape `background.shape`
        Changed in place.
    background : Background
    read_noise : float
        Units of the image.

    Returns
    -------
    float
        Fraction of the meshes that were marked.
    """
    silent = background.raw_rms < SILENT * read_noise
    if silent.any():
        ny, nx = background.shape
        my, mx = silent.shape
        rows = np.arange(ny) * my // ny
        columns = np.arange(nx) * mx // nx
        mask[silent[np.ix_(rows, columns)]] |= _DEAD
    return float(silent.mean())


def _centres(n: int, length: int) -> NDArray[np.float64]:
    """Middle pixel of each of `n` meshes over `length` pixels."""
    return (np.arange(n) + 0.5) * length / n - 0.5


@njit(cache=True)
def _subtract_rows(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    cubics: NDArray[np.float64],
    rows: NDArray[np.float64],
    knots: NDArray[np.int64],
    starts: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Subtract a bicubic surface; where the mask says DEAD the output is zero.

    The coefficients are (power down, segment down, segment across, power across), powers from
    3 to 0; `rows` and `starts` are where the segments begin, `knots` the columns that part them.
    """
    ny, nx = image.shape
    across = np.empty(cubics.shape[2:], np.float32)
    offset = np.empty(nx, np.float32)
    for s in range(starts.size):
        for x in range(knots[s], knots[s + 1]):
            offset[x] = np.float32(x) - np.float32(starts[s])
    j = 0
    for y in range(ny):
        while j + 1 < rows.size and y >= rows[j + 1]:
            j += 1
        _cubics_of_row(cubics, j, y - rows[j], across)
        for s in range(starts.size):
            c3, c2, c1, c0 = across[s, 0], across[s, 1], across[s, 2], across[s, 3]
            pixels = image[y, knots[s] : knots[s + 1]]
            result = out[y, knots[s] : knots[s + 1]]
            along = offset[knots[s] : knots[s + 1]]
            for x in range(pixels.size):
                t = along[x]
                result[x] = pixels[x] - (((c3 * t + c2) * t + c1) * t + c0)
        _blank_dead(mask[y if mask.shape[0] > 1 else 0], out[y])


@njit(cache=True)
def _cubics_of_row(
    cubics: NDArray[np.float64], j: int, t: float, across: NDArray[np.float32]
) -> None:
    """Coefficients along one row, `t` rows into segment `j`."""
    for s in range(across.shape[0]):
        for p in range(4):
            value = cubics[0, j, s, p]
            for power in range(1, 4):
                value = value * t + cubics[power, j, s, p]
            across[s, p] = value


@njit(cache=True)
def _blank_dead(bits: NDArray[np.uint8], row: NDArray[np.float32]) -> None:
    """Set DEAD pixels to zero."""
    seen = np.uint8(0)
    for x in range(bits.size):
        seen |= bits[x]
    if seen & _DEAD:
        for x in range(bits.size):
            if bits[x] & _DEAD:
                row[x] = np.float32(0.0)


def _bicubic(
    background: Background,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Coefficients, rows, knots and starts as `_subtract_rows` takes them."""
    ny, nx = background.shape
    my, mx = background.level.shape
    level = background.level.astype(np.float64)
    centres, rows = _centres(mx, nx), _centres(my, ny)
    if mx > 1:
        across = CubicSpline(centres, level, axis=1, bc_type="natural").c.transpose(2, 1, 0)
    else:
        across = np.zeros((my, 1, 4))
        across[:, :, 3] = level
    # A spline is linear in its values: the one down the columns may run on the coefficients.
    if my > 1:
        cubics = CubicSpline(rows, across, axis=0, bc_type="natural").c
    else:
        cubics = np.zeros((4, *across.shape))
        cubics[3] = across
    knots = np.concatenate(([0], np.ceil(centres[1:-1]), [nx])).astype(np.int64)
    segments = max(1, my - 1), max(1, mx - 1)
    return np.ascontiguousarray(cubics), rows[: segments[0]], knots, centres[: segments[1]]


def subtract(
    image: NDArray[np.float32],
    background: Background,
    out: NDArray[np.float32] | None = None,
    mask: NDArray[np.uint8] | None = None,
) -> NDArray[np.float32]:
    """Subtract the sky, by a bicubic spline through the centres of the meshes.

    Parameters
    ----------
    image : ndarray of float32, shape `background.shape`
    background : Background
    out : ndarray of float32, shape `background.shape`, optional
        Where to write; may be `image` itself.
    mask : ndarray of uint8, shape `background.shape`, optional
        Its DEAD pixels are set to 0, so that no edge is left around them.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        `out`, or a new array.

    Raises
    ------
    PixelError
        If a shape is another than the background's.
    """
    out = np.empty(image.shape, dtype=np.float32) if out is None else out
    if not image.shape == out.shape == background.shape:
        raise PixelError(
            f"image {image.shape} and output {out.shape} must have the shape of the frame "
            f"whose background was measured, {background.shape}"
        )
    nothing = np.zeros((1, image.shape[1]), np.uint8)
    _subtract_rows(image, nothing if mask is None else mask, *_bicubic(background), out)
    return out
