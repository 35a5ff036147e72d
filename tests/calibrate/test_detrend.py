"""From raw to electrons, against frames whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_frames import GAINS, READ_NOISE, SATURATION, read_out, two_amplifiers

from prepipe.calibrate.detector.detrend import MINIMUM_FLAT, detrend, overscan_subtract_trim
from prepipe.calibrate.flags import Mask
from prepipe.errors import PixelError
from prepipe.model import Box, Layout

LAYOUT = two_amplifiers()
SHAPE = LAYOUT.trimmed_shape


@pytest.fixture(scope="module")
def scene():
    """Expected electrons per pixel, bias, flat, and one raw frame of them."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    sky = 1000.0 + 0.5 * y + 0.3 * x
    flat = (1.0 - 0.4 * ((x - 128) / 256) ** 2 + rng.normal(0, 0.01, SHAPE)).astype(np.float32)
    bias = (2.0 * np.sin(x / 5.0)).astype(np.float32)
    raw = read_out(rng.poisson(sky * flat).astype(float), LAYOUT, rng, bias)
    return sky, bias, flat, raw


def test_errors_over_their_expected_noise_have_unit_width(scene):
    sky, bias, flat, raw = scene
    result = detrend(raw, LAYOUT, bias=bias, flat=flat)
    pull = (result.image - sky) / np.sqrt(result.variance)
    # 102400 pixels: sampling error 1/sqrt(2 n) = 0.22 %, 5 sigma 1.1 %. The noise of the variance
    # itself (3/4 of 1/1000) adds 0.1 %.
    assert pull.std() == pytest.approx(1.0, abs=0.013)
    # The variance comes from the same counts: mean pull -1/(2 sqrt(1000)), and 5/sqrt(n).
    assert pull.mean() == pytest.approx(-0.5 / np.sqrt(1000), abs=0.016 + 0.01)


def test_the_sky_is_recovered_without_bias(scene):
    sky, bias, flat, raw = scene
    residual = detrend(raw, LAYOUT, bias=bias, flat=flat).image - sky
    # Mean of the overscan: 6 e- / sqrt(400 * 50); mean of the pixels: 34 e- / sqrt(51200).
    for amplifier in LAYOUT.amplifiers:
        assert abs(residual[amplifier.trimmed.slices].mean()) < 5 * np.hypot(0.042, 0.155)


def test_read_noise_and_rounding_are_the_variance_of_dark_pixels():
    raw = read_out(np.zeros(SHAPE), LAYOUT, np.random.default_rng(6))
    result = detrend(raw, LAYOUT)
    # Half the pixels are above zero and count as shot noise (mean 2.4 e-).
    assert result.image.var() == pytest.approx(READ_NOISE**2 + 4.1**2 / 12, rel=0.03)
    assert np.median(result.variance) == pytest.approx(READ_NOISE**2 + 4.1**2 / 12, abs=1.0)


def test_frames_that_are_no_whole_numbers_have_no_noise_of_rounding():
    raw = read_out(np.zeros(SHAPE), LAYOUT, np.random.default_rng(6))
    whole, real = (detrend(raw.astype(kind), LAYOUT).variance for kind in (np.int32, np.float32))
    np.testing.assert_allclose((whole - real)[:, 0], GAINS[0] ** 2 / 12, rtol=1e-3)


def test_gain_and_read_noise_are_the_medians_of_the_amplifiers(scene):
    result = detrend(scene[3], LAYOUT)
    assert result.gain == pytest.approx(np.mean(GAINS))
    assert result.read_noise == READ_NOISE


def test_a_pixel_at_saturation_is_marked_and_one_below_is_not(scene):
    raw = scene[3].copy()
    raw[100, 60] = int(SATURATION)
    raw[100, 61] = int(SATURATION) - 1
    mask = detrend(raw, LAYOUT).mask
    assert mask[94, 10] == Mask.SATURATED
    assert mask[94, 11] == 0


