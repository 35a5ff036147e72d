"""Ghosts are subtracted where they are, by as much as they have, and from nowhere else."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_frames import GAINS, READ_NOISE, read_out, two_amplifiers

from prepipe.calibrate.detector.crosstalk import (
    NEGLIGIBLE,
    Coupling,
    CrosstalkTable,
    Spots,
    bright_ghosts,
    gather_ghosts,
    is_covered,
    read_together,
    typical_noise,
)
from prepipe.calibrate.detector.detrend import detrend, overscan_subtract_trim
from prepipe.calibrate.flags import Mask
from prepipe.errors import PixelError
from prepipe.model import Box, Layout

BIAS = 2000.0
ORDERS = list(product((1, -1), (1, -1)))


def layout_with(left: tuple[int, int], right: tuple[int, int], rows: int = 60) -> Layout:
    """Two amplifiers without overscan, read in these orders."""
    plain = two_amplifiers(rows=rows, columns=40, overscan=10)
    b, a = (
        dataclasses.replace(amplifier, overscan=None, read_order=order)
        for amplifier, order in zip(plain.amplifiers, (left, right), strict=True)
    )
    return dataclasses.replace(plain, amplifiers=(b, a), bias_level=BIAS)


def frame_of(layout: Layout, sequences: dict[str, np.ndarray]) -> np.ndarray:
    """A frame of float32 from the ADU of each amplifier in the order of read-out."""
    raw = np.zeros(layout.shape, np.float32)
    for amplifier in layout.amplifiers:
        dx, dy = amplifier.read_order
        raw[amplifier.data.slices] = BIAS + sequences[amplifier.name][::dy, ::dx]
    return raw


def sequences(seed: int = 1, rows: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0, 60000, (rows, 40)) for name in "AB"}


@pytest.mark.parametrize("left", ORDERS)
@pytest.mark.parametrize("right", ORDERS)
def test_a_ghost_lies_where_the_victim_was_read_at_the_moment_of_the_star(left, right) -> None:
    layout = layout_with(left, right)
    clean = sequences()
    coupling = Coupling("B", "A", 1e-3, 40000.0, (5e-4, 1e-8, 1e-13))
    haunted = {"A": clean["A"], "B": clean["B"] + coupling.ghost(clean["A"])}
    corrected = detrend(frame_of(layout, haunted), layout, crosstalk=[coupling]).image
    expected = detrend(frame_of(layout, clean), layout).image
    # float32 on the way: 6e-8 of 65000 ADU, times a gain of 4.
    np.testing.assert_allclose(corrected, expected, atol=0.05)


@pytest.mark.parametrize("part", [Box(0, 30, 10, 40), Box(20, 100, 6, 30), Box(45, 95, 0, 66)])
def test_a_cut_out_is_corrected_by_what_it_shows_of_the_source(part: Box) -> None:
    whole = layout_with((1, -1), (-1, -1))
    clean = sequences()
    coupling = Coupling("A", "B", -7e-4)
    haunted = {"B": clean["B"], "A": clean["A"] + coupling.ghost(clean["B"])}
    cut = cut_out(whole, part)
    raw = frame_of(whole, haunted)[part.slices]
    corrected = overscan_subtract_trim(raw, cut, crosstalk=[coupling])
    for amplifier in cut.amplifiers:
        truth = frame_of(whole, clean)[part.slices][amplifier.data.slices] - BIAS
        left = np.abs(corrected[amplifier.trimmed.slices] - truth)
        source = next((a for a in cut.amplifiers if a.name == "B"), None)
        if amplifier.name == "A" and not is_covered(amplifier, source):
            assert left.max() > 1
        else:
            assert left.max() < 0.02


def cut_out(whole: Layout, part: Box) -> Layout:
    """The layout of a part of the raw frame, as a camera would give it."""
    kept = []
    for amplifier in whole.amplifiers:
        full = amplifier.data
        data = full.shifted(-part.x0, -part.y0).clipped(part.shape)
        if data.empty:
            continue
        own = data.shifted(part.x0, part.y0)
        dx, dy = amplifier.read_order
        before = (
            own.x0 - full.x0 if dx > 0 else full.x1 - own.x1,
            own.y0 - full.y0 if dy > 0 else full.y1 - own.y1,
        )
        kept.append(dataclasses.replace(amplifier, data=data, read_before=before))
    x0, y0 = min(a.data.x0 for a in kept), min(a.data.y0 for a in kept)
    shape = max(a.data.y1 for a in kept) - y0, max(a.data.x1 for a in kept) - x0
    amplifiers = tuple(dataclasses.replace(a, trimmed=a.data.shifted(-x0, -y0)) for a in kept)
    return Layout(part.shape, shape, amplifiers, bias_level=BIAS, window=(part.x0, part.y0))


def test_a_stars_ghost_is_removed_to_within_the_noise() -> None:
    layout = two_amplifiers()
    b, a = layout.amplifiers
    a = dataclasses.replace(a, read_order=(-1, 1))
    layout = dataclasses.replace(layout, amplifiers=(b, a))
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:400, :256]
    star = 1.4e5 * np.exp(-((y - 200) ** 2 + (x - 60) ** 2) / 50.0)
    share = 7e-4
    light = 400.0 + star
    haunted = light.copy()
    # In e-: the share is one of ADU. B's column 60 is read with A's 255 - 60.
    haunted[:, 128:] += share * (GAINS[1] / GAINS[0]) * light[:, :128][:, ::-1]
    raw = read_out(rng.poisson(haunted).astype(float), layout, rng)
    coupling = Coupling("A", "B", share)
    spot = (slice(195, 206), slice(190, 201))
    sky = (slice(195, 206), slice(220, 240))

    def excess(image: np.ndarray) -> float:
        return float(image[spot].mean() - image[sky].mean())

    # 121 and 220 pixels of 400 e- of sky and the read noise.
    error = np.sqrt((400.0 + READ_NOISE**2) * (1 / 121 + 1 / 220))
    assert excess(detrend(raw, layout).image) > 5 * error
    assert abs(excess(detrend(raw, layout, crosstalk=[coupling]).image)) < 4 * error


@given(
    share=st.floats(-1e-3, 1e-3),
    onset=st.floats(1.0, 60000.0),
    adu=st.lists(st.floats(0.0, 65000.0), min_size=1, max_size=20),
)
def test_beyond_the_onset_the_polynomial_takes_over_without_a_step(share, onset, adu) -> None:
    source = np.array(adu)
    polynomial = (3e-4, -1e-8, 1e-12)
    ghost = Coupling("A", "B", share, onset, polynomial).ghost(source)
    beyond = source - onset
    bent = share * onset + sum(p * beyond**k for k, p in enumerate(polynomial, start=1))
    np.testing.assert_allclose(
        ghost, np.where(source > onset, bent, share * source), rtol=1e-9, atol=1e-9
    )
    assert Coupling("A", "B", share, onset, polynomial).ghost(np.array([onset]))[0] == (
        pytest.approx(share * onset, abs=1e-9)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3))
def test_adding_ghosts_and_correcting_is_the_identity_to_first_order(seed, there, back) -> None:
    layout = layout_with((1, 1), (-1, 1), rows=8)
    clean = sequences(seed, rows=8)
    couplings = [Coupling("A", "B", there), Coupling("B", "A", back)]
    haunted = {
        "A": clean["A"] + couplings[0].ghost(clean["B"]),
        "B": clean["B"] + couplings[1].ghost(clean["A"]),
    }
    corrected = overscan_subtract_trim(frame_of(layout, haunted), layout, crosstalk=couplings)
    truth = overscan_subtract_trim(frame_of(layout, clean), layout)
    # Second order: 1e-3 squared of 60000 ADU; and float32 of 65000.
    assert np.abs(corrected - truth).max() <= abs(there * back) * 60000 * 1.01 + 0.02


def test_what_is_dead_unknown_or_not_a_number_leaves_no_ghost() -> None:
    layout = layout_with((1, 1), (1, 1))
    raw = frame_of(layout, sequences())
    coupling = Coupling("B", "A", 1e-3)
    b = layout.amplifiers[0].trimmed.slices
    plain = detrend(raw, layout).image[b]
    assert (detrend(raw, layout, crosstalk=[coupling], dead=["A"]).image[b] == plain).all()
    other = Coupling("B", "C", 1e-3)
    assert (detrend(raw, layout, crosstalk=[other]).image[b] == plain).all()
    raw[layout.amplifiers[1].data.slices] = np.nan
    result = detrend(raw, layout, crosstalk=[coupling])
    assert (result.image[b] == plain).all()
    assert (result.mask[b] & Mask.BAD == 0).all()


@pytest.mark.parametrize("order", ORDERS)
def test_bright_pixels_of_another_ccd_leave_their_ghosts(order) -> None:
    victim, source = layout_with((1, -1), (-1, -1)), layout_with(order, order)
    signal = sequences(7)
    coupling = Coupling("A", "B", 2e-4, 45000.0, (1e-4, 1e-9, 1e-13))
    noise = {"A": 20.0, "B": 20.0}
    spots = bright_ghosts(frame_of(source, signal), source, [coupling], victim, noise)
    ghosts = gather_ghosts([spots], victim.trimmed_shape)
    raw = frame_of(victim, {name: adu / 60 for name, adu in sequences(8).items()})
    left = detrend(raw, victim).image - detrend(raw, victim, ghosts=ghosts).image
    a = victim.amplifiers[1]
    dx, dy = a.read_order
    in_read_order = left[a.trimmed.slices][::dy, ::dx] / a.gain
    is_bright = signal["B"] > NEGLIGIBLE * 20.0 / 2e-4
    expected = np.where(is_bright, coupling.ghost(signal["B"]), 0.0)
    # float32 of 4000 e-, twice.
    np.testing.assert_allclose(in_read_order, expected, atol=2e-3)
    assert np.abs(coupling.ghost(signal["B"][~is_bright])).max() <= NEGLIGIBLE * 20.0
    assert (left[victim.amplifiers[0].trimmed.slices] == 0).all()


def test_without_bright_pixels_there_is_nothing_to_subtract() -> None:
    layout = layout_with((1, 1), (1, 1))
    raw = frame_of(layout, {name: np.full((60, 40), 300.0) for name in "AB"})
    spots = bright_ghosts(raw, layout, [Coupling("A", "B", 3e-5)], layout, {"A": 5.0})
    assert spots.adu.size == 0


def test_the_noise_of_the_sky_is_told_from_its_level() -> None:
    layout = two_amplifiers()
    raw = read_out(np.full(layout.trimmed_shape, 900.0), layout, np.random.default_rng(1))
    b = layout.amplifiers[0]
    # Median of 52 pixels: sigma 30 / sqrt(52) * 1.25 e- of 900.
    assert typical_noise(raw, b) * b.gain == pytest.approx(np.hypot(30.0, READ_NOISE), rel=0.02)


def test_ghosts_of_another_shape_are_refused() -> None:
    layout = layout_with((1, 1), (1, 1))
    outside = Spots(np.array([60]), np.array([0]), np.array([1.0], np.float32))
    with pytest.raises(PixelError, match="outside"):
        gather_ghosts([outside], layout.trimmed_shape)
    with pytest.raises(PixelError, match="gather them for this CCD"):
        detrend(frame_of(layout, sequences()), layout, ghosts=gather_ghosts([], (3, 80)))


def test_a_table_tells_within_from_between() -> None:
    one, two = Coupling("A", "B", 1e-4), Coupling("B", "A", 2e-4)
    table = CrosstalkTable({(1, 1): (one,), (1, 2): (two,), (2, 1): (one,)})
    assert table.within(1) == (one,)
    assert table.within(2) == ()
    assert table.between(1) == {2: (two,)}


def test_amplifiers_of_north_and_south_are_read_from_opposite_ends() -> None:
    north, south = layout_with((1, 1), (-1, 1)), layout_with((-1, -1), (1, -1))
    rows, columns = read_together(north.amplifiers[0], south.amplifiers[1])
    data = south.amplifiers[1].data
    assert (rows.start, rows.step) == (data.y1 - 1, -1)
    assert (columns.start, columns.step) == (data.x0, 1)
