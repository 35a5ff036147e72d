"""The zero point and the depth of a CCD, against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prepipe.calibrate.sky.photometry import enclosed_light, limiting_magnitude, zero_point

TRUE = 31.2
EXPOSURE = 120.0


def simulate(seed, stars=200, intrinsic=0.01, colour_term=0.0):
    """Fluxes (e-), errors, catalogue magnitudes, errors and colours of stars."""
    rng = np.random.default_rng(seed)
    mag = rng.uniform(16.0, 21.0, stars)
    colour = rng.uniform(0.0, 2.0, stars)
    observed = mag - colour_term * (colour - 0.8) + rng.normal(0, intrinsic, stars)
    flux = EXPOSURE * 10 ** (-0.4 * (observed - TRUE))
    error = np.sqrt(flux + 100.0 * 60.0)
    mag_error = 0.003 * 10 ** (0.2 * (mag - 16.0))
    return (
        flux + rng.normal(0, error),
        error,
        mag + rng.normal(0, mag_error),
        mag_error,
        colour,
    )


def test_the_zero_point_is_right_within_its_own_error():
    pulls = []
    for seed in range(200):
        flux, error, mag, mag_error, _ = simulate(seed)
        found = zero_point(flux, error, EXPOSURE, mag, mag_error)
        assert found.flag == ""
        pulls.append((found.value - TRUE) / found.error)
    # 200 pulls have a mean within 4 / sqrt(200) and an rms within 4 / sqrt(400) of 1; the
    # clip takes off the tails, and the noise of an estimated scatter adds a little.
    assert abs(np.mean(pulls)) < 4.0 / math.sqrt(200)
    assert 0.8 < np.std(pulls) < 1.2


def test_the_intrinsic_scatter_is_found():
    flux, error, mag, mag_error, _ = simulate(1, stars=2000, intrinsic=0.03)
    found = zero_point(flux, error, EXPOSURE, mag, mag_error)
    # 2000 stars give a scatter to 1 / sqrt(4000) = 1.6 %; the clip at 3.5 sigma takes 1 %.
    assert found.intrinsic == pytest.approx(0.03, rel=0.1)


def test_a_fifth_of_variable_or_mismatched_stars_does_not_shift_it():
    for seed in range(20):
        flux, error, mag, mag_error, _ = simulate(seed)
        flux[::5] *= np.random.default_rng(seed).uniform(1.3, 10.0, flux[::5].size)
        found = zero_point(flux, error, EXPOSURE, mag, mag_error)
        # The 160 good ones give 1 to 2 mmag; the nearest of the bad ones is at 0.28 mag.
        assert found.value == pytest.approx(TRUE, abs=0.01)
        assert found.stars <= 165


def test_a_few_very_bright_stars_do_not_rule():
    # Two stars without noise, both off by the intrinsic scatter of all, against 100 more.
    flux, error, mag, mag_error, _ = simulate(2, stars=102, intrinsic=0.05)
    flux[:2] = EXPOSURE * 10 ** (-0.4 * (10.0 - 0.1 - TRUE))
    mag[:2], mag_error[:2], error[:2] = 10.0, 1e-4, np.sqrt(flux[:2])
    found = zero_point(flux, error, EXPOSURE, mag, mag_error)
    assert found.value == pytest.approx(TRUE, abs=4 * 0.05 / math.sqrt(100))


def test_the_colour_term_is_taken_out():
    flux, error, mag, mag_error, colour = simulate(3, stars=400, colour_term=0.1)
    plain = zero_point(flux, error, EXPOSURE, mag, mag_error)
    found = zero_point(flux, error, EXPOSURE, mag, mag_error, colour, 0.1, 0.8)
    assert found.value == pytest.approx(TRUE, abs=5 * found.error)
    assert found.scatter < 0.6 * plain.scatter


def test_stars_of_unknown_colour_count_only_without_a_colour_term():
    flux, error, mag, mag_error, colour = simulate(4, stars=40)
    colour[:30] = np.nan
    assert zero_point(flux, error, EXPOSURE, mag, mag_error, colour, 0.1).stars <= 10
    assert zero_point(flux, error, EXPOSURE, mag, mag_error, colour).stars >= 38


def test_stars_without_flux_error_or_magnitude_are_left_out():
    flux, error, mag, mag_error, _ = simulate(5, stars=40)
    flux[:3] = -1.0, np.nan, np.inf
    error[3:6] = 0.0, np.nan, np.inf
    mag[6] = np.nan
    mag_error[7] = np.nan
    found = zero_point(flux, error, EXPOSURE, mag, mag_error)
    assert 31 <= found.stars <= 33
    assert math.isfinite(found.value)


def test_no_star_gives_no_zero_point():
    for flux, exposure in (([], 120.0), ([-5.0], 120.0), ([100.0], 0.0), ([100.0], math.nan)):
        found = zero_point(flux, [1.0] * len(flux), exposure, [20.0] * len(flux))
        assert math.isnan(found.value)
        assert found.stars == 0
        assert found.flag == "NO_ZERO_POINT"


def test_few_stars_and_large_scatter_are_flagged():
    flux, error, mag, mag_error, _ = simulate(6, stars=300, intrinsic=0.2)
    assert zero_point(flux, error, EXPOSURE, mag, mag_error).flag == "ZP_SCATTER"
    flux, error, mag, mag_error, _ = simulate(7, stars=4)
    few = zero_point(flux, error, EXPOSURE, mag, mag_error)
    assert few.flag == "FEW_ZP_STARS"
    assert few.value == pytest.approx(TRUE, abs=5 * few.error)


def test_one_star_gives_its_own_zero_point():
    found = zero_point([EXPOSURE * 100.0], [1.0], EXPOSURE, [20.0])
    assert found.value == pytest.approx(25.0)
    assert found.error == pytest.approx(2.5 / math.log(10) / 12000.0)


def test_a_psf_fit_at_the_limiting_magnitude_has_the_signal_to_noise_asked_for():
    rms, fwhm = 12.0, 4.0
    mag = limiting_magnitude(TRUE, EXPOSURE, rms, fwhm)
    flux = EXPOSURE * 10 ** (-0.4 * (mag - TRUE))
    x, y = np.meshgrid(np.arange(-20, 21), np.arange(-20, 21))
    sigma = fwhm / 2.35482
    psf = np.exp(-(x**2 + y**2) / 2 / sigma**2) / (2 * math.pi * sigma**2)
    background_only = flux * math.sqrt((psf**2).sum()) / rms
    # With its own photons it is 5; against the background alone then 5 sqrt(1 + F / A rms^2).
    area = 4 * math.pi * sigma**2
    assert background_only == pytest.approx(5 * math.sqrt(1 + flux / area / rms**2), rel=1e-3)


def moffat(fwhm, beta, half=60):
    """Profile of a star with a flux of 1 and the radii of its pixels."""
    core = fwhm / (2 * math.sqrt(2 ** (1 / beta) - 1))
    x, y = np.meshgrid(np.arange(-half, half + 1), np.arange(-half, half + 1))
    density = (beta - 1) / (math.pi * core**2) * (1 + (x**2 + y**2) / core**2) ** -beta
    return density, np.hypot(x, y)


def test_injected_stars_at_the_limiting_magnitude_scatter_by_a_fifth_of_their_flux():
    rms, fwhm, beta, stars = 12.0, 4.0, 3.0, 4000
    mag = limiting_magnitude(TRUE, EXPOSURE, rms, fwhm, beta=beta)
    flux = EXPOSURE * 10 ** (-0.4 * (mag - TRUE))
    psf, _ = moffat(fwhm, beta, half=12)
    rng = np.random.default_rng(11)
    light = rng.poisson(flux * psf, (stars, *psf.shape)) + rng.normal(0, rms, (stars, *psf.shape))
    fitted = (light * psf).sum(axis=(1, 2)) / (psf**2).sum()
    # 4000 stars tell a scatter to 1.1 %, here at four times that.
    assert fitted.mean() / fitted.std() == pytest.approx(5.0, rel=0.045)


def test_the_wings_of_a_moffat_profile_cost_depth_and_a_gaussian_is_its_limit():
    gaussian = limiting_magnitude(TRUE, EXPOSURE, 100.0, 4.0)
    assert limiting_magnitude(TRUE, EXPOSURE, 100.0, 4.0, beta=math.nan) == gaussian
    steep = limiting_magnitude(TRUE, EXPOSURE, 100.0, 4.0, beta=1e5)
    assert steep == pytest.approx(gaussian, abs=1e-3)
    # Where the sky is all of the noise, the noise areas are 2.27 and 3.78 FWHM^2.
    wings = limiting_magnitude(TRUE, EXPOSURE, 100.0, 4.0, beta=3.0)
    assert gaussian - wings == pytest.approx(1.25 * math.log10(3.777 / 2.266), abs=2e-3)


@pytest.mark.parametrize("beta", [2.5, 3.0, 4.765])
def test_the_light_within_a_radius_is_that_of_the_profile(beta):
    psf, distance = moffat(6.0, beta, half=30)
    # Whole pixels stand for the edge of the circle: 0.2 % of the light at most.
    assert enclosed_light(18.0, 6.0, beta) == pytest.approx(psf[distance <= 18.0].sum(), abs=2e-3)


def test_all_light_is_enclosed_where_the_profile_is_unknown_and_most_where_it_is_unlikely():
    assert enclosed_light(12.0, math.nan, 3.0) == 1.0
    assert enclosed_light(12.0, 4.0, math.nan) == 1.0
    assert enclosed_light(12.0, 4.0, 1.1) == enclosed_light(12.0, 4.0, 2.0) > 0.9


def test_without_sky_or_seeing_there_is_no_limit():
    assert math.isnan(limiting_magnitude(TRUE, EXPOSURE, 0.0, 4.0))
    assert math.isnan(limiting_magnitude(TRUE, EXPOSURE, 12.0, math.nan))
    assert math.isnan(limiting_magnitude(math.nan, EXPOSURE, 12.0, 4.0))
