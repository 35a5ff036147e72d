"""Sources are found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.ndimage import convolve1d
from star_image import SIGMA_TO_FWHM, Field, gaussian, grid_of_stars, match, moffat, render

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.detection import Peaks, detect, matched_filter
from prepipe.errors import ConfigError, PixelError

FWHM = 4.0
SIGMA = FWHM / SIGMA_TO_FWHM
SKY = 100.0


def flux_of_snr(snr: float) -> float:
    """A star's flux for which the best linear filter gives `snr` against sky noise alone."""
    return float(snr * np.sqrt(4 * np.pi * SIGMA**2 * SKY))


def peaks_of(field: Field, mask: np.ndarray | None = None, snr: float = 5.0) -> Peaks:
    filtered, gain = matched_filter(field.image, FWHM)
    mask = field.mask if mask is None else mask
    return detect(filtered, field.rms, mask, fwhm_px=FWHM, noise_gain=gain, snr=snr)


def stars(x: list[float], y: list[float], snr: list[float], seed: int = 1) -> Field:
    flux = np.array([flux_of_snr(s) for s in snr])
    rng = np.random.default_rng(seed)
    return render((100, 120), np.array(x), np.array(y), flux, gaussian(FWHM), sky=SKY, rng=rng)


def noise(shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0, np.sqrt(SKY), shape).astype(np.float32)


def test_the_filter_is_a_separable_gaussian_of_unit_sum() -> None:
    image = noise((81, 100), 1)
    filtered, _ = matched_filter(image, FWHM)
    offsets = np.arange(-5, 6)
    kernel = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel /= kernel.sum()
    expected = convolve1d(convolve1d(image, kernel, 0, mode="constant"), kernel, 1, mode="constant")
    # float32 sums of 22 terms of size 10: relative rounding 6e-8 each
    np.testing.assert_allclose(filtered, expected, atol=1e-4)


def test_the_noise_gain_is_the_noise_left_after_filtering() -> None:
    filtered, gain = matched_filter(noise((400, 400), 2), FWHM)
    inner = filtered[10:-10, 10:-10]
    # the smoothed pixels hold about one independent value per 4 pi sigma^2 of them
    independent = inner.size / (4 * np.pi * SIGMA**2)
    assert inner.std() / np.sqrt(SKY) == pytest.approx(gain, rel=4 / np.sqrt(2 * independent))


def test_the_filter_takes_unknown_pixels_as_empty_sky() -> None:
    image = noise((50, 60), 3)
    mask = np.zeros(image.shape, np.uint8)
    mask[20:22] = Mask.BAD
    hole = image.copy()
    hole[20:22] = 0.0
    expected, _ = matched_filter(hole, FWHM)
    image[20:22] = 1e6
    np.testing.assert_array_equal(matched_filter(image, FWHM, mask)[0], expected)
    image[20:22] = np.nan
    np.testing.assert_array_equal(matched_filter(image, FWHM)[0], expected)


def test_pure_noise_has_as_many_false_peaks_as_the_theory_of_random_fields() -> None:
    field = Field(noise((1024, 1024), 4), np.empty(0), np.empty(0), np.empty(0), SKY)
    snr = 3.5
    # A maximum lies off its pixel's centre by 1/12 px^2 on each axis; the smoothed noise is
    # correlated over sqrt(2) sigma, which lowers the pixel by 1 / (24 sigma^2).
    height = snr / (1 - 1 / (24 * SIGMA**2))
    density = height * np.exp(-(height**2) / 2) / ((2 * np.pi) ** 1.5 * 2 * SIGMA**2)
    expected = density * field.image.size
    assert abs(len(peaks_of(field, snr=snr)) - expected) < 3.5 * np.sqrt(expected)


def test_every_star_of_signal_to_noise_ten_is_found_once() -> None:
    # Threshold 5, so that a miss is a fluctuation of nearly 5 sigma: 1e-6 of the stars.
    field = grid_of_stars(16, 30, flux_of_snr(10), gaussian(FWHM), sky=SKY, seed=5)
    peaks = peaks_of(field)
    _, distance = match(peaks.x.astype(float), peaks.y.astype(float), field)
    assert distance.max() < 2.0
    assert len(peaks) == field.x.size


def test_two_equal_stars_two_and_a_half_fwhm_apart_are_two() -> None:
    peaks = peaks_of(stars([50.3, 50.3 + 2.5 * FWHM], [40.2, 40.2], [100, 100]))
    assert sorted(peaks.x.tolist()) == pytest.approx([50.3, 60.3], abs=1.0)


def test_a_faint_star_is_found_beside_one_a_hundred_times_brighter() -> None:
    peaks = peaks_of(stars([50.0, 64.0], [40.0, 40.0], [2000, 20]))
    assert sorted(peaks.x.tolist()) == pytest.approx([50, 64], abs=1)


def test_two_stars_half_a_fwhm_apart_are_one() -> None:
    assert len(peaks_of(stars([50.0, 52.0], [40.0, 40.0], [100, 100]))) == 1


def test_the_halo_of_a_bright_star_is_no_swarm_of_sources() -> None:
    rng = np.random.default_rng(6)
    where = np.array([150.0])
    field = render(
        (300, 300), where, where, np.array([1e7]), moffat(FWHM, 3.0), sky=SKY, rng=rng, reach=140
    )
    # 20 000 pixels of the halo lie above the threshold; the theory of pure noise allows 0.02.
    assert len(peaks_of(field)) <= 2


@pytest.mark.parametrize("bit", [Mask.BAD, Mask.DEAD, Mask.CORRUPT])
def test_nothing_is_detected_on_unknown_pixels(bit: Mask) -> None:
    field = stars([30.0, 90.0], [50.0, 50.0], [100, 100])
    mask = field.mask
    mask[:, :60] = bit
    assert peaks_of(field, mask).x.tolist() == pytest.approx([90], abs=1)


