"""What comes out of a packet is FITS that others read, with the original cards."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits

from prepipe.codec.cards import keyword_of, split_cards
from prepipe.codec.checksums import verify_checksums
from prepipe.codec.fits_bytes import FitsFile, HduSpan, scan_fits
from prepipe.codec.headers import funpack_header
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.codec.unpack import unpack
from prepipe.errors import PacketError
from prepipe.model import Ccd, Exposure

DECAM = ("cutout_c4d_200306_000415_ori.fits.fz", "history_reduced_c4d_200306_000415_ori.fits.fz")
SUMS = {"CHECKSUM", "DATASUM", "ZHECKSUM", "ZDATASUM"}
GENTLE = {"rms_sigma": 0.3}
Write = Callable[..., Path]


@pytest.fixture
def funpack(tmp_path: Path, funpack_program: str) -> Callable[[Path], Path]:
    """Run funpack of cfitsio."""

    def run(packed: Path) -> Path:
        plain = tmp_path / "funpacked.fits"
        plain.unlink(missing_ok=True)
        done = subprocess.run(
            [funpack_program, "-O", plain, packed], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return plain

    return run


def by_way_of_packet(
    raw: Path,
    hdu: int | HduSpan,
    exposure: Exposure,
    codec: str,
    tmp_path: Path,
    **parameters: object,
) -> Path:
    packed = pack_ccd(raw, hdu, exposure, Ccd(25, "S1"), codec, parameters)
    return unpack(write_packet(tmp_path, packed), tmp_path / "out")


def pixels_by_all(path: Path) -> np.ndarray:
    """Pixels of the last HDU, the same by astropy and by cfitsio."""
    last = len(scan_fits(path)) - 1
    by_astropy = fits.getdata(path, last, uint=True)
    np.testing.assert_array_equal(fitsio.read(str(path), ext=last), by_astropy)
    return np.asarray(by_astropy)


@pytest.mark.parametrize("name", DECAM)
@pytest.mark.parametrize("codec", ["none", "rice"])
def test_every_ccd_of_a_real_exposure_comes_back_bit_for_bit(
    shared_data: Path, name: str, codec: str, exposure: Exposure, tmp_path: Path
) -> None:
    raw = shared_data / "decam_raw" / name
    with FitsFile(raw) as source, fits.open(raw, uint=True) as hdus:
        primary, *ccds = source.spans
        for span in ccds:
            packed = pack_ccd(raw, span, exposure, Ccd(25, "S1"), codec)
            path = unpack(write_packet(tmp_path, packed), tmp_path, verbatim=True)
            whole = primary.header + span.header + source.data_unit(span)
            assert path.read_bytes() == whole
            np.testing.assert_array_equal(pixels_by_all(path), hdus[span.index].data)


@pytest.mark.parametrize("codec", ["none", "rice"])
def test_funpack_reads_a_real_ccd_that_it_refused_in_the_archive_s_own_file(
    shared_data: Path,
    codec: str,
    exposure: Exposure,
    tmp_path: Path,
    funpack: Callable[[Path], Path],
) -> None:
    raw = shared_data / "decam_raw" / DECAM[1]
    span = scan_fits(raw)[3]
    path = by_way_of_packet(raw, span, exposure, codec, tmp_path)
    with FitsFile(path) as file, FitsFile(raw) as source:
        assert sorted(file.spans[1].cards) == sorted(span.cards)
        assert file.data_unit(file.spans[1]) == source.data_unit(span)
    expected = fits.getdata(raw, 3, uint=True)
    np.testing.assert_array_equal(pixels_by_all(path), expected)
    np.testing.assert_array_equal(pixels_by_all(funpack(path)), expected)


def test_a_compressed_header_in_order_is_left_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "cfitsio.fits.fz"
    with fitsio.FITS(str(path), "rw") as file:
        file.write(np.arange(600, dtype=np.uint16).reshape(20, 30), compress="RICE")
    header = scan_fits(path)[1].header
    assert funpack_header(header) == header


def test_cards_that_funpack_trips_over_move_behind_the_structure(tmp_path: Path) -> None:
    hdu = fits.CompImageHDU(np.arange(600, dtype=np.uint16).reshape(20, 30))
    path = tmp_path / "astropy.fits.fz"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    span = scan_fits(path)[1]
    after = split_cards(funpack_header(span.header))
    names = [keyword_of(card) for card in after]
    assert names.index("BZERO") > names.index("ZNAXIS2")
    assert sorted(after) == sorted(span.cards)


@pytest.mark.parametrize("primary", [False, True], ids=["extension", "primary"])
def test_a_plain_image_sent_as_it_is_comes_back_as_the_same_bytes(
    write_raw: Write, frame: np.ndarray, primary: bool, exposure: Exposure, tmp_path: Path
) -> None:
    raw = write_raw(frame, primary=primary)
    path = by_way_of_packet(raw, 0 if primary else 1, exposure, "none", tmp_path)
    assert path.name == "decam_00941420_25.fits"
    assert path.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("primary", [False, True], ids=["extension", "primary"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32"])
def test_funpack_turns_rice_back_into_the_original_file(
    write_raw: Write,
    primary: bool,
    dtype: str,
    exposure: Exposure,
    tmp_path: Path,
    funpack: Callable[[Path], Path],
) -> None:
    pixels = np.random.default_rng(8).normal(100, 20, (50, 70)).clip(0, 255).astype(dtype)
    raw = write_raw(pixels, primary=primary)
    path = by_way_of_packet(raw, 0 if primary else 1, exposure, "rice", tmp_path)
    assert path.name == "decam_00941420_25.fits.fz"
    np.testing.assert_array_equal(pixels_by_all(path), pixels)
    plain = funpack(path)
    np.testing.assert_array_equal(pixels_by_all(plain), pixels)
    ours, original = scan_fits(plain)[-1], scan_fits(raw)[-1]
    assert set(original.cards) <= set(ours.cards)
    last = verify_checksums(plain)[-1]
    assert (last.data, last.hdu) == (True, True)


def test_an_image_packed_with_gzip_tiles_comes_back_as_rice_with_its_cards(
    frame: np.ndarray, exposure: Exposure, tmp_path: Path, funpack: Callable[[Path], Path]
) -> None:
    raw = tmp_path / "gzip.fits.fz"
    with fitsio.FITS(str(raw), "rw") as file:
        file.write(None)
        file.write(frame, compress="GZIP_2", tile_dims=(64, 64), header={"CCDNUM": 25})
    path = by_way_of_packet(raw, 1, exposure, "rice", tmp_path)
    np.testing.assert_array_equal(pixels_by_all(path), frame)
    np.testing.assert_array_equal(pixels_by_all(funpack(path)), frame)
    assert scan_fits(path)[1].value("CCDNUM") == 25


@pytest.mark.parametrize("compressed", [False, True])
def test_a_lossy_packet_comes_back_with_its_cards_and_the_tale_of_its_loss(
    compressed: bool,
    write_raw: Write,
    frame: np.ndarray,
    shared_data: Path,
    exposure: Exposure,
    tmp_path: Path,
    funpack: Callable[[Path], Path],
) -> None:
    raw = shared_data / "decam_raw" / DECAM[1] if compressed else write_raw(frame)
    path = by_way_of_packet(raw, 1, exposure, "jpeg2000", tmp_path, **GENTLE)
    ours, original = scan_fits(path)[1], scan_fits(raw)[1]
    structure = ("NAXIS", "PCOUNT", "TFORM", "XTENSION", "BITPIX", "GCOUNT")
    for card in original.cards:
        keyword = keyword_of(card)
        if keyword not in SUMS and not keyword.startswith(structure):
            assert card in ours.cards
    assert ours.value("PPCODEC") == "jpeg2000"
    assert ours.value("PPRMSSIG") == pytest.approx(0.3, rel=0.15)
    assert ours.cards[-1].startswith(b"HISTORY")
    assert not ours.has("ZDATASUM")
    np.testing.assert_array_equal(pixels_by_all(path), pixels_by_all(funpack(path)))
    sums = verify_checksums(path)[1]
    assert (sums.data, sums.hdu) == (True, True)


def test_the_real_frames_of_hsc_and_sdss_come_back_as_primary_images(
    shared_data: Path, exposure: Exposure, tmp_path: Path, funpack: Callable[[Path], Path]
) -> None:
    for raw in (
        shared_data / "hsc_raw" / "cutout_HSCA21787010.fits",
        shared_data / "sdss" / "fpC-004192-g4-0300.fit.gz",
    ):
        expected = fits.getdata(raw, 0, uint=True)
        path = by_way_of_packet(raw, 0, exposure, "rice", tmp_path)
        plain = funpack(path)
        np.testing.assert_array_equal(pixels_by_all(path), expected)
        np.testing.assert_array_equal(pixels_by_all(plain), expected)
        assert len(scan_fits(plain)) == 1
        exact = by_way_of_packet(raw, 0, exposure, "none", tmp_path)
        np.testing.assert_array_equal(pixels_by_all(exact), expected)


def test_pixels_of_a_primary_hdu_that_is_not_the_ccd_are_left_behind(
    frame: np.ndarray, exposure: Exposure, tmp_path: Path
) -> None:
    raw = tmp_path / "two.fits"
    preview = fits.PrimaryHDU(frame[:10, :10])
    preview.header["EXPNUM"] = 941420
    fits.HDUList([preview, fits.ImageHDU(frame)]).writeto(raw)
    path = by_way_of_packet(raw, 1, exposure, "rice", tmp_path)
    first = scan_fits(path)[0]
    assert (first.value("NAXIS"), first.value("EXPNUM")) == (0, 941420)
    np.testing.assert_array_equal(pixels_by_all(path), frame)


def test_a_damaged_packet_leaves_no_file_behind(
    write_raw: Write, frame: np.ndarray, exposure: Exposure, tmp_path: Path
) -> None:
    packed = pack_ccd(write_raw(frame), 1, exposure, Ccd(25, "S1"), "rice")
    path = tmp_path / packed.packet.file_name
    path.write_bytes(packed.content[:-1] + b"?")
    with pytest.raises(PacketError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
