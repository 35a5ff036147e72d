"""A residual and the packet it belongs to are the packet of the original, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from astropy.io import fits
from codec_frames import Frame, simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prepipe.cameras import load_camera
from prepipe.codec import residual as residual_module
from prepipe.codec.fits_bytes import HduSpan
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import (
    PackedCcd,
    build_packet,
    decode,
    opened,
    read_header,
    verify,
    write_packet,
)
from prepipe.codec.residual import base_of, residual_of, restored
from prepipe.codec.unpack import unpack
from prepipe.errors import PacketError
from prepipe.model import Ccd, Exposure, Packet
from prepipe.telescope.intake import ccd_spans, read_exposure

Write = Callable[..., Path]
FAST = {"preset": "fast", "fill": True}
NOTES = {"found_at": 1583452935.5}
CCD = Ccd(25, "S1")


def both(
    path: Path, exposure: Exposure, hdu: int | HduSpan = 1, **asked: object
) -> tuple[PackedCcd, PackedCcd]:
    """The original of a CCD and its packet with a loss."""
    told = {**FAST, **asked}
    original = pack_ccd(path, hdu, exposure, CCD, "none", {}, NOTES)
    return original, pack_ccd(path, hdu, exposure, CCD, "wavelet", told, NOTES)


def residual_made(original: PackedCcd, base: PackedCcd) -> PackedCcd:
    made = residual_of(original, base)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def big() -> Frame:
    return simulated_frame(512, 512, noise=5.0)


@pytest.fixture(scope="module")
def fpacked(
    big: Frame, write_raw: Write, fpack_program: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A raw file as the telescope writes it: Rice tiles by cfitsio."""
    out = tmp_path_factory.mktemp("fpacked") / "raw.fits.fz"
    shutil.copy(write_raw(big), out.with_suffix(""))
    subprocess.run([fpack_program, "-r", out.with_suffix("")], check=True)
    return out


@pytest.fixture(scope="module")
def pair(fpacked: Path, exposure: Exposure) -> tuple[PackedCcd, PackedCcd]:
    return both(fpacked, exposure)


@pytest.fixture(scope="module")
def made(pair: tuple[PackedCcd, PackedCcd]) -> PackedCcd:
    return residual_made(*pair)


def test_with_its_base_it_is_the_very_packet_of_the_original(
    pair: tuple[PackedCcd, PackedCcd], made: PackedCcd
) -> None:
    original, base = pair
    assert restored(opened(made), opened(base)).content == original.content


def test_base_and_residual_together_are_smaller_than_the_file_of_fpack(
    pair: tuple[PackedCcd, PackedCcd], made: PackedCcd
) -> None:
    original, base = pair
    together = base.packet.payload_bytes + made.packet.payload_bytes
    assert together < 0.95 * original.packet.payload_bytes


@pytest.mark.parametrize("preset", ["precise", "fast", "faint-link"])
@pytest.mark.parametrize("fill", [True, False])
def test_any_setting_of_the_base_will_do(
    fpacked: Path, exposure: Exposure, preset: str, fill: bool
) -> None:
    original, base = both(fpacked, exposure, preset=preset, fill=fill)
    assert restored(opened(residual_made(original, base)), opened(base)).content == original.content


