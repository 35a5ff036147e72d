"""`prepipe fidelity`: codecs on raw files, and what was checked in a night."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import stand_in_codec
from astropy.io import fits

from prepipe.codec.external import ENVIRONMENT
from prepipe.model import Night
from prepipe.simulate import simulate_night
from prepipe.store import CheckRow, Journal


@pytest.fixture(scope="session")
def sky_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated exposure of one whole CCD."""
    out = tmp_path_factory.mktemp("sky")
    simulate_night(out, 1, (28,))
    return next(out.glob("*.fits.fz"))


def test_each_codec_has_a_row_and_a_lossless_one_has_lost_nothing(run, sky_file, tmp_path):
    picture = tmp_path / "picture.png"
    words = ("--codec", "rice", "--codec", "jpeg2000:ratio=10", "--picture", picture, "--json")
    answer = run("fidelity", sky_file, *words)
    assert answer.exit_code == 0, answer.stderr
    told = json.loads(answer.stdout)
    rice, jpeg = told["codecs"]
    assert [rice["label"], jpeg["label"]] == ["rice", "jpeg2000:ratio=10"]
    assert (rice["fidelity"]["rms"], rice["fidelity"]["scatter"]) == (0, 0)
    assert (rice["fidelity"]["recovered"], rice["fidelity"]["new"]) == (1, 0)
    assert jpeg["ratio"] == pytest.approx(10, rel=0.05)
    assert 0.3 < jpeg["fidelity"]["scatter"] < 0.6
    assert jpeg["fidelity"]["found"] < jpeg["fidelity"]["found_original"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "codecs tried 2/2" in answer.stderr


def test_the_table_names_the_frame_and_the_codec(run, sky_file):
    answer = run("fidelity", sky_file, "--codec", "rice", "--ccd", 28)
    assert answer.exit_code == 0
    assert "exposure 941421 CCD 28" in answer.stdout
    assert "rice" in answer.stdout


def test_files_that_tell_nothing_are_named_and_the_others_go_on(run, sky_file, raw_file, tmp_path):
    zero = tmp_path / "zero.fits"
    with fits.open(raw_file) as raw:
        raw[0].header["OBSTYPE"] = "zero"
        raw.writeto(zero)
    broken = tmp_path / "broken.fits"
    broken.write_bytes(raw_file.read_bytes()[:5000])
    gone = tmp_path / "gone.fits"
    answer = run("fidelity", zero, broken, gone, raw_file, sky_file, "--codec", "rice")
    assert answer.exit_code == 1
    failed = [line for line in answer.stderr.splitlines() if line.startswith("failed: ")]
    for path in (zero, broken, gone, raw_file):
        assert sum(f"{path}" in line for line in failed) == 1
    assert len(failed) == 4
    assert "exposure 941421 CCD 28" in answer.stdout


def test_a_codec_that_cannot_pack_such_pixels_is_named_and_the_others_go_on(
    run, sky_file, tmp_path
):
    floats = tmp_path / "floats.fits"
    with fits.open(sky_file) as raw:
        image = fits.ImageHDU(raw[1].data.astype("f4"), raw[1].header)
        fits.HDUList([raw[0], image]).writeto(floats)
    answer = run("fidelity", floats, "--codec", "jpeg2000", "--codec", "none")
    assert answer.exit_code == 1
    assert "with jpeg2000" in answer.stderr
    assert "none" in answer.stdout


def test_a_sites_own_commands_are_tried_as_any_codec_is(
    run, sky_file, site_file, tmp_path, monkeypatch
):
    monkeypatch.setenv(ENVIRONMENT, "")
    with site_file.open("a") as settings:
        settings.write("\n[pack]\n[pack.external]\n")
        for name, value in stand_in_codec.commands(tmp_path / "log").items():
            settings.write(f"{name} = {json.dumps(value)}\n")
    words = ("--codec", "external", "--codec", "rice", "--config", site_file, "--json")
    answer = run("fidelity", sky_file, *words)
    assert answer.exit_code == 0, answer.stderr
    external, rice = json.loads(answer.stdout)["codecs"]
    assert external["label"] == "external"
    assert external["ratio"] > rice["ratio"]
    # steps of 4 ADU leave an error of 4 / sqrt(12)
    assert 0.05 < external["fidelity"]["rms"] < 0.5
    assert external["fidelity"]["scatter"] > 0
    # starting Python is part of it
    assert external["encode_mpix_s"] < 100


def test_a_ccd_that_the_file_has_not_is_named(run, sky_file):
    answer = run("fidelity", sky_file, "--codec", "rice", "--ccd", "28,60")
    assert answer.exit_code == 1
    assert "has no CCD 60; it holds 28" in answer.stderr
    assert "rice" in answer.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("--codec", "zip"),
        ("--codec", "jpeg2000:ratio"),
        ("--codec", "jpeg2000:quality=3"),
        ("--codec", "rice", "--ccd", "many"),
        ("--night", "ut200306"),
    ],
)
def test_wrong_use_is_told_with_exit_code_2(run, sky_file, words):
    answer = run("fidelity", sky_file, *words)
    assert answer.exit_code == 2
    assert "Traceback" not in answer.stderr


def test_without_a_file_and_a_night_it_says_what_it_needs(run):
    answer = run("fidelity")
    assert answer.exit_code == 2
    assert "raw exposures" in answer.stderr


def a_check(ccd: int, scatter: float | None) -> CheckRow:
    figures = {"scatter": scatter, "found": 0.9, "found_original": 0.93, "rms": 0.5}
    told = {"ratio": 10.0}
    return CheckRow(
        Night.parse("ut200306"), "decam", 941420, ccd, "jpeg2000", told, 9.9, figures, ccd
    )


def test_what_was_checked_in_a_night_is_told_by_fidelity_and_status(
    run, site_file, exposure, ccds, tmp_path
):
    (tmp_path / "telescope").mkdir()
    journal = Journal(tmp_path / "telescope" / "journal.sqlite")
    journal.add_exposure(exposure, ccds)
    journal.note_check(a_check(25, 0.48))
    journal.note_check(a_check(31, None))
    journal.close()
    answer = run("fidelity", "--night", "ut200306", "--config", site_file)
    assert answer.exit_code == 0
    assert answer.stdout.count("jpeg2000:ratio=10.0") == 2
    assert "0.480" in answer.stdout
    told = json.loads(run("fidelity", "--night", "2020-03-05", "-c", site_file, "--json").stdout)
    assert [check["ccd"] for check in told["checks"]] == [25, 31]
    assert told["codecs"][0]["packets"] == 2
    status = run("status", "--config", site_file)
    assert "ut200306: 2 packets checked, jpeg2000:ratio=10.0: 9.9:1" in status.stdout
    assert "0.90 of 0.93" in status.stdout


def test_a_night_without_checks_is_told_with_exit_code_1(run, site_file):
    answer = run("fidelity", "--night", "ut200306", "--config", site_file)
    assert answer.exit_code == 1
    assert "no packet of ut200306 was checked" in answer.stderr
