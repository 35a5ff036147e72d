"""Reading a CCD: the pixels and cards of the file, from a packet alike, and damage told apart."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.calibrate.flags import Mask
from prepipe.cameras.generic import Cards, Description, GenericCamera
from prepipe.codec.fits_bytes import FitsFile
from prepipe.codec.pack import pack_ccd
from prepipe.codec.packet import write_packet
from prepipe.engines.raw import list_ccds, read_ccd, read_exposure
from prepipe.errors import FitsError, InputError

ROWS, COLUMNS, OVERSCAN = 60, 200, 20
START = datetime(2020, 3, 6, 0, 4, 15, tzinfo=UTC)

camera = GenericCamera(
    Description(
        name="small",
        pixel_scale=0.3,
        cards=Cards(ccd="CCDNUM", data_section="DATASEC", overscan_section="BIASSEC"),
    )
)


def image_cards(ccd: int) -> dict[str, object]:
    return {
        "CCDNUM": ccd,
        "DATASEC": f"[{OVERSCAN + 1}:{COLUMNS},1:{ROWS}]",
        "BIASSEC": f"[1:{OVERSCAN},1:{ROWS}]",
        "HIERARCH ESO DET NAME": "long",
    }


def pixels_of(ccd: int) -> np.ndarray:
    return np.random.default_rng(ccd).normal(2000, 12, (ROWS, COLUMNS)).astype(np.uint16)


def write(path: Path, *, compressed: bool = True, **how: object) -> Path:
    """A raw file of three CCDs."""
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "EXPNUM": 77,
            "DATE-OBS": START.isoformat().removesuffix("+00:00"),
            "EXPTIME": 20.0,
            "FILTER": "g",
            "OBJECT": "field",
            "LSKYPOW": "NaN",
        }
    )
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    hdus = [kind(pixels_of(ccd), fits.Header(image_cards(ccd)), **how) for ccd in (1, 2, 3)]
    fits.HDUList([primary, *hdus]).writeto(path, checksum=True)
    return path


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    return write(tmp_path / "raw.fits.fz", compression_type="RICE_1")


def damaged(path: Path, rows: list[int], hdu: int = 2) -> Path:
    """Overwrite the tiles of some rows."""
    content = bytearray(path.read_bytes())
    with FitsFile(path) as file:
        span = file.spans[hdu]
        table = np.frombuffer(file.data_unit(span), ">i4", 2 * ROWS).reshape(ROWS, 2)
    for row in rows:
        length, offset = table[row].tolist()
        begin = span.data_offset + table.nbytes + offset
        content[begin + 3 : begin + length] = bytes(length - 3)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "how",
    [
        {"compression_type": "RICE_1"},
        {"compression_type": "GZIP_1"},
        {"compression_type": "RICE_1", "tile_shape": (20, 50)},
        {"compressed": False},
    ],
)
def test_every_ccd_is_found_and_read(how: dict[str, object], tmp_path: Path) -> None:
    path = write(tmp_path / "raw.fits", **how)
    found = list_ccds(path, camera)
    assert [(hdu, ccd.number) for hdu, ccd in found] == [(1, 1), (2, 2), (3, 3)]
    for hdu, ccd in found:
        raw = read_ccd(path, hdu, camera)
        assert raw.ccd == ccd
        assert raw.pixels.dtype == np.uint16 and raw.pixels.dtype.isnative
        np.testing.assert_array_equal(raw.pixels, pixels_of(ccd.number))
        assert raw.corrupt_rows is None
        assert raw.sum_fits is True


def test_the_exposure_is_that_of_the_headers(raw_file: Path) -> None:
    exposure = read_exposure(raw_file, camera)
    assert (exposure.number, exposure.start, exposure.band) == (77, START, "g")
    assert read_ccd(raw_file, 2, camera).exposure == exposure


def test_the_extension_inherits_from_the_primary_header(raw_file: Path) -> None:
    header = read_ccd(raw_file, 1, camera).header
    assert (header["CCDNUM"], header["EXPNUM"], header["LSKYPOW"]) == (1, 77, "NaN")
    assert header["ESO DET NAME"] == "long"
    assert (header["NAXIS1"], header["NAXIS2"]) == (COLUMNS, ROWS)


def test_a_packet_gives_the_same_as_its_file(raw_file: Path, tmp_path: Path) -> None:
    raw = read_ccd(raw_file, 2, camera)
    for codec in ("none", "rice"):
        packed = pack_ccd(raw_file, 2, raw.exposure, raw.ccd, codec)
        again = read_ccd(write_packet(tmp_path / codec, packed), None, camera)
        np.testing.assert_array_equal(again.pixels, raw.pixels)
        assert again.exposure == raw.exposure
        assert again.original_cards() == raw.original_cards()


def test_original_cards_are_those_of_the_file(raw_file: Path) -> None:
    primary, extension = read_ccd(raw_file, 2, camera).original_cards()
    content = raw_file.read_bytes()
    assert all(card in content for card in primary)
    assert any(card.startswith(b"HIERARCH ESO DET NAME") for card in extension)


def test_corrupt_tiles_cost_their_rows_only(raw_file: Path) -> None:
    raw = read_ccd(damaged(raw_file, [7, 30]), 2, camera)
    assert raw.corrupt_rows is not None
    assert raw.corrupt_rows.tolist() == [7, 30]
    assert raw.sum_fits is False
    sound = np.delete(np.arange(ROWS), [7, 30])
    np.testing.assert_array_equal(raw.pixels[sound], pixels_of(2)[sound])
    mask = raw.corrupt_mask(camera.layout(raw.header, raw.pixels))
    assert mask is not None
    assert mask.shape == (ROWS, COLUMNS - OVERSCAN)
    assert (mask[[7, 30]] == Mask.CORRUPT).all()
    assert not mask[sound].any()


def test_other_ccds_of_a_damaged_file_are_sound(raw_file: Path) -> None:
    path = damaged(raw_file, [7])
    for hdu in (1, 3):
        raw = read_ccd(path, hdu, camera)
        assert raw.corrupt_rows is None
        assert raw.corrupt_mask(camera.layout(raw.header, raw.pixels)) is None


def test_too_many_corrupt_rows_are_an_error(raw_file: Path) -> None:
    path = damaged(raw_file, list(range(0, ROWS, 8)))
    with pytest.raises(FitsError, match=r"raw\.fits\.fz\[2\]: 8 of 60 rows are corrupt"):
        read_ccd(path, 2, camera)


@pytest.mark.parametrize("hdu", [4, 100])
def test_an_hdu_that_is_not_there_is_one_clear_error(raw_file: Path, hdu: int) -> None:
    with pytest.raises(FitsError, match=f"ends before HDU {hdu}"):
        read_ccd(raw_file, hdu, camera)


@pytest.mark.parametrize("kept", [0, 100, 2880, 5000, 20_000, 40_000])
def test_a_truncated_file_is_one_clear_error(raw_file: Path, kept: int) -> None:
    raw_file.write_bytes(raw_file.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"raw\.fits\.fz"):
        read_ccd(raw_file, 3, camera)


def test_text_is_no_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("cloudy since midnight\n" * 200)
    for read in (read_exposure, list_ccds):
        with pytest.raises(FitsError, match=r"notes\.txt"):
            read(path, camera)
