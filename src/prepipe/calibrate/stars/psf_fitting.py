"""The arithmetic of fitting all stars of a CCD at once.

Compiled kernels, called by `prepipe.calibrate.stars.psf_photometry`. Those that call each other
stand in this one file because a compiled kernel is only rebuilt when its own file changes.

The normal equations of all fluxes are sparse: a star overlaps a few others. They are
solved by Gauss-Seidel iteration: star by star, the brightest first, each is fitted to what
the models of all others leave of the image, and its own model replaced at once.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from prepipe.calibrate.stars.neighbours import CELL
from prepipe.calibrate.stars.psf_model import MARGIN, OVERSAMPLING

__all__ = ["BAND", "appraise", "subtract_stars", "sweep"]

Image = NDArray[np.float32]
Line = NDArray[np.float32]
Mask = NDArray[np.uint8]
Floats = NDArray[np.float64]
Profile = tuple[Image, Line, float, int]
Stars = tuple[Floats, Floats, Floats, NDArray[np.int32], Floats, NDArray[np.bool_]]
Frame = tuple[Image, Image, Mask, np.uint8, float]
Buffers = tuple[Line, Line, Line, Line, Line, Line]
Cells = tuple[NDArray[np.int32], NDArray[np.int32], int, int]

BAND = 32
"""Rows whose stars are worked on together, from left to right: their pixels stay in the cache."""

# Sums may be reordered, so that they become vector code; NaN keeps its meaning.
_SUMS = {"reassoc", "contract", "nsz", "arcp"}

_LONGEST_STEP = 0.4
_LEAST_SEEN = 0.15
_SEEN_TO_MOVE = 0.7
_NEGLIGIBLE = 0.02
_PROFILE_ERROR = 0.01
_MOST_SHARED = 0.95
_CACHE_LINE = 16


@njit(cache=True)
def subtract_stars(left: Image, profile: Profile, stars: Stars, order: NDArray[np.int64]) -> None:
    """Take all stars out of an image.

    Parameters
    ----------
    left : (ny, nx) float32 ndarray
        e-; changed.
    profile : tuple
        `PsfModel.spline`, `wing`, `wing_step` and `reach`.
    stars : tuple
        x, y (pixels), flux (e-), half side of the square a star is subtracted in (int32), radius
        within which it is fitted (pixels) and whether it may move (bool), each of n elements.
    order : (k,) int64 ndarray
        Which star comes when; it is fastest if they are in bands of `BAND` rows.
    """
    x, y, flux, half, _, _ = stars
    buffers = _buffers(profile)
    fetched = 0 if _many(order, left) else left.shape[0]
    for s in order:
        fetched = _fetch(left, fetched, y[s], profile[3], buffers)
        _mix(left.shape, profile, x[s], y[s], half[s], buffers)
        _subtract(left, profile, flux[s], x[s], y[s], half[s], buffers)


@njit(cache=True)
def sweep(
    frame: Frame,
    profile: Profile,
    stars: Stars,
    start: tuple[Floats, Floats],
    order: NDArray[np.int64],
    farthest: float,
) -> None:
    """Fit every star once to what the others leave.

    Parameters
    ----------
    frame : tuple
        The image and what is left of it without sky and stars, (ny, nx) float32, e-, of which the
        second is changed; the mask, uint8, and its bits of pixels that are left out; the
        variance of an empty pixel, e-^2.
    profile, stars : tuple
        As in `subtract_stars`; x, y and flux are changed.
    start : tuple of (n,) float64 ndarray
        x and y that a star may leave by `farthest`.
    order : (k,) int64 ndarray
        As in `subtract_stars`; stars that are not in it stay as they are.
    farthest : float
        Pixels.
    """
    x, y, flux, half, radius, movable = stars
    shape = frame[0].shape
    buffers = _buffers(profile)
    sums = np.empty(11)
    least = _NEGLIGIBLE * np.sqrt(frame[4])
    fetched = 0 if _many(order, frame[0]) else shape[0]
    for s in order:
        _fetch(frame[0], fetched, y[s], profile[3], buffers)
        fetched = _fetch(frame[1], fetched, y[s], profile[3], buffers)
        _mix(shape, profile, x[s], y[s], max(half[s], int(radius[s] + 1.0)), buffers)
        seen, whole = _normal_equations(frame, profile, x[s], y[s], radius[s], buffers, sums)
        if seen < _LEAST_SEEN * whole or sums[0] <= 0.0:
            continue
        change, dx, dy = sums[6] / sums[0], 0.0, 0.0
        if movable[s] and flux[s] > 0.0 and seen > _SEEN_TO_MOVE * whole:
            change, dx, dy = _solve(sums, flux[s])
            dx = min(max(x[s] + dx, start[0][s] - farthest), start[0][s] + farthest) - x[s]
            dy = min(max(y[s] + dy, start[1][s] - farthest), start[1][s] + farthest) - y[s]
        moved = max(abs(dx), abs(dy)) * abs(flux[s] + change)
        reach = min(half[s], _radius_of(profile, abs(change) + moved, least))
        if moved * profile[1][0] < least:
            _subtract(frame[1], profile, change, x[s], y[s], reach, buffers)
            flux[s] += change
            continue
        _subtract(frame[1], profile, -flux[s], x[s], y[s], reach, buffers)
        x[s] += dx
        y[s] += dy
        flux[s] += change
        _subtract(frame[1], profile, flux[s], x[s], y[s], reach, buffers)


@njit(cache=True)
def appraise(
    frame: Frame,
    profile: Profile,
    stars: Stars,
    order: NDArray[np.int64],
    cells: Cells,
    error: Floats,
    chi2: Floats,
    seen: Floats,
) -> None:
    """Tell how well each star is known and how well it fits.

    Parameters
    ----------
    frame, profile, stars : tuple
        As in `sweep`; the flux takes its last step, the same for all of them at once, which
        also brings in what was learned of the sky since.
    order : (k,) int64 ndarray
        All stars.
    cells : tuple
        The two arrays of `cells_of_peaks`, and the number of cells along y and x.
    error : (n,) float64 ndarray
        Written: standard error of the flux with all neighbours fitted too, e-.
    chi2 : (n,) float64 ndarray
        Written: squared residuals over their variance, per degree of freedom.
    seen : (n,) float64 ndarray
        Written: part of the light within the radius of the fit that could be seen.
    """
    x, y, flux, _, radius, movable = stars
    buffers, others = _buffers(profile), _buffers(profile)
    sums = np.empty(11)
    information = np.zeros(x.size)
    fetched = 0 if _many(order, frame[0]) else frame[0].shape[0]
    for s in order:
        _fetch(frame[0], fetched, y[s], profile[3], buffers)
        fetched = _fetch(frame[1], fetched, y[s], profile[3], buffers)
        _mix(frame[0].shape, profile, x[s], y[s], int(radius[s] + 1.0), buffers)
        here, whole = _normal_equations(frame, profile, x[s], y[s], radius[s], buffers, sums)
        free = sums[10] - (3.0 if movable[s] else 1.0)
        information[s] = sums[0]
        chi2[s] = sums[9] / free if free > 0.0 else np.nan
        seen[s] = here / whole if whole > 0.0 else 0.0
        error[s] = np.sqrt(_own_variance(sums, movable[s]))
        if here >= _LEAST_SEEN * whole and sums[0] > 0.0:
            flux[s] += sums[6] / sums[0]
    for s in order:
        if information[s] > 0.0:
            shared = _shared(frame, profile, stars, cells, s, information, buffers, others)
            error[s] /= np.sqrt(1.0 - min(shared, _MOST_SHARED))


@njit(cache=True)
def _many(order: NDArray[np.int64], image: Image) -> bool:
    """Whether there are stars enough that to fetch all rows costs less than it saves."""
    return bool(2 * order.size > image.shape[0])


@njit(cache=True)
def _fetch(image: Image, fetched: int, y: float, reach: int, buffers: Buffers) -> int:
    """Read the rows of a star's band if they have not been yet; how many rows have been.

    A star picks a few pixels from each of many rows, and would wait for each of them. Read in
    their order, the processor has them in its cache by the time they are asked for.
    """
    until = min(image.shape[0], (max(int(y), 0) // BAND + 1) * BAND + reach)
    if until <= fetched:
        return fetched
    total = np.float32(0)
    for j in range(fetched, until):
        row = image[j]
        for i in range(0, row.size, _CACHE_LINE):
            total += row[i]
    # Written where it means nothing, lest the compiler finds that nobody wants it.
    buffers[0][0] = total
    return int(until)


@njit(cache=True)
def _buffers(profile: Profile) -> Buffers:
    """Room for the core of a star, its slopes, the mixed spline and its interpolations along x."""
    size = profile[0].shape[3]
    plane, planes = size * size, OVERSAMPLING * size * size
    return (
        np.empty(plane, np.float32),
        np.empty(plane, np.float32),
        np.empty(plane, np.float32),
        np.empty(OVERSAMPLING * planes, np.float32),
        np.empty(planes, np.float32),
        np.empty(planes, np.float32),
    )


@njit(cache=True, fastmath=_SUMS)
def _mix(
    shape: tuple[int, int], profile: Profile, x: float, y: float, half: int, buffers: Buffers
) -> None:
    """The spline's coefficients at one place of the CCD, for the rows within `half`."""
    size = profile[0].shape[3]
    flat = profile[0].reshape(3, -1)
    u = np.float32(2.0 * x / max(shape[1] - 1, 1) - 1.0)
    v = np.float32(2.0 * y / max(shape[0] - 1, 1) - 1.0)
    inner = min(half, profile[3])
    length = (2 * inner + 4) * size
    for block in range(OVERSAMPLING * OVERSAMPLING):
        begin = (block * size + profile[3] + MARGIN - inner - 1) * size
        middle, to_right = flat[0, begin : begin + length], flat[1, begin : begin + length]
        to_top, out = flat[2, begin : begin + length], buffers[3][begin : begin + length]
        for k in range(length):
            out[k] = middle[k] + u * to_right[k] + v * to_top[k]


