"""Read-out, bias and response of a simulated CCD are what the truth says."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_ccds import DEAD, NORTH, SOUTH

from prepipe.simulate.detector import respond
from prepipe.simulate.focal_plane import detectors
from prepipe.simulate.light import add_cosmic_rays, bleed

BY_NUMBER = {d.number: d for d in detectors()}
ROUNDING_VARIANCE = 1.0 / 12.0


def overscan_minus_level(exposed, number: int, channel) -> np.ndarray:
    detector = BY_NUMBER[number]
    raw = exposed.pixels(detector.name).astype(np.float64)
    level = exposed.truth.ccd(number)[f"bias_{channel.name.lower()}"]
    return raw[detector.overscan(channel).slices] - level


def channels(number: int):
    return BY_NUMBER[number].channels


@pytest.mark.parametrize("number", [SOUTH, NORTH, DEAD])
@pytest.mark.parametrize("half", [0, 1])
def test_the_mean_overscan_is_the_true_bias_level(sky, number, half):
    channel = channels(number)[half]
    residual = overscan_minus_level(sky, number, channel)
    # Standard error of the mean of N pixels with read noise and rounding; five of them.
    variance = (channel.read_noise / channel.gain) ** 2 + ROUNDING_VARIANCE
    assert abs(residual.mean()) < 5 * np.sqrt(variance / residual.size)


@pytest.mark.parametrize("half", [0, 1])
def test_the_overscan_drifts_slowly_from_row_to_row(sky, half):
    channel = channels(SOUTH)[half]
    means = overscan_minus_level(sky, SOUTH, channel).mean(axis=1)
    smooth = means.reshape(-1, 64).mean(axis=1)
    error = channel.read_noise / channel.gain / np.sqrt(50 * 64)
    assert np.ptp(smooth) > 10 * error
    assert np.abs(np.diff(smooth)).max() < 1.0


@pytest.mark.parametrize("half", [0, 1])
def test_zeros_differ_by_their_read_noise_alone(zeros, half):
    channel = channels(SOUTH)[half]
    first, second = (overscan_minus_level(zero, SOUTH, channel) for zero in zeros)
    difference = first - second
    difference -= difference.mean(axis=1, keepdims=True)
    measured = difference.var() * 50 / 49 / 2
    expected = (channel.read_noise / channel.gain) ** 2 + ROUNDING_VARIANCE
    # Relative error of a variance from N values: sqrt(2 / N); five of them.
    assert measured == pytest.approx(expected, rel=5 * np.sqrt(2 / difference.size))


def column_pattern(exposed) -> np.ndarray:
    detector = BY_NUMBER[SOUTH]
    raw = exposed.pixels(detector.name).astype(np.float64)
    halves = []
    for half, channel in enumerate(detector.channels):
        data = raw[detector.data.slices][:, half * 1024 : (half + 1) * 1024]
        overscan = raw[detector.overscan(channel).slices].mean(axis=1)
        halves.append(np.mean(np.clip(data - overscan[:, None], -10, 30), axis=0))
    return np.concatenate(halves)


def test_zeros_share_a_bias_structure_that_the_overscan_does_not_show(zeros):
    first, second = (column_pattern(zero) for zero in zeros)
    noise = 10.3 / 3.9 / np.sqrt(4096)
    assert first.std() > 5 * noise
    assert (first - second).std() < 1.5 * np.sqrt(2) * noise


def test_two_flats_give_the_gain_by_their_photon_noise(flats):
    detector = BY_NUMBER[SOUTH]
    images = [flat.pixels(detector.name)[detector.data.slices].astype(np.float64) for flat in flats]
    for half, channel in enumerate(detector.channels):
        inner = (slice(500, 3500), slice(half * 1024 + 100, (half + 1) * 1024 - 100))
        level = flats[0].truth.ccd(SOUTH)[f"bias_{channel.name.lower()}"]
        signal = (images[0][inner] + images[1][inner]) / 2 - level
        difference = images[0][inner] - images[1][inner]
        # Cosmic rays are clipped away: 5 sigma of the difference.
        kept = np.abs(difference - np.median(difference)) < 5 * 1.4826 * np.median(
            np.abs(difference - np.median(difference))
        )
        variance = difference[kept].var() / 2 - (channel.read_noise / channel.gain) ** 2
        gain = signal[kept].mean() / (variance - ROUNDING_VARIANCE)
        # sqrt(2 / N) for the variance, plus 0.2 % for what the clipping takes.
        assert gain == pytest.approx(channel.gain, rel=5 * np.sqrt(2 / kept.sum()) + 0.002)


def test_flats_show_the_response_of_the_pixels(flats):
    detector = BY_NUMBER[SOUTH]
    light = np.ones((4096, 2048), dtype=np.float32)
    respond(light, detector, camera_seed=2012)
    area = (slice(1000, 1400), slice(100, 900))
    flat = np.mean([f.pixels(detector.name)[detector.data.slices][area] for f in flats], axis=0)
    expected, seen = light[area] / light[area].mean(), flat - np.median(flat)
    correlation = np.corrcoef(expected.ravel(), seen.ravel())[0, 1]
    # 0.7 % of response against 0.29 % of photon noise in the mean of two flats of 60000 e-.
    assert correlation > 0.85


def test_the_camera_sees_less_at_the_edge_of_the_field():
    centre, edge = (
        np.ones((4096, 2048), dtype=np.float32),
        np.ones((4096, 2048), dtype=np.float32),
    )
    respond(centre, BY_NUMBER[28], 0)
    respond(edge, BY_NUMBER[60], 0)
    assert np.median(edge[:, :200]) != np.median(edge[:, -200:])
    assert 0.9 < np.median(centre) < 1.1


def test_a_dead_ccd_gives_no_signal(sky):
    detector = BY_NUMBER[DEAD]
    raw = sky.pixels(detector.name)
    data = raw[detector.data.slices].astype(np.float64)
    bias = sky.truth.ccd(DEAD)
    assert bias["dead"]
    assert np.median(data[:, 200:900]) == pytest.approx(bias["bias_a"], abs=2.0)
    assert data.max() < bias["bias_b"] + 100


def test_the_sky_is_what_the_truth_says(sky):
    detector = BY_NUMBER[SOUTH]
    truth = sky.truth.ccd(SOUTH)
    data = sky.pixels("S4")[detector.data.slices].astype(np.float64)
    for half, channel in enumerate(detector.channels):
        counts = data[:, half * 1024 + 200 : (half + 1) * 1024 - 200]
        level = truth[f"bias_{channel.name.lower()}"]
        electrons = (np.median(counts) - level) * channel.gain
        # Vignetting bends the response by some per cent over a CCD; faint sources add a little.
        assert electrons == pytest.approx(truth["sky_e"] * truth["response"], rel=0.03)


def test_bleeding_conserves_charge_and_stays_in_its_column():
    image = np.full((400, 5), 100.0, dtype=np.float32)
    image[200, 2] = 50_100.0
    full = bleed(image, 1000.0)
    assert image.sum() == pytest.approx(400 * 5 * 100 + 50_000, rel=1e-6)
    assert image.max() == pytest.approx(1000.0)
    assert np.all(image[:, [0, 1, 3, 4]] == 100.0)
    assert full == np.count_nonzero(image[:, 2] == 1000.0)
    rows = np.flatnonzero(image[:, 2] > 100.0)
    assert rows.min() + rows.max() == 2 * 200


def test_charge_that_bleeds_over_the_edge_is_lost():
    image = np.full((10, 1), 900.0, dtype=np.float32)
    image[1, 0] = 1e6
    bleed(image, 1000.0)
    assert np.all(image == 1000.0)


def test_stars_that_saturate_reach_the_saturation_of_the_header(sky):
    detector = BY_NUMBER[SOUTH]
    assert sky.truth.ccd(SOUTH)["saturated_pixels"] > 0
    data = sky.pixels("S4")[detector.data.slices]
    saturated = sum(
        np.count_nonzero(data[:, half * 1024 : (half + 1) * 1024] > channel.saturation)
        for half, channel in enumerate(detector.channels)
    )
    full = sky.truth.ccd(SOUTH)["saturated_pixels"]
    # The full well is 3 % above the header's limit; a few flanks end in between.
    assert full <= saturated <= 1.1 * full


def test_cosmic_rays_are_as_many_as_asked_for():
    image = np.zeros((500, 500), dtype=np.float32)
    add_cosmic_rays(image, 0, np.random.default_rng(1))
    assert not image.any()
    add_cosmic_rays(image, 20, np.random.default_rng(1))
    assert 20 < np.count_nonzero(image) < 20 * 100


def test_the_postscan_lies_below_on_the_south_and_above_on_the_north(sky):
    for name, rows in (("S4", slice(0, 50)), ("N4", slice(4096, 4146))):
        raw = sky.pixels(name).astype(np.float64)
        sky_level = np.median(raw[1000:3000, 200:1000]) - np.median(raw[1000:3000, 10:50])
        postscan = np.median(raw[rows, 200:1000]) - np.median(raw[rows, 10:50])
        assert sky_level > 30
        assert abs(postscan) < 2.0
