"""The overscan's level and noise, from clean and from spoilt overscans."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fitsio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_frames import GAINS, READ_NOISE, drift, read_out, two_amplifiers

from prepipe.calibrate.detector.overscan import (
    overscan_levels,
    overscan_noise,
    overscan_rows,
    raw_pixels,
    smooth_rows,
)
from prepipe.errors import PixelError
from prepipe.model import Box

LAYOUT = two_amplifiers()
ROWS = LAYOUT.trimmed_shape[0]
B = LAYOUT.amplifiers[0]
ZERO = drift(ROWS, 2000.0)
# Read noise and the rounding to whole ADU.
PIXEL_NOISE = np.hypot(READ_NOISE / GAINS[0], 12**-0.5)
ROW_NOISE = PIXEL_NOISE / np.sqrt(B.overscan.shape[1])


@pytest.fixture
def raw():
    rng = np.random.default_rng(11)
    return read_out(np.full(LAYOUT.trimmed_shape, 800.0), LAYOUT, rng)


def test_each_row_is_recovered_within_the_noise_of_its_overscan_pixels(raw):
    residual = overscan_rows(raw, B.overscan) - ZERO
    # 400 rows: the rms of the residual is known to 1/sqrt(800) = 3.5 %, so 5 sigma are 18 %.
    assert residual.std() == pytest.approx(ROW_NOISE, rel=0.18)
    assert abs(residual.mean()) < 5 * ROW_NOISE / np.sqrt(ROWS)


def test_smoothing_over_15_rows_lowers_the_noise_by_sqrt_15(raw):
    residual = overscan_levels(raw, LAYOUT)[0] - ZERO
    # Neighbouring smoothed rows are correlated: about 400/15 independent ones, 5 sigma = 70 %.
    # The drift's curvature, 1.5 (9/400)^2 h (h+1) / 6, adds less than 0.01 ADU.
    assert residual.std() < 1.7 * ROW_NOISE / np.sqrt(15) + 0.01
    assert residual.std() < 0.5 * ROW_NOISE


def test_saturated_pixels_that_spill_into_a_row_of_overscan_do_not_shift_it(raw):
    raw[200:206, :8] = 65535
    residual = overscan_rows(raw, B.overscan) - ZERO
    spilled = residual[194:200]
    # 42 clean pixels are left of 50.
    assert np.abs(spilled).max() < 5 * PIXEL_NOISE / np.sqrt(42)


@pytest.mark.parametrize("excess", [15, 300, 60000])
@pytest.mark.parametrize("first", [0, 150, 388])
def test_whole_rows_of_spilled_charge_are_bridged(raw, first, excess):
    rows = slice(6 + first, 6 + first + 12)
    raw[rows, :50] = np.minimum(raw[rows, :50] + float(excess), 65535)
    residual = smooth_rows(overscan_rows(raw, B.overscan)) - ZERO
    # Bridging 12 rows costs the drift of half of them at most (0.2 ADU) beside the noise.
    assert np.abs(residual).max() < 5 * ROW_NOISE + 0.25


def test_a_long_edge_bleed_is_left_out(raw):
    raw[6:106, :50] = 20000
    residual = smooth_rows(overscan_rows(raw, B.overscan)) - ZERO
    assert np.abs(residual[110:]).max() < 5 * ROW_NOISE
    # In the spoilt rows the first good level is held: as wrong as the zero drifts, 3 ADU here.
    assert np.abs(residual[:100]).max() < 3.0


@settings(max_examples=30, deadline=None)
@given(
    slope=st.floats(-0.05, 0.05),
    level=st.floats(100, 60000),
    half_width=st.integers(0, 20),
    rows=st.integers(1, 200),
)
def test_a_linear_drift_passes_the_smoothing_unchanged(slope, level, half_width, rows):
    line = (level + slope * np.arange(rows)).astype(np.float32)
    # float32 knows a level of 60000 ADU to 0.004 ADU, half of it by rounding at either end.
    assert np.abs(smooth_rows(line, half_width) - line).max() <= 0.008


def test_the_noise_of_the_overscan_is_the_read_noise(raw):
    # 400 rows of 50 pixels: the median over rows has an error of about 1.25 / sqrt(40000) = 0.6 %.
    assert overscan_noise(raw, B.overscan) == pytest.approx(PIXEL_NOISE, rel=0.03)


def test_the_noise_is_not_moved_by_spilled_charge(raw):
    raw[100:160, :20] = 65535
    assert overscan_noise(raw, B.overscan) == pytest.approx(PIXEL_NOISE, rel=0.04)


def test_glowing_columns_at_the_side_are_left_out(raw):
    raw[:, 47:50] += np.array([2, 5, 17], dtype=np.uint16)
    residual = overscan_rows(raw, B.overscan) - ZERO
    assert abs(residual.mean()) < 5 * ROW_NOISE / np.sqrt(ROWS)
    assert overscan_noise(raw, B.overscan) == pytest.approx(PIXEL_NOISE, rel=0.03)


def test_rows_outside_the_overscan_are_unknown_and_take_the_nearest_level(raw):
    short = Box(0, 50, 106, 306)
    levels = overscan_rows(raw, short, B.data)
    assert np.isnan(levels[:100]).all()
    assert np.isfinite(levels[100:300]).all()
    assert np.isnan(levels[300:]).all()
    assert np.isfinite(smooth_rows(levels)).all()


def test_without_overscan_the_soft_bias_is_taken():
    layout = two_amplifiers(10, 10, 0)
    bare = dataclasses.replace(
        layout,
        amplifiers=tuple(dataclasses.replace(a, overscan=None) for a in layout.amplifiers),
        bias_level=1000.0,
    )
    levels = overscan_levels(np.zeros((16, 20), dtype=np.uint16), bare)
    assert [level.tolist() for level in levels] == [[1000.0] * 10] * 2


@pytest.mark.parametrize("value", [0, 65535])
def test_a_constant_frame_has_that_level(value):
    raw = np.full(LAYOUT.shape, value, dtype=np.uint16)
    assert all((level == value).all() for level in overscan_levels(raw, LAYOUT))
    assert overscan_noise(raw, B.overscan) == 0.0


def test_an_overscan_of_nan_has_no_level():
    raw = np.full(LAYOUT.shape, np.nan, dtype=np.float32)
    assert all(np.isnan(level).all() for level in overscan_levels(raw, LAYOUT))
    assert np.isnan(overscan_noise(raw, B.overscan))


@pytest.mark.parametrize("dtype", [">i2", "<i2", ">i4", "<i4", ">f4", "<f4", ">u2"])
def test_every_usual_pixel_type_gives_the_same_levels(raw, dtype):
    expected = overscan_levels(raw, LAYOUT)
    for level, other in zip(expected, overscan_levels(raw.astype(dtype), LAYOUT), strict=True):
        np.testing.assert_array_equal(level, other)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8, np.bool_, np.complex64])
def test_other_pixel_types_are_refused(dtype):
    with pytest.raises(PixelError, match="convert them first"):
        raw_pixels(np.zeros((4, 4), dtype=dtype))


def test_a_frame_of_another_shape_is_refused(raw):
    with pytest.raises(PixelError, match="own header"):
        overscan_levels(raw[:-1], LAYOUT)


def test_real_decam_overscans_have_the_measured_levels_and_noise(shared_data: Path):
    path = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    measured = {"S1": 2040.4, "S2": 2319.0, "S3": 2217.9}
    with fitsio.FITS(str(path)) as fits:
        for name, level in measured.items():
            header = fits[name].read_header()
            raw = fits[name].read()
            # The crop begins at raw column 1873, row 880; the overscan's first column is 2104.
            box = Box(2104 - 1873, 2154 - 1873, 0, raw.shape[0])
            assert np.median(overscan_rows(raw, box)) == pytest.approx(level, abs=0.3)
            # An independent robust estimate gave 6.3 e- for all three.
            noise = overscan_noise(raw, box) * header["GAINA"]
            assert noise == pytest.approx(6.3, abs=0.3)


def test_rows_never_read_out_do_not_outvote_the_others() -> None:
    rng = np.random.default_rng(3)
    raw = np.zeros((400, 60), np.uint16)
    raw[:150] = np.round(rng.normal(2000.0, 1.5, (150, 60)))
    levels = overscan_rows(raw, Box(0, 50, 0, 400))
    assert np.isnan(levels[150:]).all()
    # The mean of 50 pixels of 1.5 ADU noise is good to 0.21 ADU.
    assert np.abs(smooth_rows(levels)[:150] - 2000.0).max() < 5 * 0.21
