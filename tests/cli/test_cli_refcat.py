"""`prepipe refcat`: stores of reference stars from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from prepipe.engines.references.source import load_reference


@pytest.fixture
def stars(tmp_path: Path) -> Path:
    """A table of 200 stars around RA 150, Dec 2."""
    rng = np.random.default_rng(1)
    table = Table({"ra": rng.uniform(149, 151, 200), "dec": rng.uniform(1, 3, 200)})
    table["pmra"], table["pmdec"], table["epoch"] = 5.0, -5.0, 2015.5
    table["r"] = np.linspace(14, 20, 200)
    table.write(tmp_path / "stars.csv")
    return tmp_path / "stars.csv"


def test_a_store_is_built_and_described(run, stars, tmp_path):
    done = run("refcat", "build", stars, "--out", tmp_path / "store")
    assert done.exit_code == 0
    assert "200" in done.stdout
    told = run("refcat", "info", tmp_path / "store")
    assert told.exit_code == 0
    for words in ("200", "2015.50", "r 100 %", str(stars)):
        assert words in told.stdout
    assert len(load_reference(tmp_path / "store", "r").near(150, 2, 0.3))


def test_info_for_machines_says_all(run, stars, tmp_path):
    run("refcat", "build", stars, "--out", tmp_path / "store")
    told = json.loads(run("refcat", "info", tmp_path / "store", "--json").stdout)
    assert (told["rows"], told["epoch_year"], told["columns"]) == (200, 2015.5, {"r": 200})
    assert told["motions"] == 200
    assert told["inputs"][0]["rows"] == 200


def test_a_dry_run_counts_and_writes_nothing(run, stars, tmp_path):
    words = ("--out", tmp_path / "store", "--max-mag", 17, "--dry-run", "--json")
    done = run("refcat", "build", stars, *words)
    plan = json.loads(done.stdout)
    assert (plan["rows"], plan["partitions"]) == (100, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stars.csv"]


def test_a_cone_and_named_columns_are_taken(run, stars, tmp_path):
    stars.write_text(stars.read_text().replace(",r\n", ",brightness\n", 1))
    words = ("--cone", 150, 2, 0.5, "--column", "mag=brightness", "--json")
    told = json.loads(run("refcat", "build", stars, "--out", tmp_path / "store", *words).stdout)
    assert 0 < told["rows"] < 100
    assert told["cone"] == [150.0, 2.0, 0.5]
    assert told["columns"] == {"brightness": told["rows"]}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-mag", "nan"], "finite"),
        (["--max-mag", "3"], "no star"),
        (["--cone", "150", "100", "1"], "a cone is"),
        (["--column", "mag"], "mag=rPSF"),
        (["--column", "mag=missing"], "missing"),
    ],
)
def test_wrong_use_is_one_sentence(run, stars, tmp_path, words, told):
    done = run("refcat", "build", stars, "--out", tmp_path / "store", *words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_store_is_replaced_only_by_force(run, stars, tmp_path):
    words = ("refcat", "build", stars, "--out", tmp_path / "store")
    assert run(*words).exit_code == 0
    again = run(*words)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run(*words, "--force").exit_code == 0


def test_a_part_of_a_hats_catalogue_says_that_it_is_one(run, stars, tmp_path):
    pixel = tmp_path / "gaia/dataset/Norder=0/Dir=0"
    pixel.mkdir(parents=True)
    Table.read(stars).write(pixel / "Npix=4.parquet", format="parquet")
    facts = "dataproduct_type=object\nhats_col_ra=ra\nhats_col_dec=dec\nhats_nrows=1000\n"
    (tmp_path / "gaia/hats.properties").write_text(facts)
    done = run("refcat", "build", tmp_path / "gaia", "--out", tmp_path / "store")
    assert done.exit_code == 0
    assert "200 of the 1,000 rows" in done.stderr


def test_what_is_no_store_is_refused(run, tmp_path):
    done = run("refcat", "info", tmp_path)
    assert done.exit_code == 2
    assert "prepipe refcat build" in done.stderr


def test_the_group_has_a_help_page_of_its_own(run):
    done = run("refcat", "--help")
    assert "build" in done.stdout
    assert "info" in done.stdout
