"""The world coordinate system agrees with astropy (wcslib) and says no to what it cannot read."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from prepipe.calibrate.sky.tpv import Tpv, gnomonic
from prepipe.errors import HeaderError

MICRO_ARCSEC = 1e-6 / 3600.0
COLUMNS, ROWS = (
    a.ravel().astype(float) for a in np.meshgrid(np.linspace(-50, 2100, 9), np.linspace(0, 4100, 9))
)

PLAIN = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 351.6,
    "CRVAL2": 0.1,
    "CRPIX1": 1024.5,
    "CRPIX2": 744.5,
    "CD1_1": 1.9e-8,
    "CD1_2": 1.1e-4,
    "CD2_1": 1.1e-4,
    "CD2_2": 9.7e-9,
}

DISTORTED = PLAIN | {
    "CTYPE1": "RA---TPV",
    "CTYPE2": "DEC--TPV",
    "CRPIX1": 8914.4,
    "CRPIX2": -6470.7,
    "PV1_0": 0.0081,
    "PV1_1": 1.0285,
    "PV1_2": -0.0751,
    "PV1_3": 0.002,
    "PV1_4": -0.0316,
    "PV1_7": 0.0144,
    "PV1_10": -0.0906,
    "PV2_1": 1.0183,
    "PV2_2": 0.0082,
    "PV2_3": -0.001,
    "PV2_5": -0.0172,
    "PV2_8": 0.0096,
}


def separation(ra1, dec1, ra2, dec2):
    """Largest distance on the sky, deg; small angles only."""
    east = (np.asarray(ra1) - ra2 + 180.0) % 360.0 - 180.0
    return float(np.hypot(east * np.cos(np.radians(dec1)), np.asarray(dec1) - dec2).max())


def real_headers(shared_data: Path) -> dict[str, fits.Header]:
    found = {}
    for path in sorted((shared_data / "headers").glob("*.hdr")):
        header = fits.Header.fromtextfile(path)
        if "CTYPE1" in header:
            found[path.name] = header
    return found


def wcslib(header) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cards = fits.Header()
        for key, value in header.items():
            if key.startswith(("CTYPE", "CRVAL", "CRPIX", "CD", "PV", "CUNIT")) and key[-1] != "A":
                cards[key] = value
        return WCS(cards)


@pytest.mark.parametrize("header", [PLAIN, DISTORTED], ids=["TAN", "TPV with radial terms"])
def test_sky_and_pixel_agree_with_wcslib(header):
    ours, theirs = Tpv.from_header(header), wcslib(header)
    ra, dec = ours.pixel_to_sky(COLUMNS, ROWS)
    expected = theirs.all_pix2world(COLUMNS, ROWS, 0)
    assert separation(ra, dec, *expected) < MICRO_ARCSEC
    x, y = ours.sky_to_pixel(*expected)
    assert np.abs(np.hypot(x - COLUMNS, y - ROWS)).max() < 1e-6


def test_real_headers_agree_with_wcslib(shared_data):
    headers = real_headers(shared_data)
    assert any("decam" in name for name in headers)
    assert any("hsc" in name for name in headers)
    for name, header in headers.items():
        ours, theirs = Tpv.from_header(header), wcslib(header)
        expected = theirs.all_pix2world(COLUMNS, ROWS, 0)
        assert separation(*ours.pixel_to_sky(COLUMNS, ROWS), *expected) < MICRO_ARCSEC, name
        x, y = ours.sky_to_pixel(*expected)
        assert np.abs(np.hypot(x - COLUMNS, y - ROWS)).max() < 1e-6, name


@settings(max_examples=60, deadline=None)
@given(
    ra=st.floats(0, 359.99),
    dec=st.floats(-90, 90),
    angle=st.floats(0, 360),
    x=st.floats(-3000, 3000),
    y=st.floats(-3000, 3000),
)
def test_a_pixel_comes_back_from_anywhere_on_the_sky(ra, dec, angle, x, y):
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    cards = DISTORTED | {"CRVAL1": ra, "CRVAL2": dec, "CRPIX1": 20.0, "CRPIX2": -900.0}
    cards |= {"CD1_1": 7e-5 * c, "CD1_2": -7e-5 * s, "CD2_1": 7e-5 * s, "CD2_2": 7e-5 * c}
    wcs = Tpv.from_header(cards)
    back = wcs.sky_to_pixel(*wcs.pixel_to_sky(x, y))
    # At a pole one unit in the last place of RA is still below 1e-6 px.
    assert math.hypot(back[0] - x, back[1] - y) < 1e-6


def test_a_frame_across_ra_zero_gives_ra_in_0_to_360():
    wcs = Tpv.from_header(PLAIN | {"CRVAL1": 0.0})
    ra, _ = wcs.pixel_to_sky(COLUMNS, ROWS)
    assert ra.min() >= 0.0
    assert ra.max() < 360.0
    assert np.ptp(ra) > 350.0


def test_the_far_hemisphere_has_no_pixel():
    wcs = Tpv.from_header(PLAIN)
    x, y = wcs.sky_to_pixel([171.6, 351.6], [-0.1, 0.1])
    assert np.isnan([x[0], y[0]]).all()
    assert np.isfinite([x[1], y[1]]).all()


def test_a_star_behind_the_fold_of_the_polynomial_has_no_pixel():
    # xi = u - u^3 reaches no further than 0.385 deg and turns back.
    wcs = Tpv.from_header(PLAIN | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_7": -1.0})
    x, _ = wcs.sky_to_pixel([351.6 + 0.45, 351.6 + 0.3], [0.1, 0.1])
    assert np.isnan(x[0])
    assert np.isfinite(x[1])


def test_cards_read_back_give_the_same_sky():
    for header in (PLAIN, DISTORTED):
        wcs = Tpv.from_header(header)
        again = Tpv.from_header(wcs.to_cards())
        assert again.to_cards() == wcs.to_cards()
        assert wcs.to_cards()["CTYPE1"] == header["CTYPE1"]


def test_a_cut_out_keeps_its_sky():
    wcs = Tpv.from_header(DISTORTED)
    cut = wcs.shifted(-100, -250)
    assert separation(*cut.pixel_to_sky(0.0, 0.0), *wcs.pixel_to_sky(100.0, 250.0)) < 1e-13


@pytest.mark.parametrize("header", [PLAIN, DISTORTED], ids=["TAN", "TPV"])
def test_repointing_turns_the_focal_plane_about_the_tangent_point(header):
    wcs = Tpv.from_header(header)
    turned = wcs.repointed(0.5, -0.25, 0.2)
    before = gnomonic(*wcs.pixel_to_sky(COLUMNS, ROWS), wcs.crval)
    after = gnomonic(*turned.pixel_to_sky(COLUMNS, ROWS), np.add(wcs.crval, [0.5, -0.25]))
    expected = (before[0] + 1j * before[1]) * np.exp(1j * np.radians(0.2))
    assert np.abs(after[0] + 1j * after[1] - expected).max() < MICRO_ARCSEC


def test_a_repointed_tan_stays_tan():
    assert not Tpv.from_header(PLAIN).repointed(0.1, 0.1, 0.3).distorted


@pytest.mark.parametrize("header", [PLAIN, DISTORTED], ids=["TAN", "TPV"])
@pytest.mark.parametrize("terms", [3, 6, 10])
def test_a_correction_adds_exactly_its_polynomial(header, terms):
    wcs = Tpv.from_header(header)
    random = np.random.default_rng(terms)
    d_xi, d_eta = random.normal(0, 1e-4, (2, terms))
    u, v = wcs.pixel_to_plane(COLUMNS, ROWS)
    a, b = (u - u.mean()) / 0.2, (v - v.mean()) / 0.2
    basis = np.stack([a**0, a, b, a * a, a * b, b * b, a**3, a * a * b, a * b * b, b**3][:terms])
    corrected = wcs.corrected(d_xi, d_eta, (u.mean(), v.mean()), 0.2)
    xi, eta = gnomonic(*wcs.pixel_to_sky(COLUMNS, ROWS), wcs.crval)
    new_xi, new_eta = gnomonic(*corrected.pixel_to_sky(COLUMNS, ROWS), wcs.crval)
    assert np.abs(new_xi - xi - d_xi @ basis).max() < MICRO_ARCSEC
    assert np.abs(new_eta - eta - d_eta @ basis).max() < MICRO_ARCSEC
    assert corrected.distorted == (wcs.distorted or terms > 3)


def test_cdelt_and_crota_are_understood():
    cards = {k: v for k, v in PLAIN.items() if not k.startswith("CD")}
    cards |= {"CDELT1": -1e-4, "CDELT2": 1.1e-4, "CROTA2": 30.0}
    ours = Tpv.from_header(cards)
    theirs = WCS(fits.Header(cards))
    expected = theirs.all_pix2world(COLUMNS, ROWS, 0)
    assert separation(*ours.pixel_to_sky(COLUMNS, ROWS), *expected) < MICRO_ARCSEC


BAD = {
    "another projection": {"CTYPE1": "RA---ZPN"},
    "SIP without its order": {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
    "axes in the other order": {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN"},
    "galactic": {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
    "no projection": {"CTYPE1": None},
    "CRVAL missing": {"CRVAL1": None},
    "CRVAL not a number": {"CRVAL1": math.nan},
    "CRVAL infinite": {"CRVAL2": math.inf},
    "CRVAL2 beyond the pole": {"CRVAL2": 91.0},
    "CRPIX as text": {"CRPIX1": "1024.5"},
    "CRPIX true": {"CRPIX1": True},
    "CD missing": {"CD1_1": None, "CD1_2": None, "CD2_1": None, "CD2_2": None},
    "CD singular": {"CD1_2": 1.9e-8, "CD2_1": 9.7e-9},
    "CD zero": {"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0},
    "CD not a number": {"CD1_2": math.nan},
    "order 5": {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_17": 0.1},
    "PV as text": {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": "one"},
    "turned pole": {"LONPOLE": 90.0},
    "arcsec": {"CUNIT1": "arcsec"},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_header_that_makes_no_sense_is_refused_with_the_card_named(change):
    cards = {k: v for k, v in (PLAIN | change).items() if v is not None}
    with pytest.raises(HeaderError, match=r"CTYPE|CRVAL|CRPIX|CD|PV|LONPOLE|CUNIT|A_ORDER"):
        Tpv.from_header(cards)


def test_an_astropy_header_reads_as_a_dict_does():
    assert (
        Tpv.from_header(fits.Header(DISTORTED)).to_cards() == Tpv.from_header(DISTORTED).to_cards()
    )


def test_cards_that_are_no_wcs_do_not_matter():
    other = {"": "", "COMMENT": "PV1_1", "PVTEXT": "no number", "CDATE": "2020-03-05", "OBJECT": 1}
    wcs = Tpv.from_header(fits.Header(list((other | DISTORTED).items())))
    assert wcs.to_cards() == Tpv.from_header(DISTORTED).to_cards()


def test_the_undefined_value_of_a_card_is_refused():
    header = fits.Header(PLAIN)
    header["CRVAL1"] = None
    with pytest.raises(HeaderError, match="CRVAL1"):
        Tpv.from_header(header)
