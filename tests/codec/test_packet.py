"""The packet: it says what it is, and no damage to it goes unseen."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prepipe.codec.fits_bytes import scan_fits
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import (
    PackedCcd,
    build_packet,
    decode,
    open_packet,
    read_header,
    verify,
    write_packet,
)
from prepipe.errors import FitsError, PacketError, StorageError
from prepipe.model import Ccd, Exposure
from prepipe.names import parse_name, safe_name

CODECS = ("none", "rice", "jpeg2000")
often = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Pack = Callable[[str], PackedCcd]


@pytest.fixture(scope="module")
def small(write_raw: Callable[..., Path], exposure: Exposure) -> PackedCcd:
    """A packet of a few kilobytes."""
    pixels = np.random.default_rng(7).normal(1000, 5, (16, 24)).astype(np.uint16)
    return pack_ccd(write_raw(pixels), 1, exposure, Ccd(25, "S1"), "rice")


def put(directory: Path, content: bytes, name: str = "decam_00941420_25.packet") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def with_right_checksum(content: bytes) -> bytes:
    """The packet with the checksum of its head computed anew, as a liar would."""
    json_bytes, cards_bytes = struct.unpack_from("<II", content, 12)
    end = 48 + json_bytes + cards_bytes
    checksum = xxhash.xxh3_128_digest(content[:32] + content[48:end])
    return content[:32] + checksum + content[48:]


@pytest.mark.parametrize("codec", CODECS)
def test_a_packet_says_of_itself_what_was_packed(
    codec: str, packed: Pack, exposure: Exposure, tmp_path: Path
) -> None:
    made = packed(codec)
    path = write_packet(tmp_path, made)
    told = read_header(path)
    assert path.name == "decam_00941420_25.packet"
    assert told == made.packet == verify(path)
    assert told.exposure == exposure
    assert (told.ccd, told.codec, told.shape, told.dtype) == (
        Ccd(25, "S1"),
        codec,
        (256, 300),
        "uint16",
    )
    assert told.parameters["ratio"] == pytest.approx(256 * 300 * 2 / told.payload_bytes, abs=1e-4)


@pytest.mark.parametrize("codec", ["none", "rice"])
def test_a_lossless_packet_gives_the_pixels_back(
    codec: str, packed: Pack, frame: np.ndarray, tmp_path: Path
) -> None:
    opened = decode(write_packet(tmp_path, packed(codec)))
    assert opened.pixels.dtype == np.uint16
    assert opened.pixels.dtype.isnative
    np.testing.assert_array_equal(opened.pixels, frame)
    assert opened.packet.parameters["rms_error_adu"] == 0


def test_a_packet_carries_both_headers(packed: Pack, tmp_path: Path) -> None:
    opened = decode(write_packet(tmp_path, packed("rice")))
    assert opened.primary["EXPNUM"] == 941420
    assert opened.primary["NAXIS"] == 0
    assert (opened.extension["NAXIS2"], opened.extension["NAXIS1"]) == (256, 300)
    assert opened.extension["LSKYPOW"] == "NaN"
    assert opened.extension["ESO DET CHIP NAME"] == "long"


def test_the_extension_header_of_a_compressed_ccd_reads_as_that_of_an_image(
    shared_data: Path, exposure: Exposure, tmp_path: Path
) -> None:
    raw = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    made = pack_ccd(raw, scan_fits(raw)[1], exposure, Ccd(25, "S1"), "none")
    opened = decode(write_packet(tmp_path, made))
    assert opened.extension["XTENSION"] == "IMAGE"
    assert (opened.extension["NAXIS1"], opened.extension["NAXIS2"]) == (287, 400)
    assert "ZIMAGE" not in opened.extension
    assert opened.extension["CCDNUM"] == 25
    assert opened.extension["DATASECA"] == "[1081:2104,51:4146]"
    assert opened.primary["EXPNUM"] == 941420


def test_a_packet_carries_what_its_sender_notes(
    write_raw: Callable[..., Path], frame: np.ndarray, exposure: Exposure, tmp_path: Path
) -> None:
    notes = {"found_at": 1583453055.25}
    made = pack_ccd(write_raw(frame), 1, exposure, Ccd(25, "S1"), "rice", notes=notes)
    told = read_header(write_packet(tmp_path, made)).parameters
    assert (told["found_at"], told["rms_error_adu"]) == (1583453055.25, 0.0)


def test_an_image_in_the_primary_hdu_has_one_header_for_both(
    write_raw: Callable[..., Path], frame: np.ndarray, exposure: Exposure, tmp_path: Path
) -> None:
    made = pack_ccd(write_raw(frame, primary=True), 0, exposure, Ccd(55, "1_20"), "rice")
    opened = decode(write_packet(tmp_path, made))
    assert opened.primary == opened.extension
    assert opened.primary["NAXIS1"] == 300


@often
@given(st.data())
def test_a_flipped_bit_anywhere_is_found(
    small: PackedCcd, tmp_path: Path, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(small.content) - 1))
    damaged = bytearray(small.content)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PacketError):
        verify(put(tmp_path, bytes(damaged)))


def test_a_flipped_bit_in_each_of_the_first_bytes_is_found(
    small: PackedCcd, tmp_path: Path
) -> None:
    for bit in range(8 * 64):
        damaged = bytearray(small.content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PacketError):
            verify(put(tmp_path, bytes(damaged)))


@often
@given(st.data())
def test_a_packet_cut_anywhere_is_found_without_reading_its_payload(
    small: PackedCcd, tmp_path: Path, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(small.content) - 1))
    with pytest.raises(PacketError):
        read_header(put(tmp_path, small.content[:length]))


def test_bytes_after_the_end_are_found(small: PackedCcd, tmp_path: Path) -> None:
    with pytest.raises(PacketError, match="3 bytes follow its end"):
        verify(put(tmp_path, small.content + b"abc"))


@often
@given(st.binary(max_size=400))
def test_what_is_no_packet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PacketError):
        verify(put(tmp_path, content))


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (8, "<I", 2, "version 2"),
        (12, "<I", 0xFFFFFFFF, "absurd size"),
        (16, "<I", 0xFFFFFFFF, "absurd size"),
        (24, "<Q", 2**63, "absurd size"),
        (24, "<Q", 2**30, "truncated"),
    ],
)
def test_a_head_that_lies_is_refused_with_its_reason(
    small: PackedCcd, tmp_path: Path, offset: int, form: str, value: int, reason: str
) -> None:
    lie = bytearray(small.content)
    struct.pack_into(form, lie, offset, value)
    with pytest.raises(PacketError, match=reason):
        verify(put(tmp_path, bytes(lie)))


@pytest.mark.parametrize(
    ("told", "lie"),
    [
        (b'"shape":[16,24]', b'"shape":[24,16]'),
        (b'"dtype":"uint16"', b'"dtype":"uint32"'),
        (b'"camera":"decam"', b'"camera":"../../"'),
        (b'"exposure_s":120.0', b'"exposure_s":NaN  '),
        (b'"block":32', b'"block":NaN'),
        (b'"block":32', b'"block":1e999'),
        (b'"hdu":1', b'"hdu":0'),
        (b'"codec":"rice"', b'"codec":"rice","x":1'),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_even_with_right_checksums(
    small: PackedCcd, tmp_path: Path, told: bytes, lie: bytes
) -> None:
    assert told in small.content
    forged = bytearray(small.content.replace(told, lie, 1))
    length = struct.unpack_from("<I", forged, 12)[0] + len(lie) - len(told)
    struct.pack_into("<I", forged, 12, length)
    with pytest.raises(PacketError):
        verify(put(tmp_path, with_right_checksum(bytes(forged))))


def test_an_unknown_codec_is_named_when_decoding(small: PackedCcd, tmp_path: Path) -> None:
    forged = small.content.replace(b'"codec":"rice"', b'"codec":"mist"', 1)
    path = put(tmp_path, with_right_checksum(forged))
    assert verify(path).codec == "mist"
    with pytest.raises(PacketError, match="no codec 'mist'"):
        decode(path)


def test_pixels_other_than_those_packed_are_found_when_decoding(
    small: PackedCcd, tmp_path: Path
) -> None:
    packet = small.packet
    told = packet.pixel_checksum.encode()
    forged = small.content.replace(told, told[::-1], 1)
    path = put(tmp_path, with_right_checksum(forged))
    with pytest.raises(PacketError, match="not those that were packed"):
        decode(path)


def test_a_packet_under_the_name_of_another_ccd_is_found(small: PackedCcd, tmp_path: Path) -> None:
    path = put(tmp_path, small.content, "decam_00941420_26.packet")
    with pytest.raises(PacketError, match=r"in truth decam_00941420_25\.packet"):
        verify(path)
    assert verify(path, check_name=False).ccd.number == 25


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_written(small: PackedCcd, value: float) -> None:
    bad = dataclasses.replace(small.packet, parameters={"deep": [{"x": value}]})
    with pytest.raises(PacketError, match=r"parameters\..*finite number"):
        build_packet(bad, 1, bytes(2880), bytes(2880), b"")


@pytest.mark.parametrize("camera", ["../evil", "De Cam", "", "decam/..", "x" * 40, "decam\n"])
def test_a_camera_whose_name_is_no_file_name_is_not_written(small: PackedCcd, camera: str) -> None:
    evil = dataclasses.replace(small.packet.exposure, camera=camera)
    with pytest.raises(PacketError, match="camera"):
        build_packet(
            dataclasses.replace(small.packet, exposure=evil), 1, bytes(2880), bytes(2880), b""
        )


@given(
    st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
    st.integers(0, 10**12 - 1),
    st.integers(0, 9999),
)
def test_every_name_that_we_write_can_be_read(camera: str, number: int, ccd: int) -> None:
    name = f"{camera}_{number:08d}_{ccd:02d}.packet"
    assert parse_name(name) == (camera, number, ccd)
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "../decam_00941420_25.packet",
        "a/decam_00941420_25.packet",
        "decam_00941420_25.packet/..",
        "..",
        "",
        ".decam_00941420_25.packet",
        "-decam_00941420_25.packet",
        "decam_00941420_25.packet\n",
        "decam_00941420_25.packet\0",
        "decam_0094\r1420_25.packet",
        "decam_\u0660\u0660941420_25.packet",
        "decam_00941420_25.packet.part ",
        "decam_00941420_25..packet",
    ],
)
def test_a_name_that_could_lead_out_of_its_directory_is_refused(name: str) -> None:
    with pytest.raises(PacketError):
        parse_name(name)
    with pytest.raises(PacketError):
        safe_name(name)


@pytest.mark.parametrize("name", ["decam_941420_25.packet", "decam_00941420_5.packet", "x.fits"])
def test_a_name_of_another_form_is_no_packet(name: str) -> None:
    with pytest.raises(PacketError, match="must look like"):
        parse_name(name)


@given(st.text(max_size=60))
def test_any_text_is_a_safe_name_or_refused(name: str) -> None:
    try:
        safe_name(name)
    except PacketError:
        return
    assert Path(name).name == name
    assert name not in (".", "..")


def test_a_missing_packet_is_worth_another_try(tmp_path: Path) -> None:
    for look in (read_header, verify, decode, open_packet):
        with pytest.raises(StorageError):
            look(tmp_path / "decam_00941420_25.packet")


def test_a_raw_file_rewritten_since_its_scan_is_not_packed(
    write_raw: Callable[..., Path], frame: np.ndarray, exposure: Exposure
) -> None:
    path = write_raw(frame)
    span = scan_fits(path)[1]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"LSKYPOW", b"LSKYPOV"))
    with pytest.raises(FitsError, match="rewritten"):
        pack_ccd(path, span, exposure, Ccd(25, "S1"), "none")
    with pytest.raises(FitsError, match="no HDU 9"):
        pack_ccd(path, 9, exposure, Ccd(25, "S1"), "none")
