"""`prepipe simulate`."""

from __future__ import annotations

import json

import pytest
from astropy.io import fits

from prepipe.cli.options import number_list
from prepipe.errors import ConfigError


def test_a_list_of_numbers_may_hold_ranges():
    assert number_list("25,31,40-42", "--ccds") == (25, 31, 40, 41, 42)
    assert number_list("25,", "--ccds") == (25,)
    assert number_list("3,1-3", "--ccds") == (3, 1, 2)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1-", "-3", "1;2"])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ConfigError, match="not a list of numbers"):
        number_list(text, "--ccds")


def test_a_zero_of_chosen_ccds_is_written_with_its_truth(run, tmp_path):
    words = ("simulate", "--out", tmp_path, "--ccds", "25,31", "--kind", "zero", "--first", 77)
    answer = run(*words, "--json")
    assert answer.exit_code == 0, answer.stderr
    told = json.loads(answer.stdout)["exposures"]
    assert [entry["path"] for entry in told] == [str(tmp_path / "DECam_00000077.fits.fz")]
    with fits.open(told[0]["path"]) as hdus:
        assert hdus[0].header["EXPNUM"] == 77
        assert sorted(hdu.header["CCDNUM"] for hdu in hdus[1:]) == [25, 31]
    with fits.open(told[0]["truth"]) as truth:
        assert len(truth) > 1


@pytest.mark.parametrize(
    "words",
    [
        ("--camera", "hsc"),
        ("--kind", "sky"),
        ("--ccds", "x"),
        ("--seeing", "-1"),
        ("--exposures", "0"),
    ],
)
def test_a_wrong_option_of_the_simulation_is_wrong_use(run, tmp_path, words):
    assert run("simulate", "--out", tmp_path / "raw", *words).exit_code == 2
    assert not (tmp_path / "raw").exists()


def test_what_is_there_is_not_overwritten_unless_told(run, tmp_path):
    words = ("simulate", "--out", tmp_path, "--ccds", "25,", "--kind", "zero", "--first", 77)
    there = tmp_path / "DECam_00000077.fits.fz"
    there.write_text("precious")
    answer = run(*words)
    assert answer.exit_code == 2
    assert f"{there} would be overwritten" in answer.stderr
    assert there.read_text() == "precious"
    assert run(*words, "--force").exit_code == 0
    assert there.read_bytes().startswith(b"SIMPLE")


def test_a_catalogue_that_is_there_is_not_overwritten_either(run, tmp_path):
    stars = tmp_path / "stars.fits"
    stars.write_text("precious")
    words = ("simulate", "--out", tmp_path / "raw", "--ccds", "25,", "--reference", stars)
    assert run(*words).exit_code == 2
    assert stars.read_text() == "precious"
