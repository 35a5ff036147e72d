"""`prepipe calibrate` and `prepipe make-cals` on files at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
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
    (sky,) = (raw / "object").glob("*.fits.fz")
    words = ("--refcat", raw / "stars.fits", "--cals", tmp_path / "cals", "--out", tmp_path / "out")
    code, told, _ = run("calibrate", sky, *words)
    assert code == 0
    (ccd,) = told["ccds"]
    assert set(ccd) >= KEYS
    assert (ccd["ccd"], ccd["grade"], ccd["reasons"]) == (28, "green", [])
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
    ],
)
def test_wrong_use_exits_with_2(raw: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    (sky,) = (raw / "object").glob("*.fits.fz")
    assert run("calibrate", sky, "--out", tmp_path, *words)[0] == 2
