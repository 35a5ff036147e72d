"""Sources are measured as well as their photons allow.

For a Gaussian star of width s and flux F over a sky variance B per pixel, and a
window of the same width, the weighted sums can be done by hand:

- signal to noise in the window, sky alone: F / sqrt(4 pi s^2 B);
- variance of the centroid: 8 pi s^4 B / F^2 (sky) + 16 s^2 / (9 F) (its own photons);
- standard error of an ellipticity component: 2 / (S/N).
"""

from __future__ import annotations

import numpy as np
import pytest
import sep
from star_image import (
    SIGMA_TO_FWHM,
    Field,
    gaussian,
    grid_of_stars,
    match,
    moffat,
    moffat_alpha,
    render,
)

from prepipe.calibrate.flags import Mask, SourceFlag
from prepipe.calibrate.stars.detection import Peaks, detect, matched_filter
from prepipe.calibrate.stars.measurement import Sources, aperture_correction, measure
from prepipe.errors import ConfigError, PixelError

FWHM = 4.0
SIGMA = FWHM / SIGMA_TO_FWHM
SKY = 100.0


def flux_of_snr(snr: float) -> float:
    return float(snr * np.sqrt(4 * np.pi * SIGMA**2 * SKY))


def peaks_at(x: np.ndarray, y: np.ndarray, height: np.ndarray | float) -> Peaks:
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    heights = np.broadcast_to(np.asarray(height, np.float32), x.shape)
    return Peaks(np.round(y).astype(np.int32), np.round(x).astype(np.int32), heights.copy())


def measured(field: Field, mask: np.ndarray | None = None, **options: object) -> Sources:
    """Every true star, measured from the pixel it lies in."""
    mask = field.mask if mask is None else mask
    peaks = peaks_at(field.x, field.y, field.flux / 100)
    arguments = {"fwhm_px": FWHM, "sky_variance": field.sky_variance} | options
    return measure(field.image, mask, peaks, **arguments)


def one_star(snr: float = 200.0, x: float = 40.3, y: float = 39.8, seed: int = 1) -> Field:
    rng = np.random.default_rng(seed)
    flux = np.array([flux_of_snr(snr)])
    profile = gaussian(FWHM)
    return render((81, 100), np.array([x]), np.array([y]), flux, profile, sky=SKY, rng=rng)


@pytest.fixture(scope="module")
def gaussian_field() -> Field:
    return grid_of_stars(20, 30, flux_of_snr(50), gaussian(FWHM), sky=SKY, seed=11)


@pytest.fixture(scope="module")
def moffat_field() -> Field:
    return grid_of_stars(20, 40, flux_of_snr(60), moffat(FWHM, 3.5), sky=SKY, seed=12)


def test_centroids_scatter_as_the_photons_demand_and_no_more(gaussian_field: Field) -> None:
    sources = measured(gaussian_field)
    flux = gaussian_field.flux[0]
    expected = np.sqrt(8 * np.pi * SIGMA**4 * SKY / flux**2 + 16 * SIGMA**2 / (9 * flux))
    residuals = np.r_[sources.x - gaussian_field.x, sources.y - gaussian_field.y]
    # 800 residuals: their mean is known to 1/sqrt(800), their rms to 1/sqrt(1600), of expected
    assert abs(residuals.mean()) < 3.5 * expected / np.sqrt(residuals.size)
    assert residuals.std() == pytest.approx(expected, rel=3.5 / np.sqrt(2 * residuals.size))
    assert np.median(sources.position_sigma) == pytest.approx(expected, rel=0.02)


def test_the_stated_centroid_errors_hold_for_real_wings_too(moffat_field: Field) -> None:
    sources = measured(moffat_field)
    pulls = (np.r_[sources.x, sources.y] - np.r_[moffat_field.x, moffat_field.y]) / np.tile(
        sources.position_sigma, 2
    )
    assert pulls.std() == pytest.approx(1.0, rel=3.5 / np.sqrt(2 * pulls.size))
    assert abs(pulls.mean()) < 3.5 / np.sqrt(pulls.size)


