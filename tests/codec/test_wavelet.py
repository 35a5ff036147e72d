"""The wavelet codec: what it keeps, what it loses, and how much that is to a star."""

from __future__ import annotations

from datetime import UTC, datetime
from math import sqrt

import numpy as np
import pytest
from codec_frames import OVERSCAN_NOISE_ADU, SKY_NOISE_ADU, Frame, simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from prepipe.codec import Encoded, Unit, get_codec
from prepipe.codec.cards import join_cards, make_card
from prepipe.codec.wavelet_loss import PRESETS, Preset, Quantiser, band_steps
from prepipe.codec.wavelet_symbols import BandReader, BandWriter, Coding
from prepipe.codec.wavelet_transform import Arena, analyse, synthesise
from prepipe.codec.wavelet_tree import Tree
from prepipe.errors import PacketError
from prepipe.model import Ccd, Exposure, Kind, Night, Packet

START = datetime(2020, 3, 6, tzinfo=UTC)
EXPOSURE = Exposure("decam", 1, Kind.OBJECT, "", "g", START, 20.0, Night.of(START))
CODEC = get_codec("wavelet")
BETA = 3.0


def packet_of(pixels: NDArray[np.generic]) -> Packet:
    shape = (pixels.shape[0], pixels.shape[1])
    return Packet(EXPOSURE, Ccd(1, "S29"), "wavelet", {}, shape, pixels.dtype.name, 0, "", "")


def pack(pixels: NDArray[np.generic], unit: Unit | None = None, **asked: object) -> Encoded:
    return CODEC.encode(pixels, asked, unit)


def round_trip(
    pixels: NDArray[np.generic], unit: Unit | None = None, **asked: object
) -> NDArray[np.generic]:
    return CODEC.decode(pack(pixels, unit, **asked).payload, packet_of(pixels))


def ratio_of(pixels: NDArray[np.generic], **asked: object) -> float:
    return pixels.nbytes / len(pack(pixels, **asked).payload)


def unit_with(**cards: object) -> Unit:
    """The HDU of a frame whose header has such cards."""
    structure = {"SIMPLE": True, "BITPIX": 16, "NAXIS": 2, "NAXIS1": 300, "NAXIS2": 256}
    made = [make_card(keyword, value) for keyword, value in {**structure, **cards}.items()]
    return Unit(join_cards(made), b"")


def noise(rows: int, columns: int, sigma: float = SKY_NOISE_ADU) -> NDArray[np.float64]:
    return np.random.default_rng(11).normal(2000.0, sigma, (rows, columns))


def profile(fwhm: float, half: int = 12) -> NDArray[np.float64]:
    """A Moffat star of unit flux."""
    radius = fwhm / 2 / sqrt(2 ** (1 / BETA) - 1)
    squares = np.arange(-half, half + 1) ** 2
    star = (1 + (squares[:, None] + squares) / radius**2) ** -BETA
    return np.asarray(star / star.sum())


def grid_of_stars(
    fwhm: float, flux: float, gain: float = 4.0
) -> tuple[Frame, list[tuple[slice, slice]]]:
    """Stars of one flux (ADU) with the noise of their light, and where they are."""
    frame = noise(800, 800)
    rng = np.random.default_rng(12)
    star = profile(fwhm) * flux
    places = []
    for y in range(20, 780, 33):
        for x in range(20, 780, 33):
            box = slice(y - 12, y + 13), slice(x - 12, x + 13)
            frame[box] += rng.poisson(star * gain) / gain
            places.append(box)
    return np.rint(frame).astype(np.uint16), places


def fluxes(frame: Frame, places: list[tuple[slice, slice]], fwhm: float) -> NDArray[np.float64]:
    """Flux of each star by its own profile above a sky that is known."""
    star = profile(fwhm)
    return np.array([((frame[box] - 2000.0) * star).sum() / (star**2).sum() for box in places])


# ------------------------------------------------------------------ what a star loses


