"""The four steps of the built-in engine, each a function from what is known to what it adds.

None gives up on a poor frame: what is wrong becomes a flag, and the flag a grade.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from prepipe.calibrate.astrometry import AstrometrySettings, AstrometrySolution, solve
from prepipe.calibrate.background import Background, mark_silent, measure_background, subtract
from prepipe.calibrate.cosmic_rays import find_cosmic_rays
from prepipe.calibrate.detrend import Detrended, detrend
from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.calibrate.masks import (
    find_dead,
    grow_saturation,
    interpolate_bad,
    saturated_fraction,
)
from prepipe.calibrate.measurement import ApertureCorrection, aperture_correction
from prepipe.calibrate.photometry import (
    ZeroPoint,
    enclosed_light,
    limiting_magnitude,
    zero_point,
)
from prepipe.calibrate.psf import Psf, find_sources
from prepipe.calibrate.refcat import ReferenceCatalogue, ReferenceSource
from prepipe.calibrate.sources import Sources
from prepipe.calibrate.tpv import Tpv
from prepipe.cameras import Camera
from prepipe.config import Calibration, Rescue
from prepipe.engines.raw import RawCcd
from prepipe.errors import HeaderError
from prepipe.model import Layout, PointingHint, WcsTry

__all__ = [
    "Astrometry",
    "Clean",
    "Masters",
    "Measured",
    "Photometry",
    "Results",
    "calibrate_flux",
    "clean_pixels",
    "measure_sources",
    "solve_wcs",
]

FLOODED = 0.5
"""A CCD with more of its pixels saturated was flooded, not exposed."""

SILENT = 0.9
"""A CCD with more of its pixels noiseless holds no image."""

TRAILED = 0.4
"""Ellipticity above which the telescope moved rather than focused badly."""

RELAXED_MATCHES = 5
"""Stars enough for a WCS where others have told the pointing; chance is still ruled out."""

Flags = tuple[str, ...]


@dataclass(frozen=True)
class Masters:
    """Master frames for one CCD; None where there is none.

    Parameters
    ----------
    bias, flat : ndarray of float32, shape (ny, nx), or None
        ADU; relative response.
    bias_noise : float
        Standard error of a pixel of the bias, ADU.
    bias_name, flat_name : str
        File names.
    """

    bias: NDArray[np.float32] | None = None
    flat: NDArray[np.float32] | None = None
    bias_noise: float = 0.0
    bias_name: str = ""
    flat_name: str = ""
    flags: Flags = ()

    def noisier(self, layout: Layout) -> Layout:
        """The layout with the noise of the bias counted as read noise."""
        amplifiers = tuple(
            replace(amp, read_noise=math.hypot(amp.read_noise, self.bias_noise * amp.gain))
            for amp in layout.amplifiers
        )
        return replace(layout, amplifiers=amplifiers)


@dataclass(frozen=True)
class Clean:
    """Calibrated pixels; `image` is `frame.image` without its sky."""

    frame: Detrended
    background: Background
    image: NDArray[np.float32]
    n_saturated: int
    n_cosmic_rays: int
    flags: Flags


@dataclass(frozen=True)
class Measured:
    """What shines on the CCD."""

    sources: Sources
    psf: Psf
    correction: ApertureCorrection
    flags: Flags


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
    """

    zero_point: ZeroPoint | None
    factor: float
    limiting_mag: float
    flags: Flags
    reference_mag: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


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


def clean_pixels(
    raw: RawCcd, layout: Layout, camera: Camera, masters: Masters, fwhm_px: float
) -> Clean:
    """From raw ADU to electrons: overscan, bias, flat, gain, masks, sky, cosmic rays.

    Parameters
    ----------
    raw : RawCcd
    layout : Layout
    camera : Camera
        Knows the dead amplifiers.
    masters : Masters
    fwhm_px : float
        Seeing supposed, pixels: what is sharper is a cosmic ray.

    Raises
    ------
    PixelError
        If the pixels have a wrong type or shape.
    """
    known_dead = camera.dead_amplifiers(raw.ccd.number, raw.exposure.start)
    dead = tuple(dict.fromkeys((*known_dead, *find_dead(raw.pixels, layout))))
    flags = _amplifier_flags(layout, dead)
    corrupt = raw.corrupt_mask(layout)
    if corrupt is not None:
        flags.append("CORRUPT_TILES")
    if raw.sum_fits is False:
        flags.append("STALE_SUM")
    layout = masters.noisier(layout)
    frame = detrend(
        raw.pixels, layout, bias=masters.bias, flat=masters.flat, bad_pixels=corrupt, dead=dead
    )
    if saturated_fraction(frame.mask) > FLOODED:
        flags.append("SATURATED_FRAME")
    n_saturated = grow_saturation(frame.mask)
    _mark_edges(frame.mask, layout, camera.edge_columns)
    interpolate_bad(frame.image, frame.mask)
    background = measure_background(frame.image, frame.mask)
    silent = mark_silent(frame.mask, background, frame.read_noise)
    if not math.isfinite(background.median_level) or silent > SILENT:
        flags.append("BLANK")
    n_cosmic_rays = find_cosmic_rays(
        frame.image, frame.mask, background, fwhm_px, read_noise=frame.read_noise
    )
    image = subtract(frame.image, background, mask=frame.mask)
    return Clean(frame, background, image, n_saturated, n_cosmic_rays, tuple(flags))