def test_fluxes_are_unbiased_and_their_errors_true(moffat_field: Field) -> None:
    sources = measured(moffat_field)
    alpha, radius = moffat_alpha(FWHM, 3.5), sources.radii_px
    inside = 1 - (1 + (radius / alpha) ** 2) ** (1 - 3.5)
    # Counting whole pixels by their covered area smears the rim by a pixel's width, which adds
    # (1/24) of the profile's slope there times the circumference.
    slope = -2.5 * 3.5 * 2 * radius / (np.pi * alpha**4) * (1 + (radius / alpha) ** 2) ** -4.5
    truth = moffat_field.flux[:, None] * (inside + 2 * np.pi * radius * slope / 24)
    pulls = (sources.aperture_flux - truth) / sources.aperture_flux_error
    n = len(sources)
    assert np.abs(pulls.mean(axis=0)).max() < 3.5 / np.sqrt(n)
    assert pulls.std(axis=0) == pytest.approx(1.0, rel=3.5 / np.sqrt(2 * n))


def test_apertures_agree_with_exact_circles(moffat_field: Field) -> None:
    sources = measured(moffat_field)
    for k, radius in enumerate(sources.radii_px):
        exact, _, _ = sep.sum_circle(
            moffat_field.image, sources.x, sources.y, radius, subpix=0, err=np.sqrt(SKY)
        )
        # Rims are cut alike on average; single stars differ by up to 3 % of a pixel of the rim,
        # which is far below the noise of those pixels.
        ratio = sources.aperture_flux[:, k] / exact
        assert np.median(ratio) == pytest.approx(1.0, abs=0.002)
        assert np.std(ratio) < 0.5 * np.median(sources.aperture_flux_error[:, k] / exact)


def test_the_signal_to_noise_is_that_of_the_best_filter() -> None:
    flux = flux_of_snr(10)
    field = grid_of_stars(16, 30, flux, gaussian(FWHM), sky=SKY, seed=13)
    # Variance in the window: pi s^2 B from the sky and F / 3 from the star's own photons.
    expected = 0.5 * flux / np.sqrt(np.pi * SIGMA**2 * SKY + flux / 3)
    # The centroid climbs to the highest sum nearby: two coordinates, half a unit of S/N^2 each.
    bias = 1 / expected
    snr = measured(field).snr
    assert snr.mean() == pytest.approx(expected + bias, abs=3.5 / np.sqrt(field.x.size))


def test_moments_are_those_of_the_star_without_the_window() -> None:
    e1, e2, snr = 0.15, -0.10, 100.0
    field = grid_of_stars(12, 30, flux_of_snr(snr), gaussian(FWHM, e1, e2), sky=SKY, seed=14)
    sources = measured(field)
    total = sources.xx + sources.yy
    # the median of 144 stars, each known to 2 / snr; the star's own photons double the variance
    tolerance = 3.5 * 1.25 * np.sqrt(2) * 2 / snr / np.sqrt(field.x.size)
    assert np.median((sources.xx - sources.yy) / total) == pytest.approx(e1, abs=tolerance)
    assert np.median(2 * sources.xy / total) == pytest.approx(e2, abs=tolerance)
    assert np.median(sources.size) == pytest.approx(SIGMA, rel=tolerance)


def test_half_the_light_of_a_gaussian_lies_within_half_its_fwhm(gaussian_field: Field) -> None:
    # Sampling of the steep core in the smallest aperture costs 1 %.
    radius = np.nanmedian(measured(gaussian_field).half_light_radius)
    assert radius == pytest.approx(FWHM / 2, rel=0.02)


def test_the_peak_is_the_highest_pixel() -> None:
    field = one_star()
    assert measured(field).peak[0] == field.image.max()


def test_centroid_converges_from_a_peak_two_pixels_off() -> None:
    field = one_star(snr=500)
    peaks = peaks_at(field.x + 1.6, field.y - 1.2, 100.0)
    sources = measure(field.image, field.mask, peaks, fwhm_px=FWHM, sky_variance=SKY)
    assert abs(sources.x[0] - field.x[0]) < 4 * sources.position_sigma[0]
    assert abs(sources.y[0] - field.y[0]) < 4 * sources.position_sigma[0]


