"""The astrometric solution of one CCD, from the pointing in its header.

1. The catalogue is projected through the header's WCS; the brightest detections and
   reference stars vote for an offset and a rotation.
2. Pairs within a shrinking radius give a linear correction, fitted robustly.
3. The rigid part of it is what the telescope did wrong: it goes into CRVAL and the
   position angle, so that the distortion stays where the optics have it.
4. All pairs give the final correction; quadratic and cubic terms are kept when there are
   stars enough, everywhere on the frame, and the residuals say so. Where the stars lie in a
   corner, the header's scale and shear are kept, and the solution says how far it may be off.

A solution is accepted only if nothing speaks against it: see `VETOES`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prepipe.calibrate.sky.doubled import is_doubled
from prepipe.calibrate.sky.matching import Vote, log10_chance, vote_for_offset
from prepipe.calibrate.sky.plate import (
    Frame,
    PlateFit,
    best_order,
    fit_plate,
    local_change,
    match,
    repoint,
)
from prepipe.calibrate.sky.refcat import ReferenceStars
from prepipe.calibrate.sky.tpv import Tpv

__all__ = ["VETOES", "AstrometrySettings", "AstrometrySolution", "solve"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

VETOES = {
    "TOO_FEW_SOURCES": "fewer detections than matches are needed",
    "TOO_FEW_REFERENCES": "fewer reference stars on the frame than matches are needed",
    "NO_MATCH": "no offset is preferred by more pairs than chance gives",
    "AMBIGUOUS": "two offsets fit: a doubled exposure, or a jump of the telescope",
    "BAD_SCALE": "scale or shear differ from the header's by more than their tolerances",
    "FEW_MATCHES": "fewer matches than needed",
    "HIGH_RMS": "the residuals are too large for stars",
    "CHANCE": "as many pairs may come about by chance",
}
"""Flags that forbid to accept a solution; LOW_FRACTION and POORLY_SPREAD alone do not."""


@dataclass(frozen=True)
class AstrometrySettings:
    """How far to search and what to accept.

    Parameters
    ----------
    search_arcsec : float
        Largest pointing error in each coordinate.
    rotation_deg, rotation_step_deg : float
        Largest error of the position angle, and the step it is searched with.
    bin_arcsec : float
        Bin of the vote; it must hold the errors of the header's scale over the frame.
    max_order : int
        1, 2 or 3; the order used may be lower.
    bright : int
        Detections that vote.
    most_stars : int
        Detections, the brightest, that enter the fits.
    min_matches : int
        At least.
    rms_limit_mas : float
        Largest one-dimensional residual.
    scale_tolerance : float
        Largest relative difference of scale from the header.
    shear_tolerance : float
        Largest relative difference of scale between directions; refraction gives 2e-3 at an
        airmass of 2.5, and stars paired with those of another exposure give more. On small
        frames `rms_limit_mas` at the corners is tolerated, and without a distortion in the
        header `scale_tolerance`, unless few of the bright detections are in the catalogue.
    worst_limit_mas : float
        Formal error anywhere on the frame beyond which a solution is POORLY_SPREAD.
    floor_mas : float
        Error added in quadrature to each star's; the atmosphere moves bright stars by a
        few mas over a CCD in an exposure of a minute (Bernstein et al. 2017, PASP 129,
        074503).
    chance : float
        log10 of the number of false solutions tolerated per frame.
    """

    search_arcsec: float = 75.0
    rotation_deg: float = 0.3
    rotation_step_deg: float = 0.1
    bin_arcsec: float = 2.0
    max_order: int = 3
    bright: int = 150
    most_stars: int = 4000
    min_matches: int = 8
    rms_limit_mas: float = 150.0
    scale_tolerance: float = 0.01
    shear_tolerance: float = 2e-3
    worst_limit_mas: float = 300.0
    floor_mas: float = 5.0
    chance: float = -6.0


@dataclass(frozen=True, eq=False)
class AstrometrySolution:
    """What the search found.

    Parameters
    ----------
    wcs : Tpv
        Solved if `accepted`, else the one given.
    accepted : bool
    flags : tuple of str
        Reasons against it (`VETOES`), ``"LOW_FRACTION"`` if few of the bright detections
        are in the catalogue, and ``"POORLY_SPREAD"`` if `worst_error_mas` is large.
    rms_mas : float
        One-dimensional residual of the stars in the fit; NaN without a fit.
    matches : int
        Stars in the fit.
    order : int
        Of the fit; 0 without one.
    offset_arcsec : float
        How far the centre of the frame moved on the sky; NaN without a fit.
    rotation_deg : float
        How far the focal plane turned; NaN without a fit.
    source, reference : ndarray of int64, shape (matches,)
        Indices of the matched stars in the arrays given to `solve`.
    expected_by_chance : float
        Pairs that a wrong solution would have.
    vote : Vote or None
        The search for the offset, in pixels of the given WCS.
    worst_error_mas : float
        Largest one-dimensional formal error on the frame, where the stars are farthest: of
        the fit, and of the header's scale and shear where these had to be kept; NaN without
        a fit.
    """

    wcs: Tpv
    accepted: bool
    flags: tuple[str, ...]
    rms_mas: float = math.nan
    matches: int = 0
    order: int = 0
    offset_arcsec: float = math.nan
    rotation_deg: float = math.nan
    source: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    reference: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    expected_by_chance: float = math.nan
    vote: Vote | None = None
    worst_error_mas: float = math.nan


def solve(
    x: ArrayLike,
    y: ArrayLike,
    flux: ArrayLike,
    position_sigma: ArrayLike,
    reference: ReferenceStars,
    wcs: Tpv,
    shape: tuple[int, int],
    settings: AstrometrySettings | None = None,
) -> AstrometrySolution:
    """Find where on the sky a frame lies.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Zero-based columns and rows of the detections; rows with NaN are left out.
    flux : array_like, shape (n,)
        Any linear unit; those not above zero are left out.
    position_sigma : array_like, shape (n,)
        One-dimensional error of the positions, pixels.
    reference : ReferenceStars
        At the epoch of the exposure; may reach far beyond the frame.
    wcs : Tpv
        From the header.
    shape : tuple of int
        Rows and columns of the frame.
    settings : AstrometrySettings, optional

    Returns
    -------
    AstrometrySolution
        Always; whether to use it says `accepted`.
    """
    settings = settings or AstrometrySettings()
    frame = _select(x, y, flux, position_sigma, reference, wcs, shape, settings)
    if frame.x.size < settings.min_matches:
        return AstrometrySolution(wcs, False, ("TOO_FEW_SOURCES",))
    if frame.ra.size < settings.min_matches:
        return AstrometrySolution(wcs, False, ("TOO_FEW_REFERENCES",))
    vote, width, brightest = _search(frame, wcs, settings)
    if vote.log10_chance > -2.0:
        return AstrometrySolution(wcs, False, ("NO_MATCH",), vote=vote)
    rough = _converge(frame, _offset(wcs, vote, frame.centre), 1.5 * width, brightest, settings)
    if rough is None:
        return AstrometrySolution(wcs, False, ("NO_MATCH",), vote=vote)
    pointed, rotation = repoint(frame, wcs, rough.wcs)
    found = _refine(frame, pointed, rough, settings)
    if found is None:
        return AstrometrySolution(wcs, False, ("NO_MATCH",), vote=vote)
    fit, radius = found
    offset, scale, shear = local_change(frame, wcs, fit.wcs)
    expected = _pairs_by_chance(frame, radius)
    flags = _objections(frame, fit, vote, settings)
    largest_shear = _largest_shear(frame, wcs, "LOW_FRACTION" in flags, settings)
    if abs(scale) > settings.scale_tolerance or shear > largest_shear:
        flags += ("BAD_SCALE",)
    places = (2.0 * frame.search_pixels / radius) ** 2 * _rotations(settings).size
    if log10_chance(fit.matches, expected) + math.log10(places) > settings.chance:
        flags += ("CHANCE",)
    accepted = not any(flag in VETOES for flag in flags)
    return AstrometrySolution(
        wcs=fit.wcs if accepted else wcs,
        accepted=accepted,
        flags=flags,
        rms_mas=1e3 * fit.rms_arcsec,
        matches=fit.matches,
        order=fit.order,
        offset_arcsec=offset,
        rotation_deg=rotation,
        source=frame.source_index[fit.detection[fit.kept]],
        reference=frame.reference_index[fit.reference[fit.kept]],
        expected_by_chance=expected,
        vote=vote,
        worst_error_mas=1e3 * fit.worst_arcsec,
    )


def _select(
    x: ArrayLike,
    y: ArrayLike,
    flux: ArrayLike,
    position_sigma: ArrayLike,
    reference: ReferenceStars,
    wcs: Tpv,
    shape: tuple[int, int],
    settings: AstrometrySettings,
) -> Frame:
    """Keep what is finite and within reach, brightest first."""
    columns = [np.asarray(a, np.float64) for a in (x, y, flux, position_sigma)]
    good = np.isfinite(np.stack(columns)).all(axis=0) & (columns[2] > 0) & (columns[3] >= 0)
    order = np.flatnonzero(good)
    order = order[np.argsort(-columns[2][order], kind="stable")][: settings.most_stars]
    px, py, bright, sigma = (column[order] for column in columns)
    reach = settings.search_arcsec / wcs.pixel_scale
    rx, ry = wcs.sky_to_pixel(reference.ra, reference.dec)
    near = np.isfinite(reference.mag) & np.isfinite(reference.position_error_mas)
    near &= (rx > -reach) & (rx < shape[1] + reach) & (ry > -reach) & (ry < shape[0] + reach)
    index = np.flatnonzero(near)
    index = index[np.argsort(reference.mag[index], kind="stable")]
    return Frame(
        x=px,
        y=py,
        magnitude=-2.5 * np.log10(bright),
        sigma_arcsec=np.hypot(sigma * wcs.pixel_scale, 1e-3 * settings.floor_mas),
        ra=np.asarray(reference.ra, np.float64)[index],
        dec=np.asarray(reference.dec, np.float64)[index],
        reference_magnitude=np.asarray(reference.mag, np.float64)[index],
        reference_sigma_arcsec=1e-3 * np.asarray(reference.position_error_mas, np.float64)[index],
        reference_x=rx[index],
        reference_y=ry[index],
        source_index=order,
        reference_index=index,
        shape=shape,
        search_pixels=reach,
    )


def _search(
    frame: Frame, wcs: Tpv, settings: AstrometrySettings
) -> tuple[Vote, float, tuple[slice, slice]]:
    """Vote with the brightest; if that is not clear, with more, with fainter, more coarsely.

    The fainter ones are for frames whose brightest stars are saturated and so not in the
    list, the coarse bins for headers with a poor scale.
    """
    voters = min(frame.x.size, settings.bright)
    stars = max(voters, 100) * frame.searched_area_ratio
    votes = []
    for more, skipped, coarse in ((1.0, 0, 1.0), (2.5, 0, 1.0), (1.5, voters // 3, 1.0), (1, 0, 3)):
        sources = slice(skipped, skipped + int(voters * more))
        brightest = slice(0, int(stars * more))
        width = coarse * settings.bin_arcsec / wcs.pixel_scale
        vote = vote_for_offset(
            (frame.x[sources], frame.y[sources]),
            (frame.reference_x[brightest], frame.reference_y[brightest]),
            frame.centre,
            _rotations(settings),
            frame.search_pixels,
            width,
        )
        votes.append((vote, width, (sources, brightest)))
        if vote.log10_chance < settings.chance and vote.votes > 1.5 * vote.runner_up:
            return votes[-1]
    return min(votes, key=lambda found: found[0].log10_chance)


def _offset(wcs: Tpv, vote: Vote, centre: tuple[float, float]) -> Tpv:
    """WCS moved by the outcome of a vote: detections turn about the centre, then shift."""
    cosine, sine = math.cos(vote.rotation), math.sin(vote.rotation)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    middle = np.array(centre) + 1.0
    moved = wcs.crpix - middle - np.array([vote.dx, vote.dy])
    return replace(wcs, cd=wcs.cd @ turn, crpix=middle + turn.T @ moved)


def _converge(
    frame: Frame,
    wcs: Tpv,
    radius: float,
    brightest: tuple[slice, slice],
    settings: AstrometrySettings,
) -> PlateFit | None:
    """Match and fit linearly within a radius (pixels) that shrinks to the residuals."""
    scale = wcs.pixel_scale
    least = 0.3 / scale
    detections = slice(brightest[0].start, 3 * brightest[0].stop)
    references = slice(0, 3 * brightest[1].stop)
    fit: PlateFit | None = None
    for _ in range(12):
        pairs = match(frame, wcs, radius, detections, references, gate=fit is not None)
        # With errors of the rough WCS far above those of the stars, all weigh the same.
        fit = fit_plate(frame, wcs, pairs, 1, misfit_arcsec=0.2 * radius * scale)
        if fit is None:
            return None
        wcs = fit.wcs
        shrunk = max(least, min(0.6 * radius, 5.0 * fit.rms_arcsec / scale))
        if shrunk > 0.95 * radius:
            break
        radius = shrunk
    return fit


def _refine(
    frame: Frame, wcs: Tpv, rough: PlateFit, settings: AstrometrySettings
) -> tuple[PlateFit, float] | None:
    """Fit all pairs on the repointed WCS; also the radius (pixels) of the last matching."""
    scale = wcs.pixel_scale
    known = rough.detection[rough.kept], rough.reference[rough.kept]
    near = frame.references_on(*known)
    fit = best_order(frame, wcs, known, settings.max_order)
    radius = math.inf
    for _ in range(2):
        if fit is None:
            return None
        radius = min(radius, max(0.3, 5.0 * fit.rms_arcsec) / scale)
        pairs = match(frame, fit.wcs, radius, references=near)
        fit = best_order(frame, wcs, pairs, settings.max_order)
    return None if fit is None else (fit, radius)


def _rotations(settings: AstrometrySettings) -> Array:
    """Position angles to be tried, rad."""
    steps = round(settings.rotation_deg / settings.rotation_step_deg)
    angles: Array = np.radians(settings.rotation_step_deg * np.arange(-steps, steps + 1))
    return angles


def _pairs_by_chance(frame: Frame, radius: float) -> float:
    """Pairs that unrelated lists of these lengths give within a radius (pixels)."""
    area = frame.shape[0] * frame.shape[1] * frame.searched_area_ratio
    return float(frame.x.size * frame.ra.size / area * math.pi * radius**2)


def _objections(
    frame: Frame, fit: PlateFit, vote: Vote, settings: AstrometrySettings
) -> tuple[str, ...]:
    """Flags of a fit that its numbers alone raise."""
    bright = min(frame.x.size, settings.bright)
    fraction = np.count_nonzero(fit.detection[fit.kept] < bright) / bright
    # Detections share their errors of scale, so that finer bins will do than for the search.
    bins = 0.5 * settings.bin_arcsec / fit.wcs.pixel_scale
    twice = is_doubled(
        (frame.x, frame.y),
        fit.matches,
        bright=settings.bright,
        width=bins,
        reach=3.0 * frame.search_pixels,
        chance=settings.chance,
    )
    second = vote.log10_runner_up < -3.0 and vote.runner_up > 0.3 * vote.votes
    raised = {
        "AMBIGUOUS": second or twice,
        "FEW_MATCHES": fit.matches < settings.min_matches,
        "HIGH_RMS": 1e3 * fit.rms_arcsec > settings.rms_limit_mas,
        "LOW_FRACTION": fraction < 0.15,
        "POORLY_SPREAD": 1e3 * fit.worst_arcsec > settings.worst_limit_mas,
    }
    return tuple(flag for flag, is_raised in raised.items() if is_raised)


def _largest_shear(frame: Frame, wcs: Tpv, few: bool, settings: AstrometrySettings) -> float:
    """Shear to tolerate: there is more where the header lacks the distortion."""
    if not (wcs.distorted or few):
        return max(settings.scale_tolerance, settings.shear_tolerance)
    half_diagonal = 0.5 * math.hypot(*frame.shape) * wcs.pixel_scale
    return max(settings.shear_tolerance, 1e-3 * settings.rms_limit_mas / half_diagonal)
