"""Fluxes of stars that overlap: the profiles of all stars of a CCD are fitted to it together.

First the profile is learned from bright stars, then all stars are fitted, companions that only
show once the others are subtracted are added, and those that overlap are fitted again until
they have settled. What is left of the sky is measured without the stars, and so is not too
high where they crowd. The method is that of DAOPHOT and ALLSTAR (Stetson 1987, PASP 99, 191).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.stars.detection import Peaks, detect
from prepipe.calibrate.stars.matched_filter import check_frame, matched_filter
from prepipe.calibrate.stars.measurement import measure
from prepipe.calibrate.stars.neighbours import CELL, cells_of_peaks
from prepipe.calibrate.stars.psf import Psf
from prepipe.calibrate.stars.psf_fitting import (
    BAND,
    Profile,
    Stars,
    appraise,
    subtract_stars,
    sweep,
)
from prepipe.calibrate.stars.psf_map import local_width
from prepipe.calibrate.stars.psf_model import (
    LARGEST_HALF,
    NO_EXAMPLE,
    PsfModel,
    moffat_model,
    refined,
)
from prepipe.calibrate.stars.sky_left import sky_left, subtract_mesh
from prepipe.calibrate.stars.sources import Sources

__all__ = ["PsfPhotometry", "fit_stars", "whole_light"]

Image = NDArray[np.float32]
Floats = NDArray[np.float64]

FIT_RADIUS_FWHM = 1.0
"""A star is fitted in its core, where it outshines the others."""

_UNFIT = np.uint8(NO_EXAMPLE)
_SATURATED_RADIUS_FWHM = 3.0
_MOVABLE_SNR = 10.0
_FARTHEST_FWHM = 0.35
_FAINTEST_SIGMA = 0.1
_SKY_BOX = 64
_EXAMPLES = 300
_FEWEST_EXAMPLES = 20
_EXAMPLE_ROUNDS = 2
_OVERLAP_FWHM = 2.0
_OVERLAP_ROUNDS = 3
_SHARE_SEEN = 0.5
_CLOSEST_FWHM = 0.5
_CONTRAST = 0.05
_EXTENDED = 1.12
_EXTENDED_FWHM = 2.0
_PAIRS_EXTENDED = 0.33
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, eq=False)
class PsfPhotometry:
    """Stars fitted together.

    Parameters
    ----------
    sources : Sources
        Those given, x and y where the fit put them, and after them the companions found.
    flux, flux_error : (n,) float64 ndarray
        Light of the whole profile and its standard error, e-; NaN where less than half of the
        star could be seen, as in a saturated one.
    chi2 : (n,) float64 ndarray
        Squared residuals over their variance, per degree of freedom: about 1 for a
        single star, more for a galaxy or a blend.
    companions : int
        How many were found.
    model : PsfModel
    sky : (my, mx) float64 ndarray
        What the sky had been subtracted too little, on a mesh, e-.
    left : (ny, nx) float32 ndarray
        The image without all stars and that sky, e-.
    """

    sources: Sources
    flux: Floats
    flux_error: Floats
    chi2: Floats
    companions: int
    model: PsfModel
    sky: Floats
    left: Image


def fit_stars(
    image: Image,
    mask: NDArray[np.uint8],
    sources: Sources,
    psf: Psf,
    sky_variance: float,
    snr: float = 5.0,
    least_variance: float = 0.0,
) -> PsfPhotometry:
    """Fit the profiles of all sources to an image together.

    Parameters
    ----------
    image : (ny, nx) float32 ndarray
        Background-subtracted image, e-.
    mask : (ny, nx) uint8 ndarray
        `Mask` bits; bad, saturated, dead and corrupt pixels and cosmic rays are left out.
    sources : Sources
        As measured on it.
    psf : Psf
        Of the same sources; its width must be known.
    sky_variance : float
        Variance of an empty pixel, e-^2.
    snr : float
        Threshold for companions.
    least_variance : float
        An empty pixel has at least this, e-^2, however smooth pixels seem.

    Returns
    -------
    PsfPhotometry

    Raises
    ------
    PixelError
        If `image` is not two-dimensional or `mask` has another shape.
    """
    image, mask = check_frame(image, mask)
    field = _Field(image, mask, sources, psf, sky_variance, least_variance)
    examples = _examples(sources, psf)
    field.subtract_all()
    for _ in range(_EXAMPLE_ROUNDS):
        field.sweep(examples)
    field.learn_profile(examples)
    field.sweep()
    field.measure_sky()
    field.measure_noise()
    found = _companions(field, sources, psf, snr)
    everything = _joined(sources, found)
    field.add(found)
    field.sweep()
    field.measure_sky()
    overlapping = field.overlapping()
    for _ in range(_OVERLAP_ROUNDS):
        field.sweep(overlapping)
    error, chi2, seen = field.appraised()
    known = seen >= _SHARE_SEEN
    # A place is better than the centroid only where the star could be seen.
    moved = known & field.movable
    everything = replace(
        everything,
        x=np.where(moved, field.x, everything.x),
        y=np.where(moved, field.y, everything.y),
    )
    return PsfPhotometry(
        everything,
        np.where(known, field.flux, np.nan),
        np.where(known, error, np.nan),
        np.where(known, chi2, np.nan),
        len(found),
        field.model,
        field.sky,
        field.left,
    )


def whole_light(fitted: PsfPhotometry, flux: Floats, stars: NDArray[np.int64]) -> float:
    """Factor by which fitted fluxes agree with those in apertures, corrected to the whole light.

    Parameters
    ----------
    fitted : PsfPhotometry
    flux : (n,) float64 ndarray
        Whole flux of its sources as apertures tell it, e-.
    stars : (k,) int64 ndarray
        Which of them are good stars, as in `Psf.stars`.

    Returns
    -------
    float
        Median ratio of the brightest hundred without neighbours; 1 where there is none.
    """
    good = stars[np.isfinite(fitted.flux[stars]) & (fitted.flux[stars] > 0.0) & (flux[stars] > 0.0)]
    isolated = good[(fitted.sources.flags[good] & SourceFlag.NEIGHBOUR) == 0]
    chosen = isolated if isolated.size >= _FEWEST_EXAMPLES else good
    if not chosen.size:
        return 1.0
    chosen = chosen[np.argsort(-fitted.sources.snr[chosen], kind="stable")[:100]]
    return float(np.median(flux[chosen] / fitted.flux[chosen]))


class _Field:
    """The stars of one CCD while they are being fitted."""

    def __init__(
        self,
        image: Image,
        mask: NDArray[np.uint8],
        sources: Sources,
        psf: Psf,
        sky_variance: float,
        least_variance: float,
    ) -> None:
        self.image, self.mask = image, mask
        self.left = np.empty_like(image)
        self.fwhm = psf.fwhm_px
        self.least_variance = max(float(least_variance), 1e-6)
        self.sky_variance = max(float(sky_variance), self.least_variance)
        self.model = moffat_model(psf.map, psf.beta)
        self.sky = np.zeros([max(1, side // _SKY_BOX) for side in image.shape])
        self.x = self.y = self.x0 = self.y0 = self.flux = self.radius = np.empty(0)
        self.half = np.empty(0, np.int32)
        self.movable = np.empty(0, np.bool_)
        # An aperture of one FWHM holds three quarters of a star's light.
        self.add(sources, np.maximum(sources.flux, 0.0) / 0.75)

    def add(self, sources: Sources, flux: Floats | None = None) -> None:
        """Add sources; unless a flux is told they have none yet."""
        saturated = (sources.flags & SourceFlag.SATURATED) != 0
        lost = (sources.flags & SourceFlag.NO_CENTROID) != 0
        radius = np.where(saturated, _SATURATED_RADIUS_FWHM, FIT_RADIUS_FWHM) * self.fwhm
        half = np.full(len(sources), int(2.0 * self.fwhm) + 1, np.int32)
        flux = np.zeros(len(sources)) if flux is None else flux
        movable = (sources.snr > _MOVABLE_SNR) & ~saturated & ~lost
        self.x, self.y = np.append(self.x, sources.x), np.append(self.y, sources.y)
        self.x0, self.y0 = np.append(self.x0, sources.x), np.append(self.y0, sources.y)
        self.flux, self.radius = np.append(self.flux, flux), np.append(self.radius, radius)
        self.half = np.append(self.half, half)
        self.movable = np.append(self.movable, movable)

    @property
    def profile(self) -> Profile:
        """The model as kernels take it."""
        return self.model.spline, self.model.wing, self.model.wing_step, self.model.reach

    @property
    def stars(self) -> Stars:
        """The stars as kernels take them."""
        return self.x, self.y, self.flux, self.half, self.radius, self.movable

    @property
    def frame(self) -> tuple[Image, Image, NDArray[np.uint8], np.uint8, float]:
        """The pixels as kernels take them."""
        return self.image, self.left, self.mask, _UNFIT, self.sky_variance

    def learn_profile(self, examples: NDArray[np.int64]) -> None:
        """See from the examples what the profile is, and subtract all stars anew."""
        told = self.x[examples], self.y[examples], self.flux[examples]
        self.model = refined(self.model, self.image, self.left, self.mask, told, self.sky_variance)
        self.subtract_all()

    def subtract_all(self) -> None:
        """Begin anew with what is left of the image."""
        np.copyto(self.left, self.image)
        if self.sky.any():
            subtract_mesh(self.left, self.sky)
        faintest = _FAINTEST_SIGMA * np.sqrt(self.sky_variance) / np.maximum(self.flux, 1e-3)
        radius = np.sqrt(self.model.wing_step * np.searchsorted(-self.model.wing, -faintest))
        smallest = np.minimum(np.ceil(self.radius) + 1.0, self.model.reach)
        self.half = np.clip(np.ceil(radius), smallest, LARGEST_HALF).astype(np.int32)
        subtract_stars(self.left, self.profile, self.stars, self.ordered())

    def ordered(self, which: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """All stars or some, along bands of rows: one after the other in the same pixels."""
        which = np.arange(self.x.size) if which is None else which
        return which[np.lexsort((self.x[which], self.y[which] // BAND))]

    def sweep(self, which: NDArray[np.int64] | None = None) -> None:
        """Fit all stars once, or some."""
        start, farthest = (self.x0, self.y0), _FARTHEST_FWHM * self.fwhm
        sweep(self.frame, self.profile, self.stars, start, self.ordered(which), farthest)

    def measure_sky(self) -> None:
        """Take out what is left of the sky."""
        sigma = float(np.sqrt(self.sky_variance))
        more = sky_left(self.left, self.mask, _UNFIT, sigma, _SKY_BOX)
        subtract_mesh(self.left, more)
        self.sky += more

    def measure_noise(self) -> None:
        """Noise of an empty pixel, which stars had seemed to raise."""
        sample = self.left[4::8, 4::8][(self.mask[4::8, 4::8] & _UNFIT) == 0]
        sample = sample[np.isfinite(sample)]
        if sample.size:
            sigma = _MAD_TO_SIGMA * float(np.median(np.abs(sample)))
            self.sky_variance = min(self.sky_variance, max(sigma * sigma, self.least_variance))

    def overlapping(self) -> NDArray[np.int64]:
        """Stars that have another one within two FWHM."""
        tree = cKDTree(np.column_stack([self.x, self.y]))
        pairs = tree.query_pairs(_OVERLAP_FWHM * self.fwhm, output_type="ndarray")
        return np.unique(pairs).astype(np.int64)

    def appraised(self) -> tuple[Floats, Floats, Floats]:
        """Error of each flux, chi squared, and the part of the star that was seen."""
        ny, nx = self.image.shape
        grid = ny // CELL + 1, nx // CELL + 1
        row = np.clip(np.rint(self.y), 0, ny - 1).astype(np.int32)
        column = np.clip(np.rint(self.x), 0, nx - 1).astype(np.int32)
        cells = (*cells_of_peaks(row, column, *grid), *grid)
        error, chi2, seen = (np.empty(self.x.size) for _ in range(3))
        appraise(self.frame, self.profile, self.stars, self.ordered(), cells, error, chi2, seen)
        return error, chi2, seen


def _examples(sources: Sources, psf: Psf) -> NDArray[np.int64]:
    """The brightest stars without neighbours, or with them if there are few."""
    isolated = psf.stars[(sources.flags[psf.stars] & SourceFlag.NEIGHBOUR) == 0]
    chosen = isolated if isolated.size >= _FEWEST_EXAMPLES else psf.stars
    return chosen[np.argsort(-sources.snr[chosen], kind="stable")[:_EXAMPLES]]


def _companions(field: _Field, sources: Sources, psf: Psf, snr: float) -> Sources:
    """Stars that stand out of the noise only now that the others are subtracted."""
    smoothed, gain = matched_filter(field.left, field.fwhm, field.mask)
    rms = float(np.sqrt(field.sky_variance))
    peaks = detect(smoothed, rms, field.mask, fwhm_px=field.fwhm, noise_gain=gain, snr=snr)
    light = field.image[peaks.y, peaks.x] - field.left[peaks.y, peaks.x]
    light = np.maximum(light, 0.0).astype(np.float64)
    # A profile is never known perfectly: part of the light subtracted may be left.
    noise = gain * np.sqrt(field.sky_variance + light)
    real = peaks.height > snr * noise + _CONTRAST * light
    where = np.column_stack([peaks.x, peaks.y]).astype(np.float64)
    for others, limit in _forbidden(field, sources, psf):
        if others.any() and len(peaks):
            tree = cKDTree(np.column_stack([field.x[others], field.y[others]]))
            real &= tree.query(where)[0] > limit * field.fwhm
    found = measure(
        field.left,
        field.mask,
        Peaks(peaks.y[real], peaks.x[real], peaks.height[real]),
        fwhm_px=field.fwhm,
        sky_variance=field.sky_variance,
        radii_px=[float(radius) for radius in sources.radii_px],
        main_aperture=sources.main_aperture,
    )
    disturbed = np.int32(SourceFlag.NEIGHBOUR | SourceFlag.COMPANION)
    return replace(found, flags=found.flags | disturbed)


def _forbidden(field: _Field, sources: Sources, psf: Psf) -> list[tuple[NDArray[np.bool_], float]]:
    """Sources near which nothing is a companion, and how near, FWHM.

    What is left of a saturated star is no star, nor what is left of a galaxy. But where stars
    crowd, what is wider than a star is rather a pair of them.
    """
    saturated = (sources.flags & SourceFlag.SATURATED) != 0
    forbidden = [
        (np.ones(len(sources), np.bool_), _CLOSEST_FWHM),
        (saturated, _SATURATED_RADIUS_FWHM),
    ]
    size = np.nan_to_num(sources.size, nan=0.0)
    stars = np.zeros(len(sources), np.bool_)
    stars[psf.stars] = True
    width = local_width(psf.map.shape, (sources.x, sources.y), size, stars)
    # The size of a star is known to 1 / snr or so (see `measure_psf`); twice that is allowed.
    extended = size / width > _EXTENDED + 2.0 / np.maximum(sources.snr, 1.0)
    within = np.pi * (_EXTENDED_FWHM * field.fwhm) ** 2 / field.image.size
    pairs_by_chance = 1.0 - np.exp(-len(sources) * within)
    if np.mean(extended) > _PAIRS_EXTENDED * pairs_by_chance:
        forbidden.append((extended & ~saturated, _EXTENDED_FWHM))
    return forbidden


def _joined(sources: Sources, more: Sources) -> Sources:
    """One table of both."""
    kept = {
        field.name: np.concatenate([getattr(sources, field.name), getattr(more, field.name)])
        for field in fields(sources)
        if field.name not in ("radii_px", "main_aperture")
    }
    return Sources(radii_px=sources.radii_px, main_aperture=sources.main_aperture, **kept)
