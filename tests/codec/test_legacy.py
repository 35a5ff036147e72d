"""Archives of the legacy system: a tar of JPEG 2000 files."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from astropy.io import fits
from codec_frames import simulated_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from prepipe.codec.legacy import unpack_legacy
from prepipe.errors import PacketError

FRAME = simulated_frame(64, 90)
JP2 = bytes(imagecodecs.jpeg2k_encode(FRAME, codecformat="JP2", reversible=True))


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def with_header(jp2: bytes, cards: list[str]) -> bytes:
    """The file with header cards in a box of their own, behind its others."""
    text = b"".join(card.encode().ljust(80) for card in [*cards, "END"])
    return jp2 + struct.pack(">I4s", 8 + 16 + len(text), b"uuid") + bytes(16) + text


def test_every_ccd_of_an_archive_becomes_a_fits_file(tmp_path: Path) -> None:
    names = ("DECam_00941420_25", "DECam_00941420_31")
    members = {f"{name}.jp2": JP2 for name in names} | {"readme.txt": b"not for us"}
    written = unpack_legacy(tar_of(tmp_path / "DECam_00941420.tar", members), tmp_path / "out")
    assert [path.name for path in written] == [f"{name}.fits" for name in names]
    for path in written:
        np.testing.assert_array_equal(fits.getdata(path), FRAME)


def test_header_cards_in_the_file_are_kept(tmp_path: Path) -> None:
    cards = [
        "SIMPLE  =                    T",
        "NAXIS1  =                    1",
        "EXPNUM  =               941420 / exposure number",
        "OBJECT  = 'COSMOS 1'",
    ]
    archive = tar_of(tmp_path / "x.tar", {"x.jp2": with_header(JP2, cards)})
    (path,) = unpack_legacy(archive, tmp_path / "out")
    header = fits.getheader(path)
    assert (header["EXPNUM"], header["OBJECT"]) == (941420, "COSMOS 1")
    assert header["NAXIS1"] == FRAME.shape[1]


@pytest.mark.parametrize("name", ["../x.jp2", "/tmp/x.jp2", "a/b.jp2", ".x.jp2", "-x.jp2"])
def test_a_name_that_would_leave_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PacketError, match="no safe file name"):
        unpack_legacy(tar_of(tmp_path / "x.tar", {name: JP2}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x.jp2")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(entry)
    with pytest.raises(PacketError, match=r"x\.jp2 is no file"):
        unpack_legacy(tmp_path / "x.tar", tmp_path / "out")


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", {"x.jp2": JP2, "./x.jp2": JP2})
    with pytest.raises(PacketError, match="twice"):
        unpack_legacy(archive, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"no tar" * 200])
def test_what_is_no_archive_of_images_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(PacketError, match=r"x\.tar: "):
        unpack_legacy(path, tmp_path / "out")


def test_a_truncated_archive_gives_what_came_before(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "x.tar", {"a.jp2": JP2, "b.jp2": JP2}).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: whole.index(b"b.jp2") + 1500])
    with pytest.raises(PacketError):
        unpack_legacy(tmp_path / "x.tar", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.fits"]


def test_an_image_that_states_a_huge_size_takes_no_memory(tmp_path: Path) -> None:
    lie = bytearray(JP2)
    place = lie.index(b"\xff\x4f\xff\x51") + 8
    lie[place : place + 8] = b"\x00\x0f\xff\xff" * 2
    with pytest.raises(PacketError, match="no JPEG 2000 image"):
        unpack_legacy(tar_of(tmp_path / "x.tar", {"x.jp2": bytes(lie)}), tmp_path / "out")


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(JP2.__add__)))
def test_any_bytes_for_an_image_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.mktemp("legacy")
    try:
        unpack_legacy(tar_of(directory / "x.tar", {"x.jp2": content}), directory / "out")
    except PacketError:
        assert not list(directory.glob("out/*"))
