"""Known defects are marked where they are, in whole frames and in cut-outs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from raw_frames import two_amplifiers

from prepipe.calibrate.detector.bad_pixels import bad_from_boxes, bad_from_image
from prepipe.errors import PixelError
from prepipe.model import Box

LAYOUT = two_amplifiers(rows=40, columns=32, overscan=10)
CUT = dataclasses.replace(
    LAYOUT,
    shape=(20, 30),
    trimmed_shape=(20, 30),
    amplifiers=(
        dataclasses.replace(
            LAYOUT.amplifiers[0],
            data=Box(0, 30, 0, 20),
            trimmed=Box(0, 30, 0, 20),
            overscan=None,
        ),
    ),
    window=(12, 16),
    trimmed_window=(2, 10),
    whole_shape=LAYOUT.shape,
)


def test_a_box_covers_its_columns_and_rows_and_no_more() -> None:
    bad = bad_from_boxes(np.array([[3, 5, 2, 4]]), LAYOUT)
    rows, columns = np.nonzero(bad)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 8, 3, 4)
    assert bad.sum() == 8


@pytest.mark.parametrize("box", [(-5, 0, 3, 3), (64, 0, 2, 2), (0, 40, 1, 1), (-9, -9, 2, 2)])
def test_a_box_outside_the_ccd_marks_nothing(box: tuple[int, ...]) -> None:
    assert not bad_from_boxes(np.array([box]), LAYOUT).any()


def test_boxes_that_reach_over_the_edge_are_cut() -> None:
    assert bad_from_boxes(np.array([(60, 38, 50, 50)]), LAYOUT).sum() == 4 * 2


def test_a_cut_out_gets_its_part_of_boxes_and_images() -> None:
    whole = bad_from_boxes(np.array([[3, 5, 2, 10], [20, 25, 30, 1]]), LAYOUT)
    part = bad_from_boxes(np.array([[3, 5, 2, 10], [20, 25, 30, 1]]), CUT)
    np.testing.assert_array_equal(part, whole[10:30, 2:32])
    np.testing.assert_array_equal(bad_from_image(whole, CUT), part)
    raw = np.zeros(LAYOUT.shape)
    raw[6:46, 10:74] = whole
    np.testing.assert_array_equal(bad_from_image(raw, CUT), part)


def test_an_image_may_be_of_the_raw_or_of_the_trimmed_frame() -> None:
    trimmed = np.random.default_rng(1).integers(0, 3, LAYOUT.trimmed_shape)
    raw = np.full(LAYOUT.shape, 7)
    raw[6:46, 10:74] = trimmed
    np.testing.assert_array_equal(bad_from_image(trimmed, LAYOUT), trimmed != 0)
    np.testing.assert_array_equal(bad_from_image(raw, LAYOUT), trimmed != 0)


@pytest.mark.parametrize("shape", [(3, 3), (64, 40), (40, 64, 1)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PixelError, match="fits neither"):
        bad_from_image(np.zeros(shape), LAYOUT)