@pytest.mark.parametrize("preset", PRESETS)
def test_a_faint_star_gets_no_more_scatter_than_the_preset_says(preset: str) -> None:
    frame = np.rint(noise(1024, 1024)).astype(np.uint16)
    error = round_trip(frame, preset=preset).astype(float) - frame
    seeing, scatter = PRESETS[preset]
    star = profile(seeing, half=32)
    kernel = np.zeros(frame.shape)
    kernel[:65, :65] = star / sqrt((star**2).sum())
    flux_error = np.fft.ifft2(np.fft.fft2(error) * np.fft.fft2(kernel)).real
    # the errors of neighbouring bands are not quite independent, as the figures assume
    assert flux_error.std() / SKY_NOISE_ADU == pytest.approx(scatter, rel=0.1)


@pytest.mark.parametrize(
    ("preset", "least"), [("precise", 10.5), ("fast", 18.5), ("faint-link", 29.0)]
)
def test_the_sky_shrinks_by_what_the_preset_promises(preset: str, least: float) -> None:
    assert ratio_of(np.rint(noise(1024, 1024)).astype(np.uint16), preset=preset) > least


@pytest.mark.parametrize(("preset", "fwhm"), [("fast", 3.0), ("faint-link", 3.6)])
def test_faint_stars_keep_their_flux_within_two_percent(preset: str, fwhm: float) -> None:
    sigma_flux = SKY_NOISE_ADU / sqrt((profile(fwhm) ** 2).sum())
    frame, places = grid_of_stars(fwhm, flux=7 * sigma_flux)
    before = fluxes(frame, places, fwhm)
    after = fluxes(round_trip(frame, preset=preset), places, fwhm)
    # 576 stars with a scatter of 0.2 / 7 each: known to 0.13 %
    assert after.mean() / before.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("fwhm", "snr"), [(4.0, 60.0), (4.0, 300.0), (6.0, 60.0)])
def test_stars_that_stand_out_keep_their_flux_within_a_thousandth(
    preset: str, fwhm: float, snr: float
) -> None:
    sigma_flux = SKY_NOISE_ADU / sqrt((profile(fwhm) ** 2).sum())
    frame, places = grid_of_stars(fwhm, flux=snr * sigma_flux)
    before = fluxes(frame, places, fwhm)
    after = fluxes(round_trip(frame, preset=preset, seeing_px=fwhm), places, fwhm)
    # 576 stars with a scatter of 0.25 / 60 each: known to 0.02 %
    assert after.mean() / before.mean() == pytest.approx(1.0, abs=0.001)


def test_the_brightest_stars_each_keep_their_flux_within_a_thousandth() -> None:
    frame, places = grid_of_stars(3.5, flux=200_000.0)
    before, after = fluxes(frame, places, 3.5), fluxes(round_trip(frame), places, 3.5)
    assert after.mean() / before.mean() == pytest.approx(1.0, abs=0.0002)
    assert np.abs(after / before - 1).max() < 0.001


@pytest.mark.parametrize("preset", PRESETS)
def test_a_measured_seeing_keeps_the_loss_of_the_preset(preset: str) -> None:
    frame, places = grid_of_stars(2.9, flux=7 * SKY_NOISE_ADU / sqrt((profile(2.9) ** 2).sum()))
    before = fluxes(frame, places, 2.9)
    after = fluxes(round_trip(frame, preset=preset, seeing_px=2.9), places, 2.9)
    scatter = (after - before).std() * sqrt((profile(2.9) ** 2).sum()) / SKY_NOISE_ADU
    # of 576 stars: known to 3 %
    assert scatter == pytest.approx(PRESETS[preset].scatter, rel=0.15)
    assert after.mean() / before.mean() == pytest.approx(1.0, abs=0.02)


def test_the_mean_of_the_sky_does_not_move() -> None:
    frame = np.rint(noise(1024, 1024)).astype(np.uint16)
    assert abs(round_trip(frame).mean() - frame.mean()) < 0.01


@pytest.mark.parametrize("preset", PRESETS)
def test_filled_frames_have_the_noise_they_had_and_as_white(preset: str) -> None:
    frame = np.rint(noise(512, 512)).astype(np.uint16)
    filled = round_trip(frame, preset=preset, fill=True) - 2000.0
    assert filled.std() == pytest.approx(SKY_NOISE_ADU, rel=0.08)
    neighbours = (filled[:, 1:] * filled[:, :-1]).mean() / filled.var()
    assert abs(neighbours) < 0.1
    assert round_trip(frame, preset=preset).std() < filled.std()


