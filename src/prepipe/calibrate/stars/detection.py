"""Where the sources are: significant local maxima of the smoothed image.

No segmentation map is made. A local maximum counts unless a brighter one nearby
explains it: it lies inside that one's halo, and the smoothed image between the
two has no significant dip. A star and its bleed trail, connected saturated pixels,
are one source. This needs a few milliseconds a CCD, and splits
blends at least as well as a tree of thresholds does for stars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.matched_filter import UNKNOWN, check_frame, check_fwhm, matched_filter
from prepipe.calibrate.stars.neighbours import CELL, HALO_BETA, cells_of_peaks, moffat_core
from prepipe.errors import ConfigError

__all__ = ["Peaks", "detect", "matched_filter"]

_SATURATED = np.uint8(Mask.SATURATED)
_WORD = 8
"""Flags that are looked at in one go."""

_SADDLE_SIGMA = 3.0
_SADDLE_CONTRAST = 0.002
_SMOOTHED_WIDTH = 1.2
_SMALLEST_HALO = 3.0
_LARGEST_HALO = 90.0


@dataclass(frozen=True, eq=False)
class Peaks:
    """Detected maxima, in reading order (by row, then column).

    Parameters
    ----------
    y, x : (n,) int32 ndarray
        Row and column.
    height : (n,) float32 ndarray
        Value of the smoothed image there, e-.
    """

    y: NDArray[np.int32]
    x: NDArray[np.int32]
    height: NDArray[np.float32]

    def __len__(self) -> int:
        return self.y.size


def detect(
    filtered: NDArray[np.float32],
    rms: float | NDArray[np.float32],
    mask: NDArray[np.uint8],
    *,
    fwhm_px: float,
    noise_gain: float,
    snr: float = 5.0,
    box: int | None = None,
    limit: int = 100_000,
) -> Peaks:
    """Find the maxima of a smoothed image that stand out of the noise.

    Parameters
    ----------
    filtered : (ny, nx) float32 ndarray
        Smoothed image of `matched_filter`, e-. Non-finite pixels are never detected.
    rms : float or (my, mx) float32 ndarray
        Noise of a pixel of the image before smoothing, e-: one number, or the
        background mesh, whose element [j, i] holds for the pixels
        ``[j * box : (j + 1) * box, i * box : (i + 1) * box]``. Nothing is detected
        where it is not a positive number.
    mask : (ny, nx) uint8 ndarray
        `Mask` bits of each pixel. BAD, DEAD and CORRUPT pixels are never
        detected; they do not hide a maximum beside them either.
    fwhm_px : float
        FWHM of a star in the image before smoothing, pixels.
    noise_gain : float
        As returned by `matched_filter`.
    snr : float
        Threshold in units of the noise of the smoothed image. With s = FWHM / 2.355,
        pure noise has ``snr * exp(-snr**2 / 2) / ((2 * pi)**1.5 * 2 * s**2)`` maxima
        above it per pixel (Adler 1981, The Geometry of Random Fields): at 5 sigma
        about two on a CCD of 2048 x 4096 pixels.
    box : int, optional
        Pixels per element of the mesh along each axis; needed with a mesh.
    limit : int
        Of more maxima than this only the brightest are kept.

    Returns
    -------
    Peaks

    Raises
    ------
    ConfigError
        If `fwhm_px`, `snr` or `noise_gain` is not positive, `limit` is negative,
        or a mesh comes without `box`.
    PixelError
        If `filtered` is not two-dimensional or `mask` has another shape.
    """
    filtered, mask = check_frame(filtered, mask)
    check_fwhm(fwhm_px)
    if not (snr > 0.0 and noise_gain > 0.0 and limit >= 0):
        raise ConfigError(
            f"Detection at {snr} sigma, noise gain {noise_gain}, at most {limit} peaks makes no "
            "sense: give positive numbers."
        )
    mesh, side = _as_mesh(rms, box, filtered.shape)
    threshold = np.where(mesh > 0.0, snr * noise_gain * mesh, np.inf).astype(np.float32)
    peaks = _brightest(_all_maxima(filtered, threshold, side, mask), limit)
    if not len(peaks):
        return peaks
    typical = float(np.median(mesh[mesh > 0.0]))
    order = np.argsort(-peaks.height, kind="stable").astype(np.int32)
    grid = (filtered.shape[0] // CELL + 1, filtered.shape[1] // CELL + 1)
    kept = _prune(
        filtered,
        mask,
        (peaks.y, peaks.x, peaks.height),
        order,
        (*cells_of_peaks(peaks.y, peaks.x, *grid), *grid),
        np.float32(snr * noise_gain * typical),
        np.float32(typical * typical),
        np.float32(_SADDLE_SIGMA * noise_gain),
        moffat_core(_SMOOTHED_WIDTH * fwhm_px),
    )
    if np.any(mask[peaks.y[kept], peaks.x[kept]] & _SATURATED):
        reached = np.zeros(mask.shape, np.bool_)
        _keep_highest_of_saturated(mask, peaks.y, peaks.x, order, reached, kept)
    return _take(peaks, np.flatnonzero(kept))


def _as_mesh(
    rms: float | NDArray[np.float32], box: int | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], int]:
    """Noise as a mesh, and the side of its elements."""
    mesh = np.atleast_2d(np.asarray(rms, np.float32))
    if mesh.size == 1:
        return mesh, max(1, *shape)
    if box is None or box < 1:
        raise ConfigError("A mesh of the noise needs the side of its boxes in pixels: give `box`.")
    return mesh, box


def _all_maxima(
    filtered: NDArray[np.float32],
    threshold: NDArray[np.float32],
    side: int,
    mask: NDArray[np.uint8],
) -> Peaks:
    """Every maximum above the threshold, in reading order."""
    capacity = 16384
    while True:
        y = np.empty(capacity, np.int32)
        x = np.empty(capacity, np.int32)
        found = _local_maxima(filtered, threshold, side, mask, np.uint8(UNKNOWN), y, x)
        if found <= capacity:
            y, x = y[:found], x[:found]
            return Peaks(y, x, filtered[y, x])
        capacity = found


def _take(peaks: Peaks, index: NDArray[np.intp]) -> Peaks:
    """Some of the peaks."""
    return Peaks(peaks.y[index], peaks.x[index], peaks.height[index])


def _brightest(peaks: Peaks, limit: int) -> Peaks:
    """The highest `limit` peaks, still in reading order."""
    if len(peaks) <= limit:
        return peaks
    order = np.argsort(-peaks.height, kind="stable")
    return _take(peaks, np.sort(order[:limit]))


@njit(cache=True)
def _local_maxima(
    filtered: NDArray[np.float32],
    threshold: NDArray[np.float32],
    side: int,
    mask: NDArray[np.uint8],
    unknown: np.uint8,
    y_found: NDArray[np.int32],
    x_found: NDArray[np.int32],
) -> int:
    """Number of maxima; as many as there is room for are written down."""
    ny, nx = filtered.shape
    if ny < 3 or nx < 3:
        return 0
    known = np.empty((3, nx), np.float32)
    limit = np.empty(nx, np.float32)
    # of the pixels from the second to the last but one, filled up to whole words
    flags = np.zeros(-(-(nx - 2) // _WORD) * _WORD, np.uint8)
    words = flags.view(np.uint64)
    found = 0
    mesh_row = -1
    for y in range(2):
        _hide_unknown(filtered[y], mask[y], unknown, known[y])
    for y in range(1, ny - 1):
        _hide_unknown(filtered[y + 1], mask[y + 1], unknown, known[(y + 1) % 3])
        if min(y // side, threshold.shape[0] - 1) != mesh_row:
            mesh_row = min(y // side, threshold.shape[0] - 1)
            for x in range(nx):
                limit[x] = threshold[mesh_row, min(x // side, threshold.shape[1] - 1)]
        above, here, below = known[(y - 1) % 3], known[y % 3], known[(y + 1) % 3]
        if not _flag_maxima(above, here, below, limit, flags[: nx - 2]):
            continue
        for word in range(words.size):
            if words[word] == 0:
                continue
            for k in range(_WORD * word, _WORD * word + _WORD):
                if flags[k]:
                    if found < y_found.size:
                        y_found[found] = y
                        x_found[found] = k + 1
                    found += 1
    return found


@njit(cache=True)
def _hide_unknown(
    pixels: NDArray[np.float32],
    mask: NDArray[np.uint8],
    unknown: np.uint8,
    out: NDArray[np.float32],
) -> None:
    """Copy a row, with minus infinity for what is masked or NaN."""
    lowest = np.float32(-np.inf)
    for x in range(pixels.size):
        value = pixels[x] if pixels[x] < np.float32(np.inf) else lowest
        out[x] = lowest if mask[x] & unknown else value


@njit(cache=True)
def _flag_maxima(
    above: NDArray[np.float32],
    here: NDArray[np.float32],
    below: NDArray[np.float32],
    limit: NDArray[np.float32],
    flags: NDArray[np.uint8],
) -> bool:
    """Flag the pixels that top their limit and neighbours; of equal ones the last in reading order.

    There is no branch, and every array starts at zero, so that this becomes vector code.
    """
    last = here.size - 1
    north_west, north, north_east = above[: last - 1], above[1:last], above[2:]
    west, centre, east = here[: last - 1], here[1:last], here[2:]
    south_west, south, south_east = below[: last - 1], below[1:last], below[2:]
    least = limit[1:last]
    hits = np.uint8(0)
    for k in range(last - 1):
        before = max(north_west[k], north[k], north_east[k], west[k])
        after = max(south_west[k], south[k], south_east[k], east[k])
        highest = np.uint8(centre[k] > max(after, least[k])) & np.uint8(centre[k] >= before)
        flags[k] = highest
        hits |= highest
    return bool(hits != 0)


@njit(cache=True)
def _prune(
    filtered: NDArray[np.float32],
    mask: NDArray[np.uint8],
    peaks: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]],
    order: NDArray[np.int32],
    cells: tuple[NDArray[np.int32], NDArray[np.int32], int, int],
    threshold: np.float32,
    sky_variance: np.float32,
    significance: np.float32,
    core: float,
) -> NDArray[np.bool_]:
    """From the brightest down, let each surviving peak remove those it explains."""
    y, x, height = peaks
    first, members, rows, columns = cells
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size).astype(np.int32)
    kept = np.ones(order.size, np.bool_)
    for q in order:
        if not kept[q]:
            continue
        halo = _halo_radius(height[q] / threshold, core)
        reach = int(halo) + 1
        for row in range(max(0, y[q] - reach) // CELL, min(rows - 1, (y[q] + reach) // CELL) + 1):
            left = max(0, x[q] - reach) // CELL
            right = min(columns - 1, (x[q] + reach) // CELL)
            for k in range(first[row * columns + left], first[row * columns + right + 1]):
                p = members[k]
                if not kept[p] or rank[p] <= rank[q]:
                    continue
                if (y[p] - y[q]) ** 2 + (x[p] - x[q]) ** 2 > halo * halo:
                    continue
                dip = height[p] - _lowest_between(filtered, mask, y[p], x[p], y[q], x[q])
                noise = significance * np.sqrt(sky_variance + max(height[p], np.float32(0)))
                kept[p] = dip >= noise and dip >= np.float32(_SADDLE_CONTRAST) * height[q]
    return kept


@njit(cache=True)
def _keep_highest_of_saturated(
    mask: NDArray[np.uint8],
    y: NDArray[np.int32],
    x: NDArray[np.int32],
    order: NDArray[np.int32],
    reached: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> None:
    """Of the peaks on connected saturated pixels (a star and its bleed trail) keep the highest.

    `reached` is a plane of False, to be marked.
    """
    ny, nx = mask.shape
    for p in order:
        if not (kept[p] and mask[y[p], x[p]] & _SATURATED):
            continue
        if reached[y[p], x[p]]:
            kept[p] = False
            continue
        reached[y[p], x[p]] = True
        border = [(int(y[p]), int(x[p]))]
        while border:
            row, column = border.pop()
            for j in range(max(0, row - 1), min(ny, row + 2)):
                for i in range(max(0, column - 1), min(nx, column + 2)):
                    if mask[j, i] & _SATURATED and not reached[j, i]:
                        reached[j, i] = True
                        border.append((j, i))


@njit(cache=True)
def _halo_radius(contrast: float, core: float) -> float:
    """Distance at which a star's wing sinks below the threshold it exceeds by `contrast`."""
    wing = max(contrast ** (1.0 / HALO_BETA) - 1.0, 0.0)
    return float(min(max(core * np.sqrt(wing) + 2.0, _SMALLEST_HALO), _LARGEST_HALO))


@njit(cache=True)
def _lowest_between(
    filtered: NDArray[np.float32],
    mask: NDArray[np.uint8],
    y0: int,
    x0: int,
    y1: int,
    x1: int,
) -> float:
    """Lowest value on the straight line between two pixels, where it is not saturated."""
    steps = max(abs(y1 - y0), abs(x1 - x0))
    lowest = filtered[y0, x0]
    for k in range(1, steps):
        # Round to the nearest pixel with integers: the line must be the same on every machine.
        y = y0 + ((y1 - y0) * k * 2 + steps) // (2 * steps)
        x = x0 + ((x1 - x0) * k * 2 + steps) // (2 * steps)
        if not mask[y, x] & _SATURATED and filtered[y, x] < lowest:
            lowest = filtered[y, x]
    return float(lowest)
