"""Every figure of fidelity is right where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sky_frames import GAIN, SATURATION, SKY_NOISE_E, SkyFrame, sky_frame, with_noise

from prepipe.codec import get_codec
from prepipe.model import Packet
from prepipe.quality.fidelity import (
    compare,
    flux_changes,
    pixel_errors,
    source_changes,
    transient_changes,
)
from prepipe.quality.fidelity_figures import Fidelity
from prepipe.quality.injection import Transients, inject, place_transients
from prepipe.quality.scene import Flattened, Scene, flatten, see

SUPPOSED_PX = 4.0


@cache
def whole() -> tuple[SkyFrame, Scene]:
    frame = sky_frame()
    return frame, see(frame.raw, frame.layout, SUPPOSED_PX)


@cache
def with_transients() -> tuple[SkyFrame, Scene, Transients]:
    """The frame with a hundred and more transients in it, and what is seen of it."""
    frame, scene = whole()
    transients = place_transients(scene, seed=3)
    raw = inject(frame.raw, frame.layout, transients, scene.profile, seed=3)
    return replace(frame, raw=raw), scene, transients


def flat(raw: np.ndarray) -> Flattened:
    frame, scene = whole()
    return flatten(raw, frame.layout, scene.mask, scene.dead, scene.flat.background)


def judged(decoded: np.ndarray, decoded_with: np.ndarray) -> Fidelity:
    frame, scene = whole()
    injected, _, transients = with_transients()
    before, after = flat(injected.raw), flat(decoded_with)
    return compare(
        pixel_errors(frame.raw, decoded, frame.layout),
        source_changes(scene, flat(decoded)),
        transient_changes(before, after, transients, scene.profile),
        scene.profile,
    )


def test_the_same_frame_has_lost_nothing() -> None:
    found = judged(whole()[0].raw, with_transients()[0].raw)
    assert (found.rms, found.mean_error, found.max_error, found.saturated_changed) == (0, 0, 0, 0)
    assert (found.recovered, found.new, found.noise_ratio) == (1.0, 0.0, 1.0)
    assert (found.centroid_px, found.centroid, found.scatter) == (0, 0, 0)
    assert (found.bias_faint, found.bias_bright) == (0, 0)
    assert found.found == found.found_original


def test_white_noise_of_0_3_sigma_adds_that_to_every_figure_as_theory_says() -> None:
    frame, _ = whole()
    injected, _, transients = with_transients()
    found = judged(with_noise(frame, 0.3), with_noise(injected, 0.3, seed=6))
    # rounding to whole ADU adds its own
    rounding = GAIN / np.sqrt(12) / SKY_NOISE_E
    rms = np.hypot(0.3, rounding)
    assert found.rms == pytest.approx(rms, rel=0.03)
    assert abs(found.mean_error) < 0.002
    assert 0.3 * 4.5 < found.max_error < 0.3 * 7
    assert found.noise_ratio == pytest.approx(np.hypot(1.0, rms), rel=0.02)
    assert abs(found.sky_shift) < 0.02
    # the sum of pixels weighted alike has their noise; light of the stars themselves lowers it
    count = len(transients) + found.by_brightness[1].stars + found.by_brightness[2].stars
    assert found.scatter == pytest.approx(rms, rel=3 / np.sqrt(2 * count) + 0.05)
    assert abs(found.bias_faint) < 3 * rms / 7.5 / np.sqrt(len(transients))
    assert abs(found.bias_bright) < 0.002
    assert found.recovered > 0.97


def test_centroids_shift_by_the_part_of_their_error_that_noise_adds() -> None:
    frame, scene = whole()
    noisy = flat(with_noise(frame, 0.5))
    seen = source_changes(scene, noisy)
    # bright stars have errors of their own light, beside which the sky's grows small
    assert 0.2 < seen.centroid < 0.55
    assert 0 < seen.centroid_px < 0.1


def test_the_snr_of_a_transient_is_its_flux_over_the_scatter_of_such_fluxes_on_empty_sky() -> None:
    _, scene, transients = with_transients()
    frame = whole()[0]
    empty = flat(frame.raw)
    noise = flux_changes(empty, empty, transients.x, transients.y, scene.profile)
    scatter = np.std(noise.flux)
    assert scatter == pytest.approx(np.median(transients.flux / transients.snr), rel=0.15)


def test_injected_light_is_all_there() -> None:
    frame, scene = whole()
    injected, _, transients = with_transients()
    added = (injected.raw.astype(float) - frame.raw).sum() * GAIN
    shares = scene.profile.stamps(transients.x, transients.y).light.sum(axis=(1, 2))
    expected = float(np.sum(shares * transients.flux))
    assert added == pytest.approx(expected, rel=0.01)
    before, after = flat(frame.raw), flat(injected.raw)
    fluxes = flux_changes(before, after, transients.x, transients.y, scene.profile)
    assert fluxes.change.sum() == pytest.approx(transients.flux.sum(), rel=0.02)


def test_transients_are_the_same_for_the_same_seed_and_keep_away_from_stars() -> None:
    frame, scene = whole()
    first, again = place_transients(scene, seed=3), place_transients(scene, seed=3)
    assert np.array_equal(first.x, again.x)
    assert not np.array_equal(first.x[:20], place_transients(scene, seed=4).x[:20])
    bright = frame.stars.flux > 3e4
    distance = np.hypot(
        first.x[:, None] - frame.stars.x[bright], first.y[:, None] - frame.stars.y[bright]
    )
    assert distance.min() > 3 * 4.0


def test_transients_that_are_wiped_out_are_not_found_and_their_light_is_missed() -> None:
    frame, scene = whole()
    injected, _, transients = with_transients()
    before, wiped = flat(injected.raw), flat(frame.raw)
    seen = transient_changes(before, wiped, transients, scene.profile)
    assert seen.found < 0.05
    assert seen.found_original > 0.8
    assert seen.fluxes.bias == pytest.approx(-1.0, abs=0.06)


def test_fluxes_that_shrink_by_a_hundredth_are_biased_by_a_hundredth() -> None:
    frame, scene = whole()
    level = np.median(frame.raw[:, 100:-100])
    shrunk = np.rint(level + 0.99 * (frame.raw - level)).astype(np.uint16)
    seen = source_changes(scene, flat(shrunk))
    bright = seen.fluxes.between(60, np.inf)
    assert bright.relative_bias == pytest.approx(-0.01, abs=0.0005)


def test_bias_against_magnitude_goes_from_faint_to_bright() -> None:
    found = judged(whole()[0].raw, with_transients()[0].raw)
    filled = [each for each in found.by_brightness if each.stars]
    assert len(filled) >= 5
    magnitudes = [each.magnitude for each in filled]
    assert magnitudes == sorted(magnitudes, reverse=True)
    assert filled[0].stars == found.transients


def test_a_saturated_pixel_that_comes_back_otherwise_is_counted_and_is_no_error_of_the_sky() -> (
    None
):
    frame, _ = whole()
    before, after = frame.raw.copy(), frame.raw.copy()
    before[500, 500:503] = 65535
    after[500, 500:502] = 65535
    after[500, 502] = int(SATURATION) - 1
    found = pixel_errors(before, after, frame.layout)
    assert (found.saturated_changed, found.rms, found.largest) == (1, 0, 0)


@pytest.mark.parametrize("level", [0, 2000, 65535])
def test_a_frame_without_noise_has_no_figures_but_no_error_either(level: int) -> None:
    frame = sky_frame(200, 200, stars=0)
    even = np.full_like(frame.raw, level)
    scene = see(even, frame.layout, SUPPOSED_PX)
    transients = place_transients(scene, seed=1)
    same = flatten(even, frame.layout, scene.mask, scene.dead)
    found = compare(
        pixel_errors(even, even, frame.layout),
        source_changes(scene, same),
        transient_changes(same, same, transients, scene.profile),
        scene.profile,
    )
    assert np.isnan(found.rms)
    assert found.sources == found.transients == 0


@pytest.mark.parametrize("shape", [(1, 2), (9, 8), (70, 64)])
def test_a_frame_too_small_for_stars_is_looked_at_all_the_same(shape: tuple[int, int]) -> None:
    frame = sky_frame(*shape, stars=0)
    scene = see(frame.raw, frame.layout, SUPPOSED_PX)
    assert not scene.profile.measured
    transients = place_transients(scene, seed=1)
    seen = source_changes(scene, flatten(frame.raw, frame.layout, scene.mask))
    assert seen.sources <= 1
    transient_changes(scene.flat, scene.flat, transients, scene.profile)


def test_jpeg_2000_at_ten_to_one_costs_what_the_study_says() -> None:
    frame, _ = whole()
    injected, _, _ = with_transients()
    decoded, decoded_with = (
        _through("jpeg2000", raw, ratio=10) for raw in (frame.raw, injected.raw)
    )
    found = judged(decoded, decoded_with)
    # codec studies on frames like this one: 0.41 to 0.5 of the photon noise
    assert 0.3 < found.scatter < 0.6
    assert found.found < found.found_original
    assert 0.4 < found.rms < 0.6


def _through(codec: str, raw: np.ndarray, **parameters: object) -> np.ndarray:
    chosen = get_codec(codec)
    encoded = chosen.encode(raw, parameters)
    packet = Packet(None, None, codec, {}, raw.shape, raw.dtype.name, len(encoded.payload), "", "")
    return chosen.decode(encoded.payload, packet)
