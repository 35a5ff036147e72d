"""How sharp and how round the stars of a CCD are, and the sources found with that knowledge."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.stars.detection import detect
from prepipe.calibrate.stars.matched_filter import SIGMA_TO_FWHM, check_fwhm, matched_filter
from prepipe.calibrate.stars.measurement import DISTURBED, Sources, measure
from prepipe.calibrate.stars.psf_map import PsfMap, fit_psf_map, local_width, window_response

__all__ = ["Psf", "find_sources", "measure_psf"]

_FEWEST_STARS = 5
_FEWEST_ISOLATED = 20
_MOST_STACKED = 200
_SNR_MIN = 20.0
_SIZE_TOLERANCE = 0.08
_MOST_PICKS = 8
_UNEVEN = 0.03
_STACK_RADIUS = 1.2
_STACK_BINS = 30
_STACK_CLIP = 4.0
_STAR_TO_STAR = 0.01
_SHARPEST = 0.9
_STEEPEST_BETA = 30.0
_REFINE_ABOVE = 0.15
_MOST_REPEATS = 2
_WIDER = (1.0, 2.0, 4.0)


Timing = Callable[[str], AbstractContextManager[None]]
"""Gives a context that takes the time of a step."""


def _untimed(_step: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, eq=False)
class Psf:
    """The point-spread function of one CCD.

    Parameters
    ----------
    fwhm_px : float
        FWHM of the azimuthally averaged profile, pixels; NaN where fewer than five
        stars could be measured.
    beta : float
        Exponent of the Moffat profile fitted; NaN as `fwhm_px`.
    ellipticity : tuple of float
        Along the axes and the diagonals, as in `PsfMap`: means over the CCD.
    map : PsfMap
        How width and ellipticity vary over the CCD.
    stars : (n_stars,) int64 ndarray
        Indices of the stars among the sources, ascending.
    """

    fwhm_px: float
    beta: float
    ellipticity: tuple[float, float]
    map: PsfMap
    stars: NDArray[np.int64]

    @property
    def n_stars(self) -> int:
        """Stars found."""
        return self.stars.size

    @property
    def known(self) -> bool:
        """Whether the width could be measured."""
        return bool(np.isfinite(self.fwhm_px))


def find_sources(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    background_rms: NDArray[np.float32],
    box: int,
    fwhm_guess_px: float,
    sky_variance: float,
    snr: float = 5.0,
    out: NDArray[np.float32] | None = None,
    timing: Timing = _untimed,
) -> tuple[Sources, Psf]:
    """Filter, detect and measure, and do so again if the stars are not as wide as supposed.

    The guess may be wrong by a factor of two either way. The work is repeated, at
    most twice, as long as the FWHM measured differs by more than 15 % from the one
    worked with. Where no width comes out of many bright sources (trailed or
    defocused stars), twice and four times the guess are tried; if that does not help
    either, the sources are those found with the guess.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        Background-subtracted image, e-.
    mask : (ny, nx) uint8 ndarray
        `Mask` bits.
    background_rms : (my, mx) float32 ndarray
        Mesh of the noise of an empty pixel, e-; see `detect`.
    box : int
        Pixels per element of the mesh along each axis.
    fwhm_guess_px : float
        FWHM to begin with, pixels.
    sky_variance : float
        Typical variance of an empty pixel, e-^2.
    snr : float
        Detection threshold.
    out : (ny, nx) float32 ndarray, optional
        Memory for the filtered image.
    timing : callable, optional
        Told that ``"filter"``, ``"detect"``, ``"measure"`` and ``"psf"`` begin; gives a context
        for each.

    Returns
    -------
    sources : Sources
    psf : Psf

    Raises
    ------
    ConfigError
        If a parameter makes no sense.
    PixelError
        If `image` is not two-dimensional or `mask` has another shape.
    """
    attempts = []
    for factor in _WIDER:
        attempts.append(
            _find_and_refine(
                image,
                mask,
                background_rms,
                box,
                factor * fwhm_guess_px,
                sky_variance,
                snr,
                out,
                timing,
            )
        )
        sources, psf = attempts[-1]
        if psf.known:
            return sources, psf
        # A window too narrow sees only a part of a star's signal to noise.
        if np.count_nonzero(sources.snr > 0.5 * _SNR_MIN) < _FEWEST_ISOLATED:
            break
    return attempts[0]


def _find_and_refine(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    background_rms: NDArray[np.float32],
    box: int,
    fwhm_px: float,
    sky_variance: float,
    snr: float,
    out: NDArray[np.float32] | None,
    timing: Timing,
) -> tuple[Sources, Psf]:
    """Repeat with the measured width until it is the one worked with, or is lost by that."""
    found: tuple[Sources, Psf] | None = None
    for _ in range(_MOST_REPEATS + 1):
        with timing("filter"):
            filtered, noise_gain = matched_filter(image, fwhm_px, mask, out)
        with timing("detect"):
            peaks = detect(
                filtered,
                background_rms,
                mask,
                fwhm_px=fwhm_px,
                noise_gain=noise_gain,
                snr=snr,
                box=box,
            )
        with timing("measure"):
            sources = measure(image, mask, peaks, fwhm_px=fwhm_px, sky_variance=sky_variance)
        with timing("psf"):
            psf = measure_psf(image, sources, fwhm_px)
        if found is not None and not psf.known:
            return found
        found = sources, psf
        if not psf.known or abs(psf.fwhm_px / fwhm_px - 1.0) <= _REFINE_ABOVE:
            break
        fwhm_px = psf.fwhm_px
    return sources, psf


def measure_psf(image: NDArray[np.float32], sources: Sources, fwhm_guess_px: float) -> Psf:
    """Pick the stars by their common size and measure their profile.

    Stars are the undisturbed sources of S/N above 20 whose size lies within 8 % of
    the most frequent one. The FWHM is that of a Moffat profile (Moffat 1969, A&A 3,
    455) fitted to the mean profile of the brightest 200 of them.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        Background-subtracted image, e-.
    sources : Sources
        As measured on it.
    fwhm_guess_px : float
        FWHM that the sources were measured with, pixels.

    Returns
    -------
    Psf
        With NaN for everything that too few stars are left to tell.

    Raises
    ------
    ConfigError
        If `fwhm_guess_px` is not a positive number.
    """
    check_fwhm(fwhm_guess_px)
    stars = _pick_stars(sources, image.shape)
    if stars.size < _FEWEST_STARS:
        return _unknown(image.shape, stars)
    alike = np.ones(stars.size)
    profile = _mean_profile(image, sources, stars, _STACK_RADIUS * fwhm_guess_px, alike)
    width = SIGMA_TO_FWHM * float(np.median(sources.size[stars]))
    fwhm_px, beta = _fit_moffat(*profile, width)
    if not max(_SHARPEST, 0.25 * width) < fwhm_px < 2.0 * width:
        return _unknown(image.shape, stars)
    fitted = _fit_map(image.shape, sources, stars, fwhm_px, beta)
    relative = fitted.at(sources.x[stars], sources.y[stars])[0] / fwhm_px
    if np.ptp(relative) > _UNEVEN:
        # The mean of narrow and wide stars is no star: scaled to one width they are alike.
        profile = _mean_profile(image, sources, stars, _STACK_RADIUS * fwhm_guess_px, relative)
        scaled_px, beta = _fit_moffat(*profile, width)
        fitted = replace(fitted, fwhm_px=fitted.fwhm_px * (scaled_px / fwhm_px))
        fwhm_px = scaled_px
    _, e1, e2 = fitted.grid(16, 16)
    ellipticity = float(e1.mean()), float(e2.mean())
    return Psf(fwhm_px=fwhm_px, beta=beta, ellipticity=ellipticity, map=fitted, stars=stars)


def _unknown(shape: tuple[int, ...], stars: NDArray[np.int64]) -> Psf:
    """What is said when there is too little to measure."""
    nan = np.full(1, np.nan)
    unknown = PsfMap((shape[0], shape[1]), nan, nan, nan)
    return Psf(float("nan"), float("nan"), (float("nan"), float("nan")), unknown, stars)


def _pick_stars(sources: Sources, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Indices of the sources of the most frequent size, which may vary over the CCD."""
    size = sources.size
    usable = ((sources.flags & DISTURBED) == 0) & np.isfinite(size) & (sources.snr > _SNR_MIN)
    usable &= sources.flux > 0.0
    if np.count_nonzero(usable) < _FEWEST_STARS:
        return np.flatnonzero(usable)
    candidates = np.flatnonzero(usable)
    x, y, size = sources.x[candidates], sources.y[candidates], size[candidates]
    typical = np.full(size.size, _most_frequent(size))
    alike = np.zeros(size.size, np.bool_)
    for _ in range(_MOST_PICKS):
        before, alike = alike, np.abs(size - typical) < _SIZE_TOLERANCE * typical
        if not alike.any() or np.array_equal(before, alike):
            break
        typical = local_width((shape[0], shape[1]), (x, y), size, alike)
    return candidates[alike]


