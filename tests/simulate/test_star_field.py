"""The star field: generated, loaded, moved to a date, listed in a catalogue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from prepipe.errors import InputError
from prepipe.simulate import BANDS, StarField


@pytest.fixture(scope="module")
def field() -> StarField:
    return StarField.generate(150.0, 60.0, radius_deg=0.5, seed=3)


def test_the_counts_are_those_of_gaia(field):
    area = np.pi * 0.25
    for limit, expected in ((17.0, 1700), (19.0, 4000), (21.0, 8000)):
        stars = (field.g_mag < limit) & (field.size_arcsec == 0)
        count = expected * area
        # Poisson noise, five sigma.
        assert np.count_nonzero(stars) == pytest.approx(count, abs=5 * np.sqrt(count))


def test_the_field_fills_its_disc_evenly(field):
    east = (field.ra - 150.0) * np.cos(np.radians(field.dec))
    distance = np.hypot(east, field.dec - 60.0)
    assert distance.max() < 0.51
    inner = np.mean(distance < 0.25)
    assert inner == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / len(field)) + 0.003)


def test_the_same_seed_gives_the_same_field():
    first, again = (StarField.generate(10.0, -30.0, 0.2, seed=7) for _ in range(2))
    other = StarField.generate(10.0, -30.0, 0.2, seed=8)
    assert np.array_equal(first.ra, again.ra)
    assert not np.array_equal(first.ra[:50], other.ra[:50])


def test_proper_motion_is_applied_from_the_catalogues_epoch(field):
    ra, dec = field.positions(field.epoch + 10.0)
    moved = (ra - field.ra) * np.cos(np.radians(field.dec)) * 3.6e6
    assert np.allclose(moved, 10 * field.pmra, atol=1e-3)
    assert np.allclose((dec - field.dec) * 3.6e6, 10 * field.pmdec, atol=1e-3)
    assert np.array_equal(field.positions(field.epoch)[1], field.dec)


def test_red_stars_are_fainter_in_g_than_blue_ones(field):
    excess = field.magnitudes(BANDS["g"].colour_terms) - field.g_mag
    colour = field.bp_mag - field.rp_mag
    assert excess[colour > 1.8].mean() > excess[colour < 1.0].mean() + 0.5


@pytest.mark.parametrize("band", sorted(BANDS))
def test_beyond_the_colours_of_the_relation_a_band_goes_on_along_its_tangent(band):
    terms = BANDS[band].colour_terms
    colour = np.array([terms.bluest + 0.01 * np.array([-100, -1, 0, 1])]).ravel()
    colour = np.append(colour, terms.reddest + 0.01 * np.array([-1, 0, 1, 100]))
    zero = np.zeros(8)
    stars = StarField.generate(10.0, -30.0, 0.2, seed=7).chosen(np.arange(8))
    excess = -replace(stars, g_mag=zero, bp_mag=colour, rp_mag=zero).magnitudes(terms)
    steps = np.diff(excess) / np.diff(colour)
    # The slope is that of the nearest hundredth within, up to half its curvature: |c''| < 2.
    assert steps[[0, 1]] == pytest.approx(steps[2], abs=0.02)
    assert steps[[5, 6]] == pytest.approx(steps[4], abs=0.02)
    inside = (colour >= terms.bluest) & (colour <= terms.reddest)
    assert np.array_equal(np.isfinite(terms.difference(colour)), inside)
    assert excess[inside] == pytest.approx(terms.difference(colour)[inside])


def test_the_reference_lacks_two_per_cent_and_all_that_is_faint(field, tmp_path):
    field.write_reference(tmp_path / "reference.fits")
    table = fits.getdata(tmp_path / "reference.fits", 1)
    bright = np.count_nonzero((field.g_mag < 21) & (field.size_arcsec == 0))
    missing = bright - len(table)
    assert missing == pytest.approx(0.02 * bright, abs=5 * np.sqrt(0.02 * bright))
    assert table["phot_g_mean_mag"].max() < 21.0
    assert set(table["ref_epoch"]) == {2016.0}


def test_a_written_reference_is_read_again(field, tmp_path):
    field.write_reference(tmp_path / "reference.fits")
    again = StarField.load(tmp_path / "reference.fits")
    listed = field.chosen(field.listed)
    assert np.array_equal(again.ra, listed.ra)
    assert np.allclose(again.g_mag, listed.g_mag, atol=1e-5)
    assert np.allclose(again.bp_mag, listed.bp_mag, atol=1e-5)


def test_the_real_gaia_field_can_be_loaded(shared_data):
    field = StarField.load(shared_data / "refcats" / "gaia_dr2_cosmos.fits")
    assert len(field) > 41000
    assert field.epoch == pytest.approx(2015.5, abs=0.01)
    assert np.isfinite(field.magnitudes(BANDS["g"].colour_terms)).all()
    assert np.isfinite(field.pmra).all()


def test_faint_sources_can_be_added_to_a_loaded_field(field):
    listed = field.chosen(field.listed)
    deeper = listed.with_faint_sources(150.0, 60.0, 0.5, seed=1)
    added = deeper.chosen(np.arange(len(listed), len(deeper)))
    assert len(np.unique(deeper.number)) == len(deeper)
    assert not added.listed.any()
    assert added.g_mag[added.size_arcsec == 0].min() >= 21.0


def test_a_file_that_is_no_catalogue_is_refused(tmp_path):
    (tmp_path / "empty.fits").write_bytes(b"")
    with pytest.raises(InputError, match="not a star catalogue"):
        StarField.load(tmp_path / "empty.fits")


def test_a_crowded_field_has_as_many_more_stars_of_every_brightness() -> None:
    usual = StarField.generate(10.0, -30.0, radius_deg=0.2, seed=5)
    crowded = StarField.generate(10.0, -30.0, radius_deg=0.2, seed=5, crowding=20.0)
    for limit in (17.0, 19.0, 21.0):
        few = np.count_nonzero((usual.g_mag < limit) & (usual.size_arcsec == 0.0))
        many = np.count_nonzero((crowded.g_mag < limit) & (crowded.size_arcsec == 0.0))
        # Poisson errors of both, at four standard deviations.
        assert abs(many - 20.0 * few) < 4.0 * (np.sqrt(many) + 20.0 * np.sqrt(few))


def test_the_number_of_galaxies_can_be_told() -> None:
    field = StarField.generate(10.0, -30.0, radius_deg=0.2, seed=5, galaxies_per_deg2=50_000.0)
    expected = 50_000.0 * np.pi * 0.2**2
    assert abs(np.count_nonzero(field.size_arcsec) - expected) < 4.0 * np.sqrt(expected)