def test_a_wider_star_shrinks_more_at_the_same_loss() -> None:
    frame = np.rint(noise(512, 512)).astype(np.uint16)
    narrow, middle, wide = (ratio_of(frame, seeing_px=seeing) for seeing in (2.5, 3.5, 5.0))
    assert narrow < middle < wide


@pytest.mark.parametrize("ratio", [6.0, 12.0, 25.0])
def test_the_asked_ratio_is_reached_within_five_percent(ratio: float) -> None:
    frame = simulated_frame(1024, 1100)
    assert ratio_of(frame, ratio=ratio) == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(("seeing", "scatter"), [(2.5, 0.1), (3.0, 0.2), (4.5, 0.25)])
def test_the_steps_are_the_cheapest_for_the_loss(seeing: float, scatter: float) -> None:
    tree = Tree()
    chosen = band_steps(tree, seeing, scatter)
    finer = band_steps(tree, seeing, scatter * 0.9)
    assert all(one.step >= other.step for one, other in zip(chosen, finer, strict=True))
    # the finest diagonal detail, of which a star has nothing, is told coarser than any other
    finest = [band.columns + band.rows for band in tree.bands].index("HH")
    assert chosen[finest].step == max(one.step for one in chosen)


@pytest.mark.parametrize("step", [0.2, 1.0, 3.0])
def test_a_quantiser_does_to_noise_what_its_figures_say(step: float) -> None:
    values = np.random.default_rng(13).normal(0, 1, 400_000).astype(np.float32)
    expected = Quantiser(step)
    coding = Coding.RUNS if expected.wide else Coding.BYTES
    width = np.float32(expected.width)
    writer = BandWriter(coding, values.size)
    writer.add(values.reshape(1, -1), width)
    reader = BandReader(coding, *writer.streams)
    numbers = width, np.float32(writer.centroid) * width, np.float32(0)
    back = np.empty((1, values.size), np.float32)
    assert reader.read(back, *numbers, 0)
    assert ((values - back) ** 2).mean() == pytest.approx(expected.squared_error, rel=0.02)
    assert (values * back).mean() == pytest.approx(expected.response, rel=0.02)


# ------------------------------------------------------------------ saturated pixels


def test_saturated_pixels_come_back_and_no_others() -> None:
    frame = simulated_frame(256, 300)
    decoded = round_trip(frame)
    assert (frame == 65535).any()
    np.testing.assert_array_equal(decoded == 65535, frame == 65535)


def test_where_the_header_says_that_pixels_saturate_they_come_back_bit_for_bit() -> None:
    frame = simulated_frame(256, 300)
    frame[100:140, 80:83] = np.random.default_rng(14).normal(44000, 50, (40, 3)).astype(np.uint16)
    decoded = round_trip(frame, unit_with(SATURATE=43266.0))
    saturated = frame >= 43266
    np.testing.assert_array_equal(decoded[saturated], frame[saturated])
    assert (decoded[~saturated] < 43266).all()


def test_the_sky_beside_a_bleeding_star_is_as_good_as_anywhere() -> None:
    frame = np.rint(noise(256, 300)).astype(np.uint16)
    bleeding = frame.copy()
    bleeding[:, 150:153] = 65535
    plain, beside = (round_trip(one).astype(float) - one for one in (frame, bleeding))
    near = np.r_[130:150, 153:173]
    assert beside[:, near].std() == pytest.approx(plain[:, near].std(), rel=0.1)
    assert abs(beside[:, near].mean()) < 0.3


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_pixels_at_both_ends_of_the_range_do_not_wrap(dtype: str) -> None:
    limits = np.iinfo(dtype)
    frame = np.full((64, 66), limits.min, dtype)
    frame[:, 33:] = limits.max
    np.testing.assert_array_equal(round_trip(frame), frame)
    checkers = np.where(np.indices((64, 66)).sum(0) % 2, limits.max, limits.min).astype(dtype)
    decoded = round_trip(checkers)
    np.testing.assert_array_equal(decoded == limits.max, checkers == limits.max)
    assert (decoded[checkers == limits.min] < 0.5 * limits.max).all()