def test_a_dark_or_unknown_flat_is_not_divided_by(scene):
    _, _, flat, raw = scene
    flat = flat.copy()
    flat[10, :4] = (0.0, MINIMUM_FLAT, np.nan, np.inf)
    flat[10, 4] = MINIMUM_FLAT * 1.01
    result = detrend(raw, LAYOUT, flat=flat)
    undivided = detrend(raw, LAYOUT)
    assert (result.mask[10, :5] == [Mask.NO_FLAT] * 4 + [0]).all()
    np.testing.assert_array_equal(result.image[10, :4], undivided.image[10, :4])
    assert np.isinf(result.variance[10, :4]).all()
    assert np.isfinite(result.variance[10, 4])


def test_what_packing_added_is_in_the_variance_of_every_pixel(scene):
    _, bias, flat, raw = scene
    plain = detrend(raw, LAYOUT, bias=bias, flat=flat)
    packed = detrend(raw, LAYOUT, bias=bias, flat=flat, coding_error=3.0)
    added = (packed.variance - plain.variance) * flat**2
    np.testing.assert_allclose(added[:, :128], (3.0 * GAINS[0]) ** 2, rtol=1e-3)
    np.testing.assert_array_equal(packed.image, plain.image)


def test_a_weak_response_is_bad_only_where_packing_asks_for_it(scene):
    _, _, flat, raw = scene
    flat = flat.copy()
    flat[10, :3] = (0.3, 0.5, np.nan)
    assert (detrend(raw, LAYOUT, flat=flat).mask[10, :3] == [0, 0, Mask.NO_FLAT]).all()
    packed = detrend(raw, LAYOUT, flat=flat, weak_response=0.5)
    assert (packed.mask[10, :3] == [Mask.BAD, 0, Mask.NO_FLAT]).all()
    assert np.count_nonzero(packed.mask & np.uint8(Mask.BAD)) == 1


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_static_defects_are_taken_over(scene, dtype):
    bad = np.zeros(SHAPE, dtype=dtype)
    bad[:, 7] = 1
    mask = detrend(scene[3], LAYOUT, bad_pixels=bad).mask
    assert (mask[:, 7] == Mask.BAD).all()
    assert np.count_nonzero(mask) == SHAPE[0]


def test_a_dead_amplifier_is_marked_and_the_other_is_not(scene):
    result = detrend(scene[3], LAYOUT, dead=("A", "Z"))
    assert (result.mask[:, 128:] == Mask.DEAD).all()
    assert (result.image[:, 128:] == 0).all()
    assert np.isinf(result.variance[:, 128:]).all()
    assert (result.mask[:, :128] == 0).all()


def test_rows_that_were_never_read_out_are_dead(scene):
    raw = scene[3].copy()
    raw[206:] = 0
    result = detrend(raw, LAYOUT)
    assert (result.mask[200:] == Mask.DEAD).all()
    assert (result.mask[:200] == 0).all()


def test_a_missing_amplifier_leaves_dead_pixels(scene):
    one = dataclasses.replace(LAYOUT, amplifiers=LAYOUT.amplifiers[:1])
    result = detrend(scene[3], one)
    assert (result.mask[:, 128:] == Mask.DEAD).all()
    assert np.isfinite(result.image).all()
    assert np.isnan(overscan_subtract_trim(scene[3], one)[:, 128:]).all()


def test_a_cut_out_without_overscan_takes_the_soft_bias(scene):
    amplifier = dataclasses.replace(
        LAYOUT.amplifiers[0],
        data=Box(0, 100, 0, 100),
        overscan=None,
        trimmed=Box(0, 100, 0, 100),
    )
    cut = Layout((100, 100), (100, 100), (amplifier,), bias_level=2000.0)
    image = detrend(scene[3][106:206, 60:160], cut).image
    whole = detrend(scene[3], LAYOUT).image[100:200, 10:110]
    # The zero of this amplifier lies within 4 ADU of 2000.
    assert np.abs(image - whole).max() < 4.6 * GAINS[0]


