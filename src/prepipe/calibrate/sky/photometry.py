"""The photometric zero point of a CCD, and how deep it reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ZeroPoint", "enclosed_light", "limiting_magnitude", "zero_point"]

Array = NDArray[np.float64]

POGSON = 2.5 / math.log(10.0)
"""Magnitudes per relative flux."""

FEW_STARS = 5
LARGE_SCATTER = 0.1
CLIP = 3.5
"""Standard deviations; of 1000 normal stars it takes half a one."""

SHALLOWEST_BETA = 2.0
"""Exponent of a Moffat profile below which a fit is not believed: its wings would hold
more light than any star's (turbulence gives 4.8, telescopes 2.5 to 4: Trujillo et al. 2001)."""


@dataclass(frozen=True)
class ZeroPoint:
    """A photometric zero point.

    Parameters
    ----------
    value : float
        Magnitude of a source of one unit of flux (e- or ADU, as was given) per second;
        NaN without stars.
    error : float
        Of `value`, mag.
    scatter : float
        Weighted rms of the stars about `value`, mag.
    intrinsic : float
        The part of it that the stars' own errors do not explain, mag.
    stars : int
        Not clipped.
    flag : str
        ``"NO_ZERO_POINT"`` (no star), ``"FEW_ZP_STARS"`` (fewer than 5),
        ``"ZP_SCATTER"`` (above 0.1 mag) or empty.
    """

    value: float
    error: float
    scatter: float
    intrinsic: float
    stars: int
    flag: str


def zero_point(
    flux: ArrayLike,
    flux_error: ArrayLike,
    exposure_s: float,
    mag: ArrayLike,
    mag_error: ArrayLike | None = None,
    colour: ArrayLike | None = None,
    colour_term: float = 0.0,
    pivot_colour: float = 0.0,
) -> ZeroPoint:
    """Robust weighted mean of catalogue minus instrumental magnitudes.

    Parameters
    ----------
    flux, flux_error : array_like, shape (n,)
        Of matched stars, total (aperture-corrected), in e- or ADU.
    exposure_s : float
        Open-shutter time, s.
    mag : array_like, shape (n,)
        In the catalogue.
    mag_error : array_like, shape (n,), optional
        Its error; 0 and NaN count as unknown, and so as none.
    colour : array_like, shape (n,), optional
        In the catalogue.
    colour_term : float
        ``mag = value - 2.5 log10(flux / s) + colour_term (colour - pivot_colour)``;
        stars of unknown colour are left out if it is not zero.
    pivot_colour : float
        Colour the zero point is for.

    Returns
    -------
    ZeroPoint

    Notes
    -----
    Each star weighs by its own error and the intrinsic scatter of all in quadrature, so
    that a few bright ones do not rule; the scatter is estimated as by DerSimonian &
    Laird (1986, Control. Clin. Trials 7, 177). Stars beyond 3.5 standard deviations,
    measured by the median absolute deviation, are clipped until the set settles.
    """
    flux, flux_error = np.asarray(flux, np.float64), np.asarray(flux_error, np.float64)
    difference = np.asarray(mag, np.float64).copy()
    if colour is not None and colour_term != 0.0:
        difference -= colour_term * (np.asarray(colour, np.float64) - pivot_colour)
    known = np.zeros(flux.shape) if mag_error is None else np.nan_to_num(np.asarray(mag_error))
    good = np.isfinite(difference) & np.isfinite(flux) & (flux > 0) & (flux_error > 0)
    good &= np.isfinite(flux_error)
    if not good.any() or not exposure_s > 0:
        return ZeroPoint(math.nan, math.nan, math.nan, math.nan, 0, "NO_ZERO_POINT")
    difference = difference[good] + 2.5 * np.log10(flux[good] / exposure_s)
    variance = np.square(POGSON * flux_error[good] / flux[good]) + np.square(known[good])
    value, intrinsic, kept = _clipped_mean(difference, variance)
    weight = 1.0 / (variance[kept] + intrinsic**2)
    scatter = math.sqrt(float(np.average(np.square(difference[kept] - value), weights=weight)))
    stars = int(kept.sum())
    flag = "FEW_ZP_STARS" if stars < FEW_STARS else ""
    flag = "ZP_SCATTER" if scatter > LARGE_SCATTER else flag
    return ZeroPoint(value, 1.0 / math.sqrt(weight.sum()), scatter, intrinsic, stars, flag)


def enclosed_light(radius: float, fwhm: float, beta: float) -> float:
    """Share of a star's light within a radius.

    Parameters
    ----------
    radius, fwhm : float
        Of the aperture; of the star. Pixels.
    beta : float
        Exponent of its Moffat profile; 2 is taken for anything below.

    Returns
    -------
    float
        1 where the profile is not known (NaN).

    Notes
    -----
    ``1 - (1 + (radius / alpha)^2)^(1 - beta)`` (Trujillo et al. 2001, MNRAS 328, 977).
    """
    if not (radius > 0 and fwhm > 0 and math.isfinite(beta)):
        return 1.0
    beta = max(beta, SHALLOWEST_BETA)
    outside: float = (1.0 + (radius / _moffat_core(fwhm, beta)) ** 2) ** (1.0 - beta)
    return 1.0 - outside