def test_an_equal_neighbour_is_kept_out_of_the_flux() -> None:
    flux = flux_of_snr(1000)
    x = np.array([40.0, 40.0 + 2.5 * FWHM])
    rng = np.random.default_rng(15)
    profile = gaussian(FWHM)
    field = render((81, 100), x, np.full(2, 40.0), np.full(2, flux), profile, sky=SKY, rng=rng)
    sources = measured(field)
    truth = flux * (1 - np.exp(-0.5 * (sources.radii_px / SIGMA) ** 2))
    # Mirrored pixels count their noise twice. The wings that cross the dividing line, less than
    # 1 % of the light at this distance, are taken for those of the other star.
    tolerance = 3.5 * np.sqrt(2) * sources.aperture_flux_error + 0.01 * flux
    assert np.all(np.abs(sources.aperture_flux - truth) < tolerance)
    assert np.all(sources.flags == SourceFlag.NEIGHBOUR)
    assert np.all(np.abs(sources.x - x) < 0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5, -1e5])
def test_bad_pixels_beside_a_star_take_the_value_of_the_opposite_ones(value: float) -> None:
    field = one_star(x=40.0, y=39.0)
    clean = measured(field)
    image = field.image.copy()
    image[:, 43:45] = value
    mask = field.mask
    mask[:, 43:45] = Mask.BAD
    sources = measured(Field(image, field.x, field.y, field.flux, SKY), mask)
    assert sources.flags[0] == SourceFlag.BAD_PIXEL
    # Sixteen pixels of the aperture, with 7 % of the light, carry noise other than their own.
    noise = np.sqrt(2 * (16 * SKY + 0.07 * field.flux[0]))
    assert abs(sources.flux[0] - clean.flux[0]) < 3.5 * noise
    assert abs(sources.x[0] - clean.x[0]) < 3.5 * clean.position_sigma[0]


def test_unmasked_nan_pixels_are_no_danger() -> None:
    field = one_star()
    image = field.image.copy()
    image[36:38, 36:45] = np.nan
    sources = measured(Field(image, field.x, field.y, field.flux, SKY))
    assert np.isfinite(sources.flux[0])
    assert sources.flux[0] == pytest.approx(measured(field).flux[0], rel=0.05)


@pytest.mark.parametrize(
    ("bit", "flag"),
    [
        (Mask.SATURATED, SourceFlag.SATURATED),
        (Mask.COSMIC_RAY, SourceFlag.COSMIC_RAY),
        (Mask.BAD, SourceFlag.BAD_PIXEL),
        (Mask.DEAD, SourceFlag.BAD_PIXEL),
        (Mask.CORRUPT, SourceFlag.BAD_PIXEL),
    ],
)
def test_what_lies_on_the_core_is_told(bit: Mask, flag: SourceFlag) -> None:
    field = one_star()
    mask = field.mask
    mask[41, 42] = bit
    assert measured(field, mask).flags[0] == flag
    far = field.mask
    far[46, 46] = bit
    assert measured(field, far).flags[0] == 0


def test_a_star_at_the_edge_is_flagged_and_measured() -> None:
    field = one_star(snr=200, x=97.2, y=40.0)
    sources = measured(field)
    assert sources.flags[0] & SourceFlag.EDGE
    # The peak's pixel is no exact centre of symmetry, so the mirrored side is a little off.
    assert abs(sources.x[0] - 97.2) < 0.3
    assert abs(sources.y[0] - 40.0) < 0.05


def test_no_light_is_no_centroid() -> None:
    image = np.full((60, 60), -5.0, np.float32)
    mask = np.zeros(image.shape, np.uint8)
    sources = measure(image, mask, peaks_at(30, 31, 10.0), fwhm_px=FWHM, sky_variance=SKY)
    assert sources.flags[0] & SourceFlag.NO_CENTROID
    assert (sources.x[0], sources.y[0]) == (30.0, 31.0)
    assert sources.snr[0] == 0.0


def test_the_aperture_correction_is_the_light_between_the_two_circles() -> None:
    field = grid_of_stars(8, 40, flux_of_snr(300), moffat(FWHM, 3.5), sky=SKY, seed=16)
    sources = measured(field)
    correction = aperture_correction(sources)
    alpha = moffat_alpha(FWHM, 3.5)
    inside = 1 - (1 + (np.array([1.0, 3.0]) * FWHM / alpha) ** 2) ** (1 - 3.5)
    # One star's ratio is as uncertain as its flux in the largest aperture, most of it sky.
    single = float(np.median(sources.aperture_flux_error[:, -1] / sources.flux))
    error = 1.25 * single / np.sqrt(field.x.size)
    assert correction.factor == pytest.approx(inside[1] / inside[0], abs=3.5 * error + 0.002)
    assert 0.5 * single < correction.scatter < 1.5 * single
    assert correction.n_stars == 64
    assert correction.mag == pytest.approx(-2.5 * np.log10(correction.factor))


