"""Master biases and flats, against frames whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_frames import GAINS, READ_NOISE, read_out, two_amplifiers

from prepipe.calibrate.detector.detrend import MINIMUM_FLAT, detrend, overscan_subtract_trim
from prepipe.calibrate.detector.master_change import compare_masters
from prepipe.calibrate.detector.masters import combine, combine_bias, combine_flat
from prepipe.calibrate.detector.odd_frames import odd_flats, odd_zeros
from prepipe.calibrate.flags import Mask
from prepipe.errors import ConfigError, PixelError

LAYOUT = two_amplifiers(200, 100)
SHAPE = LAYOUT.trimmed_shape
NOISE = 2.0


def gaussian_stack(n, seed=1, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, NOISE, shape).astype(np.float32) for _ in range(n)]


@pytest.fixture(scope="module")
def truth():
    """Bias structure in ADU, response to light."""
    rng = np.random.default_rng(21)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    bias = (3.0 * np.sin(x / 7.0) + rng.normal(0, 1.0, SHAPE)).astype(np.float32)
    flat = (1.0 - 0.3 * ((y - 100) / 200) ** 2) * rng.normal(1, 0.01, SHAPE)
    return bias, (flat / np.median(flat)).astype(np.float32)


@pytest.fixture(scope="module")
def master_bias(truth):
    rng = np.random.default_rng(22)
    zeros = [read_out(np.zeros(SHAPE), LAYOUT, rng, truth[0]) for _ in range(9)]
    return combine_bias([overscan_subtract_trim(raw, LAYOUT) for raw in zeros])


def dome_flats(truth, n=7, seed=23):
    rng = np.random.default_rng(seed)
    lamps = rng.uniform(40000, 60000, n)
    return [
        overscan_subtract_trim(
            read_out(rng.poisson(lamp * truth[1]).astype(float), LAYOUT, rng, truth[0]), LAYOUT
        )
        for lamp in lamps
    ]


def test_nine_zeros_recover_the_bias_to_a_third_of_the_noise(truth, master_bias):
    for amplifier in LAYOUT.amplifiers:
        residual = (master_bias.image - truth[0])[amplifier.trimmed.slices]
        # Read noise and rounding, over 9 frames; 20000 pixels know it to 0.5 %, and the
        # overscan of nine frames adds 3 % of it at most.
        expected = np.hypot(READ_NOISE / amplifier.gain, 12**-0.5) / 3
        assert residual.std() == pytest.approx(expected, rel=0.06)
        assert abs(residual.mean()) < 0.05


def test_the_noise_of_the_master_is_told(truth, master_bias):
    pull = (master_bias.image - truth[0]) / np.sqrt(np.mean(master_bias.noise**2))
    assert pull.std() == pytest.approx(1.0, abs=0.06)
    assert master_bias.n == 9


def test_seven_flats_recover_the_response(truth, master_bias):
    master = combine_flat(dome_flats(truth), bias=master_bias.image, layout=LAYOUT)
    residual = master.image / truth[1] - 1
    # Shot noise of 7 * 50000 e-: 1.7e-3; the bias adds (2 e- * 4) / 50000. Sampling error 0.35 %.
    expected = 1 / np.sqrt(7 * 50000)
    assert residual.std() == pytest.approx(expected, rel=0.05)
    assert np.median(master.image) == pytest.approx(1.0, abs=1e-4)


def test_a_flat_in_electrons_leaves_no_step_between_amplifiers(truth, master_bias):
    rng = np.random.default_rng(24)
    flat = combine_flat(dome_flats(truth), bias=master_bias.image, layout=LAYOUT).image
    raw = read_out(rng.poisson(2000 * truth[1]).astype(float), LAYOUT, rng, truth[0])
    image = detrend(raw, LAYOUT, bias=master_bias.image, flat=flat).image
    step = image[:, :100].mean() - image[:, 100:].mean()
    # 45 e- of noise per pixel, 20000 pixels a side, and the overscan's 0.06 e- each.
    assert abs(step) < 5 * np.hypot(45 * np.sqrt(2 / 20000), 0.1)


def test_without_gains_the_step_stays_in_the_flat(truth, master_bias):
    flat = combine_flat(dome_flats(truth), bias=master_bias.image).image
    ratio = np.median(flat[:, :100] / truth[1][:, :100]) / np.median(
        flat[:, 100:] / truth[1][:, 100:]
    )
    assert ratio == pytest.approx(GAINS[1] / GAINS[0], rel=1e-3)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_a_cosmic_ray_in_one_frame_leaves_no_trace(n):
    stack = gaussian_stack(n)
    clean = combine(stack).image
    stack[1][50, 60:80] += 5000
    spoilt = combine(stack).image
    # The pixel is now the mean of n - 1 frames.
    assert np.abs(spoilt - clean)[50, 60:80].max() < 6 * NOISE / np.sqrt(n - 1)


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("place", [0, 2])
def test_one_bad_frame_does_not_hide_itself_by_its_own_noise(n, place):
    stack = gaussian_stack(n)
    stack[place] += 200 * NOISE
    master = combine(stack)
    # The mean of the others; 20000 pixels know its scatter to 0.5 %.
    assert master.image.std() == pytest.approx(NOISE / np.sqrt(n - 1), rel=0.02)
    assert abs(master.image.mean()) < 5 * NOISE / np.sqrt((n - 1) * master.image.size)
    assert master.rejected == pytest.approx(1 / n, rel=0.01)


@pytest.mark.parametrize("sigma", [0.15, 0.3, 1.0])
def test_whole_numbers_of_little_noise_keep_their_mean(sigma):
    rng = np.random.default_rng(5)
    stack = [np.rint(rng.normal(100.3, sigma, SHAPE)).astype(np.float32) for _ in range(7)]
    master = combine(stack)
    assert master.image.mean() == pytest.approx(np.mean(stack), abs=0.01)


@settings(max_examples=20, deadline=None)
@given(bad=st.integers(0, 4), n=st.integers(3, 6), shift=st.floats(10, 1e4))
def test_a_zero_of_another_level_is_odd_and_no_other(bad, n, shift):
    stack = gaussian_stack(n)
    stack[bad % n] = stack[bad % n] + np.float32(shift)
    assert list(odd_zeros(stack)) == [bad % n]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 20])
def test_no_good_frame_is_odd(n):
    rng = np.random.default_rng(6)
    lights = rng.uniform(3000, 50000, n)
    flats = [rng.poisson(light, SHAPE).astype(np.float32) for light in lights]
    assert odd_flats(flats, list(lights)) == {}
    assert odd_zeros(gaussian_stack(n)) == {}


def test_frames_without_a_finite_pixel_are_odd():
    stack = gaussian_stack(3)
    stack[1][:] = np.nan
    assert list(odd_zeros(stack)) == [1]
    lit = [frame + 5000 for frame in stack]
    assert list(odd_flats(lit, [5000.0, float("nan"), 5000.0])) == [1]


def test_a_faint_ray_is_clipped_as_soon_as_it_matters():
    stack = gaussian_stack(5)
    clean = combine(stack).image
    stack[1][50, 60:80] += 12 * NOISE
    # Left in, it would lift these pixels by 12/5 sigma; the mean over 20 of them shows it.
    lift = (combine(stack).image - clean)[50, 60:80].mean()
    assert abs(lift) < 5 * NOISE / np.sqrt(4 * 20)


@pytest.mark.parametrize("n", [3, 10])
def test_clipping_costs_next_to_nothing_where_all_is_well(n):
    master = combine(gaussian_stack(n))
    # Two-sided 5 sigma about the median: 1e-6; about a median of three, wider by sqrt(4/3).
    assert master.rejected < 1e-4
    assert master.image.std() == pytest.approx(NOISE / np.sqrt(n), rel=0.02)


def test_bands_do_not_show():
    stack = gaussian_stack(4, shape=(101, 50))
    np.testing.assert_allclose(combine(stack).image, np.mean(stack, axis=0), atol=1e-5)


def test_memory_mapped_frames_are_taken(tmp_path):
    stack = gaussian_stack(3)
    mapped = []
    for k, frame in enumerate(stack):
        np.save(tmp_path / f"{k}.npy", frame)
        mapped.append(np.load(tmp_path / f"{k}.npy", mmap_mode="r"))
    np.testing.assert_array_equal(combine(mapped).image, combine(stack).image)


def test_one_frame_is_its_own_master_of_unknown_noise():
    frame = gaussian_stack(1)[0]
    master = combine([frame])
    np.testing.assert_array_equal(master.image, frame)
    assert np.isnan(master.noise).all()
    assert master.n == 1


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12))
def test_the_master_lies_within_its_values(values):
    master = combine([np.full((2, 2), value, dtype=np.float32) for value in values])
    tolerance = 1e-6 * max(abs(v) for v in values)
    assert min(values) - tolerance <= master.image[0, 0] <= max(values) + tolerance


def test_nan_is_left_out_pixel_by_pixel():
    stack = gaussian_stack(4)
    stack[0][10, 10] = np.nan
    for frame in stack:
        frame[20, 20] = np.nan
    master = combine(stack)
    assert master.image[10, 10] == pytest.approx(np.mean([f[10, 10] for f in stack[1:]]), abs=1e-5)
    assert np.isnan(master.image[20, 20])
    assert combine_bias(stack).image[20, 20] == 0.0


@pytest.mark.parametrize("value", [0.0, 65535.0])
def test_constant_zeros_combine_to_the_constant(value):
    master = combine_bias([np.full((40, 40), value, dtype=np.float32)] * 3)
    assert (master.image == value).all()


def test_a_dead_amplifier_does_not_weigh_on_the_others(truth):
    flats = dome_flats(truth)
    for frame in flats:
        frame[:, 100:] = np.random.default_rng(1).normal(0, 1.5, (200, 100))
    flat = combine_flat(flats, layout=LAYOUT).image
    assert np.median(flat[:, :100]) == pytest.approx(1.0, abs=1e-3)
    assert (flat[:, 100:] <= MINIMUM_FLAT).all()
    mask = detrend(np.zeros(LAYOUT.shape, np.uint16), LAYOUT, flat=flat).mask
    assert (mask[:, 100:] & Mask.NO_FLAT).all()


@pytest.mark.parametrize("value", [0.0, -5.0, np.nan])
def test_a_flat_without_light_is_refused_by_its_place(truth, value):
    flats = dome_flats(truth, n=2)
    flats.append(np.full(SHAPE, value, dtype=np.float32))
    with pytest.raises(PixelError, match="flat 2 of 3 holds no light"):
        combine_flat(flats)


def test_frames_of_other_shapes_are_refused_by_their_place():
    stack = [*gaussian_stack(2), np.zeros((3, 3), dtype=np.float32)]
    with pytest.raises(PixelError, match="frame 2"):
        combine(stack)


def test_an_empty_stack_is_refused():
    with pytest.raises(ConfigError, match="at least one frame"):
        combine_bias([])


def test_masters_of_independent_noise_differ_by_sqrt_2():
    new, old = gaussian_stack(2)
    new += 0.5
    difference = compare_masters(new, old)
    # 40000 pixels: the robust deviation is known to 1.17 / sqrt(n) = 0.6 %.
    assert difference.rms == pytest.approx(NOISE * np.sqrt(2), rel=0.03)
    assert difference.shift == pytest.approx(0.5, abs=5 * 1.25 * NOISE * np.sqrt(2 / 40000))
    assert difference.deviating < 1e-4


def test_changed_and_lost_pixels_are_counted():
    new, old = gaussian_stack(2)
    new[:, 10:12] += 100
    new[:, 50] = np.nan
    assert compare_masters(new, old).deviating == pytest.approx(3 / SHAPE[1], abs=1e-4)


def test_a_master_equals_itself():
    frame = gaussian_stack(1)[0]
    assert compare_masters(frame, frame) == (0.0, 0.0, 0.0, 0.0)


def test_masters_without_a_common_pixel_are_wholly_different():
    old = np.zeros((5, 5), dtype=np.float32)
    difference = compare_masters(np.full_like(old, np.nan), old)
    assert np.isnan(difference.rms)
    assert difference.deviating == 1.0
