"""Whatever frame arrives, the engine answers: with a product that says so, or one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from simulated_night import CCDS, Night, order_of

from prepipe.engines.base import Outcome
from prepipe.engines.builtin import carry_out
from prepipe.errors import InputError
from prepipe.model import Colour


def changed(night: Night, tmp_path: Path, change: object) -> Outcome:
    """The night's first CCD, uncompressed, after `change` was done to its HDU."""
    with fits.open(night.raw) as hdus:
        image = fits.ImageHDU(hdus[1].data.copy(), hdus[1].header, name="S1")
        primary = hdus[0].copy()
    change(primary, image)
    path = tmp_path / "changed.fits"
    fits.HDUList([primary, image]).writeto(path, output_verify="silentfix")
    return carry_out(order_of(night.root, path, 1, products=tmp_path / "products"))


def flooded(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.data[:] = 65535


def zeroed(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.data[:] = 0


def starless(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    rng = np.random.default_rng(1)
    image.data[:] = rng.normal(2100, 3, image.data.shape).astype(np.uint16)


def three_stars(primary: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    starless(primary, image)
    grid = np.arange(-15, 16)
    star = 4000 * np.exp(-(grid**2 + grid[:, None] ** 2) / 8.0)
    for y, x in ((1000, 500), (2000, 800), (3000, 1500)):
        image.data[y - 15 : y + 16, x - 15 : x + 16] += star.astype(np.uint16)


def doubled(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    data = image.data.astype(np.int32)
    image.data[:] = np.clip(data + np.roll(data, (60, 45), (0, 1)) - 2100, 0, 65535)


def half_read(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.data[2000:] = 0


def wrong_field(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.header["CRVAL1"] += 0.7


def without_wcs(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
    image.header["CRVAL1"] = "NaN"


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (flooded, "SATURATED_FRAME"),
        (zeroed, "DEAD"),
        (starless, "NO_WCS"),
        (three_stars, "NO_WCS"),
        (wrong_field, "NO_WCS"),
        (without_wcs, "NO_NOMINAL_WCS"),
    ],
)
def test_a_hopeless_frame_is_red_and_says_why(
    night: Night, tmp_path: Path, change: object, flag: str
) -> None:
    outcome = changed(night, tmp_path, change)
    assert outcome.grade.colour is Colour.RED
    assert outcome.grade.reasons
    assert flag in outcome.reduction.flags
    assert outcome.reduction.wcs_rms_mas is None
    assert Path(outcome.reduction.product).is_file()


def test_a_doubled_exposure_never_yields_a_wcs(night: Night, tmp_path: Path) -> None:
    assert changed(night, tmp_path, doubled).reduction.wcs_rms_mas is None


def test_half_a_frame_is_still_solved(night: Night, tmp_path: Path) -> None:
    outcome = changed(night, tmp_path, half_read)
    assert outcome.reduction.wcs_rms_mas is not None


@pytest.mark.parametrize(
    ("keyword", "where"),
    [("BIASSECA", "extension"), ("EXPTIME", "primary"), ("CCDNUM", "extension")],
)
def test_a_missing_card_is_one_clear_error(
    night: Night, tmp_path: Path, keyword: str, where: str
) -> None:
    def drop(primary: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
        del (primary if where == "primary" else image).header[keyword]

    with pytest.raises(InputError, match=keyword):
        changed(night, tmp_path, drop)


def test_pixels_of_a_wrong_type_are_one_clear_error(night: Night, tmp_path: Path) -> None:
    def to_complex(_: fits.PrimaryHDU, image: fits.ImageHDU) -> None:
        image.data = image.data.astype(np.int64)

    with pytest.raises(InputError, match="raw pixels are"):
        changed(night, tmp_path, to_complex)


def test_a_truncated_file_is_one_clear_error(night: Night, tmp_path: Path) -> None:
    whole = night.raw.read_bytes()
    path = tmp_path / "cut.fits.fz"
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError, match=r"cut\.fits\.fz"):
        carry_out(order_of(night.root, path, 1, products=tmp_path))


def test_without_masters_the_grade_says_so(night: Night, tmp_path: Path) -> None:
    order = order_of(night.root, night.raw, 1, calibrations=None, products=tmp_path)
    outcome = carry_out(order)
    assert {"NO_BIAS", "NO_FLAT"} <= set(outcome.reduction.flags)
    assert outcome.grade.colour is Colour.YELLOW
    assert outcome.reduction.ccd in CCDS
