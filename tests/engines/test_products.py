"""What lies on disk: read alike by every FITS reader, with all that is still true of the CCD."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from prepipe.calibrate.detector.weight import inverse_variance
from prepipe.calibrate.flags import Mask
from prepipe.codec.cards import make_card
from prepipe.codec.checksums import verify_checksums
from prepipe.engines.builtin.output import WEIGHT_STEPS
from prepipe.engines.products import (
    Plane,
    read_master,
    value_card,
    write_image,
    write_master,
)
from prepipe.errors import FitsError, PixelError

SHAPE = (60, 210)
NOISE = 12.0
RAW_CARDS = (
    make_card("OBJECT", "O'Neill's field", "as observed"),
    b"HIERARCH ESO DET CHIP NAME = 'long'  / a long keyword".ljust(80),
    make_card("LSKYPOW", "NaN", "a string"),
    b"UNKNOWN =                      / no value".ljust(80),
    b"COMMENT   two  blanks stay".ljust(80),
    b"HISTORY as written at the telescope".ljust(80),
    b"AIRMASS =            1.2300E+00 / odd digits stay".ljust(80),
    b"                             a card without keyword".ljust(80),
)
STALE_CARDS = (
    make_card("XTENSION", "IMAGE"),
    make_card("NAXIS1", 2160),
    make_card("BZERO", 32768.0),
    make_card("DATASUM", "1234"),
    make_card("EXTNAME", "S1"),
    make_card("DATASECA", "[1:2,3:4]"),
    make_card("PV1_5", 1.0),
    make_card("CD1_1", 1.0),
    make_card("ZSCALE", 3.0),
)


@pytest.fixture(scope="module")
def planes() -> dict[str, Plane]:
    rng = np.random.default_rng(1)
    image = rng.normal(900, NOISE, SHAPE).astype(np.float32)
    image[10:14, 20:50] = 250_000.0
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:14, 20:50] = Mask.SATURATED
    mask[:, :15] = Mask.EDGE
    step = 1 / (WEIGHT_STEPS * NOISE**2)
    weight = inverse_variance(np.maximum(image, 0) + 25, mask, smallest=step)
    return {
        "IMAGE": Plane(image, NOISE / 8),
        "MASK": Plane(mask),
        "WEIGHT": Plane(weight, step),
    }


@pytest.fixture(scope="module")
def product(planes: dict[str, Plane], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("products") / "ccd.fits.fz"
    own = [
        ("CRVAL1", 150.123456789012345, "[deg]"),
        ("OBJECT", "told anew", ""),
        ("SEEING", float("nan"), "[arcsec]"),
        ("WCSOK", np.bool_(True), ""),
        ("WCSNUM", np.int64(412), ""),
    ]
    write_image(path, (*STALE_CARDS, *RAW_CARDS), (*STALE_CARDS, *RAW_CARDS), planes, own)
    return path


def read_by_astropy(path: Path, name: str) -> NDArray[np.generic]:
    with fits.open(path) as hdus:
        return hdus[name].data


@pytest.mark.parametrize("name", ["IMAGE", "MASK", "WEIGHT"])
def test_astropy_fitsio_and_funpack_read_the_same_pixels(
    name: str, product: Path, planes: dict[str, Plane], tmp_path: Path, funpack_program: str
) -> None:
    unpacked = tmp_path / "unpacked.fits"
    subprocess.run([funpack_program, "-O", unpacked, product], check=True)
    pixels = read_by_astropy(product, name)
    assert pixels.dtype == planes[name].pixels.dtype
    np.testing.assert_array_equal(fitsio.read(str(product), ext=name), pixels)
    np.testing.assert_array_equal(read_by_astropy(unpacked, name), pixels)
    step = planes[name].step or 0.0
    # half a step, and what the 24 bits of a float leave open
    allowed = 0.5 * step + 2.0**-22 * np.abs(planes[name].pixels)
    assert (np.abs(pixels - planes[name].pixels) <= allowed).all()


def test_every_checksum_is_right(product: Path) -> None:
    sums = verify_checksums(product)
    assert len(sums) == 4
    assert all(found.data and found.hdu for found in sums[1:])


@pytest.mark.parametrize("hdu", [0, 1])
def test_cards_that_are_still_true_go_over_byte_for_byte(product: Path, hdu: int) -> None:
    content = product.read_bytes()
    begin = content.find(b"EXTNAME = 'IMAGE") if hdu else 0
    header = content[begin : content.find(b"END".ljust(80), begin)]
    cards = [header[place : place + 80] for place in range(0, len(header), 80)]
    told_anew = RAW_CARDS[:1]
    for card in RAW_CARDS:
        assert (card in cards) == (card not in told_anew)


@pytest.mark.parametrize("hdu", [0, 1])
def test_cards_that_are_no_longer_true_are_gone(product: Path, hdu: int) -> None:
    header = fitsio.read_header(str(product), ext=hdu)
    for keyword in ("BZERO", "DATASECA", "PV1_5", "CD1_1", "ZSCALE"):
        assert keyword not in header
    assert header.get("EXTNAME") == ("IMAGE" if hdu else None)


def test_cards_of_our_own_replace_the_original_ones(product: Path) -> None:
    header = fitsio.read_header(str(product), ext="IMAGE")
    assert header["OBJECT"] == "told anew"
    assert header["CRVAL1"] == 150.123456789012345
    assert (header["WCSOK"], header["WCSNUM"]) == (True, 412)
    assert "SEEING" not in header
    with fits.open(product) as hdus:
        assert hdus["IMAGE"].header["CRVAL1"] == 150.123456789012345
        assert "OBJECT" not in hdus["MASK"].header


@pytest.mark.parametrize("value", [0.1, -1e-300, 1e22, 123456789.123456789, 3.0])
def test_a_number_in_a_card_keeps_its_last_digit(value: float) -> None:
    card = value_card("KEY", value, "comment")
    assert len(card) == 80
    header = fits.Header.fromstring(card.decode())
    assert header["KEY"] == value
    assert header.comments["KEY"] == "comment"


def test_a_long_text_is_cut_where_its_card_ends() -> None:
    assert len(value_card("KEY", "it's " * 40)) == 80


def test_saturated_pixels_do_not_wrap_around(product: Path) -> None:
    assert (read_by_astropy(product, "IMAGE")[10:14, 20:50] > 249_990).all()


def test_weights_are_told_to_one_percent_of_the_sky_and_never_vanish(
    product: Path, planes: dict[str, Plane]
) -> None:
    true, found = planes["WEIGHT"].pixels, read_by_astropy(product, "WEIGHT")
    np.testing.assert_array_equal(found == 0, true == 0)
    assert np.abs(found - true).max() < 0.01 / NOISE**2


def test_the_weight_is_one_over_the_variance_but_for_masked_pixels() -> None:
    variance = np.array([[4.0, 4.0, 4.0, np.inf, 1e6]], np.float32)
    mask = np.array([[0, Mask.EDGE, Mask.COSMIC_RAY, 0, 0]], np.uint8)
    weight = inverse_variance(variance, mask, smallest=0.001)
    np.testing.assert_array_equal(weight, np.float32([[0.25, 0.25, 0.0, 0.0, 0.001]]))


def test_a_master_comes_back_within_half_a_step(tmp_path: Path) -> None:
    image = np.random.default_rng(2).normal(3.0, 0.4, SHAPE).astype(np.float32)
    path = tmp_path / "bias.fits.fz"
    write_master(path, image, 0.4, [("NOISE", 0.4, ""), ("CCDNUM", 3, "CCD number")])
    found, noise = read_master(path)
    assert noise == 0.4
    assert np.abs(found - image).max() <= 0.4 / 16 * 1.0001
    np.testing.assert_array_equal(found, fitsio.read(str(path), ext=1))


def test_a_master_written_by_cfitsio_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "bias.fits.fz"
    image = np.random.default_rng(3).normal(3.0, 0.4, SHAPE).astype(np.float32)
    with fitsio.FITS(str(path), "rw") as stream:
        stream.write_image(None)
        stream.write(image, header={"NOISE": 0.4}, compress="RICE", qlevel=-0.05)
    np.testing.assert_allclose(read_master(path)[0], image, atol=0.06)


@pytest.mark.parametrize("damage", ["cut", "noise", "tiles"])
def test_a_damaged_master_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bias.fits.fz"
    cards = [] if damage == "noise" else [("NOISE", 0.4, "")]
    write_master(path, np.ones(SHAPE, np.float32), 0.4, cards)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-2880]
    if damage == "tiles":
        content[-2880 * 2 : -2880] = b"\xff" * 2880
    path.write_bytes(content)
    with pytest.raises(FitsError, match=r"bias\.fits\.fz: this master"):
        read_master(path)


def test_a_plane_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "ccd.fits.fz"
    with pytest.raises(PixelError, match="float64"):
        write_image(path, (), (), {"IMAGE": Plane(np.zeros(SHAPE), 1.0)}, [])
    assert not list(tmp_path.iterdir())
