"""The profile of a star on one CCD, to fit stars with: a table that varies over the CCD.

As in DAOPHOT (Stetson 1987, PASP 99, 191) it is an analytic profile, here a Moffat one,
and a table of what real stars differ from it, both varying linearly over the CCD. The sum is
kept on a grid finer than the pixels and read by a cubic spline, so that the profile and
its slopes are smooth wherever in a pixel a star lies. Beyond the table a star is round: the
Moffat profile and what rings around the brightest stars differ from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import spline_filter

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.psf_map import PsfMap

__all__ = [
    "LARGEST_HALF",
    "MARGIN",
    "NO_EXAMPLE",
    "OVERSAMPLING",
    "PsfModel",
    "moffat_model",
    "refined",
]

Floats = NDArray[np.float64]

OVERSAMPLING = 2
"""Nodes of the table along one pixel: a star of 2 pixels FWHM is then known to 0.1 %."""

LARGEST_HALF = 250
"""Half side of the largest square that a star is drawn in, pixels; its wing ends at the corners."""

NO_EXAMPLE = Mask.BAD | Mask.SATURATED | Mask.COSMIC_RAY | Mask.DEAD | Mask.CORRUPT
"""Pixels that tell nothing about a star's profile or flux."""

_REACH_FWHM = 3.0
MARGIN = 3
_WING_NODES = 32768
_SHALLOWEST_BETA = 1.5
_PRIOR_SHARE = 0.1
_PRIOR_FLOOR = 1e-3
_PRIOR_SLOPE = 0.3
_CLIP = 5.0
_WING_REACHES = 4
_WING_SHARE = 0.5
_MOST_FOR_WING = 50
_STAR_TO_STAR = 0.02


@dataclass(frozen=True, eq=False)
class PsfModel:
    """A star of unit flux anywhere on a CCD.

    Parameters
    ----------
    table : (3, n, n) float64 ndarray
        Share of the light in a pixel centred on each node, for a star in the middle of the
        CCD, and how it changes from there to the right and to the upper edge. The nodes
        lie ``1 / OVERSAMPLING`` pixels apart, the star is at the middle one.
    spline : (3, OVERSAMPLING, OVERSAMPLING, m, m) float32 ndarray
        Coefficients of the cubic spline through the table, those one pixel apart together.
    wing : (k,) float32 ndarray
        The profile at squared radii that are multiples of `wing_step`.
    wing_step : float
        pixels^2.
    reach : int
        Pixels from the star that the table covers.
    shape : tuple of int
        Of the CCD, (rows, columns).
    """

    table: Floats
    spline: NDArray[np.float32]
    wing: NDArray[np.float32]
    wing_step: float
    reach: int
    shape: tuple[int, int]

    @property
    def peak(self) -> float:
        """Share of the light in the pixel that a star is centred on, mid-CCD."""
        middle = self.table.shape[1] // 2
        return float(self.table[0, middle, middle])


def moffat_model(psf: PsfMap, beta: float) -> PsfModel:
    """Moffat profiles as wide and as elongated as the map says.

    Parameters
    ----------
    psf : PsfMap
    beta : float
        Their exponent; 1.5 is taken for anything below.

    Returns
    -------
    PsfModel
    """
    ny, nx = psf.shape
    beta = max(beta, _SHALLOWEST_BETA)
    x, y = np.array([0.5, 0.0, 1.0, 0.5, 0.5]) * (nx - 1), np.array([0.5] * 3 + [0.0, 1.0])
    places = zip(*psf.at(x, y * (ny - 1)), strict=True)
    fwhm = float(psf.at(x[:1], y[:1] * (ny - 1))[0][0])
    reach = int(np.ceil(_REACH_FWHM * fwhm))
    offsets = _offsets(reach)
    middle, left, right, low, high = (_moffat(offsets, *place, beta) for place in places)
    table = np.stack([middle, 0.5 * (right - left), 0.5 * (high - low)])
    step = 2.0 * (LARGEST_HALF + 1) ** 2 / (_WING_NODES - 2)
    radii = np.sqrt(step * np.arange(_WING_NODES))
    wing = _round_moffat(radii, fwhm, beta)
    return PsfModel(table, _spline(table), wing.astype(np.float32), step, reach, psf.shape)


