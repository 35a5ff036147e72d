"""`prepipe look`: a picture of a calibrated CCD; `prepipe wcs`: its WCS in other words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from astropy.io import fits
from typer.testing import CliRunner, Result

from prepipe.cli import app

Run = Callable[..., Result]

PNG = b"\x89PNG"


def calibrated(shared_data: Path, out: Path, *words: str) -> Path:
    """The product of a real frame."""
    raw = shared_data / "sdss/fpC-004192-r4-0300.fit.gz"
    told = ["calibrate", str(raw), "--camera", "sdss", "--out", str(out), *words]
    assert CliRunner().invoke(app, told).exit_code == 0
    (product,) = out.glob("ut*/4/*_4.fits.fz")
    return product


@pytest.fixture(scope="module")
def stars(shared_data: Path) -> Path:
    return shared_data / "refcats/sdss_stripe82_stars.fits"


@pytest.fixture(scope="module")
def solved(shared_data: Path, stars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(shared_data, tmp_path_factory.mktemp("solved"), "--refcat", str(stars))


@pytest.fixture(scope="module")
def unsolved(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a catalogue, and with its table in Parquet alone."""
    return calibrated(shared_data, tmp_path_factory.mktemp("red"), "--catalogue", "parquet")


@pytest.mark.parametrize("which", ["solved", "unsolved"])
def test_a_product_becomes_a_picture(
    run: Run, which: str, request: pytest.FixtureRequest, stars: Path, tmp_path: Path
) -> None:
    product = request.getfixturevalue(which)
    form = {"solved": "fits", "unsolved": "parquet"}[which]
    assert [path.suffix for path in product.parent.glob("*.cat.*")] == [f".{form}"]
    done = run("look", product, "--refcat", stars, "--out", tmp_path)
    assert done.exit_code == 0
    (picture,) = tmp_path.iterdir()
    assert str(picture) in done.stdout
    assert picture.read_bytes().startswith(PNG)


def test_what_is_no_product_is_named_and_exits_with_1(
    run: Run, raw_file: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.fits.fz"
    wrong.write_text("no product")
    packet = tmp_path / "decam_00941420_25.packet"
    packet.write_text("a packet")
    named_as_one = tmp_path / "raw.fits.fz"
    named_as_one.write_bytes(raw_file.read_bytes())
    given = (wrong, packet, raw_file, named_as_one)
    done = run("look", *given)
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed:")]
    for path, line in zip(given, lines, strict=True):
        assert line.startswith(f"failed: {path}: is no calibrated CCD")
        assert "`prepipe calibrate`" in line


def test_a_product_without_its_table_and_one_that_is_not_there_are_named(
    run: Run, solved: Path, tmp_path: Path
) -> None:
    alone = tmp_path / solved.name
    alone.write_bytes(solved.read_bytes())
    done = run("look", alone, tmp_path / "gone.fits.fz", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["pictures"] == []
    assert "its source table" in told["failed"][str(alone)]
    assert "does not exist" in told["failed"][str(tmp_path / "gone.fits.fz")]


def test_a_catalogue_that_is_not_there_is_wrong_use(run: Run, tmp_path: Path) -> None:
    done = run("look", tmp_path / "any.fits.fz", "--refcat", tmp_path / "nowhere.fits")
    assert done.exit_code == 2


def test_products_are_copied_with_their_wcs_in_other_words(
    run: Run, solved: Path, raw_file: Path, tmp_path: Path
) -> None:
    done = run("wcs", solved, raw_file, "--to", "sip", "--out", tmp_path / "sip", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["copies"] == [str(tmp_path / "sip" / solved.name)]
    assert list(told["failed"]) == [str(raw_file)]
    # A plain TAN is the same in all words.
    assert fits.getheader(told["copies"][0], "WEIGHT")["CTYPE1"] == "RA---TAN"


@pytest.mark.parametrize("words", [("--to", "tan", "--out", "x"), ("--to", "sip")])
def test_other_words_that_are_not_known_are_wrong_use(run: Run, words: tuple[str, ...]) -> None:
    assert run("wcs", "any.fits.fz", *words).exit_code == 2


@pytest.mark.parametrize("option", ["--wcs", "--catalogue", "--pixels"])
def test_a_form_that_is_not_known_is_wrong_use(run: Run, raw_file: Path, option: str) -> None:
    done = run("calibrate", raw_file, "--out", raw_file.parent / "out", option, "none-such")
    assert done.exit_code == 2
    assert f"{option} none-such" in done.stderr
