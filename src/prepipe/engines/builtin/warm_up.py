"""Compiling the kernels before the first exposure comes, on a small frame made up here."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from astropy.io.fits import Header
from numpy.typing import NDArray

from prepipe.calibrate.detector.weight import inverse_variance
from prepipe.calibrate.sky.refcat import ReferenceCatalogue
from prepipe.cameras.generic import Cards, Description, GenericCamera
from prepipe.codec import rice_image, wavelet
from prepipe.config import Calibration
from prepipe.engines.builtin.sky import calibrate_flux, solve_wcs
from prepipe.engines.builtin.steps import Masters, clean_pixels, fit_profiles, measure_sources
from prepipe.engines.raw import RawCcd
from prepipe.model import Ccd, Exposure, Kind, Night

__all__ = ["warm_up"]

SIDE = 512
STARS = 80
SCALE_DEG = 0.25 / 3600.0
OVERSCAN = 32


def warm_up(photometry: str = "aperture") -> None:
    """Run every compiled function once; takes some 20 s on a new machine, later 1 s.

    Parameters
    ----------
    photometry : str
        As in the settings; without ``"psf"`` the fit of profiles, long to compile, is left out.
    """
    sections = Cards(data_section="DATASEC", overscan_section="BIASSEC")
    camera = GenericCamera(Description(name="warm-up", pixel_scale=0.25, cards=sections))
    raw, reference = _frame()
    layout = camera.layout(raw.header, raw.pixels)
    plane = np.ones(layout.trimmed_shape, np.float32)
    clean = clean_pixels(raw, layout, camera, Masters(0.0 * plane, plane), 4.0)
    measured = measure_sources(clean, 4.0, 5.0)
    settings = Calibration()
    astrometry = solve_wcs(raw, layout, camera, measured.sources, reference, settings)
    calibrate_flux(raw, camera, clean, measured, astrometry)
    if photometry == "psf":
        fit_profiles(clean, measured, 5.0)
    inverse_variance(clean.frame.variance, clean.frame.mask)
    rice_image.compile_kernels()
    wavelet.compile_kernels()


def _frame() -> tuple[RawCcd, ReferenceCatalogue]:
    """A frame of some stars, and the catalogue of them."""
    rng = np.random.default_rng(1)
    image = rng.normal(1200.0, 10.0, (SIDE, SIDE + OVERSCAN))
    image[:, SIDE:] = rng.normal(1000.0, 3.0, (SIDE, OVERSCAN))
    x, y = rng.integers(20, SIDE - 20, (2, STARS))
    flux = 10 ** rng.uniform(3.5, 5.5, STARS)
    squares = np.arange(-12, 13) ** 2
    star = np.exp(-(squares + squares[:, None]) / 5.8) / 18.0
    for column, row, light in zip(x, y, flux, strict=True):
        image[row - 12 : row + 13, column - 12 : column + 13] += light * star
    image[100:140, 100] = 65535.0  # a bleed trail
    pixels = np.clip(image, 0, 65535).astype(np.uint16)
    start = datetime(2020, 1, 1, 6, tzinfo=UTC)
    exposure = Exposure("warm-up", 1, Kind.OBJECT, "", "g", start, 20.0, Night.of(start))
    header = Header(_cards())
    raw = RawCcd(exposure, Ccd(1, "CCD1"), Header(), header, pixels)
    return raw, _catalogue(x, y, flux)


def _cards() -> list[tuple[str, object]]:
    return [
        ("DATASEC", f"[1:{SIDE},1:{SIDE}]"),
        ("BIASSEC", f"[{SIDE + 1}:{SIDE + OVERSCAN},1:{SIDE}]"),
        ("CTYPE1", "RA---TAN"),
        ("CTYPE2", "DEC--TAN"),
        ("CRVAL1", 10.0),
        ("CRVAL2", 0.0),
        ("CRPIX1", SIDE / 2),
        ("CRPIX2", SIDE / 2),
        ("CD1_1", -SCALE_DEG),
        ("CD1_2", 0.0),
        ("CD2_1", 0.0),
        ("CD2_2", SCALE_DEG),
    ]


def _catalogue(
    x: NDArray[np.int64], y: NDArray[np.int64], flux: NDArray[np.float64]
) -> ReferenceCatalogue:
    # Near the equator and so small a field, the sky is flat enough.
    ra = 10.0 - (x.astype(np.float64) + 1 - SIDE / 2) * SCALE_DEG
    dec = (y.astype(np.float64) + 1 - SIDE / 2) * SCALE_DEG
    nothing = np.zeros(len(x))
    return ReferenceCatalogue(
        ra=ra,
        dec=dec,
        mag=25.0 - 2.5 * np.log10(flux),
        position_error_mas=nothing + 1.0,
        mag_error=nothing + 0.01,
        pm_ra=nothing,
        pm_dec=nothing,
        epoch_year=2016.0,
    )
