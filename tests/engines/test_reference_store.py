"""Stores of reference stars: built of anything, whole or not at all, and quick to ask."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy_healpix import HEALPix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from prepipe.engines.references import build as reference_build
from prepipe.engines.references import store as reference_store
from prepipe.engines.references import tables as reference_tables
from prepipe.engines.references.build import Filters, build_store, find_sources, plan_store
from prepipe.engines.references.manifest import MANIFEST, whole_manifest
from prepipe.engines.references.source import load_reference
from prepipe.engines.references.store import ReferenceStore
from prepipe.errors import ConfigError, StorageError


def gaia(ra, dec, first=0, **more) -> dict[str, np.ndarray]:
    """Columns of the Gaia archive."""
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    row = np.arange(len(ra))
    return {
        "source_id": row + first,
        "ra": ra,
        "dec": dec,
        "ra_error": np.full(len(ra), 0.3, np.float32),
        "dec_error": np.full(len(ra), 0.4, np.float32),
        "pmra": 10.0 * np.cos(row),
        "pmdec": 10.0 * np.sin(row),
        "ref_epoch": np.full(len(ra), 2016.0),
        "phot_g_mean_mag": (15.0 + row % 50 / 10.0).astype(np.float32),
        "phot_bp_mean_mag": (15.5 + row % 50 / 10.0).astype(np.float32),
        "phot_rp_mean_mag": (14.5 + row % 50 / 10.0).astype(np.float32),
    } | more


def all_over(count, seed=1):
    """Positions all over the sky, poles and RA 0 among them."""
    rng = np.random.default_rng(seed)
    ra = rng.uniform(0, 360, count)
    dec = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    ra[:6], dec[:6] = [0, 359.9999, 0.0001, 10, 190, 33], [0, 0.001, -0.001, 90, 89.99, -90]
    return ra, dec


def write(path, columns):
    parquet.write_table(pa.table(columns), path)
    return path


def build(out, *inputs, **more):
    return build_store(find_sources(inputs), out, **more)


def hats(root, columns, order=1, **facts):
    """A HATS catalogue: properties, and a file a pixel."""
    healpix = HEALPix(2**order, order="nested")
    pixels = healpix.lonlat_to_healpix(columns["ra"] * u.deg, columns["dec"] * u.deg)
    for pixel in np.unique(pixels):
        path = root / f"dataset/Norder={order}/Dir=0/Npix={pixel}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, {name: values[pixels == pixel] for name, values in columns.items()})
    said = {"hats_col_ra": "ra", "hats_col_dec": "dec", "dataproduct_type": "object"} | facts
    lines = "".join(f"{key}={value}\n" for key, value in said.items())
    (root / "hats.properties").write_text(f"#HATS catalog\n{lines}")
    write(root / "data_thumbnail.parquet", {k: v[:5] for k, v in columns.items()})
    write(root / "dataset/_metadata", {"nothing": [1]})
    return root


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """20 000 stars all over the sky, as a file and as a store of small partitions."""
    folder = tmp_path_factory.mktemp("sky")
    path = write(folder / "sky.parquet", gaia(*all_over(20_000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_build, "SPARSE_ROWS", 200)
        build(folder / "store", path)
    return load_reference(path), load_reference(folder / "store")


def same(stars, others):
    """Whether two catalogues are of the same stars; what they hold in 32 bits, to those."""
    ours, theirs = np.lexsort((stars.ra, stars.dec)), np.lexsort((others.ra, others.dec))
    stars, others = stars.take(ours), others.take(theirs)
    np.testing.assert_allclose(stars.ra, others.ra, rtol=0, atol=1e-11)
    np.testing.assert_allclose(stars.dec, others.dec, rtol=0, atol=1e-11)
    for name in ("mag", "mag_error", "position_error_mas", "pm_ra", "pm_dec", "colour"):
        mine, other = getattr(stars, name), getattr(others, name)
        assert (mine is None) == (other is None), name
        if mine is not None:
            # Errors of 1e-7 in either magnitude of a colour near 0.
            np.testing.assert_allclose(mine, other, rtol=2e-7, atol=4e-6, err_msg=name)
    assert stars.bands.keys() == others.bands.keys()
    assert (stars.band, stars.in_band) == (others.band, others.in_band)
    assert stars.colour_name == others.colour_name
    return True


@given(
    st.floats(0, 360),
    st.floats(-90, 90),
    st.one_of(st.floats(0, 3), st.floats(0, 180)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_lookup_finds_the_stars_that_a_search_of_all_finds(sky, ra, dec, radius):
    whole, store = sky
    assert same(store.near(ra, dec, radius), whole.near(ra, dec, radius))


@pytest.mark.parametrize("dec", [90.0, -90.0, 89.7])
def test_a_lookup_at_a_pole_sees_all_right_ascensions(sky, dec):
    whole, store = sky
    found = store.near(123.0, dec, 5.0)
    assert len(found) > 20
    assert same(found, whole.near(123.0, dec, 5.0))


def test_a_lookup_across_right_ascension_zero_sees_both_sides(sky):
    whole, store = sky
    found = store.near(0.0, 0.0, 4.0)
    assert (found.ra < 4).any()
    assert (found.ra > 356).any()
    assert same(found, whole.near(0.0, 0.0, 4.0))


def test_stars_come_by_rising_declination(sky):
    _, store = sky
    assert (np.diff(store.near(80.0, 10.0, 8.0).dec) >= 0).all()


def test_an_empty_place_has_no_stars_but_the_columns(tmp_path):
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia([10.0], [10.0])))
    found = load_reference(tmp_path / "store").near(200.0, -40.0, 0.3).at_epoch(2026.0)
    assert len(found) == 0
    assert found.colour is not None
    assert found.band == "phot_g_mean_mag"


def test_stars_are_where_they_are_at_the_time_of_use(sky):
    whole, store = sky
    moved = store.near(150.0, 20.0, 2.0).at_epoch(2026.0)
    assert same(moved, whole.near(150.0, 20.0, 2.0).at_epoch(2026.0))
    assert store.manifest.epoch_year == 2016.0
    still = store.near(150.0, 20.0, 2.0)
    shift = SkyCoord(still.ra, still.dec, unit="deg").separation(
        SkyCoord(moved.ra, moved.dec, unit="deg")
    )
    # 10 mas/yr over 10 years; order is by declination in both, moves are far below spacings.
    assert shift.to_value("mas") == pytest.approx(100.0, abs=0.01)


def test_inputs_of_different_epochs_are_brought_to_the_first_one(tmp_path):
    ra, dec = np.array([40.0, 40.1]), np.array([30.0, 30.1])
    first = write(tmp_path / "a.parquet", gaia(ra[:1], dec[:1]))
    second = gaia(ra[1:], dec[1:], first=7, ref_epoch=np.array([2006.0]), pmra=np.array([1000.0]))
    build(tmp_path / "store", first, write(tmp_path / "b.parquet", second))
    found = load_reference(tmp_path / "store").near(40.1, 30.1, 0.05)
    assert found.epoch_year == 2016.0
    # 1 arcsec/yr for 10 years, along the parallel.
    assert (found.ra[0] - 40.1) * 3600 * math.cos(math.radians(30.1)) == pytest.approx(10, abs=0.01)


def test_the_band_of_the_exposure_is_picked_from_the_store(tmp_path):
    table = {
        "objID": [1, 2],
        "ra": [10.0, 10.1],
        "dec": [5.0, 5.1],
        "g": [18.0, np.nan],
        "g_err": [0.01, np.nan],
        "r": [17.5, 17.0],
        "r_err": [0.02, 0.03],
    }
    build(tmp_path / "store", write(tmp_path / "a.parquet", table))
    red = load_reference(tmp_path / "store", "r").near(10.05, 5.05, 1.0)
    assert red.mag.tolist() == [17.5, 17.0]
    assert red.mag_error == pytest.approx([0.02, 0.03])
    assert red.in_band
    assert len(load_reference(tmp_path / "store", "g").near(10.05, 5.05, 1.0)) == 1
    assert not load_reference(tmp_path / "store", "z").near(10.05, 5.05, 1.0).in_band


def test_a_sky_without_a_star_in_the_band_is_empty_not_wrong(tmp_path):
    table = {"ra": [10.0, 200.0], "dec": [5.0, 5.0], "g": [18.0, -999.0], "r": [17.0, 17.5]}
    build(tmp_path / "store", write(tmp_path / "a.parquet", table))
    store = load_reference(tmp_path / "store", "g")
    assert len(store.near(200.0, 5.0, 1.0)) == 0
    assert len(store.near(10.0, 5.0, 1.0)) == 1


def test_all_magnitudes_errors_and_colours_of_gaia_are_kept(tmp_path):
    more = {"bp_rp": np.array([0.5]), "phot_bp_mean_mag_error": np.array([0.01])}
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia([1.0], [1.0], **more)))
    kept = whole_manifest(tmp_path / "store").columns
    assert set(kept) == {
        *("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag"),
        *("bp_rp", "phot_bp_mean_mag_error"),
    }
    assert load_reference(tmp_path / "store").near(1.0, 1.0, 0.1).colour == pytest.approx([0.5])


def test_a_store_reads_alike_from_every_format(tmp_path):
    table = Table(gaia(*all_over(60)))
    table["ra"], table["dec"] = np.radians(table["ra"]), np.radians(table["dec"])
    for name in ("ra", "dec"):
        table[name].unit = "rad"
    table.write(tmp_path / "a.fits")
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress((tmp_path / "a.fits").read_bytes()))
    Table(gaia(*all_over(60))).write(tmp_path / "c.csv")
    text = (tmp_path / "c.csv").read_bytes()
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"# of an archive\n" + text))
    write(tmp_path / "e.parquet", gaia(*all_over(60)))
    whole = load_reference(tmp_path / "e.parquet")
    for name in ("a.fits", "b.fits.gz", "c.csv", "d.csv.gz", "e.parquet"):
        build(tmp_path / "store", tmp_path / name, force=True)
        found = load_reference(tmp_path / "store").near(0, 0, 180)
        np.testing.assert_allclose(found.ra, whole.near(0, 0, 180).ra, atol=1e-9)
        assert len(found) == 60


def test_a_hats_catalogue_gives_its_rows_once(tmp_path):
    columns = gaia(*all_over(500))
    root = hats(tmp_path / "gaia", columns, hats_nrows=500)
    made = build(tmp_path / "store", root)
    assert (made.rows, made.duplicates) == (500, 0)
    assert made.inputs[0].promised_rows == 500
    assert made.inputs[0].files == len(list(root.glob("dataset/*/*/*.parquet")))


def test_a_hats_catalogue_names_its_own_coordinates(tmp_path):
    columns = gaia(*all_over(50))
    root = hats(tmp_path / "gaia", columns)
    for path in root.glob("dataset/*/*/*.parquet"):
        table = parquet.read_table(path)
        names = [{"ra": "alpha", "dec": "delta"}.get(n, n) for n in table.column_names]
        parquet.write_table(table.rename_columns(names), path)
    hats_said = (root / "hats.properties").read_text()
    (root / "hats.properties").write_text(
        hats_said.replace("col_ra=ra", "col_ra=alpha").replace("col_dec=dec", "col_dec=delta")
    )
    assert build(tmp_path / "store", root).rows == 50


def test_a_hats_collection_gives_its_catalogue_without_the_margin(tmp_path):
    hats(tmp_path / "gaia/gaia", gaia(*all_over(50)))
    hats(tmp_path / "gaia/gaia_10arcs", gaia(*all_over(50)), dataproduct_type="margin")
    (tmp_path / "gaia/collection.properties").write_text("hats_primary_table_url=gaia\n")
    assert build(tmp_path / "store", tmp_path / "gaia").rows == 50
    with pytest.raises(ConfigError, match="margin"):
        find_sources([tmp_path / "gaia/gaia_10arcs"])


def test_a_cone_reads_only_the_hats_files_it_can_touch(tmp_path):
    columns = gaia(*all_over(3000))
    root = hats(tmp_path / "gaia", columns, order=2)
    cone = (359.0, 80.0, 12.0)
    made = build(tmp_path / "store", root, filters=Filters(cone=cone))
    write(tmp_path / "all.parquet", columns)
    assert made.rows == len(load_reference(tmp_path / "all.parquet").near(*cone))
    assert made.inputs[0].rows < 1000


def test_a_directory_of_tables_is_read_whole(tmp_path):
    ra, dec = all_over(100)
    (tmp_path / "in/deeper").mkdir(parents=True)
    write(tmp_path / "in/a.parquet", gaia(ra[:50], dec[:50]))
    write(tmp_path / "in/deeper/b.parquet", gaia(ra[50:], dec[50:], first=50))
    write(tmp_path / "in/_metadata.parquet", {"nothing": [1]})
    assert build(tmp_path / "store", tmp_path / "in").rows == 100


def test_a_star_that_two_inputs_share_is_kept_once(tmp_path):
    ra, dec = all_over(100)
    one = write(tmp_path / "a.parquet", gaia(ra[:60], dec[:60]))
    two = write(tmp_path / "b.parquet", gaia(ra[40:], dec[40:], first=40))
    made = build(tmp_path / "store", one, two)
    assert (made.rows, made.duplicates) == (100, 20)


def test_one_number_for_two_stars_loses_neither(tmp_path):
    table = gaia([10.0, 10.001], [5.0, 5.0], source_id=np.array([7, 7]))
    assert build(tmp_path / "store", write(tmp_path / "a.parquet", table)).rows == 2


def test_names_serve_as_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("id,ra,dec,mag\nJ1,10,5,18\nJ2,10.00001,5,18\nJ1,10,5,18\n")
    assert build(tmp_path / "store", tmp_path / "a.csv").rows == 2


def test_rows_without_place_or_magnitude_are_left_out(tmp_path):
    table = {"ra": [1.0, np.nan, 3.0], "dec": [1.0, 2.0, 3.0], "r": [18.0, 18.0, 99.0]}
    assert build(tmp_path / "store", write(tmp_path / "a.parquet", table)).rows == 1


def test_filters_keep_what_is_bright_or_near(tmp_path):
    path = write(tmp_path / "a.parquet", gaia(*all_over(2000)))
    whole = load_reference(path)
    made = build(tmp_path / "bright", path, filters=Filters(max_mag=15.95))
    # The red magnitude is the brightest of the three, 0.5 above G.
    assert made.rows == np.count_nonzero(whole.mag - 0.5 <= 15.95)
    made = build(tmp_path / "near", path, filters=Filters(cone=(0.0, 10.0, 20.0)))
    assert made.rows == len(whole.near(0.0, 10.0, 20.0))


def test_dense_sky_is_split_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_build, "PARTITION_ROWS", 200)
    monkeypatch.setattr(reference_build, "SPARSE_ROWS", 200)
    rng = np.random.default_rng(5)
    path = write(tmp_path / "a.parquet", gaia(rng.uniform(30, 33, 5000), rng.uniform(-2, 1, 5000)))
    sources = find_sources([path])
    plan = plan_store(sources)
    made = build_store(sources, tmp_path / "store")
    assert max(made.partitions.rows) <= 200
    assert {6, 7} <= set(made.partitions.order)
    assert (plan.rows, plan.partitions) == (made.rows, len(made.partitions))
    store, whole = load_reference(tmp_path / "store"), load_reference(path)
    for ra, dec in [(31.5, -0.5), (30.0, 1.0), (32.9, -1.9)]:
        assert same(store.near(ra, dec, 0.4), whole.near(ra, dec, 0.4))


def test_batches_do_not_show(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", gaia(*all_over(300)))
    build(tmp_path / "one", path)
    monkeypatch.setattr(reference_tables, "BATCH_ROWS", 37)
    build(tmp_path / "many", path)
    one, many = (load_reference(tmp_path / name).near(0, 0, 180) for name in ("one", "many"))
    assert same(one, many)


@pytest.mark.parametrize("ending", ["fits", "csv", "parquet"])
def test_no_more_than_a_batch_of_a_table_is_held(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(reference_tables, "BATCH_ROWS", 100)
    monkeypatch.setattr(reference_tables, "CSV_BLOCK_BYTES", 10_000)
    path = tmp_path / f"a.{ending}"
    table = gaia(*all_over(1000))
    write(path, table) if ending == "parquet" else Table(table).write(path)
    batches = [len(batch["ra"]) for batch in reference_tables.read_batches(path, ["ra", "dec"])]
    assert sum(batches) == 1000
    assert max(batches) <= 130  # a block of this CSV is some 120 rows


def test_only_partitions_near_the_ccd_are_read_and_only_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(40, 50, 21_000), rng.uniform(-5, 5, 21_000)
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia(ra, dec)))
    store = load_reference(tmp_path / "store")
    assert isinstance(store, ReferenceStore)
    read = []
    once = ReferenceStore._read
    monkeypatch.setattr(ReferenceStore, "_read", lambda s, i: read.append(i) or once(s, i))
    assert len(store.near(42.0, 3.0, 0.2))
    touched = len(read)
    assert 1 <= touched <= 3 < len(store.manifest.partitions)
    load_reference(tmp_path / "store").near(42.0, 3.0, 0.2)
    assert len(read) == touched


def test_few_stars_make_few_files(tmp_path):
    made = build(tmp_path / "store", write(tmp_path / "a.parquet", gaia(*all_over(500))))
    assert len(made.partitions) == 12


def test_memory_keeps_a_bounded_number_of_stars(tmp_path, monkeypatch):
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia(*all_over(600))))
    recent = reference_store._Recent(120)
    monkeypatch.setattr(reference_store, "_recent", recent)
    store = load_reference(tmp_path / "store")
    assert len(store.near(0.0, 0.0, 180.0)) == 600
    assert sum(len(stars) for stars in recent._kept.values()) <= 120


class StoppedError(Exception):
    pass


def test_a_build_that_fails_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", gaia(*all_over(500)))
    calls = []

    def fail(*words):
        calls.append(words)
        if len(calls) == 5:
            raise StoppedError

    monkeypatch.setattr(reference_build, "_circle", lambda stars: fail(stars) or (0, 0, 180))
    with pytest.raises(StoppedError):
        build(tmp_path / "store", path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", gaia(*all_over(500)))

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(reference_build.parquet, "write_table", full)
    with pytest.raises(StorageError, match="No space"):
        build(tmp_path / "store", path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


KILLED = """
import os, sys
from pathlib import Path
from prepipe.engines.references import build as b
b._sync_tree = lambda root: os.kill(os.getpid(), 9)
b.build_store(b.find_sources([Path(sys.argv[1])]), Path(sys.argv[2]), force=True)
"""


def test_a_killed_build_leaves_no_store_and_the_next_one_cleans_up(tmp_path):
    path = write(tmp_path / "a.parquet", gaia(*all_over(500)))
    store = tmp_path / "store"
    done = subprocess.run([sys.executable, "-c", KILLED, path, store], check=False)
    assert done.returncode == -9
    assert not store.exists()
    assert (tmp_path / ".store.part").exists()
    build(store, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "store"]


def test_a_failed_replacement_leaves_the_old_store(tmp_path):
    old = write(tmp_path / "a.parquet", gaia(*all_over(100)))
    build(tmp_path / "store", old)
    (tmp_path / "bad.csv").write_text("ra,dec,mag\n1,2,x\n")
    with pytest.raises(ConfigError, match="there already"):
        build(tmp_path / "store", old)
    with pytest.raises(ConfigError, match=r"bad\.csv"):
        build(tmp_path / "store", tmp_path / "bad.csv", force=True)
    assert len(load_reference(tmp_path / "store")) == 100


def test_a_store_built_anew_is_read_anew(tmp_path):
    for count in (100, 50):
        path = write(tmp_path / "a.parquet", gaia(*all_over(count)))
        build(tmp_path / "store", path, force=True)
        assert len(load_reference(tmp_path / "store").near(0, 0, 180)) == count


def test_force_replaces_nothing_but_a_store(tmp_path):
    path = write(tmp_path / "a.parquet", gaia(*all_over(10)))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no reference catalogue store"):
        build(tmp_path / "home", path, force=True)
    assert (tmp_path / "home/thesis.tex").exists()


def bad_inputs(folder):
    (folder / "empty").mkdir()
    (folder / "hats").mkdir()
    (folder / "hats/hats.properties").write_text("dataproduct_type=object\n")
    (folder / "zero.parquet").write_bytes(b"")
    (folder / "names_only.csv").write_text("ra,dec,mag\n")
    (folder / "no_mag.csv").write_text("ra,dec\n1,2\n")
    (folder / "radians.csv").write_text("coord_ra,coord_dec,mag\n1,0.5,18\n")
    (folder / "beyond.csv").write_text("ra,dec,mag\n1,95,18\n")
    whole = write(folder / "whole.parquet", gaia(*all_over(50))).read_bytes()
    (folder / "truncated.parquet").write_bytes(whole[:-200])
    return [
        *("empty", "hats", "zero.parquet", "no_mag.csv", "radians.csv", "beyond.csv"),
        *("truncated.parquet", "missing.parquet"),
    ]


def test_an_input_that_is_no_catalogue_is_refused_by_name(tmp_path):
    for name in bad_inputs(tmp_path):
        with pytest.raises(ConfigError, match=name):
            build(tmp_path / "store", tmp_path / name)
        assert not (tmp_path / "store").exists()
    with pytest.raises(ConfigError, match="no star"):
        build(tmp_path / "store", tmp_path / "names_only.csv")


def test_tables_of_different_surveys_are_not_mixed(tmp_path):
    one = write(tmp_path / "a.parquet", gaia([1.0], [1.0]))
    two = write(tmp_path / "b.parquet", {"ra": [1.0], "dec": [1.0], "zmag": [18.0]})
    with pytest.raises(ConfigError, match=r"b\.parquet.*zmag.*make a store of each"):
        build(tmp_path / "store", one, two)


def test_a_store_is_no_input_of_another(tmp_path):
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia([1.0], [1.0])))
    with pytest.raises(ConfigError, match="store already"):
        find_sources([tmp_path / "store"])


def damage(store, what):
    manifest = store / MANIFEST
    partition = sorted(store.rglob("*.parquet"))[0]
    if what == "no manifest":
        manifest.unlink()
    elif what == "half a manifest":
        manifest.write_bytes(manifest.read_bytes()[:100])
    elif what == "another version":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    elif what == "another manifest":
        manifest.write_text('{"name": "something"}')
    elif what == "a number for a list":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"inputs": 3}))
    elif what == "a missing partition":
        partition.unlink()
    elif what == "half a partition":
        partition.write_bytes(partition.read_bytes()[:200])


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("no manifest", "refcat build"),
        ("half a manifest", "damaged"),
        ("another version", "version 99"),
        ("another manifest", "describes no reference catalogue"),
        ("a number for a list", "inputs"),
        ("a missing partition", r"Npix=\d+.parquet is missing"),
        ("half a partition", r"200 bytes instead of \d+"),
    ],
)
def test_a_damaged_store_is_refused_when_it_is_opened(tmp_path, what, told):
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia(*all_over(20))))
    damage(tmp_path / "store", what)
    with pytest.raises(ConfigError, match=told):
        load_reference(tmp_path / "store")


def test_a_flipped_bit_in_a_partition_is_noticed_when_it_is_read(tmp_path):
    ra, dec = np.random.default_rng(1).uniform(20, 20.5, (2, 2000))
    build(tmp_path / "store", write(tmp_path / "a.parquet", gaia(ra, dec)))
    (path, *_) = tmp_path.glob("store/*/*/*.parquet")
    content = bytearray(path.read_bytes())
    for place in range(1000, len(content) // 2, 997):
        content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        load_reference(tmp_path / "store").near(20.25, 20.25, 1.0)


def test_columns_named_at_the_build_need_not_be_named_again(tmp_path):
    (tmp_path / "a.csv").write_text("alpha,delta,brightness\n1,2,18\n")
    named = {"ra": "alpha", "dec": "delta", "mag": "brightness"}
    build(tmp_path / "store", tmp_path / "a.csv", columns=named)
    for columns in (None, named):
        stars = load_reference(tmp_path / "store", "r", columns).near(1, 2, 0.1)
        assert stars.mag.tolist() == [18.0]
    with pytest.raises(ConfigError, match=r"store.*'other'"):
        load_reference(tmp_path / "store", "r", {"mag": "other"})


@pytest.mark.parametrize(
    ("name", "band", "ra", "dec"),
    [
        ("gaia_dr2_cosmos", "g", 150.0, 2.0),
        ("ps1_cosmos_r_or_i_lt21.5", "r", 150.0, 2.0),
        ("sdss_stripe82_stars", "i", 351.0, 0.0),
    ],
)
def test_real_catalogues_are_the_same_from_a_store(shared_data, tmp_path, name, band, ra, dec):
    path = shared_data / f"refcats/{name}.fits"
    build(tmp_path / "store", path)
    store, whole = load_reference(tmp_path / "store", band), load_reference(path, band)
    for place in [(ra, dec), (ra + 0.7, dec + 0.4)]:
        ours = store.near(*place, 0.2).at_epoch(2020.2)
        assert len(ours) > 0
        assert same(ours, whole.near(*place, 0.2).at_epoch(2020.2))
    assert len(store.near(ra, dec, 180.0)) == len(whole)
