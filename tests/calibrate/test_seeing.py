"""A first look at the seeing: near enough that nothing has to be done twice."""

from __future__ import annotations

import numpy as np
import pytest

from prepipe.calibrate.stars.background import measure_background
from prepipe.calibrate.stars.seeing import glimpse_seeing

SKY = 600.0
READ_NOISE = 7.0
SHAPE = (1024, 1024)
NEAR_ENOUGH = 0.15
"""The width at which sources are searched for may be off by so much before they are sought anew."""


def frame_of(fwhm_px: float, stars: int, galaxies: int = 0, rays: int = 0, seed: int = 1):
    """Moffat stars, wider galaxies, single bright pixels; photon and read noise."""
    rng = np.random.default_rng(seed)
    image = np.full(SHAPE, SKY)
    y, x = np.mgrid[-25:26, -25:26]
    for number in range(stars + galaxies):
        width = fwhm_px * (1.0 if number < stars else rng.uniform(1.2, 2.5))
        core2 = (0.5 * width) ** 2 / (2.0 ** (1 / 3.0) - 1.0)
        dy, dx = rng.uniform(-0.5, 0.5, 2)
        profile = (1.0 + ((x - dx) ** 2 + (y - dy) ** 2) / core2) ** -3.0
        row, column = rng.integers(26, np.array(SHAPE) - 26)
        light = 10 ** rng.uniform(4.0, 5.3) * profile / profile.sum()
        image[row - 25 : row + 26, column - 25 : column + 26] += light
    image = rng.normal(image, np.sqrt(image + READ_NOISE**2))
    row, column = rng.integers(0, np.array(SHAPE), (rays, 2)).T
    image[row, column] += rng.uniform(500, 5000, rays)
    return image.astype(np.float32)


def glimpsed(image, guess):
    mask = np.zeros(image.shape, np.uint8)
    background = measure_background(image, mask)
    return glimpse_seeing(image, mask, background, guess, read_noise=READ_NOISE)


@pytest.mark.parametrize("guess_over_true", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("fwhm_px", [3.0, 4.2, 7.0])
def test_the_width_is_near_enough_whatever_was_supposed(fwhm_px, guess_over_true):
    found = glimpsed(frame_of(fwhm_px, stars=200), guess_over_true * fwhm_px)
    assert found == pytest.approx(fwhm_px, rel=NEAR_ENOUGH)


def test_galaxies_are_not_taken_for_stars():
    found = glimpsed(frame_of(4.0, stars=150, galaxies=150), 4.0)
    assert found == pytest.approx(4.0, rel=NEAR_ENOUGH)


def test_cosmic_rays_are_not_taken_for_stars():
    found = glimpsed(frame_of(4.0, stars=100, rays=1000), 4.0)
    assert found == pytest.approx(4.0, rel=NEAR_ENOUGH)


def test_where_the_middle_has_few_stars_more_rows_are_looked_at():
    image = frame_of(4.0, stars=0)
    rich = frame_of(4.0, stars=300)
    image[:300], image[-300:] = rich[:300], rich[-300:]
    assert glimpsed(image, 4.0) == pytest.approx(4.0, rel=NEAR_ENOUGH)


@pytest.mark.parametrize("stars", [0, 6])
def test_too_few_stars_tell_nothing(stars):
    assert np.isnan(glimpsed(frame_of(4.0, stars=stars), 4.0))


def test_neither_image_nor_mask_is_changed():
    image = frame_of(4.0, stars=100, rays=100)
    mask = np.zeros(image.shape, np.uint8)
    before = image.copy()
    glimpse_seeing(image, mask, measure_background(image, mask), 4.0, read_noise=READ_NOISE)
    np.testing.assert_array_equal(image, before)
    assert not mask.any()


def test_a_frame_of_nothing_tells_nothing():
    image = np.zeros((64, 64), np.float32)
    mask = np.full(image.shape, 8, np.uint8)
    assert np.isnan(glimpse_seeing(image, mask, measure_background(image, mask), 4.0))
