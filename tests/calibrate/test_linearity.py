"""A table makes counts proportional to the light."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from raw_frames import GAINS, two_amplifiers

from prepipe.calibrate.detector.detrend import detrend, overscan_subtract_trim
from prepipe.calibrate.detector.linearity import TABLE_SIZE, linear_table, linearise
from prepipe.errors import PixelError

PLAIN = two_amplifiers(rows=40, columns=64, overscan=10)
LAYOUT = dataclasses.replace(
    PLAIN,
    bias_level=2000.0,
    amplifiers=tuple(dataclasses.replace(a, overscan=None) for a in PLAIN.amplifiers),
)
BEND = 1e-7
"""An amplifier that counts x (1 - BEND x): 0.4 % too little at 40 000 ADU."""


def bent_table() -> np.ndarray:
    linear = np.linspace(0.0, 70000.0, 200)
    return linear_table(linear * (1.0 - BEND * linear), linear)


def frame(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Raw frame (float32) of a bent amplifier, and its linear ADU, trimmed."""
    rng = np.random.default_rng(seed)
    linear = rng.uniform(0, 60000, LAYOUT.trimmed_shape)
    raw = np.full(LAYOUT.shape, 2000.0, np.float32)
    for a in LAYOUT.amplifiers:
        part = linear[a.trimmed.slices]
        raw[a.data.slices] += part * (1.0 - BEND * part)
    return raw, linear


def test_a_bent_amplifier_is_straightened() -> None:
    raw, linear = frame()
    table = bent_table()
    image = detrend(raw, LAYOUT, linearity={"A": table, "B": table}).image
    for a in LAYOUT.amplifiers:
        # The table's points are 350 ADU apart: BEND * 350**2 / 8 = 0.002 ADU; float32 of 60000.
        straightened = image[a.trimmed.slices] / a.gain
        np.testing.assert_allclose(straightened, linear[a.trimmed.slices], atol=0.02)
    assert np.abs(detrend(raw, LAYOUT).image[:, :64] / GAINS[0] - linear[:, :64]).max() > 100


def test_each_amplifier_has_its_own_table_and_one_without_is_left_alone() -> None:
    raw, linear = frame()
    image = overscan_subtract_trim(raw, LAYOUT, linearity={"A": bent_table()})
    a, b = (next(x for x in LAYOUT.amplifiers if x.name == name) for name in "AB")
    np.testing.assert_allclose(image[a.trimmed.slices], linear[a.trimmed.slices], atol=0.02)
    np.testing.assert_array_equal(image[b.trimmed.slices], raw[b.data.slices] - np.float32(2000))


def test_an_identical_table_changes_nothing() -> None:
    raw, _ = frame()
    table = np.arange(TABLE_SIZE, dtype=np.float32)
    np.testing.assert_array_equal(
        detrend(raw, LAYOUT, linearity={"A": table, "B": table}).image, detrend(raw, LAYOUT).image
    )


def test_the_bias_is_subtracted_before_the_table_is_asked() -> None:
    raw, linear = frame()
    bias = np.full(LAYOUT.trimmed_shape, 500.0, np.float32)
    for a in LAYOUT.amplifiers:
        raw[a.data.slices] += 500.0
    table = bent_table()
    image = detrend(raw, LAYOUT, bias=bias, linearity={"A": table, "B": table}).image
    np.testing.assert_allclose(image[:, :64] / GAINS[0], linear[:, :64], atol=0.02)


def test_the_pass_over_the_pixels_agrees_with_the_plain_form() -> None:
    rng = np.random.default_rng(2)
    table = (np.arange(TABLE_SIZE) + rng.normal(0, 5, TABLE_SIZE)).astype(np.float32)
    values = np.array([-300.0, -0.5, 0.0, 0.5, 17.25, 65534.5, 65535.0, 66000.0], np.float32)
    raw = np.full(LAYOUT.shape, 2000.0, np.float32)
    raw[6, 10:18] += values
    left = overscan_subtract_trim(raw, LAYOUT, linearity={"B": table})[0, :8]
    # The kernel stops 0.004 ADU below the last entry, the last number of its type.
    np.testing.assert_allclose(left, linearise(values, table), atol=0.1)


def test_saturation_is_judged_before_the_correction() -> None:
    raw = np.full(LAYOUT.shape, 44999, np.uint16)
    raw[6, 10] = 45000
    table = np.arange(TABLE_SIZE, dtype=np.float32) * 2
    mask = detrend(raw, LAYOUT, linearity={"A": table, "B": table}).mask
    assert mask[0, 0] == 2
    assert not (mask[0, 1:64] & 2).any()


def test_what_is_not_a_number_stays_bad() -> None:
    raw, _ = frame()
    raw[6, 10] = np.nan
    table = bent_table()
    result = detrend(raw, LAYOUT, linearity={"A": table, "B": table})
    assert result.mask[0, 0] == 1
    assert np.isfinite(result.image).all()


@pytest.mark.parametrize(
    ("adu", "linear", "why"),
    [
        ([], [], "at least one"),
        ([0, 1], [0], "as many"),
        ([0, np.nan], [0, 1], "finite"),
        ([0, 2, 1], [0, 1, 2], "ascend"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(adu, linear, why) -> None:
    with pytest.raises(PixelError, match=why):
        linear_table(np.array(adu, float), np.array(linear, float))
