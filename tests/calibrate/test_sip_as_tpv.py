"""A SIP in the words of TPV is the same sky to a milli-arcsec, for astropy (wcslib) too."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from prepipe.calibrate.sky.sip_as_tpv import tpv_cards
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.errors import HeaderError

SHAPE = (4176, 2048)
"""Of an HSC CCD."""
X, Y = (
    axis.ravel()
    for axis in np.meshgrid(np.linspace(0, SHAPE[1] - 1, 33), np.linspace(0, SHAPE[0] - 1, 65))
)
PLAIN = {
    **{"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
    **{"CRVAL1": 150.1, "CRVAL2": 2.2, "CRPIX1": 1024.5, "CRPIX2": 2088.5},
    **{"CD1_1": 1e-7, "CD1_2": -4.72e-5, "CD2_1": 4.72e-5, "CD2_2": 2e-7},
}


def sip(order: int, pixels: float = 3.0) -> dict[str, float | str]:
    """A SIP whose terms of each order move the corner of the CCD by some pixels."""
    random = np.random.default_rng(order)
    cards: dict[str, float | str] = {**PLAIN, "A_ORDER": order, "B_ORDER": order}
    for axis, (i, j) in product("AB", product(range(order + 1), repeat=2)):
        if 2 <= i + j <= order:
            cards[f"{axis}_{i}_{j}"] = random.normal(0, pixels) / 2088.0 ** (i + j)
    return cards


def wcslib(cards: object) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(fits.Header(cards))


def apart_mas(one: WCS, other: WCS, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Largest distance on the sky."""
    (ra, dec), (there, below) = one.all_pix2world(x, y, 0), other.all_pix2world(x, y, 0)
    return 3.6e6 * float(np.hypot((ra - there) * np.cos(np.radians(dec)), dec - below).max())


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6, 7])
def test_all_over_the_ccd_it_is_the_same_to_a_milli_arcsec(order: int) -> None:
    cards = sip(order)

    told = tpv_cards(cards, SHAPE)

    assert told["CTYPE1"] == "RA---TPV"
    assert not any(key.startswith(("A_", "B_")) for key in told)
    assert apart_mas(wcslib(cards), wcslib(told), X, Y) < 1.0


def test_small_high_orders_are_told_by_a_cubic() -> None:
    cards = sip(3) | {"A_ORDER": 5, "B_ORDER": 5, "A_4_1": 0.002 / 2088.0**5}

    told = tpv_cards(cards, SHAPE)

    assert not any(key.startswith("PV") and int(key[4:]) > 10 for key in told)
    assert apart_mas(wcslib(cards), wcslib(told), X, Y) < 1.0
    assert Tpv.from_header(told).distorted


def test_a_reference_pixel_far_off_the_ccd_does_no_harm() -> None:
    cards = sip(4, pixels=0.3) | {"CRPIX1": -9000.0, "CRPIX2": 14000.0}

    told = tpv_cards(cards, SHAPE)

    assert apart_mas(wcslib(cards), wcslib(told), X, Y) < 1.0


def test_the_stacks_own_wcs_of_a_real_exposure_is_kept(shared_data: Path) -> None:
    path = shared_data / "decam_raw" / "cutout_calexp-0941420_23.fits"
    header = fits.getheader(path, 1)
    assert header["A_ORDER"] == 4

    told = tpv_cards(header, (4094, 2046))

    assert apart_mas(wcslib(header), wcslib(told), X * 0.999, Y * 0.98) < 1.0


def test_a_plain_tan_stays_one() -> None:
    cards = PLAIN | {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}

    assert tpv_cards(cards, SHAPE)["CTYPE1"] == "RA---TAN"


def test_what_no_tpv_can_tell_is_refused() -> None:
    cards = sip(3) | {"A_ORDER": 9, "B_ORDER": 9, "A_9_0": 500.0 / 2088.0**9}

    with pytest.raises(HeaderError, match="keep the SIP"):
        tpv_cards(cards, SHAPE)
