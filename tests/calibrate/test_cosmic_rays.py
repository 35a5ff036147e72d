"""Cosmic rays are found, and stars are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.background import measure_background
from prepipe.calibrate.stars.cosmic_rays import find_cosmic_rays
from prepipe.errors import ConfigError, PixelError

SHAPE = (400, 400)
SKY = 200.0
READ_NOISE = 7.0
NOISE = np.hypot(SKY**0.5, READ_NOISE)


def add_star(image, x, y, flux, fwhm, beta=3.5):
    """A Moffat star, integrated over its pixels by 5 x 5 points in each."""
    core = 0.5 * fwhm / np.sqrt(2 ** (1 / beta) - 1)
    i, j = int(x), int(y)
    reach = 15
    fine = (np.arange(5 * (2 * reach + 1)) - 2) / 5 - reach
    radius2 = (fine[None, :] + i - x) ** 2 + (fine[:, None] + j - y) ** 2
    profile = (beta - 1) / (np.pi * core**2) * (1 + radius2 / core**2) ** -beta
    stamp = profile.reshape(2 * reach + 1, 5, 2 * reach + 1, 5).mean(axis=(1, 3))
    image[j - reach : j + reach + 1, i - reach : i + reach + 1] += flux * stamp


def star_field(rng, fwhm, n=250):
    """Expected electrons of stars on a sky, and where they are."""
    image = np.full(SHAPE, SKY)
    places = rng.uniform(20, 380, (n, 2))
    for x, y in places:
        add_star(image, x, y, 10 ** rng.uniform(2.5, 5.5), fwhm)
    return image, places


def tracks(rng, n=60):
    """Electrons of straight tracks, one pixel wide, and the number of each track."""
    image = np.zeros(SHAPE)
    number = np.zeros(SHAPE, dtype=int)
    for k in range(1, n + 1):
        x, y = rng.uniform(20, 380, 2)
        angle = rng.uniform(0, 2 * np.pi)
        charge = 10 ** rng.uniform(2.3, 3.5)
        for s in np.arange(0, rng.uniform(1, 15), 0.25):
            place = (int(y + s * np.sin(angle)), int(x + s * np.cos(angle)))
            image[place] += 0.25 * charge
            number[place] = k
    return image, number


def expose(rng, electrons):
    return (rng.poisson(electrons) + rng.normal(0, READ_NOISE, SHAPE)).astype(np.float32)


def search(image, fwhm, mask=None, **options):
    mask = np.zeros(image.shape, dtype=np.uint8) if mask is None else mask
    background = measure_background(image, mask)
    count = find_cosmic_rays(image, mask, background, fwhm, read_noise=READ_NOISE, **options)
    return count, mask


@pytest.mark.parametrize("fwhm", [3.0, 4.0, 5.0])
def test_no_star_is_taken_for_a_cosmic_ray(fwhm):
    rng = np.random.default_rng(1)
    field, places = star_field(rng, fwhm)
    image = expose(rng, field)
    before = image.copy()
    count, mask = search(image, fwhm)
    columns, rows = np.rint(places).astype(int).T
    cores = [mask[y - 1 : y + 2, x - 1 : x + 2].any() for x, y in zip(columns, rows, strict=True)]
    assert sum(cores) == 0
    # A 5 sigma excess in one pixel of noise: 160000 * 3e-7 = 0.05 expected; 3 have P < 1e-4.
    assert count < 3
    assert np.array_equal(image[mask == 0], before[mask == 0])


@pytest.mark.parametrize("fwhm", [3.0, 4.0, 5.0])
def test_nine_tenths_of_the_tracks_and_of_their_pixels_are_found(fwhm):
    rng = np.random.default_rng(2)
    field, _ = star_field(rng, fwhm, n=60)
    charge, number = tracks(rng)
    _, mask = search(expose(rng, field + charge), fwhm)
    hit = mask == Mask.COSMIC_RAY
    clear = charge > 5 * NOISE
    assert np.count_nonzero(hit & clear) / np.count_nonzero(clear) >= 0.9
    events = np.unique(number[clear])
    assert np.isin(events, number[hit]).mean() >= 0.9


def test_a_star_under_better_seeing_than_told_survives_down_to_0_85():
    rng = np.random.default_rng(3)
    field, places = star_field(rng, 0.87 * 4.0)
    _, mask = search(expose(rng, field), 4.0)
    columns, rows = np.rint(places).astype(int).T
    assert not mask[rows, columns].any()


def test_a_single_hot_pixel_is_replaced_by_the_median_around_it():
    rng = np.random.default_rng(4)
    image = expose(rng, np.full(SHAPE, SKY))
    image[200, 150] += 2000
    count, mask = search(image, 4.0)
    assert count == 1
    assert mask[200, 150] == Mask.COSMIC_RAY
    # Median of 24 pixels: 1.25 sigma / sqrt(24).
    assert abs(image[200, 150] - SKY) < 5 * 1.25 * NOISE / np.sqrt(24)


def test_the_noise_of_pixels_of_low_response_is_no_cosmic_ray():
    rng = np.random.default_rng(8)
    response = np.ones(SHAPE)
    response[:, 100:110] = 0.3
    counted = rng.poisson(SKY * response) + rng.normal(0, READ_NOISE, SHAPE)
    image = (counted / response).astype(np.float32)
    variance = ((np.maximum(counted, 0) + READ_NOISE**2) / response**2).astype(np.float32)
    image[200, 105] += 12 * np.sqrt(SKY * 0.3 + READ_NOISE**2) / 0.3
    count, mask = search(image.copy(), 4.0, variance=variance)
    naive, _ = search(image.copy(), 4.0)
    # At 5 sigma of their own a few in a million are: here are 4000.
    assert mask[200, 105] & Mask.COSMIC_RAY
    assert count <= 3
    assert naive > 30


def test_masked_pixels_are_neither_tested_nor_used():
    rng = np.random.default_rng(5)
    image = expose(rng, np.full(SHAPE, SKY))
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[:, 100] = Mask.BAD
    image[:, 100] = 5000.0
    image[300, 200] = 60000.0
    mask[300, 200] = Mask.SATURATED
    image[50, 101] += 3000
    search(image, 4.0, mask)
    assert (mask[:, 100] == Mask.BAD).all()
    assert mask[300, 200] == Mask.SATURATED
    assert mask[50, 101] == Mask.COSMIC_RAY
    assert abs(image[50, 101] - SKY) < 5 * 1.25 * NOISE / np.sqrt(19)


@pytest.mark.parametrize("value", [0.0, 65535.0, np.nan])
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (3, 3), (100, 81)])
def test_degenerate_frames_have_none(value, shape):
    image = np.full(shape, value, dtype=np.float32)
    assert search(image, 4.0)[0] == 0


def test_a_frame_masked_throughout_has_none():
    image = np.random.default_rng(6).normal(0, 100, SHAPE).astype(np.float32)
    assert search(image, 4.0, np.full(SHAPE, Mask.DEAD, dtype=np.uint8))[0] == 0


def test_the_search_gives_up_on_a_frame_full_of_spikes():
    image = np.random.default_rng(7).normal(SKY, NOISE, SHAPE).astype(np.float32)
    image[::3, ::3] += 5000
    count, mask = search(image, 4.0)
    assert count == np.count_nonzero(mask) == SHAPE[0] * SHAPE[1] // 20


@pytest.mark.parametrize("fwhm", [0.0, -1.0, float("nan")])
def test_a_senseless_seeing_is_refused(fwhm):
    with pytest.raises(ConfigError, match="seeing"):
        search(np.zeros(SHAPE, dtype=np.float32), fwhm)


def test_planes_of_different_frames_are_refused():
    image = np.zeros(SHAPE, dtype=np.float32)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    background = measure_background(image, mask)
    with pytest.raises(PixelError, match="one frame"):
        find_cosmic_rays(image[1:], mask[1:], background, 4.0)
