"""`prepipe masters`, and what `prepipe make-cals` says of masters that are held."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.names import MasterName
from prepipe.model import Kind, Mark, Night
from prepipe.store import MasterRow

NIGHT = Night(date(2020, 3, 5))
CAMERA = """
name = "plain"
pixel_scale = 0.5
[cards]
kind = "OBSTYPE"
[detector]
bias_level = 1000.0
gain = 1.0
read_noise = 5.0
saturation = 60000.0
"""


def add(root: Path, days: int, ccd: int = 25, band: str = "", **told: object) -> Path:
    night = Night(NIGHT.date + timedelta(days=days))
    kind = Kind.DOME_FLAT if band else Kind.ZERO
    stem = f"domeflat.{band}" if band else "bias"
    path = root / night.ut_name / str(ccd) / f"{stem}.{night.ut_name}.1_{ccd}.fits.fz"
    image = np.arange(64, dtype=np.float32).reshape(8, 8) + days
    row = MasterRow("", "", kind, ccd, band, night, **told)
    cards = [("NCOMBINE", 5, ""), ("NOISE", 0.5, "")]
    name = MasterName(path, kind, band, night, ccd, 1)
    MasterLibrary(root).add(name, image, 0.5, cards, row)
    return path


@pytest.fixture
def cals(tmp_path: Path) -> Path:
    root = tmp_path / "cals"
    add(root, 0)
    add(root, 0, band="g")
    add(root, 1, band="g", mark=Mark.HELD, why="differs", shift=0.25, rms=0.5, deviating=0.125)
    add(root, 1, ccd=31)
    return root


def listed(run, cals: Path, *words: object) -> list[dict]:
    answer = run("masters", "list", "--cals", cals, "--json", *words)
    assert answer.exit_code == 0
    return json.loads(answer.stdout)["masters"]


def marks(cals: Path) -> dict[str, Mark]:
    return {m.path.name: m.row.mark for m in MasterLibrary(cals).masters()}


def test_the_list_tells_all_of_each(run, cals):
    bias, flat, held, _ = listed(run, cals)
    assert (bias["kind"], bias["ccd"], bias["night"]) == ("zero", 25, "2020-03-05")
    assert (bias["frames"], bias["noise"], bias["mark"]) == (5, 0.5, "good")
    assert (flat["band"], flat["previous"], flat["shift"]) == ("g", None, None)
    assert (held["mark"], held["why"], held["adopted"]) == ("held", "differs", False)
    assert (held["shift"], held["rms"], held["deviating"]) == (0.25, 0.5, 0.125)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--night", "ut200306"), 2),
        (("--kind", "dome-flat"), 2),
        (("--ccd", 31), 1),
        (("--band", "r"), 0),
        (("--mark", "held"), 1),
        (("--night", "2020-03-06", "--kind", "zero"), 1),
    ],
)
def test_the_list_may_be_narrowed(run, cals, words, count):
    assert len(listed(run, cals, *words)) == count


def test_the_table_shows_them_and_a_row_without_its_file_is_told(run, cals):
    gone = add(cals, 3)
    gone.unlink()
    answer = run("masters", "list", "--cals", cals)
    assert answer.exit_code == 0
    assert "domeflat.g.ut200307.1_25" in answer.stdout
    assert f"note: {gone.relative_to(cals)} is remembered" in answer.stderr


def test_a_damaged_master_is_shown_as_such(run, cals):
    path = add(cals, 3)
    path.write_bytes(path.read_bytes()[:2900])
    assert "damaged" in run("masters", "list", "--cals", cals).stdout
    assert [m["readable"] for m in listed(run, cals, "--night", "ut200309")] == [False]


def test_one_master_is_marked_by_its_path(run, cals):
    path = cals / "ut200307" / "25" / "domeflat.g.ut200307.1_25.fits.fz"
    answer = run("masters", "mark", "good", path, "--why", "new lamp", "--cals", cals)
    assert answer.exit_code == 0
    assert "is good: new lamp (was held: differs)" in answer.stdout
    assert set(marks(cals).values()) == {Mark.GOOD}


def test_many_are_marked_by_night_and_a_dry_run_only_says_so(run, cals):
    words = ("masters", "mark", "bad", "--night", "ut200306", "--why", "haze", "--cals", cals)
    before = marks(cals)
    told = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert told["dry_run"]
    assert [change["to"] for change in told["changes"]] == ["bad: haze"] * 2
    assert marks(cals) == before
    assert run(*words).exit_code == 0
    assert [m["mark"] for m in listed(run, cals, "--mark", "bad")] == ["bad"] * 2


def test_limits_in_time_are_set_and_taken_away(run, cals):
    words = ("masters", "valid", "--ccd", 31, "--cals", cals)
    answer = run(*words, "--from", "ut200306", "--until", "2020-03-09")
    assert "valid from ut200306 until ut200310 (was valid from open until open)" in answer.stdout
    (master,) = listed(run, cals, "--ccd", 31)
    assert (master["valid_from"], master["valid_until"]) == ("2020-03-05", "2020-03-09")
    assert run(*words, "--until", "open").exit_code == 0
    (master,) = listed(run, cals, "--ccd", 31)
    assert (master["valid_from"], master["valid_until"]) == ("2020-03-05", None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("mark", "bad", "--why", "haze"), "which masters?"),
        (("mark", "bad", "--ccd", "25"), "say --why"),
        (("mark", "held", "--ccd", "25", "--why", "x"), "good or bad"),
        (("mark", "awful", "--ccd", "25", "--why", "x"), "no mark"),
        (("list", "--kind", "dark"), "zero or dome-flat"),
        (("list", "--night", "yesterday"), "--night"),
        (("valid", "--ccd", "25"), "--from, --until or both"),
        (("valid", "--ccd", "25", "--from", "ut200307", "--until", "ut200306"), "is after"),
        (("valid", "--ccd", "25", "--until", "soon"), "--until"),
    ],
)
def test_wrong_use_is_told_and_changes_nothing(run, cals, words, sentence):
    before = marks(cals)
    answer = run("masters", *words, "--cals", cals)
    assert answer.exit_code == 2
    assert sentence in answer.stderr
    assert marks(cals) == before


def test_what_is_no_master_there_is_named(run, cals, tmp_path):
    other = add(tmp_path / "other", 0)
    words = ("masters", "mark", "bad", other, tmp_path / "x.fits", "--why", "haze", "--cals", cals)
    answer = run(*words)
    assert answer.exit_code == 1
    assert f"{other} does not lie in {cals}" in answer.stderr
    assert "x.fits is no master" in answer.stderr
    answer = run("masters", "mark", "bad", "--ccd", 99, "--why", "haze", "--cals", cals)
    assert answer.exit_code == 1
    assert "no such masters" in answer.stderr


def test_the_masters_of_the_site_are_meant_unless_told_otherwise(run, site_file):
    add(site_file.parent / "cluster" / "calibrations", 0)
    answer = run("masters", "list", "--config", site_file, "--json")
    assert len(json.loads(answer.stdout)["masters"]) == 1
    assert run("masters", "list", "--cals", site_file.parent / "none").exit_code == 2


def zeros(folder: Path, first: int, night: int, level: float) -> list[Path]:
    paths = []
    for number in range(first, first + 3):
        noise = np.random.default_rng(number).normal(1000 + level, 5, (96, 80))
        header = fits.Header()
        header["EXPNUM"] = number
        header["OBSTYPE"] = "zero"
        header["EXPTIME"] = 0.0
        header["DATE-OBS"] = f"2020-03-{night:02d}T21:00:00"
        paths.append(folder / f"{number}.fits")
        fits.PrimaryHDU(np.rint(noise).astype(np.uint16), header).writeto(paths[-1])
    return paths


def test_make_cals_holds_what_differs_and_says_by_how_much(run, tmp_path):
    camera = tmp_path / "plain.toml"
    camera.write_text(CAMERA)
    cals = tmp_path / "cals"
    common = ("--out", cals, "--camera", camera)
    answer = run("make-cals", *zeros(tmp_path, 1, 5, 0), *common)
    assert answer.exit_code == 0
    assert "failed" not in answer.stderr
    sources = zeros(tmp_path, 11, 6, 8)
    answer = run("make-cals", *sources, *common)
    assert answer.exit_code == 1
    assert "held, not used until `prepipe masters mark` accepts it" in answer.stderr
    assert "(limit 1 ADU)" in answer.stderr
    answer = run("make-cals", *sources, *common, "--json")
    (told,) = json.loads(answer.stdout)["masters"]
    assert (answer.exit_code, told["mark"]) == (1, "held")
    # Means of three frames each: 5 sqrt(2 / 3) ADU over 7680 pixels, 0.06 ADU in the median.
    assert told["shift"] == pytest.approx(8.0, abs=0.3)
    words = ("masters", "mark", "good", told["path"], "--why", "new controller", "--cals", cals)
    assert run(*words).exit_code == 0
    assert run("make-cals", *sources, *common).exit_code == 0
