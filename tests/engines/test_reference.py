"""Reading reference catalogues from files."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pytest
from astropy.table import Table
from pyarrow import parquet

from prepipe.engines.references.source import load_reference
from prepipe.errors import ConfigError


def write(path, table: Table):
    """A table in the format that the ending says."""
    if path.suffix == ".parquet":
        arrays = {name: np.asarray(table[name]) for name in table.colnames}
        fields = [
            pa.field(name, pa.from_numpy_dtype(arrays[name].dtype), metadata=unit)
            for name in table.colnames
            for unit in [{"unit": str(table[name].unit)} if table[name].unit else None]
        ]
        parquet.write_table(pa.table(arrays, schema=pa.schema(fields)), path)
    else:
        table.write(path, format="csv" if path.suffix == ".csv" else "fits")
    return path


def small() -> Table:
    return Table(
        {
            "ra": [150.0, 150.1, 150.2],
            "dec": [2.0, 2.1, np.nan],
            "r": [18.0, 19.0, 20.0],
            "r_err": [0.01, 0.02, 0.03],
        }
    )


@pytest.mark.parametrize("ending", [".fits", ".csv", ".parquet"])
def test_the_same_table_reads_alike_from_every_format(tmp_path, ending):
    stars = load_reference(write(tmp_path / f"stars{ending}", small()), band="r")
    assert stars.ra.tolist() == [150.0, 150.1]
    assert stars.mag.tolist() == [18.0, 19.0]
    assert stars.mag_error.tolist() == [0.01, 0.02]
    assert (stars.band, stars.in_band) == ("r", True)
    assert stars.ra.dtype.isnative


@pytest.mark.parametrize("ending", [".fits", ".parquet"])
def test_units_in_the_file_count(tmp_path, ending):
    table = small()
    for name in ("ra", "dec"):
        table[name] = np.radians(table[name])
        table[name].unit = "rad"
    stars = load_reference(write(tmp_path / f"stars{ending}", table))
    assert stars.ra == pytest.approx([150.0, 150.1])


def test_a_csv_may_begin_with_comments_and_hold_nulls(tmp_path):
    path = tmp_path / "stars.csv"
    path.write_text(
        "# from an archive\n# of stars\nra,dec,pmra,pmdec,mag\n1,2,,null,18\n3,4,5,6,19\n"
    )
    stars = load_reference(path)
    assert stars.mag.tolist() == [18.0, 19.0]
    assert np.isnan(stars.pm_ra).tolist() == [True, False]


def test_a_compressed_csv_reads_too(tmp_path):
    path = tmp_path / "stars.csv.gz"
    path.write_bytes(gzip.compress(b"ra,dec,mag\n1,2,18\n"))
    assert len(load_reference(path)) == 1


def test_columns_can_be_mapped(tmp_path):
    table = small()
    table.rename_column("r", "flux_free_magnitude")
    path = write(tmp_path / "stars.fits", table)
    assert load_reference(path, columns={"mag": "flux_free_magnitude"}).mag.tolist() == [18, 19]


def bad_files(folder):
    empty_table = small()[:0]
    (folder / "zero.fits").write_bytes(b"")
    (folder / "zero.csv").write_bytes(b"")
    (folder / "zero.parquet").write_bytes(b"")
    (folder / "text.fits").write_text("these are no stars")
    (folder / "text.parquet").write_text("these are no stars")
    (folder / "names_only.csv").write_text("ra,dec,mag\n")
    (folder / "comments_only.csv").write_text("# ra,dec,mag")
    (folder / "ragged.csv").write_text("ra,dec,mag\n1,2\n1,2,3,4\n")
    (folder / "sexagesimal.csv").write_text("ra,dec,mag\n10:00:00,+02:00:00,18\n")
    (folder / "stars.txt").write_text("ra dec mag")
    whole = write(folder / "whole.fits", small()).read_bytes()
    (folder / "truncated.fits").write_bytes(whole[:4000])
    write(folder / "no_rows.fits", empty_table)
    write(folder / "no_mag.fits", small()["ra", "dec"])
    (folder / "folder.fits").mkdir()
    return [
        *("zero.fits", "zero.csv", "zero.parquet", "text.fits", "text.parquet"),
        *("names_only.csv", "comments_only.csv", "ragged.csv", "sexagesimal.csv", "stars.txt"),
        *("truncated.fits", "no_rows.fits", "no_mag.fits", "folder.fits", "missing.fits"),
    ]


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyUserWarning")
def test_a_file_that_is_no_catalogue_is_refused_by_name(tmp_path):
    for name in bad_files(tmp_path):
        with pytest.raises(ConfigError, match=name):
            load_reference(tmp_path / name)


def test_missing_columns_are_refused_with_those_found(tmp_path):
    path = write(tmp_path / "stars.fits", small()["ra", "r", "r_err"])
    with pytest.raises(ConfigError, match=r"RA and Dec.*ra, r, r_err"):
        load_reference(path)


@pytest.mark.parametrize(
    ("name", "band", "rows", "column"),
    [
        ("gaia_dr2_cosmos", "g", 41_326, "phot_g_mean_abmag"),
        ("ps1_cosmos_r_or_i_lt21.5", "r", 131_277, "r"),
        ("sdss_stripe82_stars", "i", 28_196, "i"),
    ],
)
def test_real_catalogues_are_read_whole(shared_data, name, band, rows, column):
    stars = load_reference(shared_data / f"refcats/{name}.fits", band)
    assert len(stars) == rows
    assert stars.band == column
    assert stars.colour is not None
    assert stars.ra.min() >= 0.0
    assert stars.ra.max() < 360.0


def test_gaia_comes_with_its_epoch_and_without_the_motions_nobody_measured(shared_data):
    stars = load_reference(shared_data / "refcats/gaia_dr2_cosmos.fits")
    assert stars.epoch_year == pytest.approx(2015.5, abs=1e-5)
    # 16831 rows have both components exactly zero.
    assert np.isnan(stars.pm_ra).sum() == 16_831
