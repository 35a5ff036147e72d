"""The framed protocol: what one end says, the other understands, however the bytes are cut."""

from __future__ import annotations

import json
import random
import struct

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from prepipe.errors import LinkError
from prepipe.link.protocol import (
    CHUNK_BYTES,
    GREETING,
    MAX_FILE_BYTES,
    VERSION,
    Acknowledged,
    Chunk,
    Committed,
    Frames,
    Has,
    Hello,
    Inventory,
    ListFiles,
    Message,
    Offer,
    Ping,
    Pong,
    ProtocolError,
    Refused,
    Welcome,
    bitmap,
    chunk_count,
    frame,
    from_bitmap,
)

ids = st.integers(0, 2**32 - 1)
numbers = st.integers(0, 2**64 - 1)
checksums = st.text("0123456789abcdef", min_size=32, max_size=32)
texts = st.text(max_size=50)
entries = st.tuples(texts, st.integers(0, 1 << 62), checksums).map(list)

MESSAGES = st.one_of(
    st.builds(Hello, st.integers(0, 1 << 16), texts, texts),
    st.builds(
        Offer,
        ids,
        texts,
        st.integers(1, MAX_FILE_BYTES),
        checksums,
        st.sampled_from(("", "archive")),
    ),
    st.builds(Chunk.of, ids, ids, st.binary(min_size=1, max_size=300)),
    st.builds(Ping, numbers),
    st.builds(ListFiles, st.integers(0, 1 << 62)),
    st.builds(
        Welcome, st.integers(0, 1 << 16), texts, texts, st.integers(0, 1 << 80), st.floats(0, 1e12)
    ),
    st.builds(Has, ids, st.binary(max_size=50)),
    st.builds(Acknowledged, ids, ids),
    st.builds(Committed, ids, st.booleans()),
    st.builds(Refused, texts, texts, st.none() | ids),
    st.builds(Pong, numbers),
    st.builds(Inventory, st.lists(entries, max_size=4), st.booleans()),
)


def header(kind: int, length: int) -> bytes:
    start = struct.pack(">2sBBI", b"\xd7\x50", kind, 0, length)
    return start + xxhash.xxh32(start).intdigest().to_bytes(4, "big")


def framed(kind: int, body: bytes) -> bytes:
    return header(kind, len(body)) + body


def parts(data: bytes, seed: int) -> list[bytes]:
    cut = random.Random(seed)
    found = []
    while data:
        length = cut.choice((1, 2, 11, 12, 13, 100, 10_000))
        found.append(data[:length])
        data = data[length:]
    return found


@given(st.lists(MESSAGES, max_size=6), st.integers())
def test_every_message_survives_whatever_the_bytes_are_cut_into(
    messages: list[Message], seed: int
) -> None:
    frames = Frames()
    sent = b"".join(frame(message) for message in messages)
    received = [message for part in parts(sent, seed) for message in frames.feed(part)]
    assert received == messages


def test_a_whole_chunk_fits_into_a_frame() -> None:
    chunk = Chunk.of(1, 2, bytes(CHUNK_BYTES))
    assert list(Frames().feed(frame(chunk))) == [chunk]


def test_a_list_of_500_packets_with_the_longest_names_fits_into_a_frame() -> None:
    name = f"{'c' * 32}_{'9' * 12}_1234.packet"
    page = Inventory([[name, MAX_FILE_BYTES, "f" * 32]] * 500, last=False)
    assert list(Frames().feed(frame(page))) == [page]


def test_what_the_far_end_has_of_the_largest_file_fits_into_a_frame() -> None:
    count = chunk_count(MAX_FILE_BYTES)
    has = Has(1, bitmap(set(range(count)), count))
    assert list(Frames().feed(frame(has))) == [has]


@given(st.binary(max_size=3000).filter(lambda noise: GREETING not in noise), st.integers())
def test_whatever_a_login_prints_before_the_greeting_is_passed_over(
    noise: bytes, seed: int
) -> None:
    frames = Frames(greeting=True)
    sent = noise + GREETING + frame(Welcome(VERSION)) + frame(Pong(5))
    received = [message for part in parts(sent, seed) for message in frames.feed(part)]
    assert received == [Welcome(VERSION), Pong(5)]
    assert frames.noise == noise[-2000:]


