"""Which catalogues tell the zero point, and by which of their stars."""

from __future__ import annotations

import os
from pathlib import Path

import fitsio
import numpy as np
import pytest
from astropy.table import Table
from simulated_night import CCDS, Night, order_of

from prepipe.cameras import load_camera
from prepipe.config import Calibration
from prepipe.engines.base import Outcome
from prepipe.engines.builtin.reduce import _reference, carry_out
from prepipe.engines.raw import list_ccds
from prepipe.engines.references.build import build_store, find_sources
from prepipe.engines.references.source import load_reference

CCD = CCDS[0]
TO_AB = {"g": 0.105, "bp": 0.029, "rp": 0.354}


def calibrated(night: Night, reference: Path, products: Path) -> Outcome:
    """What the engine makes of one CCD with another catalogue."""
    hdus = {ccd.number: hdu for hdu, ccd in list_ccds(night.raw, load_camera("decam"))}
    settings = Calibration(reference=reference)
    order = order_of(
        night.root, night.raw, hdus[CCD], calibration=settings, products=products / "products"
    )
    return carry_out(order)


def in_ab(stars: Table) -> Table:
    for band, offset in TO_AB.items():
        stars[f"phot_{band}_mean_mag"] += offset
        stars.rename_column(f"phot_{band}_mean_mag", f"phot_{band}_mean_abmag")
    return stars


@pytest.mark.parametrize("stored", [False, True])
def test_a_gaia_catalogue_in_ab_magnitudes_gives_the_same_zero_point(night, tmp_path, stored):
    reference = tmp_path / "ab.fits"
    in_ab(Table.read(night.reference)).write(reference)
    if stored:
        build_store(find_sources([reference]), tmp_path / "store")
        reference = tmp_path / "store"
    found = calibrated(night, reference, tmp_path)
    expected = night.outcomes[CCD].reduction
    # Single precision rounds a magnitude of 20 to 2e-6.
    assert found.reduction.zero_point == pytest.approx(expected.zero_point, abs=1e-4)
    assert found.reduction.zero_point_stars == expected.zero_point_stars


def test_a_catalogue_of_another_band_and_colour_is_flagged_and_not_taken_for_gaia(night, tmp_path):
    stars = Table.read(night.reference)
    for gaia, other in (("g", "i"), ("bp", "r"), ("rp", "z")):
        stars.rename_column(f"phot_{gaia}_mean_mag", other)
    stars["g_r"] = stars["r"] - stars["z"]
    stars.write(tmp_path / "other.fits")
    found = calibrated(night, tmp_path / "other.fits", tmp_path)
    assert "OTHER_BAND" in found.reduction.flags
    table = fitsio.read(found.reduction.catalogue)
    matched = table[table["MATCHED"]]
    assert len(matched) > 50
    listed = np.sort(np.asarray(stars["r"], np.float32))
    nearest = listed[np.searchsorted(listed, matched["REFMAG"]).clip(max=len(listed) - 1)]
    assert nearest == pytest.approx(matched["REFMAG"], abs=1e-5)


def test_stars_beyond_the_colours_of_the_relation_have_no_magnitude_and_all_others_the_true_one(
    night,
):
    terms = load_camera("decam").gaia_colour_terms("g")
    listed, truth = Table.read(night.reference), night.truth.stars_on(CCD)
    table = fitsio.read(night.outcomes[CCD].reduction.catalogue)
    matched = table[table["MATCHED"]]
    row = np.hypot(
        matched["X"][:, None] - 1 - truth["x"], matched["Y"][:, None] - 1 - truth["y"]
    ).argmin(axis=1)
    number = truth["id"][row]
    known = np.isin(number, listed["source_id"])
    assert known.mean() > 0.98
    matched, number, row = matched[known], number[known], row[known]
    order = np.argsort(listed["source_id"])
    stars = listed[order[np.searchsorted(listed["source_id"], number, sorter=order)]]
    colour = np.asarray(stars["phot_bp_mean_mag"] - stars["phot_rp_mean_mag"])
    beyond = (colour > terms.reddest) | (colour < terms.bluest)
    assert beyond.sum() > 10
    assert np.isnan(matched["REFMAG"][beyond]).mean() > 0.98
    # One or two of a few hundred may be matched with a neighbour.
    right = np.abs(matched["REFMAG"][~beyond] - truth["mag"][row][~beyond]) < 1e-3
    assert right.mean() > 0.98


@pytest.mark.parametrize("kind", ["file", "store"])
def test_a_catalogue_that_was_replaced_is_opened_anew(night, tmp_path, kind):
    stars = Table.read(night.reference)
    path = tmp_path / "stars.fits"
    lengths = []
    for step, count in enumerate((100, 100, 60)):
        stars[:count].write(path, overwrite=True)
        reference = path
        if kind == "store":
            reference = tmp_path / "store"
            build_store(find_sources([path]), reference, force=True)
        # Clocks of file systems may be too coarse to tell the two apart.
        manifest = reference / "refcat.json" if kind == "store" else reference
        os.utime(manifest, ns=(10**18, 10**18 + step))
        lengths.append(len(_reference(reference, "g", ())))
        assert _reference(reference, "g", ()) is _reference(reference, "g", ())
    assert lengths == [100, 100, 60]


def test_gaias_r_magnitudes_of_real_stars_are_those_of_pan_starrs(shared_data):
    gaia = load_reference(shared_data / "refcats/gaia_dr2_cosmos.fits", "r").near(150.0, 2.2, 0.7)
    other = load_reference(shared_data / "refcats/ps1_cosmos_r_or_i_lt21.5.fits", "r")
    other = other.near(150.0, 2.2, 0.7)
    terms = load_camera("decam").gaia_colour_terms("r")
    east = (gaia.ra[:, None] - other.ra) * np.cos(np.radians(2.2))
    distance = np.hypot(east, gaia.dec[:, None] - other.dec)
    nearest = distance.argmin(axis=1)
    near = distance[np.arange(len(gaia)), nearest] < 0.5 / 3600
    bright = near & (gaia.mag > 15.5) & (gaia.mag < 18.5) & (gaia.colour < 1.5)
    difference = (gaia.mag - terms.difference(gaia.colour))[bright] - other.mag[nearest][bright]
    assert bright.sum() > 200
    # SDSS and PS1 differ by 0.01 mag in r for such stars (Tonry et al. 2012, table 6), PS1's
    # PSF magnitudes by as much; AB taken for Vega would be off by 0.1.
    assert abs(np.nanmedian(difference)) < 0.03