def test_a_star_on_a_bad_column_is_detected_beside_it() -> None:
    field = stars([50.0], [40.0], [100])
    mask = field.mask
    mask[:, 50] = Mask.BAD
    peaks = peaks_of(field, mask)
    assert len(peaks) == 1
    assert peaks.x[0] in (49, 51)


def bleeding_columns(*columns: int) -> tuple[Field, np.ndarray]:
    image = noise((400, 60), 7)
    for column in columns:
        image[20:380, column : column + 3] = 60_000 + noise((360, 3), 8) * 20
    field = Field(image, np.empty(0), np.empty(0), np.empty(0), SKY)
    return field, np.where(image > 30_000, Mask.SATURATED, 0).astype(np.uint8)


def test_a_bleeding_column_is_one_source() -> None:
    field, mask = bleeding_columns(29)
    peaks = peaks_of(field, mask)
    assert len(peaks) == 1
    assert peaks.x[0] == pytest.approx(30, abs=1)


def test_two_bleeding_columns_are_two_sources() -> None:
    field, mask = bleeding_columns(12, 44)
    assert sorted(peaks_of(field, mask).x.tolist()) == pytest.approx([13, 45], abs=1)


def test_a_star_beside_a_bleeding_column_is_found() -> None:
    field, mask = bleeding_columns(10)
    star = render(
        field.image.shape,
        np.array([45.0]),
        np.array([200.0]),
        np.array([flux_of_snr(2000)]),
        gaussian(FWHM),
        sky=0.0,
        rng=np.random.default_rng(9),
    )
    field.image[:] += star.image
    assert sorted(peaks_of(field, mask).x.tolist()) == pytest.approx([11, 45], abs=1)


def test_each_element_of_the_noise_mesh_holds_for_its_own_box() -> None:
    field = stars([32.0, 96.0], [32.0, 32.0], [20, 20])
    filtered, gain = matched_filter(field.image, FWHM)
    mesh = np.array([[10.0, 100.0], [10.0, 10.0]], np.float32)
    peaks = detect(filtered, mesh, field.mask, fwhm_px=FWHM, noise_gain=gain, box=64)
    assert peaks.x.tolist() == pytest.approx([32], abs=1)


@pytest.mark.parametrize("nothing", [0.0, -1.0, np.nan])
def test_nothing_is_detected_where_the_noise_is_unknown(nothing: float) -> None:
    field = stars([32.0, 96.0], [32.0, 32.0], [20, 20])
    filtered, gain = matched_filter(field.image, FWHM)
    mesh = np.array([[10.0, nothing], [nothing, 10.0]], np.float32)
    peaks = detect(filtered, mesh, field.mask, fwhm_px=FWHM, noise_gain=gain, box=64)
    assert peaks.x.tolist() == pytest.approx([32], abs=1)


def test_of_too_many_peaks_the_brightest_are_kept() -> None:
    field = stars([20.0, 50.0, 80.0], [50.0, 20.0, 70.0], [50, 200, 100])
    filtered, gain = matched_filter(field.image, FWHM)
    peaks = detect(filtered, field.rms, field.mask, fwhm_px=FWHM, noise_gain=gain, limit=2)
    assert peaks.x.tolist() == pytest.approx([50, 80], abs=1)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (2, 9), (3, 3)])
def test_a_frame_too_small_for_a_maximum_has_none(shape: tuple[int, int]) -> None:
    field = Field(np.ones(shape, np.float32), np.empty(0), np.empty(0), np.empty(0), SKY)
    assert len(peaks_of(field)) == 0


pixels = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=24),
    elements=st.one_of(
        st.floats(-100, 100, width=32), st.sampled_from([0.0, 7.0, np.nan, np.inf, -np.inf])
    ),
)


@settings(max_examples=60, deadline=None)
@given(filtered=pixels, seed=st.integers(0, 99))
def test_every_peak_tops_its_known_neighbours_and_the_threshold(
    filtered: np.ndarray, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 0, 0, 0, 1, 2, 8, 64], np.uint8), filtered.shape)
    peaks = detect(filtered, 1.0, mask, fwhm_px=2.0, noise_gain=0.5, snr=4.0)
    unknown = ((mask & (Mask.BAD | Mask.DEAD | Mask.CORRUPT)) != 0) | ~np.isfinite(filtered)
    known = np.where(unknown, -np.inf, filtered)
    for y, x, height in zip(peaks.y, peaks.x, peaks.height, strict=True):
        assert not unknown[y, x]
        assert height == filtered[y, x] > 2.0
        assert height == known[y - 1 : y + 2, x - 1 : x + 2].max()
    order = peaks.y.astype(int) * filtered.shape[1] + peaks.x
    assert np.all(np.diff(order) > 0)


@pytest.mark.parametrize("fwhm", [0.0, -1.0, np.nan, np.inf])
def test_a_senseless_width_is_refused(fwhm: float) -> None:
    with pytest.raises(ConfigError, match="FWHM"):
        matched_filter(np.zeros((9, 9), np.float32), fwhm)


def test_a_mesh_without_its_box_is_refused() -> None:
    image = np.zeros((9, 9), np.float32)
    mesh = np.ones((3, 3), np.float32)
    with pytest.raises(ConfigError, match="box"):
        detect(image, mesh, np.zeros((9, 9), np.uint8), fwhm_px=2.0, noise_gain=0.5)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(PixelError, match="mask"):
        detect(
            np.zeros((9, 9), np.float32),
            1.0,
            np.zeros((8, 9), np.uint8),
            fwhm_px=2.0,
            noise_gain=0.5,
        )
