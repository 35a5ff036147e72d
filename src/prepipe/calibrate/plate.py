"""The plate model of one CCD: a polynomial correction of its WCS, fitted to matched stars."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.matching import nearest_pairs
from prepipe.calibrate.tpv import POWERS, Tpv, gnomonic

__all__ = ["Frame", "PlateFit", "best_order", "fit_plate", "local_change", "match", "repoint"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

TERMS = {1: 3, 2: 6, 3: 10}

_FAR = 4.0
"""Leverage beyond which a linear fit is held to the header's scale: two errors of a star."""

_PRIOR = np.array([np.inf, np.inf, math.radians(0.3), 5e-4, 5e-4, 5e-4])
"""Errors of what a header says: shifts, rotation (rad), scale and the two shears.

DECam's headers are right to 1e-4; refraction stretches by up to 2e-3 at an airmass of 2.5,
by 3e-4 at the zenith (R = 60 arcsec tan z, e.g. Smart, Spherical Astronomy, chapter 3).
"""


@dataclass(frozen=True, eq=False)
class Frame:
    """Detections of a frame and the reference stars around it, both brightest first.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        Zero-based columns and rows.
    magnitude : ndarray, shape (n,)
        Instrumental.
    sigma_arcsec : ndarray, shape (n,)
        One-dimensional error of the positions.
    ra, dec : ndarray, shape (m,)
        deg.
    reference_magnitude, reference_sigma_arcsec : ndarray, shape (m,)
    source_index, reference_index : ndarray of int64, shapes (n,) and (m,)
        Where they came from.
    shape : tuple of int
        Rows and columns of the frame.
    search_pixels : float
        How far beyond the frame the reference stars reach.
    """

    x: Array
    y: Array
    magnitude: Array
    sigma_arcsec: Array
    ra: Array
    dec: Array
    reference_magnitude: Array
    reference_sigma_arcsec: Array
    source_index: Indices
    reference_index: Indices
    shape: tuple[int, int]
    search_pixels: float

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the middle."""
        return (self.shape[1] - 1) / 2.0, (self.shape[0] - 1) / 2.0

    @property
    def searched_area_ratio(self) -> float:
        """Area within reach of the search, in units of the frame's."""
        rows, columns = self.shape
        reach = 2.0 * self.search_pixels
        return (rows + reach) * (columns + reach) / (rows * columns)

    def grid(self, points: int) -> tuple[Array, Array]:
        """Columns and rows of ``points x points`` places from corner to corner."""
        columns = np.linspace(0.0, self.shape[1] - 1.0, points)
        rows = np.linspace(0.0, self.shape[0] - 1.0, points)
        x, y = np.meshgrid(columns, rows)
        return x.ravel(), y.ravel()


@dataclass(frozen=True, eq=False)
class PlateFit:
    """A polynomial correction and the pairs that carry it.

    Parameters
    ----------
    wcs : Tpv
        Corrected.
    order : int
    detection, reference : ndarray of int64, shape (n,)
        Pairs that were offered, indices into the `Frame`.
    kept : ndarray of bool, shape (n,)
        Those not clipped.
    chi_squared : ndarray, shape (n,)
        Squared residual of each in units of its variance, both coordinates together.
    rms_arcsec : float
        One-dimensional residual of those kept, not weighted.
    leverage : float
        Largest variance of the fit on the frame, in units of one star's.
    worst_arcsec : float
        Largest one-dimensional formal error of the fit on the frame.
    """

    wcs: Tpv
    order: int
    detection: Indices
    reference: Indices
    kept: NDArray[np.bool_]
    chi_squared: Array
    rms_arcsec: float
    leverage: float
    worst_arcsec: float

    @property
    def matches(self) -> int:
        """Stars in the fit."""
        return int(self.kept.sum())


