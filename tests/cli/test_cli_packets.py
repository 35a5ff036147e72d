"""`prepipe pack` and `prepipe unpack`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.io import fits


@pytest.mark.parametrize("codec", ["none", "rice"])
def test_pixels_come_back_identical(run, raw_file, tmp_path, codec):
    assert run("pack", raw_file, "--out", tmp_path / "p", "--codec", codec).exit_code == 0
    packets = sorted((tmp_path / "p").iterdir())
    names = ["decam_00941420_25.packet", "decam_00941420_31.packet"]
    assert [packet.name for packet in packets] == names
    assert run("unpack", *packets, "--out", tmp_path / "f").exit_code == 0
    with fits.open(raw_file) as original:
        for name, written in zip(("S29", "N4"), sorted((tmp_path / "f").iterdir()), strict=True):
            with fits.open(written) as back:
                assert np.array_equal(back[1].data, original[name].data)
                assert back[1].header["CCDNUM"] == original[name].header["CCDNUM"]


def test_the_json_tells_ratio_and_error_of_each_packet(run, raw_file, tmp_path):
    words = ("pack", raw_file, "--out", tmp_path, "--ratio", 4, "--json")
    told = json.loads(run(*words).stdout)
    assert told["failed"] == {}
    assert [packet["ccd"] for packet in told["packets"]] == [31, 25]
    for packet in told["packets"]:
        assert packet["codec"] == "wavelet"
        assert packet["ratio"] > 3
        assert packet["rms_error_adu"] > 0


def test_only_the_ccds_asked_for_are_packed(run, raw_file, tmp_path):
    out = tmp_path / "p"
    assert run("pack", raw_file, "--out", out, "--ccds", "25").exit_code == 0
    assert [path.name for path in out.iterdir()] == ["decam_00941420_25.packet"]


def test_a_ccd_that_the_file_has_not_is_named_and_the_others_go_on(run, raw_file, tmp_path):
    out = tmp_path / "p"
    answer = run("pack", raw_file, "--out", out, "--ccds", "25,60")
    assert answer.exit_code == 1
    assert f"failed: {raw_file} CCD 60: the file has no such CCD" in answer.stderr
    assert len(list(out.iterdir())) == 1


def test_a_bad_file_is_named_and_the_others_go_on(run, raw_file, tmp_path):
    truncated = tmp_path / "truncated.fits"
    truncated.write_bytes(raw_file.read_bytes()[:-2880])
    empty = tmp_path / "empty.fits"
    empty.touch()
    out = tmp_path / "p"
    answer = run("pack", truncated, empty, tmp_path / "gone.fits", raw_file, "--out", out)
    assert answer.exit_code == 1
    for name in ("truncated.fits", "empty.fits", "gone.fits"):
        assert sum(name in line for line in answer.stderr.splitlines()) == 1
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--codec", "zip"),
        ("--ratio", "0.5"),
        ("--codec", "jpeg2000", "--ratio", "4", "--qstep", "1e-5"),
        ("--qstep", "1e-5"),
        ("--preset", "best"),
        ("--seeing-px", "0"),
        ("--config", "gone.toml"),
        ("--codec", "rice", "--ratio", "4"),
        ("--ccds", "25;31"),
        ("--camera", "hubble"),
    ],
)
def test_a_wrong_option_is_wrong_use_and_nothing_is_written(run, raw_file, tmp_path, words):
    answer = run("pack", raw_file, "--out", tmp_path / "p", *words)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("prepipe: ")
    assert not (tmp_path / "p").exists()


def test_a_packet_with_a_flipped_bit_is_named_and_the_others_go_on(run, raw_file, tmp_path):
    run("pack", raw_file, "--out", tmp_path / "p", "--codec", "rice")
    packets = sorted((tmp_path / "p").iterdir())
    content = bytearray(packets[0].read_bytes())
    content[-100] ^= 4
    packets[0].write_bytes(content)
    answer = run("unpack", *packets, "--out", tmp_path / "f", "--json")
    assert answer.exit_code == 1
    told = json.loads(answer.stdout)
    assert list(told["failed"]) == [str(packets[0])]
    assert [file["ccd"] for file in told["files"]] == [31]
    assert "damaged" in answer.stderr


@pytest.mark.parametrize(
    ("obstype", "words", "codec"),
    [
        ("zero", (), "none"),
        ("dome flat", ("--ratio", 4), "none"),
        ("zero", ("--codec", "jpeg2000"), "jpeg2000"),
        ("object", (), "wavelet"),
    ],
)
def test_zeros_and_dome_flats_are_not_blurred_unless_told(
    run, raw_file, tmp_path, obstype, words, codec
):
    fits.setval(raw_file, "OBSTYPE", value=obstype)
    told = json.loads(run("pack", raw_file, "--out", tmp_path / "p", "--json", *words).stdout)
    assert {packet["codec"] for packet in told["packets"]} == {codec}


def test_a_file_that_is_not_there_is_said_not_to_exist(run, raw_file, tmp_path):
    gone = tmp_path / "gone.fits"
    assert f"{gone} does not exist" in run("pack", gone, "--out", tmp_path / "p").stderr
    gone = tmp_path / "gone.packet"
    assert f"{gone} does not exist" in run("unpack", gone, "--out", tmp_path / "f").stderr


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_a_directory_that_cannot_be_written_is_wrong_use(run, raw_file, tmp_path, command):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "below", "/proc/prepipe"):
        answer = run(command, raw_file, "--out", out)
        assert answer.exit_code == 2
        assert f"--out {out}" in answer.stderr
