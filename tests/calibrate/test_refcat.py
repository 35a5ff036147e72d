"""Reference catalogues: spellings, units, motion and cones."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from prepipe.calibrate.sky.refcat import (
    ReferenceCatalogue,
    build_catalogue,
    recognise_columns,
)
from prepipe.errors import ConfigError


def names(text, **units):
    return {name: units.get(name) for name in text.split()}


def catalogue(ra, dec, **more) -> ReferenceCatalogue:
    ra, dec = np.atleast_1d(np.asarray(ra, float)), np.atleast_1d(np.asarray(dec, float))
    zero = np.zeros(ra.size)
    fields = {
        "mag": zero + 18.0,
        "position_error_mas": zero + 1.0,
        "mag_error": zero,
        "pm_ra": zero,
        "pm_dec": zero,
        "epoch_year": 2016.0,
    }
    return ReferenceCatalogue(ra=ra, dec=dec, **(fields | more))


@pytest.mark.parametrize(
    ("table", "ra", "dec", "mag"),
    [
        ("ra dec pmra pmdec phot_g_mean_mag", "ra", "dec", "phot_g_mean_mag"),
        ("RA DEC g r i", "RA", "DEC", "g"),
        ("RAJ2000 DEJ2000 Gmag", "RAJ2000", "DEJ2000", "Gmag"),
        ("ra_deg dec_deg mag", "ra_deg", "dec_deg", "mag"),
        ("coord_ra coord_dec phot_g_mean_abmag", "coord_ra", "coord_dec", "phot_g_mean_abmag"),
        ("RA_ICRS DE_ICRS Gmag BPmag", "RA_ICRS", "DE_ICRS", "Gmag"),
    ],
)
def test_the_usual_spellings_are_recognised(table, ra, dec, mag):
    found = recognise_columns(names(table))
    assert (found.ra, found.dec, found.mag) == (ra, dec, mag)


@pytest.mark.parametrize(
    ("table", "band", "mag", "in_band"),
    [
        ("ra dec g r i phot_g_mean_mag", "r", "r", True),
        ("ra dec g_mag r_mag", "r", "r_mag", True),
        ("ra dec gmag rmag", "r", "rmag", True),
        ("ra dec g r", "r2", "r", True),
        ("ra dec phot_g_mean_mag mag", "r", "phot_g_mean_mag", False),
        ("ra dec mag", "r", "mag", False),
        ("ra dec g r i z", "u", "g", False),
        ("ra dec Gmag", "g", "Gmag", False),
    ],
)
def test_the_band_of_the_exposure_is_preferred_and_its_absence_told(table, band, mag, in_band):
    found = recognise_columns(names(table), band=band)
    assert (found.mag, found.in_band) == (mag, in_band)


def test_errors_motions_colours_and_other_bands_are_found():
    found = recognise_columns(names("ra dec ra_error dec_error pmra pmdec ref_epoch g g_err r"))
    assert (found.ra_error, found.dec_error) == ("ra_error", "dec_error")
    assert (found.pm_ra, found.pm_dec, found.epoch) == ("pmra", "pmdec", "ref_epoch")
    assert (found.mag, found.mag_error, found.bands) == ("g", "g_err", ("r",))
    assert found.colour == ("g", "r")


@pytest.mark.parametrize(
    ("table", "colour", "gaia"),
    [
        ("ra dec phot_g_mean_mag bp_rp", ("bp_rp",), True),
        ("ra dec Gmag BP-RP", ("BP-RP",), True),
        ("ra dec Gmag BPmag RPmag g_r", ("BPmag", "RPmag"), True),
        (
            "ra dec phot_g_mean_abmag phot_bp_mean_abmag phot_rp_mean_abmag",
            ("phot_bp_mean_abmag", "phot_rp_mean_abmag"),
            True,
        ),
        ("ra dec phot_g_mean_mag g_r", ("g_r",), False),
        ("ra dec phot_g_mean_mag", (), False),
        ("ra dec g r", ("g", "r"), False),
        ("ra dec mag bp_rp", ("bp_rp",), False),
    ],
)
def test_gaia_is_its_g_together_with_its_colour_and_nothing_else(table, colour, gaia):
    found = recognise_columns(names(table), band="i")
    assert (found.colour, found.gaia) == (colour, gaia)


def test_gaias_g_is_no_band_of_an_exposure_even_if_mapped():
    table = names("ra dec phot_g_mean_mag bp_rp")
    found = recognise_columns(table, {"mag": "phot_g_mean_mag"}, "g")
    assert (found.in_band, found.gaia) == (False, True)


def test_gaia_magnitudes_of_the_ab_system_become_those_of_vega():
    ab = "ra dec phot_g_mean_abmag phot_bp_mean_abmag phot_rp_mean_abmag"
    row = dict(zip(ab.split(), ([1.0], [1.0], [18.105], [18.529], [17.354]), strict=True))
    stars = build_catalogue(row, recognise_columns(names(ab), band="g"))
    # G, BP and RP exceed those of Vega by 0.105, 0.029 and 0.354 (Evans et al. 2018).
    assert stars.mag == pytest.approx([18.0], abs=1e-3)
    assert stars.colour == pytest.approx([1.5], abs=1e-3)
    assert stars.gaia


def test_a_mapping_overrides_the_guess():
    table = names("ra dec ra2 rPSF rPSF_sigma")
    found = recognise_columns(
        table, {"ra": "ra2", "r": "rPSF", "mag_error": "rPSF_sigma", "epoch": "2015.5"}, "r"
    )
    assert (found.ra, found.mag, found.mag_error, found.epoch) == (
        "ra2",
        "rPSF",
        "rPSF_sigma",
        2015.5,
    )
    assert found.in_band


@pytest.mark.parametrize(
    ("table", "mapping", "said"),
    [
        ("alpha delta mag", {}, "RA and Dec.*alpha, delta, mag"),
        ("ra dec parallax", {}, "magnitude.*ra, dec, parallax"),
        ("", {}, "RA and Dec.*none"),
        ("ra dec mag", {"mag": "Vmag"}, "'Vmag'.*ra, dec, mag"),
        ("ra dec mag", {"magnitude": "mag"}, "no field 'magnitude'"),
        ("ra dec mag", {"epoch": "yesterday"}, "epoch"),
    ],
)
def test_what_is_missing_is_named_with_the_columns_found(table, mapping, said):
    with pytest.raises(ConfigError, match=said):
        recognise_columns(names(table), mapping)


@pytest.mark.parametrize(
    ("unit", "ra", "dec"),
    [
        (None, 150.0, 2.0),
        ("deg", 150.0, 2.0),
        ("degrees", 150.0, 2.0),
        ("rad", math.radians(150.0), math.radians(2.0)),
        ("arcsec", 540000.0, 7200.0),
    ],
)
def test_positions_come_in_degrees_whatever_the_unit(unit, ra, dec):
    columns = recognise_columns(names("ra dec mag", ra=unit, dec=unit))
    stars = build_catalogue({"ra": [ra], "dec": [dec], "mag": [18.0]}, columns)
    assert stars.ra[0] == pytest.approx(150.0)
    assert stars.dec[0] == pytest.approx(2.0)


def test_right_ascension_in_hours():
    columns = recognise_columns(names("ra dec mag", ra="hour"))
    stars = build_catalogue({"ra": [10.0], "dec": [2.0], "mag": [18]}, columns)
    assert stars.ra[0] == pytest.approx(150.0)


@pytest.mark.parametrize(("ra", "expected"), [(2.6, math.degrees(2.6)), (150.0, 150.0)])
def test_coord_ra_without_a_unit_is_in_radians_if_it_can_be(ra, expected):
    columns = recognise_columns(names("coord_ra coord_dec mag"))
    table = {"coord_ra": [ra, ra], "coord_dec": [0.03, 0.031], "mag": [18, 19]}
    assert build_catalogue(table, columns).ra[0] == pytest.approx(expected)


def test_a_unit_that_makes_no_sense_is_refused():
    for unit in ("mag", "furlong"):
        columns = recognise_columns(names("ra dec mag", ra=unit))
        with pytest.raises(ConfigError, match=f"ra has the unit '{unit}'"):
            build_catalogue({"ra": [1.0], "dec": [1.0], "mag": [18.0]}, columns)


def test_a_declination_beyond_the_pole_is_refused():
    columns = recognise_columns(names("ra dec mag"))
    with pytest.raises(ConfigError, match="90 degrees"):
        build_catalogue({"ra": [1.0], "dec": [95.0], "mag": [18.0]}, columns)


def test_text_is_refused():
    columns = recognise_columns(names("ra dec mag"))
    with pytest.raises(ConfigError, match=r"ra .*no plain numbers"):
        build_catalogue({"ra": ["10:00:00"], "dec": [2.0], "mag": [18.0]}, columns)


def test_rows_without_position_or_magnitude_are_dropped_and_ra_wrapped():
    columns = recognise_columns(names("ra dec mag r"))
    table = {
        "ra": [-9.0, np.nan, 10.0, 11.0, 12.0],
        "dec": [0.0, 0.0, np.nan, 0.0, 0.0],
        "mag": np.ma.array([18.0, 18.0, 18.0, 18.0, 99.9], mask=[0, 0, 0, 1, 0]),
        "r": [-999.0, 18.0, 18.0, 18.0, 18.0],
    }
    stars = build_catalogue(table, columns)
    assert stars.ra.tolist() == [351.0]
    assert np.isnan(stars.bands["r"]).all()


def test_a_catalogue_without_one_good_row_is_refused():
    columns = recognise_columns(names("ra dec mag"))
    for rows in ([], [np.nan]):
        with pytest.raises(ConfigError, match="no row"):
            build_catalogue({"ra": rows, "dec": rows, "mag": rows}, columns)


@pytest.mark.parametrize("epoch", [2015.5, 57205.875, 2457206.375])
def test_an_epoch_is_understood_as_year_mjd_or_jd(epoch):
    columns = recognise_columns(names("ra dec mag pmra pmdec epoch"))
    row = {"ra": [1.0], "dec": [1.0], "mag": [18.0], "pmra": [3.0], "pmdec": [4.0]}
    stars = build_catalogue(row | {"epoch": [epoch]}, columns)
    assert stars.epoch_year == pytest.approx(2015.5, abs=1e-5)


def test_epochs_that_differ_are_brought_to_one():
    columns = recognise_columns(names("ra dec mag pmra pmdec epoch"))
    row = {"ra": [1.0] * 3, "dec": [1.0] * 3, "mag": [18.0] * 3, "pmra": [0.0] * 3}
    row |= {"pmdec": [3600.0] * 3, "epoch": [2014.0, 2015.0, 2017.0]}
    stars = build_catalogue(row, columns)
    assert stars.epoch_year == 2015.0
    assert stars.dec == pytest.approx([1.001, 1.0, 0.998], abs=1e-12)


@pytest.mark.filterwarnings("ignore::erfa.ErfaWarning")
@settings(max_examples=40, deadline=None)
@given(
    ra=st.floats(0, 359.9),
    dec=st.floats(-89.9, 89.9),
    pm_ra=st.floats(-3000, 3000),
    pm_dec=st.floats(-3000, 3000),
    years=st.floats(-20, 20),
)
def test_proper_motion_is_that_of_astropy(ra, dec, pm_ra, pm_dec, years):
    stars = catalogue(ra, dec, pm_ra=np.array([pm_ra]), pm_dec=np.array([pm_dec]))
    moved = stars.at_epoch(2016.0 + years)
    start = Time(2016.0, format="jyear")
    expected = SkyCoord(
        ra * u.deg,
        dec * u.deg,
        pm_ra_cosdec=pm_ra * u.mas / u.yr,
        pm_dec=pm_dec * u.mas / u.yr,
        distance=1e6 * u.pc,
        obstime=start,
    ).apply_space_motion(new_obstime=start + years * u.yr)
    found = SkyCoord(moved.ra[0] * u.deg, moved.dec[0] * u.deg)
    # astropy's light-travel and perspective terms are below 0.1 mas at 1 Mpc.
    assert found.separation(expected.icrs).to_value("mas") < 0.1


def test_a_star_of_unknown_motion_stays_and_is_trusted_less():
    nan = np.array([np.nan])
    moved = catalogue(10.0, 10.0, pm_ra=nan, pm_dec=nan).at_epoch(2026.0)
    assert moved.ra[0] == pytest.approx(10.0, abs=1e-12)
    # 7 mas/yr for ten years.
    assert moved.position_error_mas[0] == pytest.approx(math.hypot(70.0, 1.0))


def test_a_motion_of_exactly_zero_in_both_coordinates_is_unknown():
    columns = recognise_columns(names("ra dec mag pmra pmdec"))
    row = {"ra": [1.0, 2.0], "dec": [1.0, 2.0], "mag": [18.0, 19.0]}
    stars = build_catalogue(row | {"pmra": [0.0, 0.0], "pmdec": [0.0, 2.0]}, columns)
    assert np.isnan(stars.pm_ra).tolist() == [True, False]


def test_a_catalogue_without_motion_or_epoch_stays_as_it_is():
    columns = recognise_columns(names("ra dec mag"))
    stars = build_catalogue({"ra": [1.0], "dec": [1.0], "mag": [18.0]}, columns)
    moved = stars.at_epoch(2026.0)
    assert moved.ra[0] == 1.0
    assert moved.position_error_mas[0] == stars.position_error_mas[0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ra=st.floats(0, 360),
    dec=st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 89.9])),
    radius=st.floats(0.0, 100.0),
)
def test_a_cone_holds_the_stars_that_astropy_says(seed, ra, dec, radius):
    rng = np.random.default_rng(seed)
    a, d = rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-1, 1, 300)))
    stars = catalogue(a, d, mag=np.arange(300.0))
    distance = SkyCoord(a, d, unit="deg").separation(SkyCoord(ra, dec, unit="deg")).deg
    inside = set(stars.near(ra, dec, radius).mag)
    assert set(np.flatnonzero(distance < radius - 1e-9)) <= inside
    assert inside <= set(np.flatnonzero(distance < radius + 1e-9))


def test_a_cone_across_ra_zero_and_one_over_the_pole():
    stars = catalogue([359.9, 0.1, 180.0, 90.0, 270.0], [0.0, 0.0, 0.0, 89.9, 89.9])
    assert sorted(stars.near(0.0, 0.0, 0.2).ra) == [0.1, 359.9]
    assert sorted(stars.near(10.0, 90.0, 0.2).ra) == [90.0, 270.0]
    assert len(stars.near(0.0, -45.0, 1.0)) == 0


def test_a_cone_takes_every_column_along():
    stars = catalogue([1.0, 2.0], [1.0, 2.0], colour=np.array([0.1, 0.2]))
    stars = stars.take(np.array([0, 1]))
    near = stars.near(2.0, 2.0, 0.1)
    assert near.colour is not None
    assert near.colour.tolist() == [0.2]
    assert near.position_error_mas.size == near.pm_ra.size == near.mag_error.size == 1


def test_a_cone_in_a_large_catalogue_takes_milliseconds():
    rng = np.random.default_rng(1)
    stars = catalogue(rng.uniform(140, 160, 300_000), rng.uniform(-10, 10, 300_000))
    stars.near(150.0, 0.0, 0.2)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        stars.near(150.0, 0.0, 0.2)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