def test_planes_of_an_earlier_ccd_are_written_over(scene):
    first = detrend(np.full(LAYOUT.shape, 65535, dtype=np.uint16), LAYOUT)
    fresh = detrend(scene[3], LAYOUT)
    again = detrend(scene[3], LAYOUT, out=first)
    assert again.image is first.image
    np.testing.assert_array_equal(again.image, fresh.image)
    np.testing.assert_array_equal(again.mask, fresh.mask)
    np.testing.assert_array_equal(again.variance, fresh.variance)


@settings(max_examples=25, deadline=None)
@given(
    value=st.integers(0, 65535),
    gain=st.floats(0.5, 10),
    level=st.floats(0, 3000),
    response=st.floats(0.2, 3),
)
def test_one_pixel_follows_the_formula(value, gain, level, response):
    amplifier = dataclasses.replace(
        LAYOUT.amplifiers[0],
        data=Box(0, 2, 0, 1),
        overscan=None,
        trimmed=Box(0, 2, 0, 1),
        gain=gain,
    )
    layout = Layout((1, 2), (1, 2), (amplifier,), bias_level=level)
    flat = np.full((1, 2), response, dtype=np.float32)
    result = detrend(np.full((1, 2), value, dtype=np.uint16), layout, flat=flat)
    electrons = (value - level) * gain
    # float32: 6e-8 of the largest number on the way, which is up to 65535 * 10.
    assert result.image[0, 0] == pytest.approx(electrons / response, rel=1e-5, abs=0.5)
    expected = (max(electrons, 0) + READ_NOISE**2 + gain**2 / 12) / response**2
    assert result.variance[0, 0] == pytest.approx(expected, rel=1e-4, abs=3)


def test_frames_of_one_value_do_not_pass_for_sky():
    assert (detrend(np.zeros(LAYOUT.shape, np.uint16), LAYOUT).mask & Mask.DEAD).all()
    saturated = detrend(np.full(LAYOUT.shape, 65535, np.uint16), LAYOUT)
    assert (saturated.mask == Mask.SATURATED).all()


def test_nan_becomes_bad_and_the_image_stays_finite(scene):
    raw = scene[3].astype(np.float32)
    raw[50, 60] = np.nan
    bias = np.zeros(SHAPE, dtype=np.float32)
    bias[20, 20] = np.inf
    result = detrend(raw, LAYOUT, bias=bias)
    assert np.isfinite(result.image).all()
    assert result.mask[44, 10] == Mask.BAD
    assert result.mask[20, 20] == Mask.BAD
    assert np.count_nonzero(result.mask) == 2
    everything = detrend(np.full(LAYOUT.shape, np.nan, np.float32), LAYOUT)
    assert (everything.mask & (Mask.BAD | Mask.DEAD)).all()
    assert np.isfinite(everything.image).all()


@pytest.mark.parametrize("plane", ["bias", "flat", "bad_pixels"])
def test_a_plane_of_another_shape_is_refused(scene, plane):
    with pytest.raises(PixelError, match="take the"):
        detrend(scene[3], LAYOUT, **{plane: np.zeros((3, 3), dtype=np.uint8)})


def test_a_raw_frame_of_another_shape_is_refused(scene):
    with pytest.raises(PixelError, match="layout promises"):
        detrend(scene[3][:, 1:], LAYOUT)


def test_a_layout_that_contradicts_itself_is_refused(scene):
    wrong = dataclasses.replace(LAYOUT.amplifiers[0], trimmed=Box(0, 5, 0, 5))
    with pytest.raises(PixelError, match="section cards"):
        detrend(scene[3], dataclasses.replace(LAYOUT, amplifiers=(wrong,)))


def test_trimming_gives_the_electrons_before_gain(scene):
    trimmed = overscan_subtract_trim(scene[3], LAYOUT)
    image = detrend(scene[3], LAYOUT).image
    np.testing.assert_allclose(trimmed[:, :128] * np.float32(GAINS[0]), image[:, :128], rtol=1e-5)
    np.testing.assert_allclose(trimmed[:, 128:] * np.float32(GAINS[1]), image[:, 128:], rtol=1e-5)