# ------------------------------------------------------------------ amplifiers


def two_amplifiers() -> Frame:
    """Noise of 12 ADU on the left, of 4 on the right, overscan of 2 at both sides."""
    rng = np.random.default_rng(15)
    frame = np.empty((256, 300))
    for columns, level, sigma in (
        (slice(0, 20), 1700, 2.0),
        (slice(20, 150), 1800, 12.0),
        (slice(150, 280), 2300, 4.0),
        (slice(280, 300), 2200, 2.0),
    ):
        frame[:, columns] = rng.normal(level, sigma, frame[:, columns].shape)
    return np.rint(frame).astype(np.uint16)


SECTIONS = {"DATASECA": "[21:150,1:256]", "DATASECB": "[280:151,256:1]"}


@pytest.mark.parametrize("unit", [unit_with(**SECTIONS), None], ids=["told", "found"])
def test_each_amplifier_is_packed_in_units_of_its_own_noise(unit: Unit | None) -> None:
    frame = two_amplifiers()
    packed = pack(frame, unit)
    noises = packed.parameters["noise_of_tiles_adu"]
    assert noises == pytest.approx([2.0, 12.0, 4.0, 2.0], rel=0.15)
    error = CODEC.decode(packed.payload, packet_of(frame)).astype(float) - frame
    left, right = error[:, 30:140].std(), error[:, 160:270].std()
    assert left / 12 == pytest.approx(right / 4, rel=0.15)


@pytest.mark.parametrize("unit", [unit_with(**SECTIONS), None], ids=["told", "found"])
def test_the_overscan_is_packed_in_units_of_its_read_noise(unit: Unit | None) -> None:
    frame = two_amplifiers()
    error = round_trip(frame, unit).astype(float) - frame
    for columns in (slice(0, 18), slice(282, 300)):
        assert error[:, columns].std() < OVERSCAN_NOISE_ADU
        assert abs(error[:, columns].mean()) < 0.05


def test_the_channels_of_hyper_suprime_cam_are_known() -> None:
    frame = two_amplifiers()
    cards: dict[str, object] = {}
    for channel, (first, last) in enumerate(((21, 150), (151, 280)), start=1):
        limits = {"MN": (first, 1), "MX": (last, 256)}
        for end, values in limits.items():
            for axis, value in enumerate(values, start=1):
                cards[f"T_EF{end}{channel}{axis}"] = value
    packed = pack(frame, unit_with(**cards))
    assert packed.parameters["noise_of_tiles_adu"] == pytest.approx([2, 12, 4, 2], rel=0.1)


@pytest.mark.parametrize(
    "cards",
    [
        {"DATASECA": "[1:9000,1:256]"},
        {"DATASEC": "the lot"},
        {"DATASEC": 5, "SATURATE": "high"},
        {"DATASECA": "[0:0,0:0]"},
        {"SATURATE": -5.0},
        {"SATURATE": 1e300},
        {"SATURATE": 1900.0},
        {"T_EFMN11": 1},
        {"GAIN": "NaN", "GAINA": -1.0, "RDNOISE": 1e30},
    ],
)
def test_a_header_that_makes_no_sense_is_not_believed(cards: dict[str, object]) -> None:
    frame = two_amplifiers()
    np.testing.assert_array_equal(round_trip(frame, unit_with(**cards)), round_trip(frame))


def test_a_dead_amplifier_is_exact_and_the_other_as_ever() -> None:
    frame = two_amplifiers()
    frame[:, :150] = 7
    error = round_trip(frame, unit_with(**SECTIONS)).astype(float) - frame
    assert not error[:, :150].any()
    assert error[:, 150:280].std() < 4.0


# ------------------------------------------------------------------ any frame at all


def images() -> st.SearchStrategy[NDArray[np.generic]]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)
    kinds = st.sampled_from(("uint16", "int16"))
    return kinds.flatmap(lambda dtype: arrays.arrays(dtype, shapes))


