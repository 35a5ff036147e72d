"""Bleed trails, interpolation over defects, dead amplifiers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from raw_frames import read_out, two_amplifiers

from prepipe.calibrate.detector.masks import (
    TRAIL_MARGIN,
    blind_edges,
    find_dead,
    grow_saturation,
    interpolate_bad,
    saturated_fraction,
)
from prepipe.calibrate.flags import Mask

LAYOUT = two_amplifiers(200, 64)


def empty(shape=(100, 100)):
    return np.zeros(shape, dtype=np.uint8)


def saturated_box(mask):
    y, x = np.nonzero(mask & Mask.SATURATED)
    return x.min(), x.max() + 1, y.min(), y.max() + 1


def test_a_saturated_pixel_takes_its_eight_neighbours():
    mask = empty()
    mask[50, 40] = Mask.SATURATED
    assert grow_saturation(mask) == 9
    assert saturated_box(mask) == (39, 42, 49, 52)


def test_a_bleed_trail_is_prolonged_at_both_ends():
    mask = empty()
    mask[30:60, 40] = Mask.SATURATED
    grow_saturation(mask)
    assert saturated_box(mask) == (39, 42, 30 - TRAIL_MARGIN, 60 + TRAIL_MARGIN)


def test_gaps_of_a_trail_are_closed():
    mask = empty()
    mask[30:36, 40] = Mask.SATURATED
    mask[41:47, 40] = Mask.SATURATED
    grow_saturation(mask)
    assert (mask[30:47, 40] == Mask.SATURATED).all()


def test_the_core_of_a_star_is_no_trail():
    mask = empty()
    mask[30:35, 40:45] = Mask.SATURATED
    grow_saturation(mask)
    assert saturated_box(mask) == (39, 46, 29, 36)


def test_other_bits_survive_the_growing():
    mask = empty()
    mask[50, 41] = Mask.BAD
    mask[50, 40] = Mask.SATURATED
    grow_saturation(mask)
    assert mask[50, 41] == Mask.BAD | Mask.SATURATED


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.just(2)))
def test_a_frame_saturated_throughout_stays_so(mask):
    assert grow_saturation(mask) == mask.size
    assert saturated_fraction(mask) == 1.0


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 40), st.integers(1, 90)),
        elements=st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1, 2]),
    )
)
def test_growing_contains_the_dilation_and_loses_nothing(mask):
    before = mask.copy()
    count = grow_saturation(mask)
    padded = np.pad(before & Mask.SATURATED, 1)
    ny, nx = mask.shape
    dilated = np.maximum.reduce(
        [padded[j : j + ny, i : i + nx] for j in range(3) for i in range(3)]
    )
    assert ((mask & Mask.SATURATED) >= dilated).all()
    assert ((mask & Mask.BAD) == (before & Mask.BAD)).all()
    assert count == np.count_nonzero(mask & Mask.SATURATED)


def test_no_pixel_no_fraction():
    assert np.isnan(saturated_fraction(empty((0, 5))))
    assert saturated_fraction(empty()) == 0.0


def test_a_bad_column_is_bridged_linearly():
    image = np.tile(np.arange(100, dtype=np.float32), (100, 1))
    truth = image.copy()
    mask = empty()
    mask[:, 50:53] = Mask.BAD
    image[:, 50:53] = 1e6
    assert interpolate_bad(image, mask) == 300
    np.testing.assert_allclose(image, truth, rtol=1e-6)
    assert (mask[:, 50:53] == Mask.BAD).all()


def test_a_bad_row_is_bridged_along_the_columns():
    image = np.tile(np.arange(200, dtype=np.float32)[:, None], (1, 200))
    truth = image.copy()
    mask = empty((200, 200))
    mask[20] = Mask.BAD
    image[20] = np.nan
    interpolate_bad(image, mask)
    np.testing.assert_allclose(image, truth, rtol=1e-6)


def test_the_border_takes_its_only_neighbour():
    image = np.full((10, 10), 7.0, dtype=np.float32)
    mask = empty((10, 10))
    mask[:, 0] = Mask.NO_FLAT
    image[:, 0] = 0.0
    interpolate_bad(image, mask)
    assert (image == 7.0).all()


def test_no_value_is_borrowed_from_a_dead_pixel():
    image = np.full((10, 10), 7.0, dtype=np.float32)
    mask = empty((10, 10))
    mask[:, 5] = Mask.BAD
    mask[:, 6:] = Mask.DEAD
    image[:, 5:] = 0.0
    interpolate_bad(image, mask)
    assert (image[:, 5] == 7.0).all()
    assert (image[:, 6:] == 0.0).all()


def test_the_inside_of_a_large_defect_takes_the_median():
    image = np.full((400, 400), 7.0, dtype=np.float32)
    mask = empty((400, 400))
    mask[100:300, 100:300] = Mask.BAD
    image[100:300, 100:300] = np.nan
    interpolate_bad(image, mask)
    assert (image == 7.0).all()


def test_a_frame_without_good_pixel_becomes_zero():
    image = np.full((50, 50), np.nan, dtype=np.float32)
    assert interpolate_bad(image, np.full((50, 50), Mask.BAD, dtype=np.uint8)) == 2500
    assert (image == 0).all()


@pytest.fixture
def raw():
    return read_out(np.full(LAYOUT.trimmed_shape, 5.0), LAYOUT, np.random.default_rng(3))


def test_read_noise_alone_is_a_sign_of_life(raw):
    assert find_dead(raw, LAYOUT) == ()


@pytest.mark.parametrize("value", [0, 2000])
def test_a_constant_amplifier_is_dead(raw, value):
    raw[:, 114:178] = value
    assert find_dead(raw, LAYOUT) == ("A",)


def test_a_few_hot_pixels_do_not_revive_it(raw):
    raw[:, 114:178] = 0
    raw[::40, 120] = 500
    assert find_dead(raw, LAYOUT) == ("A",)


def test_a_saturated_amplifier_is_not_dead(raw):
    raw[:, 114:178] = 65535
    assert find_dead(raw, LAYOUT) == ()


def test_an_amplifier_of_nan_is_dead(raw):
    pixels = raw.astype(np.float32)
    pixels[:, 114:178] = np.nan
    assert find_dead(pixels, LAYOUT) == ("A",)


def test_an_amplifier_without_pixels_is_passed_over(raw):
    data = dataclasses.replace(LAYOUT.amplifiers[0].data, x1=LAYOUT.amplifiers[0].data.x0)
    layout = dataclasses.replace(
        LAYOUT, amplifiers=(dataclasses.replace(LAYOUT.amplifiers[0], data=data, trimmed=data),)
    )
    assert find_dead(raw, layout) == ()


def test_glowing_edges_are_blind_and_all_else_stays():
    mask = np.arange(128, dtype=np.uint8).reshape(8, 16)
    before = mask.copy()
    blind = blind_edges(mask)
    edge = (mask & Mask.EDGE) != 0
    np.testing.assert_array_equal(blind[edge], mask[edge] | np.uint8(Mask.DEAD))
    np.testing.assert_array_equal(blind[~edge], mask[~edge])
    np.testing.assert_array_equal(mask, before)
    out = np.empty_like(mask)
    assert blind_edges(mask, out) is out
