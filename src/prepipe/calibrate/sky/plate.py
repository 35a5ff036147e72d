"""The plate model of one CCD: a polynomial correction of its WCS, fitted to matched stars."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.sky.least_squares import clipped_fit, joint_normal, largest_error, leverage
from prepipe.calibrate.sky.matching import nearest_pairs
from prepipe.calibrate.sky.tpv import POWERS, Tpv, gnomonic

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
    reference_x, reference_y : ndarray, shape (m,)
        Where the header's WCS puts them, pixels.
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
    reference_x: Array
    reference_y: Array
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

    def references_on(self, detection: Indices, reference: Indices) -> Indices:
        """Reference stars on the frame or close to it, going by the offset of some pairs."""
        rows, columns = self.shape
        dx = float(np.median(self.x[detection] - self.reference_x[reference]))
        dy = float(np.median(self.y[detection] - self.reference_y[reference]))
        x, y = self.reference_x + dx, self.reference_y + dy
        # Errors of scale and rotation, as far as they are tolerated.
        margin = 0.02 * math.hypot(rows, columns)
        on = (x > -margin) & (x < columns + margin) & (y > -margin) & (y < rows + margin)
        return np.flatnonzero(on)

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


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Matched pairs, ready to be fitted.

    Parameters
    ----------
    detection, reference : ndarray of int64, shape (n,)
        Indices into the `Frame`.
    basis : ndarray, shape (n, terms)
    target : ndarray, shape (n, 2)
        Reference star minus detection in the tangent plane, deg.
    variance : ndarray, shape (n,)
        Of one coordinate, arcsec^2.
    places : ndarray, shape (m, terms)
        The basis at places all over the frame.
    centre, size : tuple of float, float
        Of the basis, deg.
    """

    detection: Indices
    reference: Indices
    basis: Array
    target: Array
    variance: Array
    places: Array
    centre: tuple[float, float]
    size: float


def match(
    frame: Frame,
    wcs: Tpv,
    radius: float,
    detections: slice = slice(None),
    references: slice | Indices = slice(None),
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
    detections : slice
        Ranks in brightness to look at.
    references : slice or ndarray of int64
        Likewise.
    gate : bool
        Leave out pairs whose magnitudes contradict the others'.

    Returns
    -------
    detection, reference : ndarray of int64, shape (n,)
        Indices into the `Frame`.
    """
    candidates = np.arange(frame.ra.size)[references]
    rx, ry = wcs.sky_to_pixel(frame.ra[candidates], frame.dec[candidates])
    known = np.flatnonzero(np.isfinite(rx))
    detection, reference = nearest_pairs(
        (frame.x[detections], frame.y[detections]), (rx[known], ry[known]), radius
    )
    detection = detection + (detections.start or 0)
    reference = candidates[known[reference]]
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
    ready = _prepared(frame, wcs, pairs, order)
    return _fit(wcs, ready, order, misfit_arcsec, anchored=anchored)


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
    ready = _prepared(frame, wcs, pairs, max_order)
    best = _fit(wcs, ready, 1)
    if best is not None and best.leverage > _FAR:
        return _fit(wcs, ready, 1, anchored=True)
    for order in range(2, max_order + 1):
        trial = _fit(wcs, ready, order)
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


def _prepared(frame: Frame, wcs: Tpv, pairs: tuple[Indices, Indices], order: int) -> _Pairs:
    """Everything about some pairs that fits up to an order share."""
    detection, reference = pairs
    centre, size = _local_frame(wcs, frame)
    u, v = wcs.pixel_to_plane(frame.x[detection], frame.y[detection])
    xi, eta = gnomonic(frame.ra[reference], frame.dec[reference], wcs.crval)
    distorted = wcs.distort(u, v)
    return _Pairs(
        detection=detection,
        reference=reference,
        basis=_basis(u, v, centre, size, order),
        target=np.stack([xi - distorted[0], eta - distorted[1]], axis=-1),
        variance=(
            frame.sigma_arcsec[detection] ** 2 + frame.reference_sigma_arcsec[reference] ** 2
        ),
        places=_basis(*wcs.pixel_to_plane(*frame.grid(5)), centre, size, order),
        centre=centre,
        size=size,
    )


def _fit(
    wcs: Tpv, pairs: _Pairs, order: int, misfit_arcsec: float = 0.0, *, anchored: bool = False
) -> PlateFit | None:
    """`fit_plate` on prepared pairs."""
    terms = TERMS[order]
    if pairs.detection.size <= terms:
        return None
    basis, places = (np.ascontiguousarray(b[:, :terms]) for b in (pairs.basis, pairs.places))
    precision = _header_precision(pairs.size) if anchored else np.zeros((2 * terms, 2 * terms))
    variance = (pairs.variance + misfit_arcsec**2) / 3600.0**2
    determined, coefficients, kept, squared = clipped_fit(basis, pairs.target, variance, precision)
    if not determined:
        return None
    excess = max(1.0, float((squared / variance)[kept].mean()) / 2.0)
    weight = np.where(kept, 1.0 / (excess * variance), 0.0)
    return PlateFit(
        wcs=wcs.corrected(coefficients[:, 0], coefficients[:, 1], pairs.centre, pairs.size),
        order=order,
        detection=pairs.detection,
        reference=pairs.reference,
        kept=kept,
        chi_squared=3600.0**2 * squared / pairs.variance,
        rms_arcsec=3600.0 * math.sqrt(float(squared[kept].mean()) / 2.0),
        leverage=leverage(places, basis[kept]),
        worst_arcsec=3600.0 * largest_error(places, joint_normal(basis, weight, precision)),
    )


def _basis(u: Array, v: Array, centre: tuple[float, float], size: float, order: int) -> Array:
    """Terms of `POWERS` up to an order, shape (n, terms)."""
    a, b = (u - centre[0]) / size, (v - centre[1]) / size
    one = np.ones_like(a)
    powers_a, powers_b = (one, a, a * a, a * a * a), (one, b, b * b, b * b * b)
    return np.stack([powers_a[i] * powers_b[j] for i, j in POWERS[: TERMS[order]]], axis=-1)


def _header_precision(size: float) -> Array:
    """`_PRIOR` as an inverse covariance of linear coefficients, shape (6, 6)."""
    half = 0.5
    # Rows: shifts, rotation, scale and shears; columns: 1, a, b of the first and second coordinate.
    change = np.array(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
            [0.0, 0.0, -half, 0.0, half, 0.0],
            [0.0, half, 0.0, 0.0, 0.0, half],
            [0.0, half, 0.0, 0.0, 0.0, -half],
            [0.0, 0.0, half, 0.0, half, 0.0],
        ]
    )
    precision: Array = change.T @ np.diag(1.0 / np.square(size * _PRIOR)) @ change
    return precision


def _unit_vectors(ra: Array, dec: Array) -> Array:
    """Directions of sky positions (deg), shape (..., 3)."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