def test_a_login_that_talks_without_end_is_given_up() -> None:
    frames = Frames(greeting=True)
    with pytest.raises(ProtocolError, match="does not answer"):
        for _ in range(100):
            list(frames.feed(b"Message of the day\n" * 1000))


@settings(max_examples=300)
@given(st.binary(max_size=500))
def test_random_bytes_are_told_or_waited_for_never_taken(noise: bytes) -> None:
    frames = Frames()
    try:
        assert list(frames.feed(noise)) == []
    except ProtocolError:
        return
    assert len(noise) < 12


@settings(max_examples=300)
@given(st.integers(0, 255), st.binary(max_size=200))
def test_a_frame_with_a_random_body_is_understood_or_told(kind: int, body: bytes) -> None:
    try:
        for message in Frames().feed(framed(kind, body)):
            assert list(Frames().feed(frame(message))) == [message]
    except ProtocolError:
        pass


@given(MESSAGES, st.data())
def test_a_flipped_bit_in_the_head_of_a_frame_is_noticed(message: Message, data: st.DataObject):
    sent = bytearray(frame(message))
    bit = data.draw(st.integers(0, 95))
    sent[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        list(Frames().feed(bytes(sent)))


def test_a_flipped_bit_in_a_chunk_is_noticed() -> None:
    sent = bytearray(frame(Chunk.of(1, 0, b"pixels")))
    sent[-1] ^= 1
    with pytest.raises(ProtocolError, match="checksum of a chunk"):
        list(Frames().feed(bytes(sent)))


def test_a_frame_of_2_gib_is_refused_by_its_head_alone() -> None:
    frames = Frames()
    with pytest.raises(ProtocolError, match="2147483648 bytes"):
        list(frames.feed(header(Chunk.KIND, 1 << 31)))


GOOD_OFFER = {"id": 1, "name": "x", "size": 5, "checksum": "0" * 32, "place": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"id": -1},
        {"id": 1 << 32},
        {"id": True},
        {"id": 1.5},
        {"id": None},
        {"name": 5},
        {"size": 0},
        {"size": MAX_FILE_BYTES + 1},
        {"size": "5"},
        {"checksum": "0" * 31},
        {"checksum": "G" * 32},
        {"checksum": "0" * 32 + "\n"},
        {"checksum": None},
        {"place": ".."},
        {"place": []},
    ],
)
def test_an_offer_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    body = json.dumps(GOOD_OFFER | change).encode()
    with pytest.raises(ProtocolError):
        list(Frames().feed(framed(Offer.KIND, body)))


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"id": ' + b"9" * 10_000 + b"}"],
    ids=lambda body: repr(body[:8]),
)
def test_an_offer_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Frames().feed(framed(Offer.KIND, body)))


@pytest.mark.parametrize(
    "change",
    [
        {"free_bytes": "much"},
        {"free_bytes": -1},
        {"free_bytes": None},
        {"prepipe": 1},
        {"host": ["cluster"]},
        {"time": "noon"},
        {"time": float("nan")},
        {"time": 10**400},
    ],
    ids=repr,
)
def test_a_welcome_of_other_types_is_refused(change: dict[str, object]) -> None:
    body = json.dumps({"version": VERSION} | change).encode()
    with pytest.raises(ProtocolError):
        list(Frames().feed(framed(Welcome.KIND, body)))


def test_what_a_later_version_adds_to_a_message_is_passed_over() -> None:
    body = json.dumps(GOOD_OFFER | {"colour": "red"}).encode()
    assert list(Frames().feed(framed(Offer.KIND, body))) == [Offer(**GOOD_OFFER)]


def test_an_error_of_the_protocol_is_one_of_the_link_and_may_pass() -> None:
    assert issubclass(ProtocolError, LinkError)


@given(st.integers(1, 100), st.data())
def test_a_bitmap_names_the_chunks_it_was_made_of(count: int, data: st.DataObject) -> None:
    present = data.draw(st.sets(st.integers(0, count - 1)))
    assert from_bitmap(bitmap(present, count), count) == present


@given(st.binary(max_size=20), st.integers(0, 100))
def test_a_bitmap_names_no_chunk_beyond_the_file(bits: bytes, count: int) -> None:
    assert all(index < count for index in from_bitmap(bits, count))


@pytest.mark.parametrize(
    ("size", "count"), [(1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (MAX_FILE_BYTES, 16384)]
)
def test_the_last_chunk_may_be_shorter(size: int, count: int) -> None:
    assert chunk_count(size) == count