def test_without_stars_there_is_no_aperture_correction() -> None:
    correction = aperture_correction(measured(one_star()))
    assert np.isnan(correction.factor)
    assert correction.n_stars == 0


def test_positions_agree_with_sextractor_within_the_noise() -> None:
    rng = np.random.default_rng(17)
    x, y = rng.uniform(15, 485, (2, 150))
    flux = np.array([flux_of_snr(s) for s in 10 ** rng.uniform(1.3, 2.5, 150)])
    field = render((500, 500), x, y, flux, moffat(FWHM, 3.5), sky=SKY, rng=rng)
    filtered, gain = matched_filter(field.image, FWHM)
    peaks = detect(filtered, field.rms, field.mask, fwhm_px=FWHM, noise_gain=gain)
    ours = measure(field.image, field.mask, peaks, fwhm_px=FWHM, sky_variance=SKY)
    theirs = sep.extract(field.image, 1.5, err=field.rms)
    theirs = theirs[theirs["flux"] > flux_of_snr(15)]
    # sep corrects no neighbour's light, so that stars are compared which have none nearby
    distances = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(x.size)
    alone = distances.min(axis=1) > 6 * FWHM
    single = Field(field.image, x[alone], y[alone], flux[alone], SKY)
    k, near = match(ours.x, ours.y, single)
    j, _ = match(theirs["x"], theirs["y"], single)
    their_x, their_y, _ = sep.winpos(field.image, theirs["x"][j], theirs["y"][j], SIGMA)
    assert single.x.size > 30
    assert near.max() < 1.0
    # Same window, same pixels: only the last step and the pixel's sub-sampling differ.
    offset = np.hypot(their_x - ours.x[k], their_y - ours.y[k])
    assert np.median(offset / ours.position_sigma[k]) < 0.3
    pulls = (ours.x[k] - single.x) / ours.position_sigma[k]
    assert pulls.std() == pytest.approx(1.0, abs=3.5 / np.sqrt(2 * pulls.size))


def test_a_hundred_thousand_peaks_are_measured() -> None:
    rng = np.random.default_rng(18)
    image = rng.normal(0, 10, (200, 200)).astype(np.float32)
    x, y = rng.integers(0, 200, (2, 100_000))
    mask = np.zeros(image.shape, np.uint8)
    sources = measure(image, mask, peaks_at(x, y, 50.0), fwhm_px=1.5, sky_variance=SKY)
    assert len(sources) == 100_000


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf, -np.inf, 65_535.0, 1e38])
def test_a_frame_without_stars_does_no_harm(fill: float) -> None:
    image = np.full((81, 100), fill, np.float32)
    mask = np.full(image.shape, Mask.SATURATED, np.uint8)
    x, y = np.array([0, 50, 99]), np.array([0, 40, 80])
    sources = measure(image, mask, peaks_at(x, y, fill), fwhm_px=FWHM, sky_variance=0.0)
    assert np.all(sources.flags & SourceFlag.SATURATED)
    assert np.all(np.isfinite(sources.x))


def test_taking_some_sources_keeps_everything_of_them(gaussian_field: Field) -> None:
    sources = measured(gaussian_field)
    some = sources.take(np.array([7, 3]))
    assert len(some) == 2
    assert some.flux.tolist() == sources.flux[[7, 3]].tolist()
    assert some.radii_px is sources.radii_px
    assert len(sources.take(sources.snr > 1e9)) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"fwhm_px": -1.0},
        {"sky_variance": np.nan},
        {"radii_px": (3.0, 2.0)},
        {"radii_px": ()},
        {"radii_px": (0.0, 2.0)},
        {"main_aperture": 5},
    ],
)
def test_senseless_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        measured(one_star(), **options)


def test_a_cube_is_refused() -> None:
    cube = np.zeros((2, 9, 9), np.float32)
    with pytest.raises(PixelError, match="3 dimensions"):
        measure(cube, cube, peaks_at(4, 4, 1.0), fwhm_px=2.0, sky_variance=1.0)
