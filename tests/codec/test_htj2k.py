"""HTJ2K behind its guard: the traps of the library do not reach a packet."""

from __future__ import annotations

import numpy as np
import pytest
from codec_frames import SKY_NOISE_ADU, simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from test_wavelet import packet_of

from prepipe.codec import get_codec
from prepipe.codec.pixels import fidelity
from prepipe.errors import ConfigError, PacketError

CODEC = get_codec("htj2k")
FRAME = simulated_frame(64, 90)
PAYLOAD = CODEC.encode(FRAME, {}).payload


def round_trip(pixels: NDArray[np.generic], **asked: object) -> NDArray[np.generic]:
    return CODEC.decode(CODEC.encode(pixels, asked).payload, packet_of(pixels))


def test_saturated_pixels_do_not_wrap_around() -> None:
    # handed to the library as they are, pixels near 65535 come back as 0
    frame = simulated_frame(256, 300)
    frame[50:60, 50:60] = np.random.default_rng(1).integers(65400, 65536, (10, 10))
    decoded = round_trip(frame)
    np.testing.assert_array_equal(decoded == 65535, frame == 65535)
    assert fidelity(frame, decoded)["max_error_adu"] < 20 * SKY_NOISE_ADU


def test_pixels_near_zero_do_not_wrap_around() -> None:
    frame = np.abs(np.random.default_rng(2).normal(0, 12, (128, 128))).astype(np.uint16)
    frame[60:70] = 65535
    assert fidelity(frame, round_trip(frame))["max_error_adu"] < 200


def test_big_endian_pixels_are_packed_as_what_they_are() -> None:
    big = FRAME.astype(">u2")
    np.testing.assert_array_equal(round_trip(big), round_trip(FRAME))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("uint16", "int16")).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))
    ),
    st.sampled_from([{}, {"qstep": 5.5e-5}, {"step_sigma": 2.0}]),
)
def test_any_frame_comes_back_in_its_shape_with_what_was_saturated(
    pixels: NDArray[np.generic], asked: dict[str, object]
) -> None:
    decoded = round_trip(pixels, **asked)
    assert (decoded.shape, decoded.dtype) == (pixels.shape, pixels.dtype)
    highest = np.iinfo(pixels.dtype).max
    np.testing.assert_array_equal(decoded == highest, pixels == highest)


@pytest.mark.parametrize("value", [0, 1000, 65535])
def test_a_constant_frame_comes_back_within_an_adu(value: int) -> None:
    frame = np.full((128, 200), value, np.uint16)
    assert np.abs(round_trip(frame).astype(int) - value).max() <= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_a_damaged_payload_does_not_reach_the_library_which_would_die_of_it(
    place: int, flip: int
) -> None:
    damaged = bytearray(PAYLOAD)
    damaged[place] ^= flip
    try:
        decoded = CODEC.decode(bytes(damaged), packet_of(FRAME))
    except PacketError:
        return
    assert decoded.shape == FRAME.shape


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(PAYLOAD) - 1))
def test_a_truncated_payload_is_refused(length: int) -> None:
    with pytest.raises(PacketError, match="no HTJ2K frame of its shape; send it again"):
        CODEC.decode(PAYLOAD[:length], packet_of(FRAME))


@pytest.mark.parametrize(
    "asked",
    [
        {"ratio": 3.0},
        {"step_sigma": 0.0},
        {"step_sigma": float("inf")},
        {"qstep": "fine"},
        {"qstep": 1e-5, "step_sigma": 1.0},
    ],
)
def test_senseless_parameters_are_refused(asked: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="htj2k"):
        CODEC.encode(FRAME, asked)
