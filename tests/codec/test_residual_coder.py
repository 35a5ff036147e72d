"""The difference of two frames as bytes: exact whatever the frames, safe whatever the bytes."""

from __future__ import annotations

import struct
import tracemalloc
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pytest
import zstandard
from codec_frames import Frame, simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from wavelet_answers import ANSWERS, DATA

from prepipe.codec.pixels import pixel_checksum
from prepipe.codec.rans import FREQUENCY_BITS, SYMBOLS, frequencies_of
from prepipe.codec.residual_coder import CLASSES, NEIGHBOURS, Coded
from prepipe.codec.residual_coder import decode_difference as decode
from prepipe.codec.residual_coder import encode_difference as encode
from prepipe.codec.residual_payload import coded_from_bytes, coded_to_bytes
from prepipe.codec.wavelet import WaveletCodec
from prepipe.errors import PacketError
from prepipe.model import Ccd, Exposure, Kind, Night, Packet

PREFIX = struct.Struct("<4sBBHII")
CODEC = WaveletCodec()
EXTREMES = st.sampled_from([0, 1, 127, 255, 32767, 32768, 65534, 65535])
SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 20))
START = datetime(2020, 3, 6, tzinfo=UTC)
EXPOSURE = Exposure("decam", 1, Kind.OBJECT, "", "g", START, 20.0, Night.of(START))


class Answer(NamedTuple):
    """A payload that was written once, and the xxh3-128 of the pixels it gives with its base."""

    name: str
    pixels: str


ANSWERED = (
    Answer("residual1_one_phase", "7498ce6ae451491370825d8715f3776a"),
    Answer("residual1_sixteen_phases", "dd5d7f79afb509405bbc49c46a38c33c"),
)
"""They stand for all residuals in archives: they must give these very pixels on every machine."""


def base_of_answers() -> Frame:
    """What a known wavelet payload decodes to where its noise is not filled in."""
    answer = next(one for one in ANSWERS if one.name == "wavelet1_filled")
    packet = Packet(EXPOSURE, Ccd(1, ""), "wavelet", {}, answer.shape, "uint16", 0, "", "")
    payload = (DATA / f"{answer.name}.payload").read_bytes()
    return np.asarray(CODEC.decode_unfilled(payload, packet))


BASE = base_of_answers()
PAYLOADS = [(DATA / f"{answer.name}.payload").read_bytes() for answer in ANSWERED]


def there_and_back(samples: Frame, base: Frame) -> Frame | None:
    return decode(coded_from_bytes(coded_to_bytes(encode(samples, base)), samples.size), base)


def assert_exact(samples: Frame, base: Frame) -> None:
    found = there_and_back(samples, base)
    assert found is not None
    np.testing.assert_array_equal(found, samples)


def attempt(payload: bytes, base: Frame = BASE) -> None:
    """Decode, and take a refusal for an answer."""
    try:
        coded = coded_from_bytes(payload, base.size)
    except PacketError:
        return
    found = decode(coded, base)
    assert found is None or (found.shape, found.dtype) == (base.shape, base.dtype)


@pytest.mark.parametrize("answer", ANSWERED, ids=lambda answer: answer.name)
def test_a_residual_that_was_written_once_gives_the_same_pixels_for_ever(answer: Answer) -> None:
    payload = (DATA / f"{answer.name}.payload").read_bytes()
    samples = decode(coded_from_bytes(payload, BASE.size), BASE)
    assert samples is not None
    assert pixel_checksum(samples) == answer.pixels


@settings(max_examples=150, deadline=None)
@given(st.data(), st.booleans())
def test_any_two_frames_of_one_shape_will_do(data: st.DataObject, extreme: bool) -> None:
    shape = data.draw(SHAPES)
    values = EXTREMES if extreme else st.integers(0, 65535)
    samples, base = (data.draw(arrays.arrays(np.uint16, shape, elements=values)) for _ in "ab")
    assert_exact(samples, base)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["precise", "fast", "faint-link"]), st.booleans())
def test_any_frame_comes_back_from_what_the_wavelet_left_of_it(
    data: st.DataObject, preset: str, extreme: bool
) -> None:
    values = EXTREMES if extreme else st.integers(1000, 1100)
    samples = data.draw(arrays.arrays(np.uint16, data.draw(SHAPES), elements=values))
    payload = CODEC.encode(samples, {"preset": preset, "fill": True}).payload
    told = Packet(EXPOSURE, Ccd(1, ""), "wavelet", {}, samples.shape, "uint16", 0, "", "")
    assert_exact(samples, np.asarray(CODEC.decode_unfilled(payload, told)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 9), (4, 8), (33, 301)])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 5.0, 80.0, 3000.0])
def test_noise_of_any_strength_in_any_shape_comes_back(
    shape: tuple[int, int], sigma: float
) -> None:
    base = np.full(shape, 30_000, np.uint16)
    noise = np.random.default_rng(3).normal(30_000, sigma, shape)
    assert_exact(np.clip(np.rint(noise), 0, 65535).astype(np.uint16), base)


@pytest.mark.parametrize("samples", [0, 65535])
@pytest.mark.parametrize("base", [0, 65535])
def test_constant_frames_at_the_ends_of_the_range_come_back(samples: int, base: int) -> None:
    assert_exact(np.full((40, 50), samples, np.uint16), np.full((40, 50), base, np.uint16))


def test_a_frame_that_is_its_base_takes_next_to_nothing() -> None:
    frame = simulated_frame(200, 300)
    assert len(coded_to_bytes(encode(frame, frame))) < 200


