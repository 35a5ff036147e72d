"""The search for the WCS on lists of detections whose true places are known: no pixels.

Truth is DECam's nominal WCS with a scale of 2e-4, a shear of 5e-5 and quadratic and cubic terms
of 13 mas at the corners; the header given is pointed wrongly. The detections have errors of
position and flux, some are missing, some spurious, some blended, the brightest saturated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from astropy.io.fits import FITS_rec
from numpy.typing import NDArray

from calibration.fields import Field
from prepipe.calibrate.flags import SourceFlag
from prepipe.calibrate.sky.astrometry import AstrometrySettings, AstrometrySolution, solve
from prepipe.calibrate.sky.refcat import ReferenceStars
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.simulate.focal_plane import Detector, chosen_detectors
from prepipe.simulate.headers import distortion
from prepipe.simulate.stars import StarField

SHAPE = (4096, 2048)
OFFSETS_ARCSEC = (0.0, 10.0, 30.0, 60.0)
ROTATIONS_DEG = (0.0, 0.1, 0.2)
GOOD_ARCSEC = 0.2
ZERO_POINT = 26.6 + 2.5 * math.log10(20.0)
SKY_NOISE_E = 90.0
"""Of a fit of the PSF, e-: a 20 s exposure in g."""
SATURATED_MAG = 13.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """A kind of sky on one CCD."""

    crowding: float
    blended: float
    ccd: int = 28


PLACES = {
    "sparse": Place(0.56, 0.02),
    "medium": Place(2.7, 0.03),
    "dense": Place(22.0, 0.15),
    "corner": Place(1.0, 0.03, ccd=31),
}


@dataclass(frozen=True)
class Detections:
    """What `solve` is given."""

    x: Floats
    y: Floats
    flux: Floats
    sigma: Floats

    def joined(self, other: Detections) -> Detections:
        """Both lists in one."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Detections(*(np.concatenate(pair) for pair in pairs))

    def taken(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Detections:
        """Some rows."""
        return Detections(*(column[rows] for column in self.columns))

    @property
    def columns(self) -> tuple[Floats, Floats, Floats, Floats]:
        """In the order of the fields."""
        return self.x, self.y, self.flux, self.sigma


@dataclass(frozen=True)
class Sky:
    """One place with its stars: in truth, and as the catalogue has them."""

    place: Place
    nominal: Tpv
    truth: Tpv
    x: Floats
    y: Floats
    mag: Floats
    reference: ReferenceStars

    @classmethod
    def drawn(cls, place: Place, seed: int = 1) -> Sky:
        """Draw one."""
        rng = np.random.default_rng([seed, 0xA57])
        nominal = _tpv(chosen_detectors((place.ccd,))[0], 150.1, -22.0)
        truth = _distorted(nominal, rng)
        ra, dec = truth.pixel_to_sky([SHAPE[1] / 2], [SHAPE[0] / 2])
        stars = StarField.generate(
            float(ra[0]), float(dec[0]), 0.3, seed + place.ccd, place.crowding, 20_000.0
        )
        x, y = truth.sky_to_pixel(stars.ra, stars.dec)
        on = (np.abs(x - SHAPE[1] / 2) < SHAPE[1] / 2) & (np.abs(y - SHAPE[0] / 2) < SHAPE[0] / 2)
        listed = stars.chosen(stars.listed)
        # Gaia's own errors, and proper motions that are not known to better.
        error_mas = 0.1 + 1.5 * 10 ** (0.25 * (listed.g_mag - 21.0))
        east, north = rng.normal(0.0, error_mas, (2, len(listed))) / 3.6e6
        reference = ReferenceStars(
            listed.ra + east / np.cos(np.radians(listed.dec)),
            listed.dec + north,
            listed.g_mag,
            error_mas,
        )
        return cls(place, nominal, truth, x[on], y[on], stars.g_mag[on], reference)

    def exact(self) -> Detections:
        """The detections without any error, nothing missing."""
        flux, snr = self._light()
        good = (snr > 5.0) & (self.mag > SATURATED_MAG)
        return Detections(self.x, self.y, flux, _sigma(snr)).taken(good)

    def observed(self, rng: np.random.Generator) -> Detections:
        """The detections of one exposure."""
        flux, snr = self._light()
        sigma = _sigma(snr)
        count = self.x.size
        blended = rng.random(count) < self.place.blended
        error = np.where(blended, 0.5, sigma)
        found = Detections(
            self.x + error * rng.standard_normal(count),
            self.y + error * rng.standard_normal(count),
            np.where(
                self.mag > SATURATED_MAG, flux * (1 + rng.standard_normal(count) / snr), np.nan
            ),
            sigma,
        ).taken((snr > 5.0) & (rng.random(count) > 0.05))
        extra = int(0.05 * found.x.size) + 30
        borrowed = rng.integers(0, found.x.size, extra)
        spurious = Detections(
            rng.uniform(0, SHAPE[1], extra),
            rng.uniform(0, SHAPE[0], extra),
            found.flux[borrowed],
            found.sigma[borrowed],
        )
        return found.joined(spurious)

    def header(self, offset_arcsec: float, rotation_deg: float, angle: float) -> Tpv:
        """The nominal WCS, pointed wrongly."""
        return _wrong(self.nominal, offset_arcsec, rotation_deg, angle)

    def error_arcsec(self, wcs: Tpv) -> float:
        """Rms distance of a WCS from the truth on a grid of 21 x 41 places."""
        x, y = np.meshgrid(np.linspace(0, SHAPE[1] - 1, 21), np.linspace(0, SHAPE[0] - 1, 41))
        ra, dec = wcs.pixel_to_sky(x.ravel(), y.ravel())
        true_ra, true_dec = self.truth.pixel_to_sky(x.ravel(), y.ravel())
        return _distance_arcsec(ra, dec, true_ra, true_dec)

    def _light(self) -> tuple[Floats, Floats]:
        flux = 10 ** (0.4 * (ZERO_POINT - self.mag))
        return flux, flux / np.sqrt(flux + SKY_NOISE_E**2)


def trials(skies: dict[str, Sky], angles: int) -> Iterator[tuple[str, float, AstrometrySolution]]:
    """Field, error (arcsec; infinite if not accepted) and solution over the whole grid."""
    for name, sky in skies.items():
        grid = product(OFFSETS_ARCSEC, ROTATIONS_DEG, range(angles))
        for seed, (offset, rotation, k) in enumerate(grid):
            rng = np.random.default_rng([seed, 0x7121])
            angle = 2 * math.pi * (k + rng.random()) / angles
            sign = rng.choice([-1, 1])
            header = sky.header(offset, sign * rotation, angle)
            solution = _solved(sky.observed(rng), sky.reference, header)
            yield name, sky.error_arcsec(solution.wcs) if solution.accepted else math.inf, solution


def through_pixels(
    field: Field, table: FITS_rec, stars: ReferenceStars, starts: int
) -> Iterator[float]:
    """Errors (arcsec; infinite if not accepted) with sources that were measured on pixels.

    Parameters
    ----------
    field : Field
    table : FITS_rec
        Source table of its product.
    stars : ReferenceStars
        At the date of the exposure.
    starts : int
        Headers to begin with, 10 to 60 arcsec wrong.
    """
    seen, turned = field.observation, -field.observation.rotation_deg
    header = _tpv(field.detector, seen.ra, seen.dec)
    pointed = header.repointed(seen.true_ra - seen.ra, seen.true_dec - seen.dec, turned)
    good = (table["FLAGS"] & ~SourceFlag.NEIGHBOUR) == 0
    flux = np.where(good, table["FLUX"], np.nan)
    found = Detections(table["X"] - 1.0, table["Y"] - 1.0, flux, table["POSERR"])
    x, y, ra, dec = field.grid()
    for k in range(starts):
        offset, angle = 10.0 + 50.0 * k / max(starts - 1, 1), 2.4 * k
        start = _wrong(pointed, offset, (-1) ** k * 0.1, angle)
        solution = _solved(found, stars, start)
        error = _distance_arcsec(*solution.wcs.pixel_to_sky(x, y), ra, dec)
        yield error if solution.accepted else math.inf


def systematic_mas(sky: Sky, max_order: int, offset_arcsec: float = 60.0) -> float:
    """Error on the grid where neither detections nor catalogue have any, mas."""
    stars = sky.exact()
    header = sky.header(offset_arcsec, 0.1, 1.0)
    ra, dec = sky.truth.pixel_to_sky(sky.x, sky.y)
    reference = ReferenceStars(ra, dec, sky.mag, np.full(ra.size, 0.1))
    bright = sky.mag < 21.0
    reference = ReferenceStars(*(c[bright] for c in _columns(reference)))
    settings = AstrometrySettings(max_order=max_order)
    return 1e3 * sky.error_arcsec(_solved(stars, reference, header, settings).wcs)


def wrong_fields(skies: dict[str, Sky], count: int) -> Iterator[tuple[str, AstrometrySolution]]:
    """What was wrong, and what came of it."""
    makers: dict[str, Callable[..., tuple[Detections, ReferenceStars]]] = {
        "another field": _another_field,
        "random catalogue": _random_catalogue,
        "shuffled": _shuffled,
        "doubled": _doubled,
        "three stars": _three_stars,
    }
    names = [name for name in skies if name != "dense"]
    for k in range(count):
        rng = np.random.default_rng([k, 0xFA15E])
        what = list(makers)[k % len(makers)]
        # A dense field takes much longer and is no more easily mistaken.
        sky = skies["dense" if k % 50 < len(makers) else names[k // len(makers) % len(names)]]
        detections, reference = makers[what](sky, rng)
        header = sky.header(rng.uniform(0, 60), rng.uniform(-0.2, 0.2), rng.uniform(0, 6.28))
        yield what, _solved(detections, reference, header)


def _another_field(sky: Sky, rng: np.random.Generator) -> tuple[Detections, ReferenceStars]:
    """The sky of another place, as a wrong pointing would show it."""
    columns = _columns(sky.reference)
    shift = rng.uniform(0.05, 0.1, 2) * rng.choice([-1, 1], 2)
    return sky.observed(rng), ReferenceStars(
        columns[0] + shift[0], columns[1] + shift[1], *columns[2:]
    )


def _random_catalogue(sky: Sky, rng: np.random.Generator) -> tuple[Detections, ReferenceStars]:
    ra, dec, *others = _columns(sky.reference)
    places = rng.uniform(ra.min(), ra.max(), ra.size), rng.uniform(dec.min(), dec.max(), ra.size)
    return sky.observed(rng), ReferenceStars(*places, *others)


def _shuffled(sky: Sky, rng: np.random.Generator) -> tuple[Detections, ReferenceStars]:
    """Right ascensions of other stars: the same rows and columns, no pattern in common."""
    ra, *others = _columns(sky.reference)
    return sky.observed(rng), ReferenceStars(rng.permutation(ra), *others)


def _doubled(sky: Sky, rng: np.random.Generator) -> tuple[Detections, ReferenceStars]:
    """The telescope jumped during the exposure."""
    first, second = sky.observed(rng), sky.observed(rng)
    share, angle = rng.uniform(0.35, 0.65), rng.uniform(0, 2 * math.pi)
    jump = rng.uniform(3.0, 60.0) / sky.nominal.pixel_scale
    second = Detections(
        second.x + jump * math.cos(angle),
        second.y + jump * math.sin(angle),
        second.flux * share,
        second.sigma / share,
    )
    on = (second.x > 0) & (second.x < SHAPE[1]) & (second.y > 0) & (second.y < SHAPE[0])
    first = replace(first, flux=first.flux * (1 - share), sigma=first.sigma / (1 - share))
    return first.joined(second.taken(on)), sky.reference


def _three_stars(sky: Sky, rng: np.random.Generator) -> tuple[Detections, ReferenceStars]:
    """Three stars through clouds, and some spurious detections."""
    found = sky.observed(rng)
    order = np.argsort(-np.nan_to_num(found.flux))
    three = found.taken(rng.choice(order[:30], 3, replace=False))
    spurious = int(rng.choice([0, 10, 100]))
    strangers = Detections(
        rng.uniform(0, SHAPE[1], spurious),
        rng.uniform(0, SHAPE[0], spurious),
        rng.uniform(1e3, 1e4, spurious),
        rng.uniform(0.02, 0.3, spurious),
    )
    return three.joined(strangers), sky.reference


def _solved(
    found: Detections,
    reference: ReferenceStars,
    header: Tpv,
    settings: AstrometrySettings | None = None,
) -> AstrometrySolution:
    return solve(*found.columns, reference, header, SHAPE, settings)


def _columns(stars: ReferenceStars) -> tuple[Floats, Floats, Floats, Floats]:
    return stars.ra, stars.dec, stars.mag, stars.position_error_mas


def _sigma(snr: Floats) -> Floats:
    """Error of a centroid, pixels: half a FWHM of 4 pixels over the S/N, no better than 0.01."""
    return np.hypot(2.0 / np.maximum(snr, 1.0), 0.01)


def _distance_arcsec(ra: Floats, dec: Floats, true_ra: Floats, true_dec: Floats) -> float:
    """Rms distance."""
    east = (ra - true_ra) * np.cos(np.radians(true_dec))
    return 3600.0 * math.sqrt(float((east**2 + (dec - true_dec) ** 2).mean()))


def _wrong(wcs: Tpv, offset_arcsec: float, rotation_deg: float, angle: float) -> Tpv:
    """The same camera, pointed elsewhere."""
    east, north = (offset_arcsec / 3600.0 * f(angle) for f in (math.sin, math.cos))
    per_degree = 1.0 / math.cos(math.radians(wcs.crval[1]))
    return wcs.repointed(east * per_degree, north, rotation_deg)


def _tpv(detector: Detector, ra: float, dec: float) -> Tpv:
    """The header's WCS of a trimmed CCD."""
    header: dict[str, object] = {
        "CTYPE1": "RA---TPV",
        "CTYPE2": "DEC--TPV",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": detector.crpix[0] - detector.data.x0,
        "CRPIX2": detector.crpix[1] - detector.data.y0,
        **distortion(detector),
    }
    return Tpv.from_header(header)


def _distorted(wcs: Tpv, rng: np.random.Generator) -> Tpv:
    stretched = replace(wcs, cd=wcs.cd @ np.array([[1.0002, 5e-5], [0.0, 1.0002]]))
    u, v = stretched.pixel_to_plane(SHAPE[1] / 2, SHAPE[0] / 2)
    half = 0.5 * math.hypot(*SHAPE) * wcs.pixel_scale / 3600.0
    terms = np.zeros((2, 10))
    terms[:, 3:] = rng.choice([-1, 1], (2, 7)) * 13.0 / 3.6e6
    return stretched.corrected(terms[0], terms[1], (float(u), float(v)), half)
