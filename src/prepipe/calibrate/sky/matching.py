"""Which detection is which reference star: votes for an offset, and nearest neighbours.

Positions here are pixels of one frame; who projects the catalogue onto it is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import gammaln

__all__ = ["Vote", "log10_chance", "nearest_pairs", "vote_for_offset"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Vote:
    """The offset most pairs agree on.

    Parameters
    ----------
    dx, dy : float
        Added to the turned detection gives the reference star, pixels.
    rotation : float
        Turn of the detections about the centre, rad, counter-clockwise in (x, y).
    votes : int
        Pairs in the fullest window of 2 x 2 bins.
    runner_up : int
        Pairs in the fullest window away from that one, at the same rotation.
    expected : float
        Pairs in such a window by chance.
    log10_chance : float
        log10 of the number of windows this full expected by chance in the whole search.
    log10_runner_up : float
        The same for `runner_up`.
    """

    dx: float
    dy: float
    rotation: float
    votes: int
    runner_up: int
    expected: float
    log10_chance: float
    log10_runner_up: float


def log10_chance(count: int, expected: float) -> float:
    """log10 of the Poisson probability to find `count` or more where `expected` are.

    Above the mean it is the first term of the tail times the geometric bound of the
    others (e.g. Glynn 1987, Op. Res. Lett. 6, 9): never too small, and no underflow.
    """
    if count <= expected or count < 1:
        return 0.0
    if expected <= 0.0:
        return -math.inf
    first = count * math.log(expected) - expected - float(gammaln(count + 1))
    return min(0.0, (first - math.log1p(-expected / (count + 1))) / math.log(10.0))


def vote_for_offset(
    detections: tuple[Array, Array],
    references: tuple[Array, Array],
    centre: tuple[float, float],
    rotations: Array,
    radius: float,
    width: float,
    avoid: float = 0.0,
) -> Vote:
    """Find the offset and rotation that bring most detections onto reference stars.

    Every pair closer than `radius` puts its difference into a histogram, for each
    rotation in turn (the shift-clustering of Kaiser et al. 1999 and SCAMP).

    Parameters
    ----------
    detections, references : tuple of ndarray
        Columns and rows, pixels; a few hundred of the brightest.
    centre : tuple of float
        Centre of rotation, pixels.
    rotations : ndarray, shape (n,)
        To be tried, rad.
    radius : float
        Largest offset in each coordinate, pixels.
    width : float
        Of a bin, pixels.
    avoid : float
        Offsets smaller than this in both coordinates are not counted, pixels; with it
        a list can be held against itself.

    Returns
    -------
    Vote
    """
    bins = 2 * math.ceil(radius / width)
    histogram = np.zeros((bins, bins), np.int32)
    rising = np.argsort(references[1], kind="stable")
    references = references[0][rising], references[1][rising]
    best, pairs = np.full(4, -1, np.int64), 0
    for k, angle in enumerate(rotations):
        x, y = _turned(detections, centre, float(angle))
        counted = _count_offsets(x, y, *references, width, avoid, histogram)
        row, column, votes = _fullest(histogram, -9, -9)
        if votes > best[3]:
            best[:] = k, row, column, votes
            pairs = counted
    k, row, column, votes = (int(value) for value in best)
    if k < len(rotations) - 1:
        # of the last one the histogram is still there
        x, y = _turned(detections, centre, float(rotations[k]))
        _count_offsets(x, y, *references, width, avoid, histogram)
    runner_up = int(_fullest(histogram, row, column)[2])
    expected = 4.0 * pairs / bins**2
    # Windows overlap by half in each direction, so that a bin counts as one trial.
    trials = math.log10(bins**2 * len(rotations))
    return Vote(
        dx=(column + 1) * width - bins * width / 2,
        dy=(row + 1) * width - bins * width / 2,
        rotation=float(rotations[k]),
        votes=votes,
        runner_up=runner_up,
        expected=expected,
        log10_chance=log10_chance(votes, expected) + trials,
        log10_runner_up=log10_chance(runner_up, expected) + trials,
    )


def nearest_pairs(
    detections: tuple[Array, Array], references: tuple[Array, Array], radius: float
) -> tuple[Indices, Indices]:
    """Pair each detection with its nearest reference star, each star with one detection only.

    Of several detections that have the same nearest star, the nearest keeps it.

    Parameters
    ----------
    detections, references : tuple of ndarray
        Columns and rows, pixels; finite.
    radius : float
        Largest distance, pixels.

    Returns
    -------
    detection, reference : ndarray of int64, shape (n_pairs,)
        Indices, by rising detection.
    """
    x, y = references
    if x.size == 0 or detections[0].size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    origin = float(x.min()), float(y.min())
    extent = max(float(np.ptp(x)), float(np.ptp(y)), 1e-9)
    # About one star a cell, but no cell smaller than the radius: at most 9 cells a search.
    cell = max(radius, extent / math.sqrt(x.size), 1e-9)
    columns = int((x.max() - origin[0]) / cell) + 1
    rows = int((y.max() - origin[1]) / cell) + 1
    start, members = _fill_cells(x, y, *origin, cell, columns, rows)
    partner = _nearest(*detections, x, y, start, members, *origin, cell, columns, rows, radius)
    detection = np.flatnonzero(partner >= 0)
    return detection, partner[detection]


def _turned(
    stars: tuple[Array, Array], centre: tuple[float, float], angle: float
) -> tuple[Array, Array]:
    """Positions turned about the centre, counter-clockwise in (x, y)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    u, v = stars[0] - centre[0], stars[1] - centre[1]
    return centre[0] + cosine * u - sine * v, centre[1] + sine * u + cosine * v