def test_a_frame_large_enough_for_weights_of_each_phase_comes_back() -> None:
    frame = simulated_frame(300, 301)
    base = np.clip(frame.astype(int) + simulated_frame(300, 301, 2) // 64, 0, 65535)
    coded = encode(frame, base.astype(np.uint16))
    assert coded.weights.shape == (16, NEIGHBOURS)
    assert_exact(frame, base.astype(np.uint16))


def test_white_noise_takes_hardly_more_than_its_entropy() -> None:
    noise = np.rint(np.random.default_rng(5).normal(0, 5.0, (300, 400))).astype(int)
    counts = np.bincount(noise.ravel() - noise.min())
    share = counts[counts > 0] / noise.size
    entropy = -noise.size * float((share * np.log2(share)).sum()) / 8
    base = np.full(noise.shape, 1000, np.uint16)
    assert len(coded_to_bytes(encode((base + noise).astype(np.uint16), base))) < 1.03 * entropy


def test_what_neighbours_tell_is_not_sent() -> None:
    noise = np.random.default_rng(5).normal(0, 1.0, (304, 404))
    smooth = sum(noise[y : y + 300, x : x + 400] for y in range(4) for x in range(4)) * 5
    rough = 5 * 4 * noise[:300, :400]
    base = np.full((300, 400), 1000, np.uint16)
    sizes = [
        len(coded_to_bytes(encode(np.rint(1000 + kind).astype(np.uint16), base)))
        for kind in (smooth, rough)
    ]
    assert sizes[0] < 0.85 * sizes[1]


def test_the_same_frames_give_the_same_bytes() -> None:
    frame, base = simulated_frame(300, 301), simulated_frame(300, 301, 2)
    assert coded_to_bytes(encode(frame, base)) == coded_to_bytes(encode(frame, base))


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.int64, (3, SYMBOLS), elements=st.integers(0, 1 << 40)))
def test_frequencies_add_up_and_leave_no_symbol_without(counts: np.ndarray) -> None:
    counts[1, :] = 0
    table = frequencies_of(counts)
    assert set(table.sum(axis=1)) <= {0, 1 << FREQUENCY_BITS}
    np.testing.assert_array_equal(table > 0, counts > 0)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_payload_is_refused(payload: bytes, share: float) -> None:
    short = payload[: int(share * len(payload))]
    try:
        coded = coded_from_bytes(short, BASE.size)
    except PacketError:
        return
    assert decode(coded, BASE) is None


def test_a_payload_with_something_behind_it_is_refused() -> None:
    assert decode(coded_from_bytes(PAYLOADS[0] + bytes(4), BASE.size), BASE) is None


def test_a_payload_of_another_version_is_refused_and_says_so() -> None:
    with pytest.raises(PacketError, match="version 2, this program reads 1; update"):
        coded_from_bytes(PAYLOADS[0][:4] + b"\x02" + PAYLOADS[0][5:], BASE.size)


def test_what_is_no_residual_is_refused() -> None:
    with pytest.raises(PacketError, match="no residual"):
        coded_from_bytes((DATA / "wavelet1_filled.payload").read_bytes(), BASE.size)


@pytest.mark.parametrize("shape", [(1, 1), (64, 89), (63, 90), (90, 64)])
def test_a_base_of_another_shape_gives_no_pixels_or_others(shape: tuple[int, int]) -> None:
    attempt(PAYLOADS[0], np.zeros(shape, np.uint16))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(PAYLOADS),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_payload_with_wrong_bytes_is_refused_or_decoded(
    payload: bytes, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(payload)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    attempt(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_streams_of_anything_fill_what_they_should_or_are_refused(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    counts = data.draw(arrays.arrays(np.int64, (CLASSES, SYMBOLS), elements=st.integers(0, 3)))
    weights = arrays.arrays(np.int16, (data.draw(st.sampled_from([1, 16])), NEIGHBOURS))
    coded = Coded(
        data.draw(weights),
        data.draw(st.integers(0, 32767)),
        frequencies_of(counts),
        np.frombuffer(data.draw(st.binary(max_size=60)), np.uint8),
        data.draw(arrays.arrays(np.uint32, st.integers(0, 60))),
    )
    base = data.draw(arrays.arrays(np.uint16, shape))
    found = decode(coded, base)
    assert found is None or found.shape == shape


@pytest.mark.parametrize("change", [-1, 1, 16384])
def test_frequencies_that_do_not_add_up_are_refused(change: int) -> None:
    coded = coded_from_bytes(PAYLOADS[0], BASE.size)
    table = coded.table.copy()
    row = int(np.argmax(table.sum(axis=1)))
    table[row, int(np.argmax(table[row]))] += np.array(change).astype(np.uint16)
    assert decode(coded._replace(table=table), BASE) is None


def test_a_stream_that_states_a_huge_size_takes_no_memory() -> None:
    # a zstd frame of four bytes that says it holds a terabyte
    lie = zstandard.FRAME_HEADER + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + b"\x01\0\0"
    head = PREFIX.pack(b"PPRS", 1, 1, 10, len(lie), len(lie)) + bytes(2 * NEIGHBOURS)
    tracemalloc.start()
    with pytest.raises(PacketError, match="damaged"):
        coded_from_bytes(head + lie + lie + bytes(8), BASE.size)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "head",
    [
        (0, 10, 0, 0),
        (2, 10, 0, 0),
        (255, 10, 0, 0),
        (1, 40000, 0, 0),
        (1, 10, 1 << 31, 0),
        (1, 10, 0, (1 << 32) - 1),
    ],
)
def test_heads_that_make_no_sense_are_refused(head: tuple[int, int, int, int]) -> None:
    with pytest.raises(PacketError, match="damaged"):
        coded_from_bytes(PREFIX.pack(b"PPRS", 1, *head) + PAYLOADS[0][PREFIX.size :], BASE.size)
