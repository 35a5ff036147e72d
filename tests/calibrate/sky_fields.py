"""Simulated fields for the tests of the astrometry: positions and fluxes, no pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from prepipe.calibrate.sky.refcat import ReferenceStars
from prepipe.calibrate.sky.tpv import Tpv

SHAPE = (4094, 2046)

# CCD S12 of EXPNUM 941420, whose tangent point is 7200 pixels away.
DECAM = {
    "CTYPE1": "RA---TPV",
    "CTYPE2": "DEC--TPV",
    "CRVAL1": 84.20145,
    "CRVAL2": -21.204944,
    "CRPIX1": 3375.6,
    "CRPIX2": -6364.0,
    "CD1_1": -1.8249413473e-07,
    "CD1_2": 7.28535892432e-05,
    "CD2_1": -7.2849900453899e-05,
    "CD2_2": -1.82181666096e-07,
    "PV1_0": -0.000861977075407,
    "PV1_1": 1.00590408001,
    "PV1_4": -0.00127827876993,
    "PV1_7": -0.00247268278611,
    "PV1_8": 0.000504729798887,
    "PV1_9": -0.00383617167833,
    "PV2_0": -0.000250397170298,
    "PV2_1": 1.00511010313,
    "PV2_2": -0.000373758308041,
    "PV2_4": 0.00214908468025,
    "PV2_7": -0.00657363508782,
    "PV2_8": 0.000394261248595,
    "PV2_9": -0.00297984007123,
}


@dataclass
class Field:
    """A frame's detections, the catalogue around it, the header's WCS and the truth."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray
    sigma: np.ndarray
    reference: ReferenceStars
    nominal: Tpv
    truth: Tpv
    shape: tuple[int, int]
    source_star: np.ndarray

    @property
    def given(self):
        """Positional arguments of `solve`."""
        return self.x, self.y, self.flux, self.sigma, self.reference, self.nominal, self.shape


def nominal(shape=SHAPE) -> Tpv:
    """The header's WCS, for the middle of the CCD if the frame is smaller."""
    cut = (SHAPE[1] - shape[1]) // 2, (SHAPE[0] - shape[0]) // 2
    return Tpv.from_header(DECAM).shifted(-cut[0], -cut[1])


def true_wcs(wcs: Tpv, shape, offset_arcsec, rotation_deg, rng, distortion_mas=13.0) -> Tpv:
    """The header's WCS pointed wrongly, with a scale error of 2e-4 and a cubic distortion."""
    angle = rng.uniform(0, 2 * math.pi)
    east, north = offset_arcsec * math.cos(angle) / 3600.0, offset_arcsec * math.sin(angle) / 3600.0
    moved = wcs.repointed(east / math.cos(math.radians(wcs.crval[1])), north, rotation_deg)
    stretched = replace(moved, cd=moved.cd @ np.array([[1.0002, 5e-5], [0.0, 1.0002]]))
    u, v = stretched.pixel_to_plane(shape[1] / 2, shape[0] / 2)
    half = 0.5 * math.hypot(*shape) * wcs.pixel_scale / 3600.0
    terms = np.zeros((2, 10))
    terms[:, 3:] = rng.choice([-1, 1], (2, 7)) * distortion_mas / 3.6e6
    return stretched.corrected(*terms, (float(u), float(v)), half)


def make_field(
    seed,
    stars=900,
    offset_arcsec=30.0,
    rotation_deg=0.1,
    shape=SHAPE,
    wcs=None,
    distortion_mas=13.0,
    faint_per_star=2.0,
    margin_px=700.0,
) -> Field:
    """Draw a field; `stars` catalogued stars on the frame, the detections with noise.

    Errors of position fall from 0.15 px at the faint end of the catalogue to 0.01 px; 2 %
    of the stars are in no catalogue and 5 % not detected, and there are `faint_per_star`
    fainter detections for each star.
    """
    rng = np.random.default_rng(seed)
    wcs = wcs or nominal(shape)
    truth = true_wcs(wcs, shape, offset_arcsec, rotation_deg, rng, distortion_mas)
    area = (shape[0] + 2 * margin_px) * (shape[1] + 2 * margin_px) / (shape[0] * shape[1])
    number = rng.poisson(stars * area)
    x = rng.uniform(-margin_px, shape[1] + margin_px, number)
    y = rng.uniform(-margin_px, shape[0] + margin_px, number)
    # Star counts rise by 10^(0.3 m), from the 14th to the 21st magnitude.
    mag = 21.0 + np.log10(rng.uniform(10 ** (-0.3 * 7), 1.0, number)) / 0.3
    error = rng.uniform(0.3, 1.5, number)
    ra, dec = truth.pixel_to_sky(x, y)
    ra = ra + rng.normal(0, error) / 3.6e6 / np.cos(np.radians(dec))
    dec = dec + rng.normal(0, error) / 3.6e6
    known = rng.random(number) > 0.02
    on = (x > 0) & (x < shape[1] - 1) & (y > 0) & (y < shape[0] - 1)
    seen = np.flatnonzero(on & (rng.random(number) > 0.05))
    extra = int(faint_per_star * seen.size)
    seen_mag = np.concatenate([mag[seen], rng.uniform(20.0, 23.0, extra)])
    sigma = np.clip(0.15 * 10 ** (0.4 * (seen_mag - 21.0)), 0.01, 0.3)
    true_x = np.concatenate([x[seen], rng.uniform(0, shape[1], extra)])
    true_y = np.concatenate([y[seen], rng.uniform(0, shape[0], extra)])
    shuffle = rng.permutation(true_x.size)
    row = np.cumsum(known) - 1
    star = np.concatenate([np.where(known[seen], row[seen], -1), np.full(extra, -1)])
    return Field(
        x=(true_x + rng.normal(0, sigma))[shuffle],
        y=(true_y + rng.normal(0, sigma))[shuffle],
        flux=(10 ** (-0.4 * (seen_mag + rng.normal(0, 0.02, sigma.size) - 25.0)))[shuffle],
        sigma=sigma[shuffle],
        reference=ReferenceStars(ra[known], dec[known], mag[known], error[known]),
        nominal=wcs,
        truth=truth,
        shape=shape,
        source_star=star[shuffle],
    )


def grid_error_mas(wcs: Tpv, truth: Tpv, shape) -> float:
    """One-dimensional rms distance of two WCS over the frame, mas."""
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 21), np.linspace(0, shape[0] - 1, 41))
    ra, dec = wcs.pixel_to_sky(x, y)
    true_ra, true_dec = truth.pixel_to_sky(x, y)
    east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec))
    return 3.6e6 * math.sqrt((np.square(east) + np.square(dec - true_dec)).mean() / 2)