@njit(cache=True)
def _count_offsets(
    x: Array,
    y: Array,
    reference_x: Array,
    reference_y: Array,
    width: float,
    avoid: float,
    histogram: NDArray[np.int32],
) -> int:
    """Histogram of the differences reference - detection; returns the pairs inside.

    Reference stars come by rising row, so that those of near rows are found at once.
    """
    bins = histogram.shape[0]
    half, per_pixel = 0.5 * bins * width, 1.0 / width
    histogram[:, :] = 0
    pairs = 0
    for i in range(x.size):
        for j in range(np.searchsorted(reference_y, y[i] - half), reference_y.size):
            dx, dy = reference_x[j] - x[i], reference_y[j] - y[i]
            if dy >= half:
                break
            if abs(dx) < half and abs(dy) < half and max(abs(dx), abs(dy)) >= avoid:
                histogram[int((dy + half) * per_pixel), int((dx + half) * per_pixel)] += 1
                pairs += 1
    return pairs


@njit(cache=True)
def _fullest(histogram: NDArray[np.int32], row: int, column: int) -> tuple[int, int, int]:
    """First row, column and sum of the fullest 2 x 2 window not near ``(row, column)``."""
    bins = histogram.shape[0]
    best_row, best_column, best = 0, 0, -1
    for j in range(bins - 1):
        for i in range(bins - 1):
            if abs(j - row) > 2 or abs(i - column) > 2:
                votes = histogram[j, i] + histogram[j, i + 1]
                votes += histogram[j + 1, i] + histogram[j + 1, i + 1]
                if votes > best:
                    best_row, best_column, best = j, i, votes
    return best_row, best_column, best


@njit(cache=True)
def _fill_cells(
    x: Array, y: Array, x0: float, y0: float, cell: float, columns: int, rows: int
) -> tuple[Indices, Indices]:
    """Sort stars into square cells: members of cell c are ``members[start[c]:start[c + 1]]``."""
    start = np.zeros(columns * rows + 1, np.int64)
    home = np.empty(x.size, np.int64)
    for k in range(x.size):
        home[k] = int((y[k] - y0) / cell) * columns + int((x[k] - x0) / cell)
        start[home[k] + 1] += 1
    for c in range(columns * rows):
        start[c + 1] += start[c]
    free = start[:-1].copy()
    members = np.empty(x.size, np.int64)
    for k in range(x.size):
        members[free[home[k]]] = k
        free[home[k]] += 1
    return start, members


@njit(cache=True)
def _nearest(
    x: Array,
    y: Array,
    reference_x: Array,
    reference_y: Array,
    start: Indices,
    members: Indices,
    x0: float,
    y0: float,
    cell: float,
    columns: int,
    rows: int,
    radius: float,
) -> Indices:
    """Index of the reference star of each detection, or -1; one detection a star."""
    partner = np.full(x.size, -1, np.int64)
    owner = np.full(reference_x.size, -1, np.int64)
    closest = np.full(reference_x.size, np.inf)
    for k in range(x.size):
        i, j = math.floor((x[k] - x0) / cell), math.floor((y[k] - y0) / cell)
        nearest, distance = -1, radius * radius
        for row in range(max(0, j - 1), min(rows, j + 2)):
            for column in range(max(0, i - 1), min(columns, i + 2)):
                c = row * columns + column
                for m in range(start[c], start[c + 1]):
                    dx, dy = reference_x[members[m]] - x[k], reference_y[members[m]] - y[k]
                    if dx * dx + dy * dy <= distance:
                        nearest, distance = members[m], dx * dx + dy * dy
        if nearest >= 0 and distance < closest[nearest]:
            if owner[nearest] >= 0:
                partner[owner[nearest]] = -1
            partner[k], owner[nearest], closest[nearest] = nearest, k, distance
    return partner