def match(
    frame: Frame,
    wcs: Tpv,
    radius: float,
    detections: slice = slice(None),
    references: slice = slice(None),
    *,
    gate: bool = True,
) -> tuple[Indices, Indices]:
    """Pair the detections of a frame with the reference stars.

    Parameters
    ----------
    frame : Frame
    wcs : Tpv
    radius : float
        Pixels.
    detections, references : slice
        Ranks in brightness to look at.
    gate : bool
        Leave out pairs whose magnitudes contradict the others'.

    Returns
    -------
    detection, reference : ndarray of int64, shape (n,)
        Indices into the `Frame`.
    """
    rx, ry = wcs.sky_to_pixel(frame.ra[references], frame.dec[references])
    known = np.flatnonzero(np.isfinite(rx))
    detection, reference = nearest_pairs(
        (frame.x[detections], frame.y[detections]), (rx[known], ry[known]), radius
    )
    detection = detection + (detections.start or 0)
    reference = known[reference] + (references.start or 0)
    if gate and detection.size:
        difference = frame.reference_magnitude[reference] - frame.magnitude[detection]
        away = np.abs(difference - np.median(difference))
        agree = away <= max(1.0, 5.0 * 1.4826 * float(np.median(away)))
        detection, reference = detection[agree], reference[agree]
    return detection, reference


def fit_plate(
    frame: Frame,
    wcs: Tpv,
    pairs: tuple[Indices, Indices],
    order: int,
    misfit_arcsec: float = 0.0,
    *,
    anchored: bool = False,
) -> PlateFit | None:
    """Fit a polynomial correction of the tangent-plane coordinates.

    Weighted least squares; pairs beyond three standard deviations in each coordinate
    are clipped until the set settles, the standard deviation being scaled by the median
    residual.

    Parameters
    ----------
    frame : Frame
    wcs : Tpv
        To be corrected.
    pairs : tuple of ndarray
        From `match`.
    order : int
        1, 2 or 3.
    misfit_arcsec : float
        Added in quadrature to every star's error.
    anchored : bool
        Hold a linear fit to the scale and shear of `wcs`, within the errors of a header.

    Returns
    -------
    PlateFit or None
        None if the pairs do not determine it.
    """
    detection, reference = pairs
    if detection.size <= TERMS[order]:
        return None
    centre, size = _local_frame(wcs, frame)
    u, v = wcs.pixel_to_plane(frame.x[detection], frame.y[detection])
    basis = _basis(u, v, centre, size, order)
    xi, eta = gnomonic(frame.ra[reference], frame.dec[reference], wcs.crval)
    target = np.stack([xi, eta], axis=-1) - np.stack(wcs.distort(u, v), axis=-1)
    variance = frame.sigma_arcsec[detection] ** 2 + frame.reference_sigma_arcsec[reference] ** 2
    fitted_variance = (variance + misfit_arcsec**2) / 3600.0**2
    clipped = _clipped_fit(basis, target, fitted_variance, size if anchored else None)
    if clipped is None:
        return None
    coefficients, kept, squared = clipped
    excess = max(1.0, float((squared / fitted_variance)[kept].mean()) / 2.0)
    weight = np.where(kept, 1.0 / (excess * fitted_variance), 0.0)
    places = _basis(*wcs.pixel_to_plane(*frame.grid(5)), centre, size, order)
    return PlateFit(
        wcs=wcs.corrected(coefficients[:, 0], coefficients[:, 1], centre, size),
        order=order,
        detection=detection,
        reference=reference,
        kept=kept,
        chi_squared=3600.0**2 * squared / variance,
        rms_arcsec=3600.0 * math.sqrt(float(squared[kept].mean()) / 2.0),
        leverage=_leverage(places, basis[kept]),
        worst_arcsec=3600.0 * _worst(places, basis, weight, size if anchored else None),
    )


def best_order(
    frame: Frame, wcs: Tpv, pairs: tuple[Indices, Indices], max_order: int
) -> PlateFit | None:
    """Fit with the highest order that the pairs justify.

    A higher order must lower the Bayesian information criterion (Schwarz 1978, Ann.
    Statist. 6, 461) of the pairs that both fits kept, and nowhere on the frame may its
    formal error be larger than that of one star: then no corner without stars runs away.
    A linear fit that would be more than two of one star's errors off somewhere keeps the
    scale and shear of `wcs` within the errors of a header.

    Returns
    -------
    PlateFit or None
        None if not even a linear fit is possible.
    """
    best = fit_plate(frame, wcs, pairs, 1)
    if best is not None and best.leverage > _FAR:
        return fit_plate(frame, wcs, pairs, 1, anchored=True)
    for order in range(2, max_order + 1):
        trial = fit_plate(frame, wcs, pairs, order)
        if best is None or trial is None or trial.leverage > 1.0:
            continue
        both = best.kept & trial.kept
        # Two coordinates a star, and two coefficients a term.
        data = 2.0 * max(int(both.sum()), 1)
        gain = data * math.log(
            max(float(best.chi_squared[both].sum()), 1e-30)
            / max(float(trial.chi_squared[both].sum()), 1e-30)
        )
        if gain > 2.0 * (TERMS[order] - TERMS[best.order]) * math.log(data):
            best = trial
    return best