def test_filled_noise_costs_nothing(fpacked: Path, exposure: Exposure) -> None:
    sizes = [
        residual_made(*both(fpacked, exposure, fill=fill)).packet.payload_bytes
        for fill in (True, False)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("primary", [True, False])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_plain_images_come_back_too(
    write_raw: Write, exposure: Exposure, big: Frame, primary: bool, dtype: type[np.generic]
) -> None:
    pixels = big if dtype is np.uint16 else (big // 2).astype(np.int16)
    path = write_raw(pixels, primary=primary)
    original, base = both(path, exposure, hdu=0 if primary else 1)
    found = restored(opened(residual_made(original, base)), opened(base))
    assert found.content == original.content


def test_real_ccds_come_back_from_less_than_fpack_takes(shared_data: Path) -> None:
    path = shared_data / "decam_raw" / "history_reduced_c4d_200306_000415_ori.fits.fz"
    camera = load_camera("decam")
    exposure = read_exposure(path, camera).exposure
    assert exposure is not None
    for span in ccd_spans(path, camera).values():
        original, base = both(path, exposure, span)
        residual = residual_made(original, base)
        assert restored(opened(residual), opened(base)).content == original.content
        together = base.packet.payload_bytes + residual.packet.payload_bytes
        assert together < 0.9 * original.packet.payload_bytes


def test_it_is_a_packet_like_any_other(made: PackedCcd, tmp_path: Path) -> None:
    path = write_packet(tmp_path, made)
    packet = verify(path)
    assert packet.codec == "residual"
    assert packet.parameters["rms_error_adu"] == 0.0
    assert packet.parameters["found_at"] == NOTES["found_at"]


def test_it_names_its_base(pair: tuple[PackedCcd, PackedCcd], made: PackedCcd) -> None:
    original, base = pair
    wanted = base_of(made.packet)
    assert wanted.is_of(base.packet)
    assert not wanted.is_of(original.packet)
    assert not wanted.is_of(made.packet)


def test_by_itself_it_has_no_pixels_and_says_what_to_do(made: PackedCcd, tmp_path: Path) -> None:
    path = write_packet(tmp_path, made)
    for attempt in (lambda: decode(path), lambda: unpack(path, tmp_path / "out")):
        with pytest.raises(PacketError, match=r"is a residual.*prepipe restore"):
            attempt()


def test_a_base_made_with_other_settings_is_refused(
    fpacked: Path, exposure: Exposure, made: PackedCcd
) -> None:
    _, other = both(fpacked, exposure, preset="precise")
    with pytest.raises(PacketError, match="made for another packet"):
        restored(opened(made), opened(other))


def test_an_original_is_no_base(pair: tuple[PackedCcd, PackedCcd], made: PackedCcd) -> None:
    with pytest.raises(PacketError, match="made for another packet"):
        restored(opened(made), opened(pair[0]))


def test_a_packet_that_is_no_residual_is_refused(pair: tuple[PackedCcd, PackedCcd]) -> None:
    original, base = map(opened, pair)
    with pytest.raises(PacketError, match="is no residual but a packet of none"):
        restored(original, base)


def forged(made: PackedCcd, **changes: object) -> PackedCcd:
    """The residual with other words in its parameters, its checksums right."""
    was = opened(made)
    parameters = {**was.packet.parameters}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        parameters[part] = {**parameters[part], key: value} if key else value  # type: ignore[dict-item]
    packet = replace(was.packet, parameters=parameters)
    return build_packet(packet, was.hdu, was.primary_header, was.image_header, was.payload)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"base": None}, "does not say which packet"),
        ({"base": {}}, "does not say which packet"),
        ({"original": [1]}, "does not say which packet"),
        ({"base__payload_checksum": "short"}, "does not say which packet"),
        ({"base__codec": "jpeg2000"}, "made for another packet"),
        ({"base__pixel_checksum": "0" * 32}, "does not decode to the pixels"),
        ({"original__payload_checksum": "0" * 32}, "not the bytes of the raw file"),
    ],
)
def test_parameters_that_lie_are_found_out(
    pair: tuple[PackedCcd, PackedCcd], made: PackedCcd, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(PacketError, match=reason):
        restored(opened(forged(made, **change)), opened(pair[1]))


def test_a_payload_of_other_pixels_is_refused(
    pair: tuple[PackedCcd, PackedCcd], made: PackedCcd
) -> None:
    was = opened(made)
    packet = replace(was.packet, pixel_checksum="0" * 32)
    other = build_packet(packet, was.hdu, was.primary_header, was.image_header, was.payload)
    with pytest.raises(PacketError, match="does not give the pixels of the raw file"):
        restored(opened(other), opened(pair[1]))


def test_a_damaged_payload_is_refused(pair: tuple[PackedCcd, PackedCcd], made: PackedCcd) -> None:
    was = opened(made)
    for payload in (b"", b"PPRS", was.payload[:-4], was.payload[:5000], was.payload + bytes(4)):
        other = build_packet(was.packet, was.hdu, was.primary_header, was.image_header, payload)
        whole = replace(opened(made), payload=payload)
        for attempt in (whole, replace(whole, packet=other.packet)):
            with pytest.raises(
                PacketError, match=r"the residual is damaged|the payload is no residual"
            ):
                restored(attempt, opened(pair[1]))


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1))
def test_whatever_the_payload_it_gives_the_original_or_is_refused(
    pair: tuple[PackedCcd, PackedCcd], made: PackedCcd, changes: list[tuple[int, int]]
) -> None:
    was = opened(made)
    payload = bytearray(was.payload)
    for place, value in changes:
        payload[place % len(payload)] = value
    headers = was.primary_header, was.image_header
    forgery = opened(build_packet(_honest(was.packet, payload), was.hdu, *headers, bytes(payload)))
    with suppress(PacketError):
        assert restored(forgery, opened(pair[1])).content == pair[0].content


def _honest(packet: Packet, payload: bytearray) -> Packet:
    """The packet with the checksum of another payload."""
    return replace(packet, payload_checksum=xxhash.xxh3_128_hexdigest(bytes(payload)))


@pytest.mark.parametrize("codec", ["jpeg2000", "htj2k", "rice"])
def test_of_a_base_whose_decoding_is_not_pinned_there_is_none(
    fpacked: Path, exposure: Exposure, pair: tuple[PackedCcd, PackedCcd], codec: str
) -> None:
    assert residual_of(pair[0], pack_ccd(fpacked, 1, exposure, CCD, codec)) is None


def test_of_a_file_whose_bytes_are_others_than_those_of_fpack_there_is_none(
    tmp_path: Path, exposure: Exposure, big: Frame
) -> None:
    path = tmp_path / "gzip.fits"
    image = fits.CompImageHDU(big, compression_type="GZIP_1")
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
    assert residual_of(*both(path, exposure)) is None


def test_where_it_would_save_nothing_there_is_none(write_raw: Write, exposure: Exposure) -> None:
    random: NDArray[np.uint16] = np.random.default_rng(1).integers(0, 65536, (64, 64), np.uint16)
    assert residual_of(*both(write_raw(random), exposure)) is None


def test_what_does_not_give_the_original_back_is_not_sent(
    pair: tuple[PackedCcd, PackedCcd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual_module, "restored", lambda *_: pair[1])
    assert residual_of(*pair) is None


def test_the_header_of_a_residual_can_be_read_alone(made: PackedCcd, tmp_path: Path) -> None:
    assert read_header(write_packet(tmp_path, made)).parameters == made.packet.parameters
