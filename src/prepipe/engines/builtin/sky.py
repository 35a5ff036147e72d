"""The two steps towards the sky: where the CCD looked, and how bright things are.

As the steps on the pixels, neither gives up: what is wrong becomes a flag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.sky.astrometry import AstrometrySettings, AstrometrySolution, solve
from prepipe.calibrate.sky.photometry import (
    ZeroPoint,
    enclosed_light,
    limiting_magnitude,
    zero_point,
)
from prepipe.calibrate.sky.refcat import ReferenceCatalogue, ReferenceSource
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.calibrate.stars.psf_photometry import whole_light
from prepipe.calibrate.stars.sources import Sources
from prepipe.cameras import Camera
from prepipe.config import Calibration
from prepipe.engines.builtin.steps import Clean, Flags, Masters, Measured
from prepipe.engines.raw import RawCcd
from prepipe.errors import HeaderError
from prepipe.model import Layout, PointingHint, WcsTry

__all__ = ["Astrometry", "Photometry", "Results", "calibrate_flux", "solve_wcs"]

RELAXED_MATCHES = 5
"""Stars enough for a WCS where others have told the pointing; chance is still ruled out."""


@dataclass(frozen=True)
class Astrometry:
    """Where the CCD looked.

    Parameters
    ----------
    wcs : Tpv or None
        The nominal one unless the solution was accepted.
    solution : AstrometrySolution or None
        Of the last try.
    stars : ReferenceCatalogue or None
        Near the CCD, at its date.
    flags : tuple of str
    tries : tuple of WcsTry
    offset_arcsec : tuple of float or None
        Pointing error found, east and north.
    """

    wcs: Tpv | None
    solution: AstrometrySolution | None
    stars: ReferenceCatalogue | None
    flags: Flags
    tries: tuple[WcsTry, ...] = ()
    offset_arcsec: tuple[float, float] | None = None

    @property
    def solved(self) -> bool:
        """Whether the WCS can be trusted."""
        return self.solution is not None and self.solution.accepted


@dataclass(frozen=True)
class Photometry:
    """How bright things are; NaN where unknown.

    Parameters
    ----------
    zero_point : ZeroPoint or None
        mag of 1 e-/s in an infinite aperture.
    factor : float
        From the flux in the main aperture to the whole.
    limiting_mag : float
        5 sigma, point source.
    flags : tuple of str
    reference_mag : ndarray of float64, shape (matches,)
        In the exposure's band, of the stars of the astrometric match.
    psf_factor : float
        From the flux of a fitted profile to the whole; NaN without such fits.
    """

    zero_point: ZeroPoint | None
    factor: float
    limiting_mag: float
    flags: Flags
    reference_mag: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    psf_factor: float = math.nan


@dataclass(frozen=True)
class Results:
    """All that the steps found about one CCD."""

    masters: Masters
    clean: Clean
    measured: Measured
    astrometry: Astrometry
    photometry: Photometry

    @property
    def flags(self) -> Flags:
        """Of all steps, in their order."""
        steps = (self.masters, self.clean, self.measured, self.astrometry, self.photometry)
        return tuple(dict.fromkeys(flag for step in steps for flag in step.flags))


def solve_wcs(
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    sources: Sources,
    reference: ReferenceSource | None,
    settings: Calibration,
    hints: Sequence[PointingHint] = (),
) -> Astrometry:
    """Find where on the sky the CCD lay, starting from the header's WCS, then from the hints.

    Parameters
    ----------
    raw : RawCcd
    layout : Layout
    camera : Camera
    sources : Sources
    reference : ReferenceSource or None
    settings : Calibration
    hints : sequence of PointingHint
        Tried in turn if the header alone does not do.
    """
    try:
        nominal = Tpv.from_header(camera.wcs_header(raw.header, layout))
    except (HeaderError, ArithmeticError):  # absurd numbers overflow
        return Astrometry(None, None, None, ("NO_NOMINAL_WCS", "NO_WCS"))
    if reference is None:
        return Astrometry(nominal, None, None, ("NO_REFERENCE",))
    stars = _stars_near(raw, layout, camera, nominal, reference, settings.search_arcsec)
    whole = AstrometrySettings(search_arcsec=settings.search_arcsec, max_order=settings.max_order)
    solution = _attempt(sources, stars, nominal, layout, whole)
    tries = [_told("header", False, solution)]
    for hint in hints:
        if solution.accepted:
            break
        start, around, bright = _around_hint(hint, nominal, layout, stars, settings)
        solution = _attempt(sources, bright, start, layout, around)
        if solution.accepted:
            stars = bright
        tries.append(_told(hint.rung, hint.relaxed, solution))
    if not solution.accepted:
        return Astrometry(nominal, solution, stars, ("NO_WCS", *tries[0].flags), tuple(tries))
    offset = _offset(nominal, solution.wcs, layout)
    return Astrometry(solution.wcs, solution, stars, solution.flags, tuple(tries), offset)


def calibrate_flux(
    raw: RawCcd, camera: Camera, clean: Clean, measured: Measured, astrometry: Astrometry
) -> Photometry:
    """Find the zero point from the stars of the astrometric match, and the depth.

    It is that of fitted profiles where there are any, else of apertures.

    Parameters
    ----------
    raw : RawCcd
    camera : Camera
        Knows how its bands differ from the catalogue's.
    clean : Clean
    measured : Measured
    astrometry : Astrometry
    """
    factor, psf_factor = _factor_to_all_light(measured), math.nan
    flux, error = measured.sources.flux * factor, measured.sources.flux_error * factor
    if (fitted := measured.fitted) is not None:
        psf_factor = whole_light(fitted, flux, measured.psf.stars)
        flux, error = fitted.flux * psf_factor, fitted.flux_error * psf_factor
    solution, stars = astrometry.solution, astrometry.stars
    if stars is None or solution is None or not solution.accepted:
        return Photometry(None, factor, math.nan, (), psf_factor=psf_factor)
    matched = measured.sources.take(solution.source)
    clear = (matched.flags & ~SourceFlag.NEIGHBOUR) == 0
    exposure_s = raw.exposure.exposure_s
    known = stars.take(solution.reference)
    mag, flags = _mags_in_band(known, camera, raw.exposure.band)
    zero = zero_point(
        flux[solution.source][clear],
        error[solution.source][clear],
        exposure_s,
        mag[clear],
        known.mag_error[clear],
    )
    if not math.isfinite(zero.value):
        return Photometry(zero, factor, math.nan, ("NO_ZERO_POINT",), mag, psf_factor)
    psf, sky_rms = measured.psf, clean.background.median_rms
    depth = limiting_magnitude(zero.value, exposure_s, sky_rms, psf.fwhm_px, beta=psf.beta)
    return Photometry(zero, factor, depth, flags, mag, psf_factor)


def _attempt(
    sources: Sources,
    stars: ReferenceCatalogue,
    start: Tpv,
    layout: Layout,
    settings: AstrometrySettings,
) -> AstrometrySolution:
    # A saturated star has a poor centre, and a bleed trail looks like a doubled exposure.
    unfit = (sources.flags & (SourceFlag.NO_CENTROID | SourceFlag.SATURATED)) != 0
    if np.count_nonzero(~unfit & (sources.flux > 0.0)) < 2 * settings.min_matches:
        unfit = (sources.flags & SourceFlag.NO_CENTROID) != 0
    return solve(
        sources.x,
        sources.y,
        np.where(unfit, np.nan, sources.flux),
        sources.position_sigma,
        stars,
        start,
        layout.trimmed_shape,
        settings,
    )


def _told(rung: str, relaxed: bool, solution: AstrometrySolution) -> WcsTry:
    return WcsTry(rung, relaxed, solution.accepted, () if solution.accepted else solution.flags)


def _around_hint(
    hint: PointingHint,
    nominal: Tpv,
    layout: Layout,
    stars: ReferenceCatalogue,
    settings: Calibration,
) -> tuple[Tpv, AstrometrySettings, ReferenceCatalogue]:
    """The nominal WCS moved as the hint says, and a search around that place."""
    rescue = settings.rescue
    dec = math.radians(_centre(nominal, layout)[1])
    east = hint.east_arcsec / 3600.0 / max(math.cos(dec), 1e-6)
    start = nominal.repointed(east, hint.north_arcsec / 3600.0, 0.0)
    if not hint.relaxed:
        near = AstrometrySettings(search_arcsec=rescue.search_arcsec, max_order=settings.max_order)
        return start, near, stars
    if rescue.relaxed_max_mag is not None:
        stars = stars.take(np.flatnonzero(stars.mag < rescue.relaxed_max_mag))
    relaxed = AstrometrySettings(
        search_arcsec=rescue.relaxed_search_arcsec,
        rms_limit_mas=rescue.relaxed_rms_mas,
        min_matches=RELAXED_MATCHES,
        max_order=settings.max_order,
    )
    return start, relaxed, stars


def _centre(wcs: Tpv, layout: Layout) -> tuple[float, float]:
    ny, nx = layout.trimmed_shape
    ra, dec = wcs.pixel_to_sky(np.array([(nx - 1) / 2]), np.array([(ny - 1) / 2]))
    return float(ra[0]), float(dec[0])


def _offset(nominal: Tpv, solved: Tpv, layout: Layout) -> tuple[float, float]:
    """How far the centre of the CCD moved, east and north, arcsec."""
    ra, dec = _centre(nominal, layout)
    true_ra, true_dec = _centre(solved, layout)
    east = ((true_ra - ra + 180.0) % 360.0 - 180.0) * math.cos(math.radians(dec))
    return 3600.0 * east, 3600.0 * (true_dec - dec)


def _stars_near(
    raw: RawCcd,
    layout: Layout,
    camera: Camera,
    wcs: Tpv,
    reference: ReferenceSource,
    search_arcsec: float,
) -> ReferenceCatalogue:
    """Reference stars that the CCD can have seen, where they were at that time."""
    ny, nx = layout.trimmed_shape
    ra, dec = _centre(wcs, layout)
    half_diagonal = 0.5 * math.hypot(nx, ny) * camera.pixel_scale
    radius_deg = (half_diagonal + 1.5 * search_arcsec) / 3600.0
    moment = raw.exposure.start
    year = moment.year + (moment.timetuple().tm_yday - 0.5) / 365.25
    return reference.near(ra, dec, radius_deg).at_epoch(year)


def _factor_to_all_light(measured: Measured) -> float:
    """From the flux in the main aperture to the whole, beyond the largest aperture too."""
    sources, psf, factor = measured.sources, measured.psf, measured.correction.factor
    radius_px = sources.radii_px[-1]
    if not math.isfinite(factor):
        factor, radius_px = 1.0, sources.radii_px[sources.main_aperture]
    return factor / enclosed_light(float(radius_px), psf.fwhm_px, psf.beta)


def _mags_in_band(
    stars: ReferenceCatalogue, camera: Camera, band: str
) -> tuple[NDArray[np.float64], Flags]:
    """Magnitudes in the camera's band: as listed, or by Gaia's colour (NaN where none tells)."""
    if stars.in_band:
        return stars.mag, ()
    terms = camera.gaia_colour_terms(band)
    if terms is None or stars.colour is None or not stars.gaia:
        return stars.mag, ("OTHER_BAND",)
    return stars.mag - terms.difference(stars.colour), ()