def _most_frequent(values: NDArray[np.float64]) -> float:
    """Half-sample mode (Bickel & Fruehwirth 2006): the densest half of the densest half of ..."""
    values = np.sort(values)
    while values.size > 4:
        half = (values.size + 1) // 2
        widths = values[half - 1 :] - values[: values.size - half + 1]
        start = int(np.argmin(widths))
        values = values[start : start + half]
    return float(values.mean())


def _mean_profile(
    image: NDArray[np.float32],
    sources: Sources,
    stars: NDArray[np.int64],
    radius: float,
    relative: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean distance, mean brightness and total weight in rings around the stars, each of flux 1.

    Each star is shrunk by its `relative` width.
    """
    isolated = (sources.flags[stars] & SourceFlag.NEIGHBOUR) == 0
    usable = (
        np.flatnonzero(isolated) if isolated.sum() >= _FEWEST_ISOLATED else np.arange(stars.size)
    )
    brightest = np.argsort(-sources.snr[stars[usable]], kind="stable")[:_MOST_STACKED]
    chosen, shrink = stars[usable[brightest]], relative[usable[brightest]]
    reach = int(np.ceil(radius)) + 1
    column = np.round(sources.x[chosen]).astype(np.int64)
    row = np.round(sources.y[chosen]).astype(np.int64)
    inside = (row >= reach) & (row < image.shape[0] - reach)
    inside &= (column >= reach) & (column < image.shape[1] - reach)
    chosen, row, column, shrink = chosen[inside], row[inside], column[inside], shrink[inside]
    steps = np.arange(-reach, reach + 1)
    y = row[:, None, None] + steps[None, :, None]
    x = column[:, None, None] + steps[None, None, :]
    light = image[y, x] * (shrink**2 / sources.flux[chosen])[:, None, None]
    distance = np.hypot(y - sources.y[chosen][:, None, None], x - sources.x[chosen][:, None, None])
    distance /= shrink[:, None, None]
    # Sky noise in units of the star's flux, but no star more than its profile can be trusted.
    weight = 1.0 / (1.0 / sources.snr[chosen] ** 2 + _STAR_TO_STAR**2)
    weights = np.broadcast_to(weight[:, None, None], light.shape)
    used = (distance < radius) & np.isfinite(light)
    return _rings(distance[used], light[used], weights[used], radius)


def _rings(
    distance: NDArray[np.float64],
    light: NDArray[np.float64],
    weight: NDArray[np.float64],
    radius: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weighted means in rings, after outliers (neighbours, defects) were dropped once."""
    ring = (distance * (_STACK_BINS / radius)).astype(np.int64)
    mean = _weighted_mean(ring, light, weight)
    scatter = np.sqrt(_weighted_mean(ring, (light - mean[ring]) ** 2, weight))
    usual = np.abs(light - mean[ring]) <= _STACK_CLIP * scatter[ring]
    ring, weight = ring[usual], weight[usual]
    total = np.bincount(ring, weight, _STACK_BINS).astype(np.float64)
    some = total > 0.0
    where = _weighted_mean(ring, distance[usual], weight)
    return where[some], _weighted_mean(ring, light[usual], weight)[some], total[some]


def _weighted_mean(
    ring: NDArray[np.int64], values: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of the values in each ring; zero in an empty one."""
    total = np.bincount(ring, weight, _STACK_BINS)
    mean = np.bincount(ring, weight * values, _STACK_BINS) / np.where(total > 0.0, total, 1.0)
    return np.asarray(mean, np.float64)


def _fit_moffat(
    distance: NDArray[np.float64],
    light: NDArray[np.float64],
    weight: NDArray[np.float64],
    fwhm_guess_px: float,
) -> tuple[float, float]:
    """FWHM and exponent of ``A (1 + (r / alpha)^2)^-beta``; NaN if the fit fails."""
    if distance.size < 4 or not light[0] > 0.0:
        return float("nan"), float("nan")
    root = np.sqrt(weight / weight.max())

    def residuals(p: NDArray[np.float64]) -> NDArray[np.float64]:
        """In units of the central brightness; p: amplitude, log FWHM, 1 / beta."""
        profile = p[0] * _moffat(distance, float(np.exp(p[1])), 1.0 / float(p[2]))
        return np.asarray(root * (profile - light) / light[0], np.float64)

    start = [light[0], np.log(fwhm_guess_px), 1.0 / 3.0]
    bounds = (
        [0.0, start[1] - 2.0, 1.0 / _STEEPEST_BETA],
        [10.0 * light[0], start[1] + 2.0, 1.0 / 1.1],
    )
    fit = least_squares(residuals, start, bounds=bounds, x_scale=[light[0], 0.1, 0.1])
    if not fit.success:
        return float("nan"), float("nan")
    return float(np.exp(fit.x[1])), float(1.0 / fit.x[2])


def _moffat(distance: NDArray[np.float64], fwhm_px: float, beta: float) -> NDArray[np.float64]:
    """Moffat profile of unit height."""
    shape = (2.0 * distance / fwhm_px) ** 2 * (2.0 ** (1.0 / beta) - 1.0)
    return np.asarray((1.0 + shape) ** -beta, np.float64)


def _fit_map(
    shape: tuple[int, ...], sources: Sources, stars: NDArray[np.int64], fwhm_px: float, beta: float
) -> PsfMap:
    """Width and ellipticity over the CCD, from the stars' moments."""
    xx, yy, xy = sources.xx[stars], sources.yy[stars], sources.xy[stars]
    size = sources.size[stars]
    width_seen, ellipticity_seen = window_response(beta)
    relative = (size / np.median(size)) ** (1.0 / width_seen)
    e1, e2 = (xx - yy) / (xx + yy), 2.0 * xy / (xx + yy)
    # A trail fills its window, and seems as long as it is.
    seen = ellipticity_seen + (1.0 - ellipticity_seen) * np.minimum(np.hypot(e1, e2), 1.0)
    shapes = e1 / seen, e2 / seen
    place = sources.x[stars], sources.y[stars]
    return fit_psf_map((shape[0], shape[1]), place, relative, shapes, fwhm_px)
