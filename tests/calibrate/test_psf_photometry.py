"""Fluxes of overlapping stars come out as they were put in, with the errors that are told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from astropy.table import QTable
from photutils.psf import MoffatPSF, PSFPhotometry, SourceGrouper
from scipy.spatial import cKDTree
from star_image import Field, gaussian, grid_of_stars, moffat, render

from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.calibrate.stars.psf import Psf, find_sources
from prepipe.calibrate.stars.psf_photometry import PsfPhotometry, fit_stars, whole_light
from prepipe.calibrate.stars.sources import Sources
from prepipe.errors import PixelError

FWHM = 4.0
BETA = 3.0
SKY = 100.0
BOX = 64
EFFECTIVE_PIXELS = (
    np.pi * (FWHM / 2) ** 2 / (2 ** (1 / BETA) - 1) * (2 * BETA - 1) / (BETA - 1) ** 2
)


def detected(field: Field, mask: np.ndarray | None = None) -> tuple[Sources, Psf]:
    rms = np.full([-(-side // BOX) for side in field.image.shape], np.sqrt(SKY), np.float32)
    mask = field.mask if mask is None else mask
    return find_sources(field.image, mask, rms, BOX, FWHM, SKY)


def fitted(field: Field, mask: np.ndarray | None = None) -> PsfPhotometry:
    mask = field.mask if mask is None else mask
    return fit_stars(field.image, mask, *detected(field, mask), SKY)


def noise_of(flux: np.ndarray | float) -> np.ndarray:
    """Standard error of the flux of a lone star, if all of its pixels are used (King 1983)."""
    return np.sqrt(np.asarray(flux) + EFFECTIVE_PIXELS * SKY)


def nearest(field: Field, sources: Sources) -> tuple[np.ndarray, np.ndarray]:
    tree = cKDTree(np.column_stack([sources.x, sources.y]))
    distance, index = tree.query(np.column_stack([field.x, field.y]))
    return index, distance


def pairs(apart: float, ratio: float, snr: float = 200.0, seed: int = 5) -> Field:
    """144 stars, each fourth with a second one `apart`, of `ratio` times its flux."""
    rng = np.random.default_rng(seed)
    nodes = np.arange(12) * 50.0 + 30.0
    y, x = (a.ravel() + rng.uniform(-0.5, 0.5, 144) for a in np.meshgrid(nodes, nodes))
    flux = np.full(144, snr * np.sqrt(EFFECTIVE_PIXELS * SKY))
    angle = rng.uniform(0, 2 * np.pi, 36)
    x = np.append(x, x[::4] + apart * np.cos(angle))
    y = np.append(y, y[::4] + apart * np.sin(angle))
    flux = np.append(flux, ratio * flux[::4])
    return render((620, 620), x, y, flux, moffat(FWHM, BETA), sky=SKY, rng=rng)


@dataclass(frozen=True)
class Crowd:
    """A crowded field, and what was made of it."""

    field: Field
    sources: Sources
    psf: Psf
    fit: PsfPhotometry

    def errors(self, flux: np.ndarray, brighter: float) -> np.ndarray:
        """Relative errors of the true stars above a flux that were found."""
        index, distance = nearest(self.field, self.fit.sources)
        good = (distance < 1.0) & (self.field.flux > brighter)
        return flux[index[good]] / self.field.flux[good] - 1.0


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    """A star to a hundred pixels, most of them too faint to be seen."""
    rng = np.random.default_rng(11)
    n, side = 4000, 512
    flux = 100.0 * rng.pareto(0.7, n).clip(0.3, 3000.0)
    x, y = rng.uniform(5, side - 5, (2, n))
    field = render((side, side), x, y, flux, moffat(FWHM, BETA), sky=SKY, rng=rng)
    # The sky is too high by the mean of the faintest, as a mesh between stars would have it.
    image = field.image - np.float32(np.median(field.image))
    field = Field(image, x, y, flux, SKY)
    sources, psf = detected(field)
    return Crowd(field, sources, psf, fit_stars(image, field.mask, sources, psf, SKY))


def test_errors_are_not_those_of_pixels_that_were_smoothed() -> None:
    flux = 30.0 * np.sqrt(EFFECTIVE_PIXELS * SKY)
    field = grid_of_stars(8, 40, flux, moffat(FWHM, BETA), sky=SKY, seed=2)
    smooth, true = (
        fit_stars(field.image, field.mask, *detected(field), SKY / 4, least_variance=least)
        for least in (0.0, SKY)
    )
    index, _ = nearest(field, true.sources)
    assert np.median(true.flux_error[index]) == pytest.approx(noise_of(flux), rel=0.15)
    assert np.median(smooth.flux_error[index]) < 0.8 * np.median(true.flux_error[index])


def test_lone_stars_are_as_good_as_their_noise() -> None:
    snr = 50.0
    flux = snr * np.sqrt(EFFECTIVE_PIXELS * SKY)
    field = grid_of_stars(12, 40, flux, moffat(FWHM, BETA), sky=SKY, seed=2)
    fit = fitted(field)
    index, distance = nearest(field, fit.sources)
    assert distance.max() < 0.5
    error = fit.flux[index] / flux - 1.0
    noise = float(noise_of(flux)) / flux
    # The core within one FWHM holds all but a few per cent of what can be known.
    assert np.std(error) < 1.15 * noise
    assert np.mean(error) == pytest.approx(0.0, abs=0.02)
    pulls = (error - error.mean()) * flux / fit.flux_error[index]
    assert np.std(pulls) == pytest.approx(1.0, abs=3.5 / np.sqrt(2 * 144))
    # The chi squared of some 47 degrees of freedom, and of the noise of the profile learned.
    assert np.median(fit.chi2[index]) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize("apart", [1.5, 2.0, 3.0])
def test_both_stars_of_a_pair_have_their_own_flux(apart: float, ratio: float) -> None:
    field = pairs(apart * FWHM, ratio)
    fit = fitted(field)
    index, distance = nearest(field, fit.sources)
    assert distance.max() < 0.5
    assert np.unique(index).size == field.x.size
    blended = np.r_[0:144:4, 144 : field.x.size]
    lone = np.setdiff1d(np.arange(144), blended)
    scale = np.median(fit.flux[index[lone]] / field.flux[lone])
    pull = (fit.flux[index] / scale - field.flux) / fit.flux_error[index]
    # Of 36 first or second stars; where they touch, half a sigma for what the profile lacks.
    for members in (blended[:36], blended[36:]):
        assert abs(np.median(pull[members])) < 3.5 * 1.25 / 6 + 0.5
    assert 1.4826 * np.median(np.abs(pull[blended])) < 1.5


def test_the_error_of_a_blended_star_counts_its_neighbour() -> None:
    apart = 1.5 * FWHM
    field = pairs(apart, 1.0)
    fit = fitted(field)
    index, distance = nearest(field, fit.sources)
    assert distance.max() < 0.5
    error = fit.flux_error[index]
    grown = np.median(error[144:]) / np.median(np.delete(error[:144], np.s_[::4]))
    # The photons of the neighbour add to the noise, and its flux is fitted from the same pixels.
    y, x = np.mgrid[-12:13, -12:13].astype(float)
    own, other = moffat(FWHM, BETA)(x, y), moffat(FWHM, BETA)(x - apart, y)
    alone, both = SKY + field.flux[0] * own, SKY + field.flux[0] * (own + other)
    core = np.hypot(x, y) < FWHM
    shared = np.sum((own * other / both)[core]) / np.sum((own**2 / both)[core])
    expected = np.sum((own**2 / alone)[core]) / np.sum((own**2 / both)[core]) / (1 - shared**2)
    assert expected > 1.02
    assert grown == pytest.approx(np.sqrt(expected), rel=0.04)


def test_a_companion_that_detection_missed_is_found() -> None:
    field = pairs(1.2 * FWHM, 0.1)
    sources, psf = detected(field)
    hidden = nearest(field, sources)[1][144:] > 1.5
    assert hidden.mean() > 0.5
    fit = fit_stars(field.image, field.mask, sources, psf, SKY)
    assert fit.companions >= 0.8 * hidden.sum()
    index, distance = nearest(field, fit.sources)
    shown = hidden & (distance[144:] < 1.5)
    assert shown.sum() >= 0.8 * hidden.sum()
    assert np.all(fit.sources.flags[index[144:][shown]] & SourceFlag.COMPANION)
    assert fit.flux[index[144:][shown]] == pytest.approx(field.flux[144:][shown], rel=0.3)


def test_where_stars_crowd_fitting_halves_the_scatter(crowd: Crowd) -> None:
    whole = whole_light(crowd.fit, crowd.fit.sources.flux, crowd.psf.stars)
    bright = 30.0 * np.sqrt(EFFECTIVE_PIXELS * SKY)
    apertures = crowd.errors(crowd.fit.sources.flux / whole, bright)
    profiles = crowd.errors(crowd.fit.flux, bright)

    def scatter(error: np.ndarray) -> float:
        return float(np.median(np.abs(error - np.median(error))))

    assert len(profiles) > 40
    assert scatter(profiles) < 0.5 * scatter(apertures)


def test_a_sky_subtracted_too_much_is_given_back(crowd: Crowd) -> None:
    # The median of a crowded image lies above its sky: it was subtracted, and comes back.
    assert crowd.fit.sky.mean() < 0.0
    bright = 10.0 * np.sqrt(EFFECTIVE_PIXELS * SKY)
    assert np.median(crowd.errors(crowd.fit.flux, bright)) == pytest.approx(0.0, abs=0.03)


def test_it_agrees_with_photutils_on_the_same_stars() -> None:
    field = pairs(2.0 * FWHM, 0.5)
    sources, psf = detected(field)
    fit = fit_stars(field.image, field.mask, sources, psf, SKY)
    alpha = FWHM / 2 / np.sqrt(2 ** (1 / BETA) - 1)
    peer = PSFPhotometry(
        MoffatPSF(alpha=alpha, beta=BETA),
        fit_shape=(9, 9),
        grouper=SourceGrouper(2.5 * FWHM),
        aperture_radius=FWHM,
    )
    # Stars only: noise peaks differ between the two.
    index, _ = nearest(field, sources)
    initial = QTable({"x": field.x, "y": field.y, "flux": field.flux})
    error = np.sqrt(SKY + np.maximum(field.image, 0.0))
    told = peer(field.image.astype(float), error=error, init_params=initial)
    ours = fit.flux[index] / np.asarray(told["flux_fit"])
    # Their pixels differ, so that their noise is shared by three quarters or so.
    scatter = 1.4826 * np.median(np.abs(ours - np.median(ours)))
    assert np.median(ours) == pytest.approx(1.0, abs=0.02)
    assert scatter < np.median(fit.flux_error[index] / field.flux)


def test_any_profile_is_learned() -> None:
    def two_gaussians(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return 0.7 * gaussian(FWHM, 0.1, 0.05)(dx, dy) + 0.3 * gaussian(2.2 * FWHM)(dx, dy)

    snr = 200.0
    flux = snr * np.sqrt(EFFECTIVE_PIXELS * SKY)
    field = grid_of_stars(12, 48, flux, two_gaussians, sky=SKY, seed=6)
    fit = fitted(field)
    index, _ = nearest(field, fit.sources)
    error = fit.flux[index] / np.median(fit.flux[index]) - 1.0
    assert np.std(error) < 1.5 * float(noise_of(flux)) / flux
    # A profile wrong by a few per cent of the peak would leave a chi squared of 10.
    assert np.median(fit.chi2[index]) < 1.5


def test_wings_are_learned_and_do_not_pass_for_companions() -> None:
    def with_halo(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return 0.96 * moffat(FWHM, BETA)(dx, dy) + 0.04 * moffat(7 * FWHM, 2.0)(dx, dy)

    flux = 15000.0 * np.sqrt(EFFECTIVE_PIXELS * SKY)
    rng = np.random.default_rng(9)
    nodes = np.arange(5) * 150.0 + 80.0
    y, x = (a.ravel() + rng.uniform(-0.5, 0.5, 25) for a in np.meshgrid(nodes, nodes))
    field = render((760, 760), x, y, np.full(25, flux), with_halo, sky=SKY, rng=rng, reach=70)
    fit = fitted(field)
    # What stands out of the noise there is subtracted with the star.
    row, column = np.mgrid[:760, :760]
    ring = np.zeros((760, 760), bool)
    for x0, y0 in zip(x, y, strict=True):
        away = np.hypot(column - x0, row - y0)
        ring |= (away > 4 * FWHM) & (away < 6 * FWHM)
    halo = field.image[ring].mean()
    assert halo > np.sqrt(SKY)
    assert abs(fit.left[ring].mean()) < 0.1 * halo
    assert fit.companions <= 2


@pytest.mark.parametrize("shape", [(130, 120), (80, 300)])
def test_a_small_frame_is_fitted_to_its_edges(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(10)
    x, y = (rng.uniform(0, side - 1, 40) for side in shape[::-1])
    flux = np.full(40, 100.0 * np.sqrt(EFFECTIVE_PIXELS * SKY))
    field = render(shape, x, y, flux, moffat(FWHM, BETA), sky=SKY, rng=rng)
    sources, psf = detected(field)
    assert psf.known
    fit = fit_stars(field.image, field.mask, sources, psf, SKY)
    assert len(fit.sources) == fit.flux.size
    assert np.nanmedian(fit.flux) == pytest.approx(flux[0], rel=0.2)


def test_a_saturated_star_has_no_fitted_flux_and_spares_its_neighbours() -> None:
    field = pairs(3.0 * FWHM, 0.3)
    mask = field.mask
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    for k in range(0, 40, 4):
        mask[np.hypot(x - field.x[k], y - field.y[k]) < 6.0] = Mask.SATURATED
    fit = fitted(field, mask)
    index, _ = nearest(field, fit.sources)
    saturated, beside = index[:40:4], index[144:154]
    assert np.isnan(fit.flux[saturated]).all()
    assert np.all(fit.sources.flags[saturated] & SourceFlag.SATURATED)
    assert fit.flux[beside] == pytest.approx(field.flux[144:154], rel=0.1)


def test_a_galaxy_brings_no_companions() -> None:
    field = pairs(8 * FWHM, 1.0)
    rng = np.random.default_rng(8)
    x, y = rng.uniform(40, 580, (2, 20))
    flux = np.full(20, 100.0 * np.sqrt(EFFECTIVE_PIXELS * SKY))
    galaxies = render(field.image.shape, x, y, flux, moffat(2 * FWHM, 2.5), sky=1e-9, rng=rng)
    both = Field(field.image + galaxies.image, field.x, field.y, field.flux, SKY)
    sources, psf = detected(both)
    fit = fit_stars(both.image, both.mask, sources, psf, SKY)
    galaxy = cKDTree(np.column_stack([fit.sources.x, fit.sources.y])).query(np.column_stack([x, y]))
    found = galaxy[1][galaxy[0] < 1.5]
    assert fit.companions <= 4
    assert np.median(fit.chi2[found]) > 3.0


@pytest.mark.parametrize(
    ("fill", "bits"), [(np.nan, Mask.BAD), (np.inf, Mask.DEAD), (1e30, Mask.BAD), (np.nan, 0)]
)
def test_pixels_without_a_value_do_no_harm_elsewhere(fill: float, bits: int) -> None:
    field = pairs(3.0 * FWHM, 0.3)
    image, mask = field.image.copy(), field.mask
    image[:, 300:310] = fill
    mask[:, 300:310] = bits
    broken = Field(image, field.x, field.y, field.flux, SKY)
    fit = fitted(broken, mask)
    whole = np.isfinite(fit.flux)
    far = np.abs(fit.sources.x - 305) > 30
    assert whole[far].all()
    index, _ = nearest(field, fit.sources)
    away = np.abs(field.x - 305) > 40
    ratio = fit.flux[index[away]] / field.flux[away]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.02)


def test_a_mask_of_another_shape_is_refused() -> None:
    field = pairs(3.0 * FWHM, 0.3)
    sources, psf = detected(field)
    with pytest.raises(PixelError, match="mask"):
        fit_stars(field.image, np.zeros((5, 5), np.uint8), sources, psf, SKY)