def measure_sources(clean: Clean, fwhm_px: float, snr: float) -> Measured:
    """Detect and measure the sources, and the seeing.

    Parameters
    ----------
    clean : Clean
    fwhm_px : float
        Seeing supposed, pixels.
    snr : float
        Detection threshold.
    """
    noise = clean.background.median_rms
    sources, psf = find_sources(
        clean.image,
        clean.frame.mask,
        clean.background.rms,
        clean.background.box,
        fwhm_px,
        noise**2 if math.isfinite(noise) else 0.0,
        snr,
    )
    flags: Flags = ()
    if len(sources) == 0:
        flags = ("NO_SOURCES",)
    elif not psf.known:
        flags = ("NO_PSF_STARS",)
    elif math.hypot(*psf.ellipticity) > TRAILED:
        flags = ("TRAILED",)
    return Measured(sources, psf, aperture_correction(sources, psf.stars), flags)


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
    except HeaderError:
        return Astrometry(None, None, None, ("NO_NOMINAL_WCS", "NO_WCS"))
    if reference is None:
        return Astrometry(nominal, None, None, ("NO_REFERENCE",))
    stars = _stars_near(raw, layout, camera, nominal, reference, settings.search_arcsec)
    whole = AstrometrySettings(search_arcsec=settings.search_arcsec)
    solution = _attempt(sources, stars, nominal, layout, whole)
    tries = [_told("header", False, solution)]
    for hint in hints:
        if solution.accepted:
            break
        start, around, bright = _around_hint(hint, nominal, layout, stars, settings.rescue)
        solution = _attempt(sources, bright, start, layout, around)
        if solution.accepted:
            stars = bright
        tries.append(_told(hint.rung, hint.relaxed, solution))
    if not solution.accepted:
        return Astrometry(nominal, solution, stars, ("NO_WCS", *tries[0].flags), tuple(tries))
    offset = _offset(nominal, solution.wcs, layout)
    return Astrometry(solution.wcs, solution, stars, solution.flags, tuple(tries), offset)


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
    rescue: Rescue,
) -> tuple[Tpv, AstrometrySettings, ReferenceCatalogue]:
    """The nominal WCS moved as the hint says, and a search around that place."""
    dec = math.radians(_centre(nominal, layout)[1])
    east = hint.east_arcsec / 3600.0 / max(math.cos(dec), 1e-6)
    start = nominal.repointed(east, hint.north_arcsec / 3600.0, 0.0)
    if not hint.relaxed:
        return start, AstrometrySettings(search_arcsec=rescue.search_arcsec), stars
    if rescue.relaxed_max_mag is not None:
        stars = stars.take(np.flatnonzero(stars.mag < rescue.relaxed_max_mag))
    settings = AstrometrySettings(
        search_arcsec=rescue.relaxed_search_arcsec,
        rms_limit_mas=rescue.relaxed_rms_mas,
        min_matches=RELAXED_MATCHES,
    )
    return start, settings, stars


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


def calibrate_flux(
    raw: RawCcd, camera: Camera, clean: Clean, measured: Measured, astrometry: Astrometry
) -> Photometry:
    """Find the zero point from the stars of the astrometric match, and the depth.

    Parameters
    ----------
    raw : RawCcd
    camera : Camera
        Knows how its bands differ from the catalogue's.
    clean : Clean
    measured : Measured
    astrometry : Astrometry
    """
    factor = _factor_to_all_light(measured)
    solution, stars = astrometry.solution, astrometry.stars
    if stars is None or solution is None or not solution.accepted:
        return Photometry(None, factor, math.nan, ())
    matched = measured.sources.take(solution.source)
    clear = (matched.flags & ~SourceFlag.NEIGHBOUR) == 0
    exposure_s = raw.exposure.exposure_s
    known = stars.take(solution.reference)
    mag, flags = _mags_in_band(known, camera, raw.exposure.band)
    zero = zero_point(
        matched.flux[clear] * factor,
        matched.flux_error[clear] * factor,
        exposure_s,
        mag[clear],
        known.mag_error[clear],
    )
    if not math.isfinite(zero.value):
        return Photometry(zero, factor, math.nan, ("NO_ZERO_POINT",), mag)
    psf, sky_rms = measured.psf, clean.background.median_rms
    depth = limiting_magnitude(zero.value, exposure_s, sky_rms, psf.fwhm_px, beta=psf.beta)
    return Photometry(zero, factor, depth, flags, mag)


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


def _amplifier_flags(layout: Layout, dead: Flags) -> list[str]:
    names = {amplifier.name for amplifier in layout.amplifiers}
    flags = []
    if names <= set(dead):
        flags.append("DEAD")
    elif names & set(dead):
        flags.append("PARTIAL_DEAD")
    if not layout.bias_level and any(amp.overscan is None for amp in layout.amplifiers):
        flags.append("NO_OVERSCAN")
    return flags


def _mark_edges(mask: NDArray[np.uint8], layout: Layout, columns: int) -> None:
    """Flag the glowing columns where the sensitive pixels meet the overscan."""
    for amplifier in layout.amplifiers:
        box, overscan = amplifier.trimmed, amplifier.overscan
        if overscan is not None and overscan.x0 == amplifier.data.x1:
            mask[box.y0 : box.y1, max(box.x0, box.x1 - columns) : box.x1] |= np.uint8(Mask.EDGE)
        if overscan is not None and overscan.x1 == amplifier.data.x0:
            mask[box.y0 : box.y1, box.x0 : min(box.x1, box.x0 + columns)] |= np.uint8(Mask.EDGE)


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
