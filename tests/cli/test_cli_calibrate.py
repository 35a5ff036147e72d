"""`prepipe calibrate` and `prepipe make-cals` on files at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from typer.testing import CliRunner

from prepipe.cli import app
from prepipe.model import Kind
from prepipe.simulate import Settings, simulate_exposure

KEYS = {
    *("exposure", "ccd", "grade", "reasons", "wcs_rms_mas", "wcs_matches", "zero_point"),
    *("zero_point_scatter", "seeing_arcsec", "sky_adu", "n_sources", "product", "catalogue"),
    "seconds",
}
CCDS = (28,)


def run(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibrate")
    for kind in (Kind.ZERO, Kind.DOME_FLAT, Kind.OBJECT):
        settings = Settings(seed=2, ccds=CCDS, kind=kind)
        for index in range(1 if kind is Kind.OBJECT else 2):
            simulate_exposure(settings, index, root / kind.value)
    Settings(seed=2, ccds=CCDS).star_field.write_reference(root / "stars.fits")
    return root


def test_masters_are_made_and_used(raw: Path, tmp_path: Path) -> None:
    frames = [*(raw / "zero").glob("*.fz"), *(raw / "dome-flat").glob("*.fz")]
    code, told, _ = run("make-cals", *frames, "--out", tmp_path / "cals")
    assert code == 0
    assert [master["kind"] for master in told["masters"]] == ["zero", "dome-flat"]
    # two frames of some 2.4 ADU read noise each, clipped against their median
    assert 1.0 < told["masters"][0]["noise"] < 3.0
    (sky,) = (raw / "object").glob("*.fits.fz")
    words = ("--refcat", raw / "stars.fits", "--cals", tmp_path / "cals", "--out", tmp_path / "out")
    code, told, _ = run("calibrate", sky, *words)
    assert code == 0
    (ccd,) = told["ccds"]
    assert set(ccd) >= KEYS
    assert (ccd["ccd"], ccd["grade"], ccd["reasons"]) == (28, "green", [])
    assert (ccd["file"], ccd["band"]) == (str(sky), "g")
    assert Path(ccd["product"]).is_file()
    assert Path(ccd["catalogue"]).is_file()


def test_a_dry_run_of_make_cals_makes_nothing(raw: Path, tmp_path: Path) -> None:
    frames = list((raw / "zero").glob("*.fz"))
    code, told, _ = run("make-cals", *frames, "--out", tmp_path / "cals", "--dry-run")
    assert (code, told["masters"][0]["frames"]) == (0, 2)
    assert not (tmp_path / "cals").exists()


def test_a_file_that_is_no_zero_or_flat_is_named(raw: Path, tmp_path: Path) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    code, told, errors = run("make-cals", sky, "--out", tmp_path / "cals")
    assert code == 1
    assert str(sky) in told["failed"]
    assert sky.name in errors


def test_what_cannot_be_read_is_named_and_the_rest_is_calibrated(raw: Path, tmp_path: Path) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    bad = tmp_path / "bad.fits.fz"
    bad.write_bytes(b"")
    words = ("--refcat", raw / "stars.fits", "--out", tmp_path / "out")
    code, told, errors = run("calibrate", bad, sky, tmp_path / "missing.fits", *words)
    assert code == 1
    assert len(told["ccds"]) == 1
    assert {Path(name).name for name in told["failed"]} == {"bad.fits.fz", "missing.fits"}
    assert "bad.fits.fz" in errors


def test_the_same_exposure_twice_is_refused(raw: Path, tmp_path: Path) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    copy = tmp_path / sky.name
    copy.write_bytes(sky.read_bytes())
    code, told, _ = run("calibrate", sky, copy, "--out", tmp_path / "out")
    assert (code, len(told["ccds"])) == (1, 1)
    assert "given already" in told["failed"][str(copy)]


@pytest.mark.parametrize(
    "words",
    [
        ("--refcat", "nowhere.fits"),
        ("--cals", "nowhere"),
        ("--camera", "palomar"),
        ("--camera", "nowhere.toml"),
        ("--config", "nowhere.toml"),
        ("--columns", "ra"),
        ("--crosstalk", "nowhere.txt"),
        ("--linearity", "nowhere.fits"),
        ("--bad-pixels", "nowhere"),
    ],
)
def test_wrong_use_exits_with_2(raw: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    assert run("calibrate", sky, "--out", tmp_path, *words)[0] == 2


def test_tables_of_the_detector_that_are_given_are_used(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "xtalk.csv").write_text("victim,source,coefficient\n28A,28B,1e-4\n")
    (tmp_path / "linear.csv").write_text(
        "ccd,amplifier,adu,linear_adu\n28,A,0,0\n28,B,0,0\n",
    )
    (tmp_path / "ccd28.csv").write_text("x0,y0,width,height\n10,20,1,1\n")
    (sky,) = (raw / "object").glob("*.fits.fz")
    words = ("--crosstalk", tmp_path / "xtalk.csv", "--linearity", tmp_path / "linear.csv")
    words = (*words, "--bad-pixels", tmp_path / "ccd28.csv", "--out", tmp_path / "out")
    code, told, _ = run("calibrate", sky, *words)
    assert code == 0
    header = fits.getheader(told["ccds"][0]["product"], "IMAGE")
    used = [header[card] for card in ("XTALKFIL", "LINFILE", "BPMFILE")]
    assert used == ["xtalk.csv", "linear.csv", "ccd28.csv"]


def test_a_truncated_file_is_named_and_its_intact_copy_is_calibrated(
    raw: Path, tmp_path: Path
) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    cut = tmp_path / sky.name
    cut.write_bytes(sky.read_bytes()[:-2880])
    words = ("--refcat", raw / "stars.fits", "--out", tmp_path / "out")
    code, told, _ = run("calibrate", cut, sky, *words)
    assert code == 1
    assert list(told["failed"]) == [str(cut)]
    assert "truncated" in told["failed"][str(cut)]
    assert [ccd["file"] for ccd in told["ccds"]] == [str(sky)]


def test_zeros_and_dome_flats_are_not_calibrated(raw: Path, tmp_path: Path) -> None:
    zero, flat = (next((raw / kind).glob("*.fits.fz")) for kind in ("zero", "dome-flat"))
    code, told, _ = run("calibrate", zero, flat, "--out", tmp_path / "out")
    assert (code, told["ccds"]) == (1, [])
    assert told["failed"][str(zero)] == f"{zero}: this is a zero: combine it with make-cals"
    assert "this is a dome flat: combine it with make-cals" in told["failed"][str(flat)]


def test_columns_that_are_not_recognised_are_told_or_it_is_wrong_use(
    raw: Path, tmp_path: Path
) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    stars = Table.read(raw / "stars.fits")
    (magnitude,) = (
        name for name in stars.colnames if name.lower() in ("g", "mag", "phot_g_mean_mag")
    )
    odd = Table({"alpha": stars["ra"], "delta": stars["dec"], "light": stars[magnitude]})
    odd.write(tmp_path / "odd.csv")
    words = ("calibrate", sky, "--refcat", tmp_path / "odd.csv", "--out", tmp_path / "out")
    code, told, errors = run(*words)
    assert (code, told) == (2, {})
    assert "`[calibration] columns`" in errors
    assert len(errors.splitlines()) == 1
    code, told, _ = run(*words, "--columns", "ra=alpha,dec=delta,mag=light")
    assert (code, told["ccds"][0]["wcs_matches"] > 50) == (0, True)


def test_an_output_that_cannot_be_written_is_wrong_use(raw: Path) -> None:
    frames = list((raw / "zero").glob("*.fz"))
    assert run("make-cals", *frames, "--out", "/proc/cals")[0] == 2
    assert run("calibrate", *frames, "--out", "/proc/products")[0] == 2


def test_missing_frames_are_named_and_the_others_are_combined(raw: Path, tmp_path: Path) -> None:
    frames = list((raw / "zero").glob("*.fz"))
    code, told, errors = run("make-cals", "gone.fits", *frames, "--out", tmp_path / "cals")
    assert (code, len(told["masters"])) == (1, 1)
    assert "gone.fits: does not exist" in errors


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An exposure of two CCDs, and a catalogue that has but six stars on CCD 28."""
    root = tmp_path_factory.mktemp("sparse")
    settings = Settings(seed=5, ccds=(28, 35))
    settings.star_field.write_reference(root / "stars.fits")
    raw = simulate_exposure(settings, 0, root)
    words = ("--refcat", root / "stars.fits", "--out", root / "full")
    ccds = {ccd["ccd"]: ccd for ccd in run("calibrate", raw, *words)[1]["ccds"]}
    stars = Table.read(root / "stars.fits")
    found, other = (fitsio.read(ccds[ccd]["catalogue"]) for ccd in (28, 35))
    bright = found[found["MATCHED"] & (found["FLAGS"] == 0)]
    bright = np.sort(bright, order="MAG")
    keep = (stars["ra"] > other["RA"].min()) & (stars["ra"] < other["RA"].max())
    keep &= (stars["dec"] > other["DEC"].min()) & (stars["dec"] < other["DEC"].max())
    for star in bright[:6]:
        keep[np.argmin(np.hypot(stars["ra"] - star["RA"], stars["dec"] - star["DEC"]))] = True
    stars[keep].write(root / "few.fits")
    return raw, root / "few.fits"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ccd_with_few_stars_is_solved_with_the_pointing_of_the_others(
    sparse: tuple[Path, Path], tmp_path: Path, workers: int
) -> None:
    raw, stars = sparse
    words = ("--refcat", stars, "--out", tmp_path, "--workers", workers)
    code, told, _ = run("calibrate", raw, *words)
    assert code == 0
    poor, rich = told["ccds"]
    assert (poor["ccd"], poor["wcs_matches"]) == (28, 6)
    assert poor["offset_arcsec"] == pytest.approx(rich["offset_arcsec"], abs=0.5)
    assert poor["wcs_tries"][0]["rung"] == "header"
    assert poor["wcs_tries"][-1]["accepted"]
    assert len(rich["wcs_tries"]) == 1


def test_photometry_of_an_unknown_kind_is_refused(raw: Path, tmp_path: Path) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    assert run("calibrate", sky, "--out", tmp_path, "--photometry", "guess")[0] == 2


def test_profiles_are_fitted_on_demand(raw: Path, tmp_path: Path) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    code, told, _ = run("calibrate", sky, "--out", tmp_path, "--photometry", "psf")
    assert code == 0
    assert {"PSFMAG", "PSFCHI2"} <= set(Table.read(told["ccds"][0]["catalogue"]).colnames)
    assert told["ccds"][0]["steps"]["profiles"] > 0
