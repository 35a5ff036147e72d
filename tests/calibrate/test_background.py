"""The sky's level and noise, and its subtraction."""

from __future__ import annotations

import numpy as np
import pytest
import sep
from hypothesis import given, settings
from hypothesis import strategies as st

from prepipe.calibrate.flags import Mask
from prepipe.calibrate.stars.background import mark_silent, measure_background, subtract
from prepipe.errors import ConfigError, PixelError

NOISE = 15.0
# Noise of the mode, 2.5 median - 1.5 mean, over n pixels of normal noise, simulated:
# 2.18 sigma / sqrt(n).
MODE = 2.18


def sky_frame(seed, shape=(512, 512), slope=0.2):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    sky = 1000.0 + slope * x + 0.5 * slope * y
    return sky, (sky + rng.normal(0, NOISE, shape)).astype(np.float32)


def clean(image):
    return np.zeros(image.shape, dtype=np.uint8)


def with_sources(image, seed, n=600):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-12:13, -12:13]
    star = np.exp(-0.5 * (x**2 + y**2) / 1.8**2) / (2 * np.pi * 1.8**2)
    image = image.copy()
    for j, i in rng.integers(12, np.array(image.shape) - 12, (n, 2)):
        image[j - 12 : j + 13, i - 12 : i + 13] += 10 ** rng.uniform(2, 5.5) * star
    return image


def test_level_and_noise_of_each_mesh_are_recovered():
    _, image = sky_frame(1, slope=0.0)
    background = measure_background(image, clean(image))
    assert background.level.shape == (8, 8)
    # Half of 64 x 64 pixels are counted; the 3 x 3 median lowers the noise further, about twofold.
    assert np.abs(background.level - 1000).max() < 5 * MODE * NOISE / np.sqrt(2048)
    assert background.median_level == pytest.approx(
        1000, abs=5 * MODE * NOISE / np.sqrt(512**2 / 2)
    )
    # A standard deviation over 2048 pixels is known to 1.6 %, cut at 3 sigma to about 2 %.
    assert np.abs(background.rms / NOISE - 1).max() < 5 * 0.02
    assert background.median_rms == pytest.approx(NOISE, rel=0.01)
    assert background.measured == 1.0


def test_a_sloping_sky_is_subtracted_to_the_noise():
    sky, image = sky_frame(2)
    background = measure_background(image, clean(image))
    model = image - subtract(image, background)
    # A slope within a mesh (0.2 * 64 = 13 e-) does not move the mode.
    inner = (slice(64, -64), slice(64, -64))
    assert np.abs(model - sky)[inner].max() < 5 * MODE * NOISE / np.sqrt(2048)
    # Beyond the outermost centres it is extrapolated by half a mesh, which doubles the error.
    assert np.abs(model - sky).max() < 2 * 5 * MODE * NOISE / np.sqrt(2048)


def test_stars_hardly_lift_the_sky():
    _, image = sky_frame(3, slope=0.0)
    crowded = with_sources(image, 4)
    background = measure_background(crowded, clean(image))
    assert crowded.mean() - 1000 > 50
    # Unseen wings remain; the study found 0.1 sigma in a field of medium density.
    assert abs(background.median_level - 1000) < 0.2 * NOISE


def test_in_a_crowded_field_the_mode_is_nearer_to_the_sky_than_the_median():
    _, image = sky_frame(16, slope=0.0)
    crowded = with_sources(image, 17, n=2500)
    excess = measure_background(crowded, clean(image)).median_level - 1000
    # The median of all pixels is 10 e- too high and a clipped mean 9 e-; a level's own noise,
    # over 64 meshes, is 0.1 e-.
    assert np.median(crowded) - 1000 > 9
    assert 0 < excess < 4


def test_it_agrees_with_source_extractor():
    _, image = sky_frame(5)
    image = with_sources(image, 6)
    background = measure_background(image, clean(image))
    ours = image - subtract(image, background)
    theirs = sep.Background(image, bw=64, bh=64, fw=3, fh=3)
    difference = ours - theirs.back()
    # Both see the same pixels, we every second row of them, with the noise of a mode each mesh.
    assert abs(np.median(difference)) < 0.1 * NOISE
    assert difference.std() < 1.5 * MODE * NOISE / np.sqrt(2048)
    assert background.median_rms == pytest.approx(theirs.globalrms, rel=0.05)


def test_masked_pixels_do_not_count():
    _, image = sky_frame(7, slope=0.0)
    mask = clean(image)
    mask[:, ::3] = Mask.BAD
    image[:, ::3] = 1e6
    background = measure_background(image, mask)
    assert np.abs(background.level - 1000).max() < 5 * MODE * NOISE / np.sqrt(2048 / 1.5)


