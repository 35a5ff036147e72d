"""Wavelet payloads that are truncated, damaged or made up: refused, and at no great cost."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from codec_frames import simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wavelet import CODEC, pack, packet_of
from wavelet_answers import ANSWERS, DATA

from prepipe.codec.wavelet_symbols import BandReader, Coding
from prepipe.errors import PacketError

FRAME = simulated_frame(64, 90)
PAYLOAD = pack(FRAME).payload
LEVELS = 5
TILES_AT = struct.calcsize("<4sBBHH") + LEVELS
TILE = struct.Struct("<IIIIHHf")
BAND = struct.Struct("<BfffII")


def decode(payload: bytes) -> None:
    """Decode, and take a refusal for an answer."""
    try:
        decoded = CODEC.decode(payload, packet_of(FRAME))
    except PacketError:
        return
    assert (decoded.shape, decoded.dtype) == (FRAME.shape, FRAME.dtype)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_payload_is_refused(share: float) -> None:
    with pytest.raises(PacketError, match="damaged"):
        CODEC.decode(PAYLOAD[: int(share * len(PAYLOAD))], packet_of(FRAME))


def test_a_payload_with_something_behind_it_is_refused() -> None:
    with pytest.raises(PacketError, match="damaged"):
        CODEC.decode(PAYLOAD + b"\0", packet_of(FRAME))


def test_a_payload_of_another_shape_is_refused() -> None:
    with pytest.raises(PacketError, match="damaged"):
        CODEC.decode(PAYLOAD, packet_of(FRAME[:-1]))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([PAYLOAD, *((DATA / f"{one.name}.payload").read_bytes() for one in ANSWERS)]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_payload_with_wrong_bytes_is_refused_or_decoded(
    payload: bytes, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(payload)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    decode(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_head_of_any_numbers_is_refused_or_decoded(data: st.DataObject) -> None:
    # what lies behind the head is left as it is, so that most of these reach the kernels
    damaged = bytearray(PAYLOAD)
    tiles = struct.unpack_from("<H", PAYLOAD, 6)[0]
    bands_at = TILES_AT + tiles * TILE.size
    for _ in range(data.draw(st.integers(1, 3))):
        band = bands_at + BAND.size * data.draw(st.integers(0, 30))
        coding, *sizes, codes, numbers = BAND.unpack_from(damaged, band)
        floats = st.sampled_from([*sizes, 0.0, 1e-6, 1e6, 1e30, float("nan"), -1.0])
        told = [data.draw(floats) for _ in sizes]
        BAND.pack_into(
            damaged,
            band,
            data.draw(st.sampled_from([coding, 0, 1, 2, 3, 4])),
            *told,
            codes,
            numbers,
        )
    decode(bytes(damaged))


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(list(Coding)),
    st.binary(max_size=60),
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3),
)
def test_any_symbols_fill_what_they_should_or_are_refused(
    coding: Coding, codes: bytes, numbers: bytes, shapes: list[tuple[int, int]]
) -> None:
    reader = BandReader(coding, np.frombuffer(codes, "u1"), np.frombuffer(numbers, "u1"))
    for shape in shapes:
        sizes = np.float32(1), np.float32(0.6), np.float32(0)
        band = np.zeros(shape, np.float32)
        if not reader.read(band, *sizes, 0):
            return
        assert np.isfinite(band).all()


def test_a_stream_that_states_a_huge_size_takes_no_memory() -> None:
    # a zstd frame of four bytes that says it holds a terabyte
    lie = zstandard.FRAME_HEADER + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + b"\x01\0\0"
    tiles = struct.unpack_from("<H", PAYLOAD, 6)[0]
    bands_at = TILES_AT + tiles * TILE.size
    head = bytearray(PAYLOAD[: bands_at + 31 * BAND.size + 8])
    for band in range(31):
        BAND.pack_into(head, bands_at + band * BAND.size, 2, 1.0, 1.0, 0.0, len(lie), 0)
    struct.pack_into("<II", head, len(head) - 8, 0, 0)
    tracemalloc.start()
    with pytest.raises(PacketError, match="damaged"):
        CODEC.decode(bytes(head) + 31 * lie, packet_of(FRAME))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 63},
        {"y0": 1},
        {"x0": 1 << 31},
        {"columns": 0},
        {"rows": 1 << 31, "columns": 1 << 31},
        {"saturation": 0},
        {"noise": float("nan")},
        {"noise": float("inf")},
        {"noise": -1.0},
        {"noise": 0.0},
    ],
)
def test_tiles_that_do_not_cover_the_frame_or_make_no_sense_are_refused(
    change: dict[str, float],
) -> None:
    names = ("y0", "x0", "rows", "columns", "offset", "saturation", "noise")
    told = dict(zip(names, TILE.unpack_from(PAYLOAD, TILES_AT), strict=True)) | change
    damaged = bytearray(PAYLOAD)
    TILE.pack_into(damaged, TILES_AT, *told.values())
    with pytest.raises(PacketError, match="damaged"):
        CODEC.decode(bytes(damaged), packet_of(FRAME))


def test_tiles_that_overlap_are_refused() -> None:
    shape = (4, 4)
    boxes = ((0, 0, 4, 2), (0, 1, 4, 2))
    tiles = b"".join(TILE.pack(*box, 0, 65535, 1.0) for box in boxes)
    band = BAND.pack(3, 1.0, 1.0, 0.0, 0, 0)
    payload = struct.pack("<4sBBHH", b"PPWV", 1, 0, 2, 0) + tiles + band + bytes(8)
    with pytest.raises(PacketError, match="damaged"):
        CODEC.decode(payload, packet_of(np.empty(shape, np.uint16)))
