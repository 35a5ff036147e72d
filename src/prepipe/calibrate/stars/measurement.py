"""From peaks to sources: centroids, fluxes and shapes.

Each source is measured on a cut-out around its peak. Pixels in which a
neighbour's profile is the brighter one, and pixels that cannot be trusted, take
the value of the pixel on the opposite side of the peak (Stetson's and
SExtractor's MASK_TYPE CORRECT remedy), or zero if that one is no better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.stars.detection import Peaks
from prepipe.calibrate.stars.matched_filter import check_frame, check_fwhm
from prepipe.calibrate.stars.neighbours import CELL, cells_of_peaks, moffat_core
from prepipe.calibrate.stars.sources import Sources
from prepipe.calibrate.stars.stamps import measure_peaks
from prepipe.errors import ConfigError

__all__ = [
    "APERTURES_FWHM",
    "DISTURBED",
    "MAIN_APERTURE",
    "ApertureCorrection",
    "Sources",
    "aperture_correction",
    "measure",
]

APERTURES_FWHM = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Default aperture radii, in units of the FWHM."""

MAIN_APERTURE = 1
"""Default aperture for fluxes: one FWHM, past which sky noise grows faster than light."""

DISTURBED = (
    SourceFlag.SATURATED
    | SourceFlag.EDGE
    | SourceFlag.BAD_PIXEL
    | SourceFlag.COSMIC_RAY
    | SourceFlag.NO_CENTROID
)
"""A source with one of these is no example of a star's profile."""

_FEW = 5
_MANY = 100

_COLUMNS = (
    "x",
    "y",
    "xx",
    "yy",
    "xy",
    "half_light_radius",
    "peak",
    "snr",
    "position_sigma",
)
_ROW = np.dtype([(name, np.float64) for name in _COLUMNS] + [("flags", np.int32)], align=True)


def measure(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    peaks: Peaks,
    *,
    fwhm_px: float,
    sky_variance: float,
    radii_px: Sequence[float] | None = None,
    main_aperture: int = MAIN_APERTURE,
) -> Sources:
    """Measure every peak.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        Background-subtracted image, e-. NaN pixels are treated as lost.
    mask : (ny, nx) uint8 ndarray
        `Mask` bits. DEAD and CORRUPT pixels are treated as lost; BAD and
        COSMIC_RAY ones keep their value where the opposite pixel is no better.
    peaks : Peaks
        Of n peaks.
    fwhm_px : float
        FWHM of a star, pixels: width of the Gaussian window of centroids and moments.
    sky_variance : float
        Variance of an empty pixel, e-^2.
    radii_px : sequence of m float, optional
        Aperture radii, ascending, pixels; by default `APERTURES_FWHM`.
    main_aperture : int
        Index of the aperture of `Sources.flux`.

    Returns
    -------
    Sources
        n sources in the order of the peaks. EDGE is set where the cut-out, as large
        as the largest aperture, leaves the frame.

    Raises
    ------
    ConfigError
        If `fwhm_px`, `sky_variance`, `radii_px` or `main_aperture` makes no sense.
    PixelError
        If `image` is not two-dimensional or `mask` has another shape.
    """
    image, mask = check_frame(image, mask)
    check_fwhm(fwhm_px)
    if not (np.isfinite(sky_variance) and sky_variance >= 0.0):
        raise ConfigError(f"A sky variance of {sky_variance} makes no sense: give e-^2, 0 or more.")
    radii = _checked_radii(radii_px, fwhm_px, main_aperture)
    table = np.empty(len(peaks), _ROW)
    flux = np.empty((len(peaks), radii.size))
    error = np.empty_like(flux)
    grid = (image.shape[0] // CELL + 1, image.shape[1] // CELL + 1)
    measure_peaks(
        image,
        mask,
        (peaks.y, peaks.x, peaks.height),
        (*cells_of_peaks(peaks.y, peaks.x, *grid), *grid),
        float(fwhm_px),
        moffat_core(fwhm_px),
        float(sky_variance),
        radii,
        table,
        flux,
        error,
    )
    return Sources(
        aperture_flux=flux,
        aperture_flux_error=error,
        radii_px=radii,
        main_aperture=main_aperture,
        flags=table["flags"].copy(),
        **{name: table[name].copy() for name in _COLUMNS},
    )


def _checked_radii(
    radii_px: Sequence[float] | None, fwhm_px: float, main_aperture: int
) -> NDArray[np.float64]:
    """Aperture radii in pixels."""
    given = [r * fwhm_px for r in APERTURES_FWHM] if radii_px is None else list(radii_px)
    radii = np.array(given, np.float64)
    ascending = bool(radii.size) and radii[0] > 0.0 and bool(np.all(np.diff(radii) > 0.0))
    if not (ascending and np.isfinite(radii[-1])):
        raise ConfigError(f"Aperture radii {given} must be positive and ascending: sort them.")
    if not 0 <= main_aperture < radii.size:
        raise ConfigError(
            f"There is no aperture {main_aperture} among {radii.size}: count them from 0."
        )
    return radii


@dataclass(frozen=True)
class ApertureCorrection:
    """What lies between the main and the largest aperture.

    Parameters
    ----------
    factor : float
        Flux in the largest aperture over flux in the main one; NaN if unknown.
    scatter : float
        Standard deviation of that ratio from star to star; NaN if unknown.
    n_stars : int
        Stars used.
    """

    factor: float
    scatter: float
    n_stars: int

    @property
    def mag(self) -> float:
        """What to add to a magnitude in the main aperture (negative: brighter)."""
        return float(-2.5 * np.log10(self.factor))


def aperture_correction(
    sources: Sources, stars: NDArray[np.intp] | NDArray[np.int64] | None = None
) -> ApertureCorrection:
    """Correction from the main to the largest aperture: median over isolated stars.

    The hundred brightest undisturbed stars without a neighbour are used, or, if there
    are fewer than five of them, those with neighbours too.

    Parameters
    ----------
    sources : Sources
    stars : (k,) int ndarray, optional
        Indices of the stars, as in `Psf.stars`; by default all sources.

    Returns
    -------
    ApertureCorrection
        NaN, from no stars, where fewer than three are usable.
    """
    candidates = np.arange(len(sources)) if stars is None else np.asarray(stars)
    largest = sources.aperture_flux[candidates, -1]
    usable = (sources.flags[candidates] & DISTURBED) == 0
    usable &= (sources.flux[candidates] > 0.0) & (largest > 0.0)
    isolated = usable & ((sources.flags[candidates] & SourceFlag.NEIGHBOUR) == 0)
    chosen = candidates[isolated if np.count_nonzero(isolated) >= _FEW else usable]
    chosen = chosen[np.argsort(-sources.snr[chosen], kind="stable")[:_MANY]]
    if chosen.size < 3:
        return ApertureCorrection(float("nan"), float("nan"), 0)
    ratio = sources.aperture_flux[chosen, -1] / sources.flux[chosen]
    factor = float(np.median(ratio))
    scatter = 1.4826 * float(np.median(np.abs(ratio - factor)))
    return ApertureCorrection(factor, scatter, int(chosen.size))