def refined(
    model: PsfModel,
    image: NDArray[np.float32],
    left: NDArray[np.float32],
    mask: NDArray[np.uint8],
    examples: tuple[Floats, Floats, Floats],
    sky_variance: float,
) -> PsfModel:
    """Add to a model what the brightest stars differ from it.

    Each node takes the mean residual near it, and its linear trend over the CCD, weighted
    by the noise; each ring of the wing the mean around the brightest. Residuals of 10 % of the
    profile and 0.1 % of its peak are expected, in the wing half of it; what the noise of the stars
    cannot tell better stays near zero, so that few stars change little.

    Parameters
    ----------
    model : PsfModel
    image, left : (ny, nx) float32 ndarray
        The CCD, and what is left of it without sky and stars, e-.
    mask : (ny, nx) uint8 ndarray
        `Mask` bits.
    examples : tuple of (n,) float64 ndarray
        x, y (pixels) and flux (e-) of stars whose profile is to be learned from.
    sky_variance : float
        Of an empty pixel, e-^2.

    Returns
    -------
    PsfModel
    """
    size = model.table.shape[1]
    sums = np.zeros((size, size, 9))
    x, y, flux = (np.ascontiguousarray(a, np.float64) for a in examples)
    floor = _PRIOR_FLOOR * model.peak
    stars, unfit = (x, y, flux), np.uint8(NO_EXAMPLE)
    _gather(image, left, mask, stars, sky_variance, model.reach, unfit, floor, sums)
    prior = _PRIOR_SHARE * np.abs(model.table[0]) + floor
    ridge = np.zeros((size, size, 3, 3))
    ridge[..., 0, 0] = prior**-2
    ridge[..., 1, 1] = ridge[..., 2, 2] = (_PRIOR_SLOPE * prior) ** -2
    matrix = sums[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(size, size, 3, 3) + ridge
    change = np.linalg.solve(matrix, sums[..., 6:, None])[..., 0]
    table = model.table + np.moveaxis(change, -1, 0)
    brightest = np.argsort(-flux, kind="stable")[:_MOST_FOR_WING]
    rings = np.zeros((2, _WING_REACHES * model.reach))
    told = x[brightest], y[brightest], flux[brightest]
    _gather_rings(image, left, mask, told, sky_variance, unfit, floor, rings)
    wing = model.wing + _wing_change(model, rings)
    return replace(model, table=table, spline=_spline(table), wing=wing.astype(np.float32))


def _wing_change(model: PsfModel, rings: Floats) -> Floats:
    """What to add to the wing: the mean residual of each ring, fading out at the last ones."""
    radius = np.sqrt(model.wing_step * np.arange(model.wing.size))
    middle = np.arange(rings.shape[1]) + 0.5
    expected = _WING_SHARE * np.interp(middle, radius, model.wing)
    last = rings.shape[1]
    outer = rings[:, 3 * last // 4 :].sum(axis=1)
    # Isolated stars lie where the sky is emptier than the mesh knows.
    sky = outer[1] / max(outer[0], np.finfo(np.float64).tiny)
    change = (rings[1] - sky * rings[0]) / (rings[0] + expected**-2)
    change *= np.clip(2.0 * (1.0 - middle / last), 0.0, 1.0)
    return np.asarray(np.interp(radius, middle, change, right=0.0))


def _offsets(reach: int) -> Floats:
    """Distances of the nodes from the star along one axis, pixels."""
    nodes = OVERSAMPLING * (reach + MARGIN)
    return np.arange(-nodes, nodes + 1) / OVERSAMPLING


def _moffat(offsets: Floats, fwhm: float, e1: float, e2: float, beta: float) -> Floats:
    """Elliptical Moffat profile of unit flux; `fwhm` is that of a round one of the same area."""
    round_off = min(1.0, 0.9 / max(float(np.hypot(e1, e2)), 1e-9))
    e1, e2 = e1 * round_off, e2 * round_off
    area = np.sqrt(1.0 - e1 * e1 - e2 * e2)
    x, y = offsets[None, :], offsets[:, None]
    squared = ((1.0 - e1) * x * x + (1.0 + e1) * y * y - 2.0 * e2 * x * y) / area
    return _round_moffat(np.sqrt(squared), fwhm, beta)


def _round_moffat(radius: Floats, fwhm: float, beta: float) -> Floats:
    """Moffat profile of unit flux."""
    core = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    height = (beta - 1.0) / (np.pi * core * core)
    return np.asarray(height * (1.0 + (radius / core) ** 2) ** -beta, np.float64)


def _spline(table: Floats) -> NDArray[np.float32]:
    """Coefficients of the cubic spline, sorted by their phase within a pixel."""
    step = OVERSAMPLING
    size = -(-table.shape[1] // step)
    padded = np.zeros((3, size * step, size * step))
    for k in range(3):
        padded[k, : table.shape[1], : table.shape[1]] = spline_filter(table[k], 3)
    sorted_by_phase = padded.reshape(3, size, step, size, step).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(sorted_by_phase, np.float32)


@njit(cache=True)
def _gather(
    image: NDArray[np.float32],
    left: NDArray[np.float32],
    mask: NDArray[np.uint8],
    stars: tuple[Floats, Floats, Floats],
    sky_variance: float,
    reach: int,
    unfit: np.uint8,
    floor: float,
    sums: Floats,
) -> None:
    """Sum up, at each node, the normal equations of residual = a + b u + c v.

    Sums per node: w, wu, wv, wuu, wuv, wvv, then w, wu, wv times the residual. Each pixel
    counts at the four nodes around it, by how near it is to each.
    """
    ny, nx = image.shape
    middle = sums.shape[0] // 2
    for s in range(stars[0].size):
        x, y, flux = stars[0][s], stars[1][s], stars[2][s]
        u, v = 2.0 * x / (nx - 1) - 1.0, 2.0 * y / (ny - 1) - 1.0
        row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
        for j in range(max(0, row - reach), min(ny, row + reach + 1)):
            for i in range(max(0, column - reach), min(nx, column + reach + 1)):
                if mask[j, i] & unfit:
                    continue
                residual = left[j, i]
                light = max(image[j, i] - residual, np.float32(0))
                variance = sky_variance + light + (_STAR_TO_STAR * light) ** 2
                usual = variance + (_PRIOR_SHARE * light + floor * flux) ** 2
                if not residual * residual <= _CLIP**2 * usual:
                    continue
                weight = flux * flux / variance
                residual /= flux
                at_y, at_x = OVERSAMPLING * (j - y) + middle, OVERSAMPLING * (i - x) + middle
                low, first = int(np.floor(at_y)), int(np.floor(at_x))
                for b in range(2):
                    for a in range(2):
                        near = (1.0 - abs(at_y - low - b)) * (1.0 - abs(at_x - first - a))
                        here = sums[low + b, first + a]
                        w = weight * near
                        here[0] += w
                        here[1] += w * u
                        here[2] += w * v
                        here[3] += w * u * u
                        here[4] += w * u * v
                        here[5] += w * v * v
                        here[6] += w * residual
                        here[7] += w * u * residual
                        here[8] += w * v * residual


@njit(cache=True)
def _gather_rings(
    image: NDArray[np.float32],
    left: NDArray[np.float32],
    mask: NDArray[np.uint8],
    stars: tuple[Floats, Floats, Floats],
    sky_variance: float,
    unfit: np.uint8,
    floor: float,
    rings: Floats,
) -> None:
    """Sum up weights, and weights times residuals, in rings one pixel wide around the stars."""
    ny, nx = image.shape
    reach = rings.shape[1]
    for s in range(stars[0].size):
        x, y, flux = stars[0][s], stars[1][s], stars[2][s]
        for j in range(max(0, int(y) - reach), min(ny, int(y) + reach + 2)):
            for i in range(max(0, int(x) - reach), min(nx, int(x) + reach + 2)):
                ring = int(np.hypot(j - y, i - x))
                if ring >= reach or mask[j, i] & unfit:
                    continue
                light = max(image[j, i] - left[j, i], np.float32(0))
                variance = sky_variance + light
                usual = variance + (light + floor * flux) ** 2
                if left[j, i] * left[j, i] <= _CLIP**2 * usual:
                    weight = flux * flux / variance
                    rings[0, ring] += weight
                    rings[1, ring] += weight * left[j, i] / flux