def test_a_mesh_that_is_masked_takes_its_neighbours_level():
    _, image = sky_frame(8, slope=0.0)
    mask = clean(image)
    mask[128:320, 128:320] = Mask.SATURATED
    image[128:320, 128:320] = 60000
    background = measure_background(image, mask)
    assert background.measured == pytest.approx(55 / 64)
    assert np.abs(background.level - 1000).max() < 5 * MODE * NOISE / np.sqrt(2048)


@settings(max_examples=40, deadline=None)
@given(
    ny=st.integers(1, 150),
    nx=st.integers(1, 150),
    box=st.integers(8, 80),
    level=st.floats(-1e3, 1e5),
)
def test_frames_of_any_shape_are_flattened(ny, nx, box, level):
    rng = np.random.default_rng(9)
    image = (level + rng.normal(0, NOISE, (ny, nx))).astype(np.float32)
    background = measure_background(image, clean(image), box)
    flat = subtract(image, background)
    assert np.isfinite(flat).all()
    if background.measured == 1.0:
        # No mesh was measured on fewer than 20 pixels; extrapolation doubles the error.
        assert abs(np.median(flat)) < 2 * 5 * MODE * NOISE / np.sqrt(20)


@pytest.mark.parametrize("shape", [(100, 100), (287, 81), (30, 400)])
def test_crops_smaller_than_a_mesh_work(shape):
    sky, image = sky_frame(10, shape, slope=0.0)
    background = measure_background(image, clean(image))
    assert background.measured == 1.0
    residual = subtract(image, background) - (image - sky)
    assert np.abs(residual).max() < 2 * 5 * MODE * NOISE / np.sqrt(30 * 64 / 2)


def test_the_result_may_overwrite_the_image():
    _, image = sky_frame(11)
    background = measure_background(image, clean(image))
    fresh = subtract(image, background)
    assert subtract(image, background, out=image) is image
    np.testing.assert_array_equal(image, fresh)


def test_dead_pixels_become_zero():
    _, image = sky_frame(12)
    mask = clean(image)
    mask[:, 256:] = Mask.DEAD
    image[:, 256:] = 0
    flat = subtract(image, measure_background(image, mask), mask=mask)
    assert (flat[:, 256:] == 0).all()
    assert abs(np.median(flat[:, :256])) < NOISE


def test_a_constant_frame_has_its_level_and_no_noise():
    image = np.full((200, 130), 1234.5, dtype=np.float32)
    background = measure_background(image, clean(image))
    assert background.median_level == pytest.approx(1234.5, rel=1e-6)
    assert background.median_rms < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_frame_without_numbers_shows_nothing(value):
    image = np.full((200, 130), value, dtype=np.float32)
    background = measure_background(image, clean(image))
    assert background.measured == 0.0
    assert np.isnan(background.median_level)
    assert np.isnan(background.median_rms)
    assert np.isinf(background.rms).all()
    assert (background.level == 0).all()


def test_a_frame_masked_throughout_shows_nothing():
    _, image = sky_frame(13, (130, 130))
    background = measure_background(image, np.full(image.shape, Mask.SATURATED, dtype=np.uint8))
    assert background.measured == 0.0
    assert np.isfinite(subtract(image, background)).all()


def test_a_few_nan_do_not_matter():
    _, image = sky_frame(14, slope=0.0)
    image[::7, ::5] = np.nan
    background = measure_background(image, clean(image))
    assert np.abs(background.level - 1000).max() < 5 * MODE * NOISE / np.sqrt(2048)


def test_a_part_without_noise_is_marked_dead():
    _, image = sky_frame(15, slope=0.0)
    image[:128] = 3.0
    mask = clean(image)
    background = measure_background(image, mask)
    assert mark_silent(mask, background, read_noise=6.0) == pytest.approx(16 / 64)
    assert (mask[:128] == Mask.DEAD).all()
    assert (mask[128:] == 0).all()


def test_a_box_without_side_is_refused():
    with pytest.raises(ConfigError, match="box"):
        measure_background(np.zeros((9, 9), np.float32), np.zeros((9, 9), np.uint8), 0)


def test_shapes_that_differ_are_refused():
    image = np.zeros((9, 9), np.float32)
    with pytest.raises(PixelError, match="one shape"):
        measure_background(image, np.zeros((9, 8), np.uint8))
    with pytest.raises(PixelError, match="must have the shape"):
        subtract(image[1:], measure_background(image, clean(image)))
