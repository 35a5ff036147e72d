"""The noise of a frame that was packed with a loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepipe.calibrate.stars.background import Background, measure_background
from prepipe.calibrate.stars.packing_noise import PackingNoise

TOLD = {"rms_error_sigma": 0.83, "noise_adu": 4.0, "expected_scatter": 0.2}
GAIN = 4.0


def background(rms: float) -> Background:
    mesh = np.full((2, 3), rms, np.float32)
    return Background(np.zeros_like(mesh), mesh, mesh.copy(), 64, (128, 192))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"rms_error_sigma": 0.0, "noise_adu": 4.0},
        {"rms_error_sigma": None, "noise_adu": 0.0},
        {"rms_error_sigma": 0.5},
        {"rms_error_sigma": "much", "noise_adu": 4.0},
        {"rms_error_sigma": math.nan, "noise_adu": 4.0},
        {"rms_error_sigma": 0.5, "noise_adu": True},
    ],
)
def test_a_packet_that_lost_nothing_or_does_not_tell_changes_nothing(
    parameters: dict[str, object],
) -> None:
    assert PackingNoise.told_by(parameters) is None


def test_what_a_preset_expects_is_what_it_added_less_where_noise_was_rounded_away_too() -> None:
    filled = PackingNoise.told_by(TOLD | {"asked": {"fill": True}})
    assert filled == PackingNoise(4.0, 0.2, filled=True)
    smooth = PackingNoise.told_by(TOLD | {"asked": {"preset": "fast"}})
    assert smooth is not None
    assert 0.0 < smooth.added < 0.2


def test_other_codecs_tell_it_by_their_rms_error() -> None:
    noise = PackingNoise.told_by({"rms_error_sigma": 0.5, "noise_adu": 4.0, "asked": {"ratio": 10}})
    assert noise is not None
    assert 0.2 < noise.added < 0.35


def test_pixels_that_packing_smoothed_get_their_noise_back_and_that_of_packing() -> None:
    smooth = background(0.5 * 4.0 * GAIN)
    corrected = PackingNoise(4.0, 0.2).corrected(smooth, GAIN)
    expected = 4.0 * GAIN * math.hypot(1.0, 0.2)
    assert corrected.rms == pytest.approx(expected, rel=1e-6)
    assert corrected.raw_rms == pytest.approx(expected, rel=1e-6)
    assert corrected.rms.dtype == np.float32


def test_the_noise_of_the_masters_is_in_the_calibrated_pixels_too() -> None:
    corrected = PackingNoise(4.0, 0.0).corrected(background(5.0), GAIN, masters_adu=3.0)
    assert corrected.median_rms == pytest.approx(5.0 * GAIN)


def test_the_skys_own_structure_is_not_taken_away() -> None:
    crowded = background(3.0 * 4.0 * GAIN)
    assert PackingNoise(4.0, 0.0).corrected(crowded, GAIN).median_rms == crowded.median_rms


def test_noise_that_was_filled_in_is_not_taken_for_more_noise_of_the_sky() -> None:
    filled = background(1.03 * 4.0 * GAIN)
    corrected = PackingNoise(4.0, 0.0, filled=True).corrected(filled, GAIN)
    assert corrected.median_rms == pytest.approx(4.0 * GAIN, rel=1e-3)


def test_the_meshes_keep_their_proportions() -> None:
    uneven = background(1.0)
    uneven.rms[0, 0] = 2.0
    corrected = PackingNoise(4.0, 0.1).corrected(uneven, GAIN)
    assert corrected.rms[0, 0] == pytest.approx(2.0 * corrected.rms[1, 1])


def test_a_frame_of_which_nothing_was_measured_stays_so() -> None:
    blank = measure_background(np.zeros((64, 64), np.float32), np.ones((64, 64), np.uint8))
    assert PackingNoise(4.0, 0.1).corrected(blank, GAIN) is blank


@given(
    st.floats(0.1, 100.0), st.floats(0.0, 1.0), st.booleans(), st.floats(0.01, 1e4), st.floats(0, 9)
)
def test_no_pixel_is_ever_less_noisy_than_before_packing(
    noise_adu: float, added: float, filled: bool, seen: float, masters_adu: float
) -> None:
    packing = PackingNoise(noise_adu, added, filled)
    corrected = packing.corrected(background(seen), GAIN, masters_adu)
    assert corrected.median_rms >= packing.least(GAIN, masters_adu) * (1 - 1e-5)
    assert packing.least(GAIN, masters_adu) >= noise_adu * GAIN