def repoint(frame: Frame, nominal: Tpv, solved: Tpv) -> tuple[Tpv, float]:
    """Move the nominal WCS rigidly on the sphere to where the solved one is.

    Returns
    -------
    wcs : Tpv
        `nominal` with another CRVAL and position angle.
    rotation : float
        Turn of the focal plane about the tangent point, deg.

    Notes
    -----
    The rotation that carries one set of unit vectors onto another is that of Kabsch
    (1976, Acta Cryst. A32, 922).
    """
    places = frame.grid(5)
    before = _unit_vectors(*nominal.pixel_to_sky(*places))
    after = _unit_vectors(*solved.pixel_to_sky(*places))
    left, _, right = np.linalg.svd(before.T @ after)
    sign = np.sign(np.linalg.det(left @ right))
    turn = right.T @ np.diag([1.0, 1.0, sign]) @ left.T
    ra, dec = np.radians(nominal.crval)
    north = np.array([-math.sin(dec) * math.cos(ra), -math.sin(dec) * math.sin(ra), math.cos(dec)])
    pole, north = turn @ _unit_vectors(nominal.crval[0], nominal.crval[1]), turn @ north
    new_ra, new_dec = math.atan2(pole[1], pole[0]), math.atan2(pole[2], math.hypot(*pole[:2]))
    east = np.array([-math.sin(new_ra), math.cos(new_ra), 0.0])
    rotation = math.degrees(math.atan2(-north @ east, north @ np.cross(pole, east)))
    d_ra = (math.degrees(new_ra - ra) + 180.0) % 360.0 - 180.0
    return nominal.repointed(d_ra, math.degrees(new_dec - dec), rotation), rotation


def local_change(frame: Frame, nominal: Tpv, solved: Tpv) -> tuple[float, float, float]:
    """How a solution differs from the nominal WCS at the centre of the frame.

    Returns
    -------
    offset_arcsec : float
        On the sky.
    scale : float
        Relative change of scale.
    shear : float
        Largest relative difference between directions.
    """
    x, y = frame.centre
    step = 0.25 * min(frame.shape)
    columns, rows = x + step * np.array([0, 1, -1, 0, 0]), y + step * np.array([0, 0, 0, 1, -1])
    centre = np.stack(solved.pixel_to_sky(x, y))
    jacobians = []
    places = []
    for wcs in (nominal, solved):
        xi, eta = gnomonic(*wcs.pixel_to_sky(columns, rows), centre)
        places.append((xi[0], eta[0]))
        jacobians.append([[xi[1] - xi[2], xi[3] - xi[4]], [eta[1] - eta[2], eta[3] - eta[4]]])
    change = np.array(jacobians[1]) @ np.linalg.inv(np.array(jacobians[0]))
    stretch = np.linalg.svd(change, compute_uv=False)
    mirrored = np.linalg.det(change) < 0
    scale = math.sqrt(float(stretch[0] * stretch[1])) - 1.0
    shear = math.inf if mirrored else float(stretch[0] / stretch[1]) - 1.0
    return 3600.0 * math.hypot(*places[0]), scale, shear


def _local_frame(wcs: Tpv, frame: Frame) -> tuple[tuple[float, float], float]:
    """Centre and half diagonal of the frame in the undistorted plane, deg."""
    u, v = wcs.pixel_to_plane(*frame.centre)
    half = 0.5 * math.hypot(*frame.shape) * wcs.pixel_scale / 3600.0
    return (float(u), float(v)), half


