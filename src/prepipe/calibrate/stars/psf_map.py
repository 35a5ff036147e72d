"""How the width and the shape of the stars vary over a CCD: polynomials of low order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.stars.matched_filter import SIGMA_TO_FWHM

__all__ = ["PsfMap", "fit_psf_map", "local_width", "window_response"]

Floats = NDArray[np.float64]

HIGHEST_DEGREE = 2
WORST_CORNER = 0.01
"""A degree is taken only if its formal error is smaller than this at the worst corner, both
relative to the width and in ellipticity: what a grade is decided by is ten times as much."""

CLIP = 3.5
"""Standard deviations; of 1000 normal stars it takes half a one."""

_DEGREES = {1: 0, 3: 1, 6: 2}
"""Degree of a polynomial by its terms."""

_STEEPEST_BETA = 30.0
_WORST_CONDITION = 1e10
_MOST_ROUNDS = 10
_MOST_STARS = 2500
_MOST_LOCAL_STARS = 500
_LOCAL_ERROR = 0.04


@dataclass(frozen=True, eq=False)
class PsfMap:
    """Width and shape of the stars anywhere on a CCD.

    Each figure is ``c0 + c1 u + c2 v + c3 u^2 + c4 u v + c5 v^2`` with u and v running from
    -1 to 1 along rows and columns, to as many terms as the stars could tell: 1, 3 or 6.

    Parameters
    ----------
    shape : tuple of int
        Of the CCD, (rows, columns).
    fwhm_px : (terms,) float64 ndarray
        Coefficients of the FWHM, pixels; NaN if unknown.
    e1, e2 : (terms,) float64 ndarray
        Of the ellipticity along the axes, ``(xx - yy) / (xx + yy)``, and along the
        diagonals, ``2 xy / (xx + yy)``; NaN if unknown.
    """

    shape: tuple[int, int]
    fwhm_px: Floats
    e1: Floats
    e2: Floats

    @property
    def degree(self) -> int:
        """0 if one value holds everywhere, 1 for a plane, 2 for a quadratic."""
        return _DEGREES[self.fwhm_px.size]

    def at(self, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
        """FWHM (pixels) and the two ellipticity components at places on the CCD.

        Parameters
        ----------
        x, y : (n,) float64 ndarray
            Pixels; the centre of the first one is at 0.
        """
        terms = _terms(x, y, self.shape, self.degree)
        return terms @ self.fwhm_px, terms @ self.e1, terms @ self.e2

    def grid(self, rows: int, columns: int) -> tuple[Floats, Floats, Floats]:
        """FWHM and ellipticity in the middle of the cells of a grid over the CCD.

        Returns
        -------
        fwhm_px, e1, e2 : (rows, columns) float64 ndarray
        """
        ny, nx = self.shape
        y, x = np.meshgrid(
            (np.arange(rows) + 0.5) * ny / rows - 0.5,
            (np.arange(columns) + 0.5) * nx / columns - 0.5,
            indexing="ij",
        )
        fwhm, e1, e2 = self.at(x.ravel(), y.ravel())
        return fwhm.reshape(x.shape), e1.reshape(x.shape), e2.reshape(x.shape)

    @property
    def fwhm_range_px(self) -> tuple[float, float]:
        """Smallest and largest FWHM on the CCD, pixels; NaN if unknown."""
        fwhm, _, _ = self.grid(33, 33)
        return float(fwhm.min()), float(fwhm.max())

    @property
    def largest_ellipticity(self) -> float:
        """Largest ellipticity on the CCD; NaN if unknown."""
        _, e1, e2 = self.grid(33, 33)
        return float(np.hypot(e1, e2).max())


def fit_psf_map(
    shape: tuple[int, int],
    place: tuple[Floats, Floats],
    relative_width: Floats,
    shapes: tuple[Floats, Floats],
    fwhm_px: float,
) -> PsfMap:
    """Fit the figures of single stars, none of them trusted blindly.

    The degree is the highest one, of 0, 1 and 2, whose formal error at the worst corner of the
    CCD is below 1 %: many stars all over it allow a quadratic; few, or stars in one
    part only, a plane or nothing but the mean. Stars beyond 3.5 standard deviations, by the
    median absolute deviation, are clipped until the set settles.

    Parameters
    ----------
    shape : tuple of int
        (rows, columns).
    place : tuple of (n,) float64 ndarray
        x and y of the stars, pixels.
    relative_width : (n,) float64 ndarray
        FWHM of each star over their mean one.
    shapes : tuple of (n,) float64 ndarray
        Ellipticity of each star along the axes and the diagonals.
    fwhm_px : float
        FWHM of the mean star, pixels.

    Returns
    -------
    PsfMap
        NaN, of degree 0, without stars.
    """
    values = np.stack([relative_width, *shapes], axis=1)
    usable = np.isfinite(values).all(axis=1)
    if not usable.any():
        nothing = np.full(1, np.nan)
        return PsfMap(shape, nothing, nothing, nothing)
    width, e1, e2 = _fit_surfaces(
        shape, place[0][usable], place[1][usable], values[usable], WORST_CORNER
    )
    return PsfMap(shape, fwhm_px * width, e1, e2)


def local_width(
    shape: tuple[int, int], place: tuple[Floats, Floats], width: Floats, fitted: NDArray[np.bool_]
) -> Floats:
    """Width that the stars around have, of the polynomial that fits some of them.

    Parameters
    ----------
    shape : tuple of int
        (rows, columns).
    place : tuple of (n,) float64 ndarray
        x and y, pixels.
    width : (n,) float64 ndarray
        Positive, in any unit.
    fitted : (n,) bool ndarray
        Which of them to fit; at least one.

    Returns
    -------
    (n,) float64 ndarray
        At each place, in the unit of `width`.
    """
    x, y = place
    typical = float(np.median(width[fitted]))
    relative = width[fitted, None] / typical
    (surface,) = _fit_surfaces(
        shape, x[fitted], y[fitted], relative, _LOCAL_ERROR, _MOST_LOCAL_STARS
    )
    return typical * np.asarray(_terms(x, y, shape, _DEGREES[surface.size]) @ surface)


@cache
def window_response(beta: float) -> tuple[float, float]:
    """How much of a star's width and ellipticity moments in a Gaussian window see.

    Moments under a Gaussian window as wide as the star, whose effect is removed as if the star
    were a Gaussian too, see the core more than the wings of a Moffat profile.

    Parameters
    ----------
    beta : float
        Exponent of the profile.

    Returns
    -------
    width : float
        Relative change of the size measured for one of the FWHM; 1 for a Gaussian.
    ellipticity : float
        Ellipticity measured over the true one; 1 for a Gaussian.
    """
    if not beta < _STEEPEST_BETA:
        return 1.0, 1.0
    step = 0.02
    round_star = _windowed_moments(1.0, 0.0, beta)
    wide = _windowed_moments(1.0 + step, 0.0, beta)
    long = _windowed_moments(1.0, step, beta)
    width = 0.5 * np.log(sum(wide) / sum(round_star)) / np.log1p(step)
    return float(width), float((long[0] - long[1]) / sum(long) / step)


def _windowed_moments(fwhm: float, e1: float, beta: float) -> tuple[float, float]:
    """xx and yy of an elliptical Moffat star in a Gaussian window of FWHM 1, window removed."""
    axis = np.linspace(-1.5, 1.5, 121)
    x, y = axis[None, :], axis[:, None]
    core = 0.5 * fwhm / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
    squared = ((1.0 - e1) * x * x + (1.0 + e1) * y * y) / (core**2 * np.sqrt(1.0 - e1 * e1))
    window = SIGMA_TO_FWHM**-2
    light = (1.0 + squared) ** -beta * np.exp(-0.5 * (x * x + y * y) / window)
    moments = (light * x * x).sum() / light.sum(), (light * y * y).sum() / light.sum()
    xx, yy = (float(1.0 / (1.0 / moment - 1.0 / window)) for moment in moments)
    return xx, yy


def _terms(x: Floats, y: Floats, shape: tuple[int, int], degree: int) -> Floats:
    """Polynomial terms at places on the CCD, shape (n, 1, 3 or 6)."""
    u = 2.0 * np.asarray(x, np.float64) / max(shape[1] - 1, 1) - 1.0
    v = 2.0 * np.asarray(y, np.float64) / max(shape[0] - 1, 1) - 1.0
    terms = [np.ones_like(u), u, v, u * u, u * v, v * v]
    return np.stack(terms[: (1, 3, 6)[degree]], axis=-1)


def _fit_surfaces(
    shape: tuple[int, int],
    x: Floats,
    y: Floats,
    values: Floats,
    limit: float,
    most_stars: int = _MOST_STARS,
) -> list[Floats]:
    """Coefficients for each column of `values`, of the highest degree that errs by `limit`."""
    step = -(-x.size // most_stars)
    x, y, values = x[::step], y[::step], values[::step]
    for degree in range(HIGHEST_DEGREE, -1, -1):
        terms = _terms(x, y, shape, degree)
        corner = _corner_error(terms, shape)
        if not np.isfinite(corner):
            continue
        fits = [_robust_fit(terms, column) for column in values.T]
        if degree == 0 or corner * max(scatter for _, scatter in fits) < limit:
            break
    return [coefficients for coefficients, _ in fits]


def _robust_fit(terms: Floats, values: Floats) -> tuple[Floats, float]:
    """Least squares without outliers; also the standard deviation of a value about the fit."""
    kept = np.zeros(values.size, np.bool_)
    coefficients = np.zeros(terms.shape[1])
    coefficients[0] = np.median(values)
    for _ in range(_MOST_ROUNDS):
        away = np.abs(values - terms @ coefficients)
        scatter = 1.4826 * float(np.median(away))
        before, kept = kept, away <= CLIP * scatter + 1e-12
        if np.array_equal(before, kept):
            break
        weighted = terms * kept[:, None]
        information = weighted.T @ terms
        # What is left may lie in one place, or on a line.
        if not np.linalg.cond(information) < _WORST_CONDITION:
            return coefficients, np.inf
        coefficients[:] = np.linalg.solve(information, weighted.T @ values)
    return coefficients, scatter


def _corner_error(terms: Floats, shape: tuple[int, int]) -> float:
    """Standard error of the fit at the worst corner, for values of unit scatter."""
    ny, nx = shape
    x, y = np.array([0.0, nx - 1.0, 0.0, nx - 1.0]), np.array([0.0, 0.0, ny - 1.0, ny - 1.0])
    corners = _terms(x, y, shape, _DEGREES[terms.shape[1]])
    information = terms.T @ terms
    if terms.shape[0] < terms.shape[1] or np.linalg.cond(information) > _WORST_CONDITION:
        return np.inf
    covariance = np.linalg.inv(information)
    variance = np.einsum("ij,jk,ik->i", corners, covariance, corners)
    return float(np.sqrt(variance.max()))
