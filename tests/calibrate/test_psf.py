"""The seeing and the shape of the stars come out as they were put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sep
from astropy.io import fits
from star_image import SIGMA_TO_FWHM, Field, Profile, gaussian, grid_of_stars, moffat, render

from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.calibrate.stars.measurement import Sources, aperture_correction
from prepipe.calibrate.stars.psf import Psf, find_sources, measure_psf
from prepipe.errors import ConfigError

FWHM = 4.0
SKY = 100.0
BOX = 64


def flux_of_snr(snr: float, fwhm: float = FWHM) -> float:
    sigma = fwhm / SIGMA_TO_FWHM
    return float(snr * np.sqrt(4 * np.pi * sigma**2 * SKY))


def mesh(image: np.ndarray, rms: float = np.sqrt(SKY)) -> np.ndarray:
    shape = tuple(-(-side // BOX) for side in image.shape)
    return np.full(shape, rms, np.float32)


def found(
    field: Field, fwhm_guess: float = FWHM, mask: np.ndarray | None = None
) -> tuple[Sources, Psf]:
    mask = field.mask if mask is None else mask
    return find_sources(field.image, mask, mesh(field.image), BOX, fwhm_guess, SKY, 5.0)


def field_of(profile: Profile, snr: float = 50.0, n: int = 10, seed: int = 21) -> Field:
    return grid_of_stars(n, 40, flux_of_snr(snr), profile, sky=SKY, seed=seed)


def frame(image: np.ndarray) -> Field:
    nothing = np.empty(0)
    return Field(image.astype(np.float32), nothing, nothing, nothing, SKY)


def fwhm_error(fwhm: float, beta: float, flux: float, n_stars: int) -> float:
    """Least relative error of the FWHM that height, width and exponent fitted together allow.

    Cramer and Rao: the inverse of the Fisher matrix of the pixels within 1.2 FWHM.
    """
    y, x = np.mgrid[-20:21, -20:21].astype(float)
    near = np.hypot(x, y) < 1.2 * fwhm

    def model(p: tuple[float, float, float]) -> np.ndarray:
        return p[0] * flux * moffat(fwhm * np.exp(p[1]), 1 / p[2])(x, y)[near]

    best = np.array([1.0, 0.0, 1 / beta])
    steps = 1e-4 * np.eye(3)
    slopes = [(model(tuple(best + s)) - model(tuple(best - s))) / 2e-4 for s in steps]
    variance = SKY + model(tuple(best))
    fisher = np.array([[np.sum(a * b / variance) for b in slopes] for a in slopes])
    return float(np.sqrt(np.linalg.inv(fisher)[1, 1] / n_stars))


@pytest.mark.parametrize(("fwhm", "beta"), [(2.6, 3.0), (4.0, 3.5), (6.5, 2.5)])
def test_the_fwhm_of_moffat_stars_is_recovered(fwhm: float, beta: float) -> None:
    flux = flux_of_snr(150, fwhm)
    field = grid_of_stars(8, 50, flux, moffat(fwhm, beta), sky=SKY, seed=22)
    _, psf = found(field, fwhm)
    # Rings of 0.04 FWHM and means over them bend the profile by up to 0.3 %.
    tolerance = 3.5 * fwhm_error(fwhm, beta, flux, 64) + 0.003
    assert psf.fwhm_px == pytest.approx(fwhm, rel=tolerance)
    assert tolerance < 0.02


def test_the_fwhm_of_gaussian_stars_is_recovered() -> None:
    _, psf = found(field_of(gaussian(FWHM)))
    # A Gaussian is a Moffat profile of infinite exponent; the fit ends at 30.
    tolerance = 3.5 * fwhm_error(FWHM, 30.0, flux_of_snr(50), 100) + 0.003
    assert psf.fwhm_px == pytest.approx(FWHM, rel=tolerance)
    assert psf.beta > 8


def test_the_ellipticity_is_recovered() -> None:
    e1, e2, snr = -0.08, 0.12, 50.0
    _, psf = found(field_of(gaussian(FWHM, e1, e2), snr))
    # 2 / snr a star (see test_measurement), for the star's own photons sqrt(2) times that.
    tolerance = 3.5 * 1.25 * np.sqrt(2) * 2 / snr / np.sqrt(psf.n_stars)
    assert psf.ellipticity == pytest.approx((e1, e2), abs=tolerance)


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.7, 1.4, 2.0, 3.0])
def test_a_wrong_guess_of_the_seeing_does_no_harm(factor: float) -> None:
    field = field_of(moffat(FWHM, 3.5))
    reference_sources, reference = found(field)
    sources, psf = found(field, FWHM * factor)
    # Up to 15 % off is worked with; that changes the pixels used, not the stars.
    assert psf.fwhm_px == pytest.approx(reference.fwhm_px, rel=0.01)
    assert len(sources) == len(reference_sources)
    assert sources.radii_px[1] == pytest.approx(FWHM, rel=0.15)


def test_stars_are_told_from_galaxies_and_from_hot_pixels() -> None:
    rng = np.random.default_rng(23)
    stars = field_of(moffat(FWHM, 3.5), n=12)
    image = stars.image.copy()
    kinds = rng.permutation(144)
    galaxies, defects = kinds[:50], kinds[50:70]
    shape = image.shape
    for k in galaxies:
        where = (stars.x[[k]], stars.y[[k]])
        profile = gaussian(rng.uniform(1.4, 3.0) * FWHM, rng.uniform(-0.3, 0.3))
        flux = np.array([flux_of_snr(150)])
        image += render(shape, *where, flux, profile, sky=1e-9, rng=rng).image
    for k in defects:
        image[int(stars.y[k]) + 12, int(stars.x[k]) + 12] += 5000
    sources, psf = found(frame(image))
    spot = np.hypot(
        sources.x[psf.stars][:, None] - stars.x, sources.y[psf.stars][:, None] - stars.y
    )
    assert spot.min(axis=1).max() < 2.0
    assert len(set(spot.argmin(axis=1)) & set(galaxies)) <= 2
    assert psf.n_stars > 80
    assert psf.fwhm_px == pytest.approx(FWHM, rel=0.02)


def test_disturbed_stars_are_not_used() -> None:
    field = field_of(moffat(FWHM, 3.5))
    mask = field.mask
    for k in range(50):
        mask[int(field.y[k]), int(field.x[k])] = Mask.SATURATED
    sources, psf = found(field, mask=mask)
    assert psf.n_stars <= 50
    assert not np.any(sources.flags[psf.stars] & SourceFlag.SATURATED)


def test_a_part_of_the_frame_without_stars_takes_the_trend_of_the_rest() -> None:
    field = field_of(moffat(FWHM, 3.5))
    image = field.image.copy()
    image[:200, :200] = 0.0
    _, psf = found(frame(image))
    width, _, _ = psf.map.grid(2, 2)
    np.testing.assert_allclose(width, FWHM, rtol=0.03)


@pytest.mark.parametrize("length", [6.0, 20.0])
def test_trailed_stars_are_elongated(length: float) -> None:
    def trail(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        steps = np.linspace(-length / 2, length / 2, 41)
        return np.mean([gaussian(FWHM)(dx - 0.8 * s, dy - 0.6 * s) for s in steps], axis=0)

    _, psf = found(field_of(trail, snr=200))
    # xx + yy = 2 sigma^2 + L^2 / 12, of which the last term lies along (0.8, 0.6). The window
    # shortens what is no Gaussian, so that a third of tolerance is left.
    excess = length**2 / 12
    expected = excess / (2 * (FWHM / SIGMA_TO_FWHM) ** 2 + excess)
    e1, e2 = psf.ellipticity
    assert np.hypot(e1, e2) == pytest.approx(expected, rel=0.33)
    assert np.arctan2(e2, e1) == pytest.approx(2 * np.arctan2(0.6, 0.8), abs=0.1)


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_fewer_than_five_stars_tell_nothing(n: int) -> None:
    rng = np.random.default_rng(24)
    x, y = np.array([30.0, 50, 70, 45])[:n], np.array([30.0, 50, 35, 65])[:n]
    flux = np.full(n, flux_of_snr(100))
    field = render((81, 100), x, y, flux, moffat(FWHM, 3.5), sky=SKY, rng=rng)
    sources, psf = found(field)
    assert len(sources) == n
    assert not psf.known
    assert np.isnan(psf.fwhm_px)
    assert np.isnan(psf.ellipticity).all()


def test_sources_on_half_a_dead_frame_are_as_on_a_whole_one() -> None:
    field = field_of(moffat(FWHM, 3.5))
    image = field.image.copy()
    image[:, 200:] = 0.0
    mask = field.mask
    mask[:, 200:] = Mask.DEAD
    sources, psf = found(frame(image), mask=mask)
    assert sources.x.max() < 200
    assert len(sources) == 50
    assert psf.fwhm_px == pytest.approx(FWHM, rel=0.03)


@pytest.mark.parametrize("fill", [0.0, -1e5, 65_535.0, 1e38, np.nan, np.inf])
@pytest.mark.parametrize("shape", [(81, 100), (1, 1), (0, 7)])
@pytest.mark.parametrize("rms", [10.0, 0.0, np.nan])
def test_a_frame_without_stars_has_no_psf(fill: float, shape: tuple[int, int], rms: float) -> None:
    image = np.full(shape, fill, np.float32)
    mask = np.full(shape, Mask.SATURATED, np.uint8)
    sources, psf = find_sources(image, mask, mesh(image, rms), BOX, FWHM, SKY, 5.0)
    assert len(sources) <= 1
    assert not psf.known
    assert np.isnan(aperture_correction(sources, psf.stars).factor)


def test_the_seeing_of_a_real_frame_does_not_depend_on_the_guess(shared_data: Path) -> None:
    counts = fits.getdata(shared_data / "sdss" / "fpC-004192-r4-0300.fit.gz").astype(np.float32)
    gain = 4.0
    sky = sep.Background(counts, bw=BOX, bh=BOX)
    image = ((counts - sky.back()) * gain).astype(np.float32)
    mask = np.where(counts > 55_000, Mask.SATURATED, 0).astype(np.uint8)
    rms = float(sky.globalrms) * gain
    widths = []
    for guess in (1.5, 3.0, 6.0):
        _, psf = find_sources(image, mask, mesh(image, rms), BOX, guess, rms**2, 5.0)
        widths.append(psf.fwhm_px * 0.396)
    # arcsec; the survey took images in seeing of 0.9 to 1.5, and wings of exponent 3 are its usual
    assert 0.8 < widths[0] < 1.6
    assert 2.5 < psf.beta < 4.5
    assert widths == pytest.approx([widths[0]] * 3, rel=0.01)


def test_rough_pixels_are_no_stars() -> None:
    rng = np.random.default_rng(25)
    image = 1e5 * rng.random((300, 300)) ** 30
    _, psf = found(frame(image))
    assert not psf.known or psf.fwhm_px > 0.9


def test_a_senseless_guess_is_refused() -> None:
    sources, _ = found(frame(np.zeros((81, 100))))
    with pytest.raises(ConfigError, match="FWHM"):
        measure_psf(np.zeros((81, 100), np.float32), sources, float("nan"))