def _basis(u: Array, v: Array, centre: tuple[float, float], size: float, order: int) -> Array:
    """Terms of `POWERS` up to an order, shape (n, terms)."""
    a, b = (u - centre[0]) / size, (v - centre[1]) / size
    return np.stack([a**i * b**j for i, j in POWERS[: TERMS[order]]], axis=-1)


def _clipped_fit(
    basis: Array, target: Array, variance: Array, anchor: float | None
) -> tuple[Array, NDArray[np.bool_], Array] | None:
    """Coefficients, which stars were kept, and the squared residuals of all."""
    kept = np.ones(variance.size, bool)
    for _ in range(12):
        weight = np.where(kept, 1.0 / variance, 0.0)
        if anchor is None:
            solution = _least_squares(basis, target, weight)
        else:
            solution = _anchored_least_squares(basis, target, weight, anchor)
        if solution is None:
            return None
        coefficients: Array = solution
        squared = np.square(target - basis @ coefficients).sum(axis=1)
        chi_squared = squared / variance
        # The median of a squared distance in two dimensions is 2 ln 2 variances.
        spread = float(np.median(chi_squared)) / (2.0 * math.log(2.0))
        before, kept = kept, chi_squared <= 18.0 * max(spread, 1e-9)
        if np.array_equal(before, kept):
            break
    return (coefficients, kept, squared) if kept.sum() > basis.shape[1] else None


def _least_squares(basis: Array, target: Array, weight: Array) -> Array | None:
    """Coefficients, shape (terms, 2); None if the stars do not determine them."""
    weighted = weight[:, None] * basis
    normal = basis.T @ weighted
    if not np.linalg.cond(normal) < 1e10:
        return None
    return np.asarray(np.linalg.solve(normal, weighted.T @ target), np.float64)


def _anchored_least_squares(
    basis: Array, target: Array, weight: Array, size: float
) -> Array | None:
    """Linear coefficients, shape (3, 2), that `_PRIOR` holds to those of no change."""
    both = _both_coordinates(basis)
    normal = _anchored_normal(both, weight, size)
    if not np.linalg.cond(normal) < 1e10:
        return None
    moments = np.einsum("nck,nc->k", both, weight[:, None] * target)
    east, north, turn, scale, plus, cross = np.linalg.solve(normal, moments)
    return np.array(
        [[east, north], [scale + plus, turn + cross], [cross - turn, scale - plus]], np.float64
    )


def _both_coordinates(basis: Array) -> Array:
    """Effect of the six parameters of `_PRIOR` on both coordinates, shape (n, 2, 6)."""
    one, a, b = basis.T
    none = np.zeros_like(one)
    first = np.stack([one, none, -b, a, a, b], axis=-1)
    second = np.stack([none, one, a, b, -b, a], axis=-1)
    return np.stack([first, second], axis=1)


def _anchored_normal(both: Array, weight: Array, size: float) -> Array:
    """Normal matrix of the six parameters, `_PRIOR` included, shape (6, 6)."""
    normal: Array = np.einsum("nck,n,ncl->kl", both, weight, both)
    return normal + np.diag(1.0 / np.square(size * _PRIOR))


def _leverage(places: Array, basis: Array) -> float:
    """Largest variance of the fit at some places, all stars weighing the same."""
    normal = basis.T @ basis
    if not np.linalg.cond(normal) < 1e10:
        return math.inf
    return float(np.einsum("ij,ji->i", places, np.linalg.solve(normal, places.T)).max())


def _worst(places: Array, basis: Array, weight: Array, anchor: float | None) -> float:
    """Largest one-dimensional formal error of the fit at some places, deg."""
    if anchor is None:
        normal = basis.T @ (weight[:, None] * basis)
        moved = places[:, None, :]
    else:
        moved = _both_coordinates(places)
        normal = _anchored_normal(_both_coordinates(basis), weight, anchor)
    if not np.linalg.cond(normal) < 1e12:
        return math.inf
    variance = np.einsum("nck,kl,ncl->nc", moved, np.linalg.inv(normal), moved).mean(axis=1)
    return math.sqrt(float(variance.max()))


def _unit_vectors(ra: Array, dec: Array) -> Array:
    """Directions of sky positions (deg), shape (..., 3)."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
