"""A TPV in the words of SIP is the same sky to a milli-arcsec, for astropy (wcslib) too."""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from prepipe.calibrate.sky.sip import LARGEST_DEVIATION_MAS, Sip, sip_of
from prepipe.calibrate.sky.tpv import Tpv
from prepipe.errors import HeaderError

SHAPE = (4094, 2046)
CORNER_TO_CORNER = np.meshgrid(np.linspace(0, SHAPE[1] - 1, 33), np.linspace(0, SHAPE[0] - 1, 65))
X, Y = (axis.ravel() for axis in CORNER_TO_CORNER)
MAS = 3.6e6
MICRO_ARCSEC = 1e-3

PLAIN = {
    **{"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
    **{"CRVAL1": 150.1, "CRVAL2": -35.0, "CRPIX1": 900.0, "CRPIX2": 2100.0},
    **{"CD1_1": 1e-6, "CD1_2": 7.3e-5, "CD2_1": -7.2e-5, "CD2_2": 2e-6},
}
"""Pixels of DECam."""


def cubic(order: int = 3, size: float = 2.0) -> dict[str, float]:
    """SIP cards that move the corner of a CCD by some pixels."""
    random = np.random.default_rng(order)
    cards: dict[str, float] = {"A_ORDER": order, "B_ORDER": order}
    for axis, (i, j) in product("AB", product(range(order + 1), repeat=2)):
        if i + j <= order:
            cards[f"{axis}_{i}_{j}"] = random.normal(0, size) / 2000.0 ** (i + j)
    return cards


def wcslib(cards: dict[str, float | int | str]) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WCS(fits.Header(cards))


def apart(one: tuple[NDArray[np.float64], ...], other: tuple[NDArray[np.float64], ...]) -> float:
    """Largest distance on the sky, mas; small angles only."""
    east = (one[0] - other[0] + 180.0) % 360.0 - 180.0
    return MAS * float(np.hypot(east * np.cos(np.radians(one[1])), one[1] - other[1]).max())


def back_by_its_own_polynomials(sip: Sip, sky: tuple[NDArray[np.float64], ...]) -> float:
    """How far AP and BP, which some tools use as they are, miss the pixels; mas."""
    wcs = wcslib(sip.to_cards())
    u, v = (np.stack(wcs.wcs_world2pix(*sky, 1)).T - sip.crpix).T
    missed = [
        start + sum(c[i, j] * u**i * v**j for i, j in np.argwhere(c)) + centre - 1 - truth
        for start, c, centre, truth in zip(
            (u, v), (wcs.sip.ap, wcs.sip.bp), sip.crpix, (X, Y), strict=True
        )
    ]
    return 3.6e6 * float(np.hypot(*(sip.cd @ missed)).max())


@pytest.fixture(scope="module")
def decam(shared_data: Path) -> dict[str, Tpv]:
    """Nominal WCS of all 62 CCDs of a raw exposure, and the solution of another one."""
    raw = shared_data / "decam_raw/cutout_c4d_200306_000415_ori.fits.fz"
    with fits.open(raw) as hdus:
        found = {hdu.name: hdu.header for hdu in hdus[1:] if hdu.header["CCDNUM"] <= 62}
    solved = (shared_data / "headers/DECam_00154912_12_header.fits").read_text("latin-1")
    found["solved"] = fits.Header.fromstring(solved)
    return {name: Tpv.from_header(header) for name, header in found.items()}


def test_every_ccd_of_decam_is_told_to_a_milliarcsec_both_ways(decam: dict[str, Tpv]) -> None:
    assert len(decam) == 63
    for name, tpv in decam.items():
        sip = sip_of(tpv, SHAPE)
        theirs, sky = wcslib(sip.to_cards()), tpv.pixel_to_sky(X, Y)
        assert apart(theirs.all_pix2world(X, Y, 0), sky) <= sip.deviation_mas, name
        assert back_by_its_own_polynomials(sip, sky) <= sip.deviation_mas, name
        assert sip.deviation_mas < LARGEST_DEVIATION_MAS
        x, y = theirs.all_world2pix(*sky, 0)
        assert np.hypot(x - X, y - Y).max() < 1e-3, name


def test_the_order_is_the_lowest_that_does(decam: dict[str, Tpv]) -> None:
    # DECam's distortion is a cubic: squares leave 46 mas of it on the median CCD, 177 on the worst.
    assert sip_of(decam["N4"], SHAPE).to_cards()["A_ORDER"] == 3
    square = Tpv.from_header(PLAIN | cubic(2))
    assert sip_of(square, SHAPE).to_cards()["A_ORDER"] == 2


def test_the_middle_of_the_ccd_is_where_the_plane_touches(decam: dict[str, Tpv]) -> None:
    tpv = decam["S30"]
    sip = sip_of(tpv, SHAPE)
    np.testing.assert_array_equal(sip.crpix, [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2])
    middle = tpv.pixel_to_sky(*(sip.crpix - 1.0)[:, None])
    assert apart(middle, tuple(sip.crval[:, None])) < MICRO_ARCSEC
    assert not {"A_0_0", "A_1_0", "A_0_1", "B_0_0", "B_1_0", "B_0_1"} & set(sip.to_cards())


def test_from_tpv_to_sip_and_back_is_the_same_sky(decam: dict[str, Tpv]) -> None:
    sip = sip_of(decam["solved"], SHAPE)
    again = Tpv.from_header(sip.to_cards())
    assert apart(again.pixel_to_sky(X, Y), decam["solved"].pixel_to_sky(X, Y)) <= sip.deviation_mas


def test_a_cubic_sip_is_read_as_wcslib_reads_it() -> None:
    cards = PLAIN | cubic(3)
    ours, theirs = Tpv.from_header(cards), wcslib(cards)
    sky = theirs.all_pix2world(X, Y, 0)
    assert apart(ours.pixel_to_sky(X, Y), sky) < MICRO_ARCSEC
    x, y = ours.sky_to_pixel(*sky)
    assert np.hypot(x - X, y - Y).max() < 1e-6


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_terms_beyond_order_3_are_refused_unless_they_are_nought(size: float) -> None:
    cards = PLAIN | cubic(4) | {f"{axis}_{i}_{4 - i}": size for axis in "AB" for i in range(5)}
    if size:
        with pytest.raises(HeaderError, match="A_0_4 is beyond order 3"):
            Tpv.from_header(cards)
    else:
        theirs = wcslib(cards).all_pix2world(X, Y, 0)
        assert apart(Tpv.from_header(cards).pixel_to_sky(X, Y), theirs) < MICRO_ARCSEC


def test_a_sip_without_its_order_is_refused() -> None:
    with pytest.raises(HeaderError, match="B_ORDER"):
        Tpv.from_header(
            {key: value for key, value in (PLAIN | cubic()).items() if key != "B_ORDER"}
        )


def test_what_no_polynomial_follows_is_refused() -> None:
    # A cone whose tip, a kink, lies on the CCD.
    cone = Tpv.from_header(PLAIN | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_3": 0.5})
    with pytest.raises(HeaderError, match="keep the TPV"):
        sip_of(cone, SHAPE)


def test_across_ra_zero_and_near_the_pole_it_is_the_same_sky() -> None:
    for ra, dec in ((0.0, 0.0), (359.99, -60.0), (120.0, 89.8)):
        tpv = Tpv.from_header(PLAIN | cubic() | {"CRVAL1": ra, "CRVAL2": dec})
        sip = sip_of(tpv, SHAPE)
        found = wcslib(sip.to_cards()).all_pix2world(X, Y, 0)
        assert apart(found, tpv.pixel_to_sky(X, Y)) <= sip.deviation_mas