def limiting_magnitude(
    zero_point: float,
    exposure_s: float,
    sky_rms: float,
    fwhm: float,
    n_sigma: float = 5.0,
    beta: float | None = None,
) -> float:
    """Magnitude of a point source of a given signal to noise.

    Parameters
    ----------
    zero_point : float
        mag of 1 e-/s.
    exposure_s : float
        s.
    sky_rms : float
        Noise of one pixel of the background, e-.
    fwhm : float
        Seeing, pixels.
    n_sigma : float
        Signal to noise.
    beta : float, optional
        Exponent of the star's Moffat profile, 2 for anything below; None or NaN for a
        Gaussian.

    Returns
    -------
    float
        NaN if an argument is NaN or not above zero.

    Notes
    -----
    A fit of a PSF sees the background of ``A = 1 / sum(p^2)`` pixels (King 1983, PASP 95,
    163). That is ``4 pi sigma^2 = 2.27 FWHM^2`` for a Gaussian, and
    ``pi alpha^2 (2 beta - 1) / (beta - 1)^2`` for a Moffat profile, 3.78 FWHM^2 for
    beta = 3. With the photon noise of the source itself, ``F^2 = n^2 (F + A rms^2)``,
    whose positive root is ``F = n^2 / 2 (1 + sqrt(1 + 4 A rms^2 / n^2))``.
    """
    if not (exposure_s > 0 and sky_rms > 0 and fwhm > 0 and n_sigma > 0):
        return math.nan
    area = _noise_area(fwhm, beta)
    flux = 0.5 * n_sigma**2 * (1.0 + math.sqrt(1.0 + 4.0 * area * (sky_rms / n_sigma) ** 2))
    return zero_point - 2.5 * math.log10(flux / exposure_s)


def _noise_area(fwhm: float, beta: float | None) -> float:
    """Pixels whose noise a fit of the PSF sees."""
    if beta is None or math.isnan(beta):
        return 4.0 * math.pi * (fwhm / (2.0 * math.sqrt(2.0 * math.log(2.0)))) ** 2
    beta = max(beta, SHALLOWEST_BETA)
    return math.pi * _moffat_core(fwhm, beta) ** 2 * (2.0 * beta - 1.0) / (beta - 1.0) ** 2


def _moffat_core(fwhm: float, beta: float) -> float:
    """Radius alpha of ``(1 + (r / alpha)^2)^-beta``."""
    return fwhm / (2.0 * math.sqrt(2.0 ** (1.0 / beta) - 1.0))


def _clipped_mean(values: Array, variance: Array) -> tuple[float, float, NDArray[np.bool_]]:
    """Weighted mean, intrinsic scatter and the stars that were kept."""
    kept = np.ones(values.size, bool)
    mean, intrinsic = _weighted_median(values, 1.0 / variance), 0.0
    for _ in range(20):
        # What the errors leave unexplained widens the clip of all.
        away = np.abs(values - mean)
        excess = _median_excess(away, variance)
        before, kept = kept, away <= CLIP * np.sqrt(variance + excess)
        if not kept.any():
            kept = away <= away.min()
        intrinsic = _intrinsic_scatter(values[kept], variance[kept])
        mean = float(np.average(values[kept], weights=1.0 / (variance[kept] + intrinsic**2)))
        if np.array_equal(before, kept):
            break
    return mean, intrinsic, kept


def _median_excess(away: Array, variance: Array) -> float:
    """Variance to add so that half of the stars are within 0.6745 standard deviations."""
    low, high = 0.0, (1.5 * float(np.median(away))) ** 2
    for _ in range(20):
        middle = 0.5 * (low + high)
        too_small = np.median(away / np.sqrt(variance + middle)) > 0.6745
        low, high = (middle, high) if too_small else (low, middle)
    return high


def _intrinsic_scatter(values: Array, variance: Array) -> float:
    """Scatter beyond the errors, by the moment estimator of DerSimonian & Laird."""
    weight = 1.0 / variance
    total = float(weight.sum())
    mean = float(np.average(values, weights=weight))
    excess = float((weight * np.square(values - mean)).sum()) - (values.size - 1)
    spread = total - float(np.square(weight).sum()) / total
    return math.sqrt(max(0.0, excess / spread)) if spread > 1e-9 * total else 0.0


def _weighted_median(values: Array, weight: Array) -> float:
    """Where half of the weight lies on either side; weights capped at ten times the median."""
    order = np.argsort(values)
    capped = np.minimum(weight, 10.0 * np.median(weight))[order]
    rank = np.searchsorted(np.cumsum(capped), 0.5 * capped.sum())
    return float(values[order[min(int(rank), values.size - 1)]])