@njit(cache=True)
def _taps(offset: float) -> tuple[int, Image]:
    """First of the four nodes that a pixel depends on; their weights, and the weights' slopes."""
    at = -OVERSAMPLING * offset
    base = int(np.floor(at))
    f = at - base
    g = 1.0 - f
    taps = np.empty((2, 4), np.float32)
    taps[0, 0], taps[0, 3] = g**3 / 6.0, f**3 / 6.0
    taps[0, 1], taps[0, 2] = (
        2.0 / 3.0 - f * f * (1.0 - 0.5 * f),
        2.0 / 3.0 - g * g * (1.0 - 0.5 * g),
    )
    # A star that moves to the right moves its nodes to the right.
    slope = 0.5 * OVERSAMPLING
    taps[1, 0], taps[1, 3] = slope * g * g, -slope * f * f
    taps[1, 1], taps[1, 2] = slope * f * (4.0 - 3.0 * f), slope * g * (3.0 * g - 4.0)
    return base - 1, taps


@njit(cache=True, fastmath=_SUMS)
def _blend(weights: Line, a: Line, b: Line, c: Line, d: Line, out: Line) -> None:
    """Weighted sum of four lines."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for i in range(out.size):
        out[i] = w0 * a[i] + w1 * b[i] + w2 * c[i] + w3 * d[i]


@njit(cache=True)
def _interpolate(
    profile: Profile, dx: float, dy: float, half: int, sloped: bool, buffers: Buffers
) -> None:
    """The core of a star that lies (dx, dy) off the middle of a pixel, and its slopes.

    Row j, from -half to half, stands at ``(j + half) * size``, and in it column i at
    ``i + middle``; the first and last few columns mean nothing. In this layout a whole plane is
    one long line.
    """
    core, slope_x, slope_y, mixed, along, along_slope = buffers
    size = profile[0].shape[3]
    middle = profile[3] + MARGIN
    length = (2 * half + 4) * size
    first, taps = _taps(dx)
    for p in range(OVERSAMPLING):
        at = np.empty(4, np.int64)
        for k in range(4):
            phase = (first + k) % OVERSAMPLING
            at[k] = ((p * OVERSAMPLING + phase) * size + middle - half - 1) * size
            at[k] += (first + k - phase) // OVERSAMPLING
        a, b = mixed[at[0] : at[0] + length], mixed[at[1] : at[1] + length]
        c, d = mixed[at[2] : at[2] + length], mixed[at[3] : at[3] + length]
        _blend(taps[0], a, b, c, d, along[p * length : (p + 1) * length])
        if sloped:
            _blend(taps[1], a, b, c, d, along_slope[p * length : (p + 1) * length])
    first, taps = _taps(dy)
    at = np.empty(4, np.int64)
    for k in range(4):
        phase = (first + k) % OVERSAMPLING
        at[k] = phase * length + (1 + (first + k - phase) // OVERSAMPLING) * size
    length = (2 * half + 1) * size
    a, b = along[at[0] : at[0] + length], along[at[1] : at[1] + length]
    c, d = along[at[2] : at[2] + length], along[at[3] : at[3] + length]
    _blend(taps[0], a, b, c, d, core[:length])
    if sloped:
        _blend(taps[1], a, b, c, d, slope_y[:length])
        a, b = along_slope[at[0] : at[0] + length], along_slope[at[1] : at[1] + length]
        c, d = along_slope[at[2] : at[2] + length], along_slope[at[3] : at[3] + length]
        _blend(taps[0], a, b, c, d, slope_x[:length])


@njit(cache=True)
def _radius_of(profile: Profile, flux: float, faintest: float) -> int:
    """Where a star falls below `faintest`, pixels; no less than 2."""
    wing = profile[1]
    low, high = 0, wing.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if flux * wing[middle] > faintest:
            low = middle
        else:
            high = middle
    return max(2, int(np.sqrt(high * profile[2])) + 1)


@njit(cache=True)
def _subtract(
    left: Image,
    profile: Profile,
    flux: float,
    x: float,
    y: float,
    half: int,
    buffers: Buffers,
) -> None:
    """Take a star out of the image, wherever it reaches into it."""
    ny, nx = left.shape
    row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
    inner = min(half, profile[3])
    if not (-half <= row < ny + half and -half <= column < nx + half):
        return
    _interpolate(profile, x - column, y - row, inner, False, buffers)
    first, last = max(0, column - half), min(nx, column + half + 1)
    begin = min(max(0, column - inner), last)
    end = max(min(nx, column + inner + 1), first)
    pixels, core = left.reshape(-1), buffers[0]
    begin_core = begin - column + profile[3] + MARGIN
    light = np.float32(flux)
    for j in range(max(0, row - half), min(ny, row + half + 1)):
        if abs(j - row) > inner:
            _subtract_wing(pixels, j * nx, first, last, profile, flux, x, j - y)
            continue
        if end > begin:
            at = (j - row + inner) * profile[0].shape[3] + begin_core
            line, star = pixels[j * nx + begin : j * nx + end], core[at : at + end - begin]
            for k in range(line.size):
                line[k] -= light * star[k]
        if half > inner:
            _subtract_wing(pixels, j * nx, first, begin, profile, flux, x, j - y)
            _subtract_wing(pixels, j * nx, end, last, profile, flux, x, j - y)


@njit(cache=True)
def _subtract_wing(
    pixels: Line,
    start: int,
    begin: int,
    end: int,
    profile: Profile,
    flux: float,
    x: float,
    dy: float,
) -> None:
    """Take the outskirts of a star out of a part of the row that starts at `start`."""
    if end <= begin:
        return
    wing, per_step = profile[1], np.float32(1.0 / profile[2])
    squared, light, dx = np.float32(dy * dy), np.float32(flux), np.float32(begin - x)
    line = pixels[start + begin : start + end]
    for k in range(line.size):
        away = dx + np.float32(k)
        at = (away * away + squared) * per_step
        node = np.int32(at)
        low = wing[node]
        line[k] -= light * (low + (at - np.float32(node)) * (wing[node + 1] - low))


@njit(cache=True, fastmath=_SUMS)
def _normal_equations(
    frame: Frame,
    profile: Profile,
    x: float,
    y: float,
    radius: float,
    buffers: Buffers,
    sums: Floats,
) -> tuple[float, float]:
    """Sums over the pixels near a star; the part of it there that is seen, and all of it there.

    The sums: the matrix of the profile and its two slopes (pp, px, py, xx, xy, yy), the right
    side (p, x, y), the squared residuals over their variance, and how many pixels there are.
    """
    image, left, mask, unfit, sky_variance = frame
    ny, nx = image.shape
    row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
    size, middle = profile[0].shape[3], profile[3] + MARGIN
    half = min(int(radius + 1.0), profile[3])
    _interpolate(profile, x - column, y - row, half, True, buffers)
    core, slope_x, slope_y = buffers[0], buffers[1], buffers[2]
    sky, error = np.float32(sky_variance), np.float32(_PROFILE_ERROR**2)
    pp, px, py, xx, xy, yy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    right, right_x, right_y = 0.0, 0.0, 0.0
    squares, count, seen, whole = 0.0, 0.0, 0.0, 0.0
    for j in range(-half, half + 1):
        width = radius * radius - (row + j - y) ** 2
        if width < 0.0:
            continue
        width = np.sqrt(width)
        inside = 0 <= row + j < ny
        for i in range(int(np.ceil(x - column - width)), int(np.floor(x - column + width)) + 1):
            k = (j + half) * size + i + middle
            p = core[k]
            whole += p
            if not (inside and 0 <= column + i < nx) or mask[row + j, column + i] & unfit:
                continue
            residual = left[row + j, column + i]
            if not np.isfinite(residual):
                continue
            light = max(image[row + j, column + i] - residual, np.float32(0))
            weight = np.float32(1.0) / (sky + light * (np.float32(1.0) + error * light))
            gx, gy = slope_x[k], slope_y[k]
            wp, wx, wy = weight * p, weight * gx, weight * gy
            seen += p
            pp += wp * p
            px += wp * gx
            py += wp * gy
            xx += wx * gx
            xy += wx * gy
            yy += wy * gy
            right += wp * residual
            right_x += wx * residual
            right_y += wy * residual
            squares += weight * residual * residual
            count += 1.0
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5] = pp, px, py, xx, xy, yy
    sums[6], sums[7], sums[8], sums[9], sums[10] = right, right_x, right_y, squares, count
    return seen, whole


@njit(cache=True)
def _solve(sums: Floats, flux: float) -> tuple[float, float, float]:
    """Change of the flux and of the position that fit best; no step is too long."""
    pp, px, py, xx, xy, yy = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    # The flux eliminated, two equations are left for the slopes.
    a, b, c = xx - px * px / pp, xy - px * py / pp, yy - py * py / pp
    right_x, right_y = sums[7] - px * sums[6] / pp, sums[8] - py * sums[6] / pp
    determinant = a * c - b * b
    if not determinant > 0.0:
        return sums[6] / pp, 0.0, 0.0
    by_x, by_y = (
        (c * right_x - b * right_y) / determinant,
        (a * right_y - b * right_x) / determinant,
    )
    longest = max(abs(by_x), abs(by_y)) / flux
    if longest > _LONGEST_STEP:
        by_x, by_y = by_x * _LONGEST_STEP / longest, by_y * _LONGEST_STEP / longest
    return (sums[6] - px * by_x - py * by_y) / pp, by_x / flux, by_y / flux


@njit(cache=True)
def _own_variance(sums: Floats, movable: bool) -> float:
    """Variance of the flux, with the position fitted or not."""
    pp, px, py, xx, xy, yy = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]
    determinant = xx * yy - xy * xy
    if movable and determinant > 0.0:
        pp -= (yy * px * px - 2.0 * xy * px * py + xx * py * py) / determinant
    return float(1.0 / pp) if pp > 0.0 else np.inf


@njit(cache=True)
def _shared(
    frame: Frame,
    profile: Profile,
    stars: Stars,
    cells: Cells,
    s: int,
    information: Floats,
    buffers: Buffers,
    others: Buffers,
) -> float:
    """Part of the information on a star's flux that is lost to its neighbours.

    The sum of the squared correlations with each of them: exact for a pair (the inverse of a
    matrix of two rows), close to it for more as long as they overlap little.
    """
    x, y, _, _, radius, _ = stars
    first, members, rows, columns = cells
    limit = 2.0 * radius[s]
    top, bottom = max(0, int(y[s] - limit)) // CELL, min(rows - 1, int(y[s] + limit) // CELL)
    left, right = max(0, int(x[s] - limit)) // CELL, min(columns - 1, int(x[s] + limit) // CELL)
    lost, drawn = 0.0, False
    for row in range(top, bottom + 1):
        for k in range(first[row * columns + left], first[row * columns + right + 1]):
            q = members[k]
            if q == s or not information[q] > 0.0 or np.hypot(x[q] - x[s], y[q] - y[s]) > limit:
                continue
            if not drawn:
                drawn = True
                _draw_core(frame, profile, x[s], y[s], buffers)
            _draw_core(frame, profile, x[q], y[q], others)
            overlap = _overlap(
                frame, profile, (x[s], y[s]), (x[q], y[q]), radius[s], buffers[0], others[0]
            )
            lost += overlap * overlap / (information[s] * information[q])
    return lost


@njit(cache=True)
def _draw_core(frame: Frame, profile: Profile, x: float, y: float, buffers: Buffers) -> None:
    """Fill in the whole core of a star."""
    _mix(frame[0].shape, profile, x, y, profile[3], buffers)
    _interpolate(profile, x - np.floor(x + 0.5), y - np.floor(y + 0.5), profile[3], False, buffers)


@njit(cache=True)
def _overlap(
    frame: Frame,
    profile: Profile,
    own: tuple[float, float],
    other: tuple[float, float],
    radius: float,
    core: Line,
    other_core: Line,
) -> float:
    """Weighted product of two stars, summed over the pixels that the first is fitted in."""
    image, left, mask, unfit, sky_variance = frame
    ny, nx = image.shape
    size, reach = profile[0].shape[3], profile[3]
    row, column = int(np.floor(own[1] + 0.5)), int(np.floor(own[0] + 0.5))
    other_row, other_column = int(np.floor(other[1] + 0.5)), int(np.floor(other[0] + 0.5))
    half = min(int(radius), reach)
    total = 0.0
    for j in range(
        max(0, row - half, other_row - reach), min(ny, row + half + 1, other_row + reach + 1)
    ):
        at, at_other = (j - row + reach) * size, (j - other_row + reach) * size
        for i in range(
            max(0, column - half, other_column - reach),
            min(nx, column + half + 1, other_column + reach + 1),
        ):
            if mask[j, i] & unfit or (j - own[1]) ** 2 + (i - own[0]) ** 2 > radius * radius:
                continue
            light = max(image[j, i] - left[j, i], np.float32(0))
            if not np.isfinite(light):
                continue
            p = core[at + i - column + reach + MARGIN]
            q = other_core[at_other + i - other_column + reach + MARGIN]
            total += p * q / (sky_variance + light * (1.0 + _PROFILE_ERROR**2 * light))
    return total