@settings(max_examples=100, deadline=None)
@given(images(), st.sampled_from(list(PRESETS)), st.booleans())
def test_any_frame_comes_back_in_its_shape_with_what_was_saturated(
    pixels: NDArray[np.generic], preset: str, fill: bool
) -> None:
    first, second = (round_trip(pixels, preset=preset, fill=fill) for _ in range(2))
    assert (first.shape, first.dtype) == (pixels.shape, pixels.dtype)
    np.testing.assert_array_equal(first, second)
    highest = np.iinfo(pixels.dtype).max
    np.testing.assert_array_equal(first == highest, pixels == highest)


@pytest.mark.parametrize("value", [0, 1000, 65534, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (128, 201)])
def test_a_constant_frame_comes_back_exactly(value: int, shape: tuple[int, int]) -> None:
    frame = np.full(shape, value, np.uint16)
    np.testing.assert_array_equal(round_trip(frame), frame)


def test_a_frame_that_must_not_be_written_to_is_packed() -> None:
    frame = simulated_frame(64, 90)
    frame.flags.writeable = False
    before = frame.copy()
    round_trip(frame)
    np.testing.assert_array_equal(frame, before)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays("f4", arrays.array_shapes(min_dims=2, max_dims=2, max_side=30), fill=None))
def test_a_plane_of_any_shape_is_the_sum_of_its_bands(plane: NDArray[np.float32]) -> None:
    plane = np.where(np.isfinite(plane), plane, 0).astype(np.float32) % 1000
    largest = 1e-5 * max(1.0, float(np.abs(plane).max()))
    arena = Arena(2 * plane.size)
    np.testing.assert_allclose(synthesise(analyse(plane, arena), arena), plane, atol=largest)
    tree = Tree((7, 0, 3))
    arena = Arena(2 * plane.size)
    bands = tree.analyse(plane, arena)
    assert [band.shape for band in bands] == tree.shapes(plane.shape)
    np.testing.assert_allclose(tree.synthesise(bands, arena), plane, atol=10 * largest)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        arrays.arrays(
            np.int64,
            arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20),
            elements=st.sampled_from((0, 0, 0, 0, 1, -1, 7, -8, 127, -128, 70_000, -9_000_000)),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(list(Coding)),
)
def test_coefficients_of_any_size_come_back(
    pieces: list[NDArray[np.int64]], coding: Coding
) -> None:
    writer = BandWriter(coding, sum(piece.size for piece in pieces))
    for piece in pieces:
        writer.add(piece.astype(np.float32), np.float32(1))
    reader = BandReader(coding, *writer.streams)
    for piece in pieces:
        numbers = np.float32(1), np.float32(1), np.float32(0)
        back = np.empty(piece.shape, np.float32)
        assert reader.read(back, *numbers, 0)
        np.testing.assert_array_equal(back, piece)
    assert reader.finished or (coding == Coding.RUNS and not any(p.any() for p in pieces))


# ------------------------------------------------------------------ later versions, other trees


def test_a_payload_of_a_later_version_is_refused_with_a_word_of_what_to_do() -> None:
    frame = simulated_frame(64, 90)
    payload = bytearray(pack(frame).payload)
    payload[4] = 9
    with pytest.raises(PacketError, match="version 9, this program reads 1; update it"):
        CODEC.decode(bytes(payload), packet_of(frame))


@pytest.mark.parametrize("split", range(8))
@pytest.mark.parametrize("levels", [0, 1, 8])
def test_planes_split_in_any_way_find_room(split: int, levels: int) -> None:
    tree = Tree((split,) * levels)
    for shape in ((1, 1), (1, 7), (64, 3), (33, 65)):
        plane = np.random.default_rng(16).normal(0, 1, shape).astype(np.float32)
        arena = Arena(plane.size)
        first = arena.plane(shape)
        first[:] = plane
        bands = [band.copy() for band in tree.analyse(first, arena)]
        arena.clear()
        given = [arena.plane(band.shape) for band in bands]
        for band, content in zip(given, bands, strict=True):
            band[:] = content
        np.testing.assert_allclose(tree.synthesise(given, arena), plane, atol=1e-4)


def test_presets_are_losses_for_a_seeing() -> None:
    assert list(PRESETS) == ["precise", "fast", "faint-link"]
    assert all(isinstance(preset, Preset) for preset in PRESETS.values())
