"""Whole nights through the command line, as a user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from prepipe.cli.settings import commented_toml
from prepipe.config import Calibration, Cluster, Link, Pack, Site, Telescope

CROP = "decam_raw/history_reduced_c4d_200306_000415_ori.fits.fz"
SCRAMBLED = "decam_raw/cutout_c4d_200306_000415_ori.fits.fz"


def prepipe(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from prepipe.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def answer(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object on stdout, and stderr."""
    done = prepipe(*words, "--json")
    return done.returncode, json.loads(done.stdout), done.stderr


def site_in(root: Path, codec: str) -> Path:
    landing = root / "landing"
    site = Site(
        telescope=Telescope(raw=root / "raw", work=root / "telescope", poll_s=0.2),
        pack=Pack(codec=codec),
        link=Link(landing=landing),
        cluster=Cluster(
            landing=landing, work=root / "cluster", products=root / "products", poll_s=0.2
        ),
        calibration=Calibration(),
    )
    (root / "raw").mkdir()
    config = root / "prepipe.toml"
    config.write_text(commented_toml(site))
    return config


def test_the_demonstration_comes_through_and_tells_what_it_did(tmp_path: Path) -> None:
    code, told, _ = answer(
        *("demo", "--workdir", tmp_path / "night", "--exposures", "2", "--ccds", "2", "--seed", "3")
    )
    assert code == 0
    assert (told["exposures"], told["ccds"], told["calibrated"]) == (2, 4, 4)
    assert told["quarantined"] == 0
    assert 0 < told["latency_s"]["p50"] <= told["latency_s"]["p95"]
    assert 0 < told["wcs_rms_mas"]["median"] < 100
    assert told["grades"] == {"green": 4}
    assert len(told["products"]) == 4
    for product in told["products"]:
        with fits.open(product) as hdus:
            assert hdus["IMAGE"].header["WCSOK"]
    assert Path(told["picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "codec", "ccds"), [(CROP, "none", 9), (SCRAMBLED, "rice", 62)], ids=["9", "70"]
)
def test_real_raw_files_go_the_whole_way(
    shared_data: Path, tmp_path: Path, name: str, codec: str, ccds: int
) -> None:
    config = site_in(tmp_path, codec)
    shutil.copy(shared_data / name, tmp_path / "raw")
    code, pushed, _ = answer("push", "--config", config, "--once")
    assert (code, pushed["sent"]) == (0, ccds)
    code, ingested, _ = answer("ingest", "--config", config, "--once")
    assert (code, ingested["calibrated"]) == (0, ccds)
    products = list((tmp_path / "products").glob("ut200306/*/Starlink1102.g.ut200306.941420_*.fz"))
    assert len(products) == ccds
    code, status, _ = answer("status", "--config", config)
    assert code == 0
    assert status["exposures"][0]["stages"] == {"calibrated": ccds}


def test_bad_files_are_named_and_the_rest_goes_on(shared_data: Path, tmp_path: Path) -> None:
    config = site_in(tmp_path, "none")
    raw = tmp_path / "raw"
    good = (shared_data / CROP).read_bytes()
    (raw / "good.fits.fz").write_bytes(good)
    (raw / "empty.fits.fz").touch()
    (raw / "text.fits.fz").write_text("this is no FITS file\n" * 200)
    (raw / "truncated.fits.fz").write_bytes(good[: len(good) // 2])
    with fits.open(shared_data / SCRAMBLED) as hdus:
        hdus[0].header["EXPTIME"] = "NaN"
        hdus[0].header["EXPNUM"] = 941421
        hdus.writeto(raw / "nan.fits.fz")
    code, told, errors = answer("push", "--config", config, "--once")
    assert code == 1
    assert told["sent"] == 9
    assert {Path(name).name.split(".")[0] for name in told["failed"]} == {
        *("empty", "text", "truncated", "nan"),
    }
    assert "Traceback" not in errors
    for name in ("empty", "text", "truncated", "nan"):
        assert f"{name}.fits.fz" in errors


def test_a_second_file_with_a_known_number_is_refused(shared_data: Path, tmp_path: Path) -> None:
    config = site_in(tmp_path, "none")
    shutil.copy(shared_data / CROP, tmp_path / "raw")
    assert answer("push", "--config", config, "--once")[0] == 0
    shutil.copy(shared_data / SCRAMBLED, tmp_path / "raw")
    code, told, _ = answer("push", "--config", config, "--once")
    assert code == 1
    assert told["sent"] == 0
    (reason,) = told["failed"].values()
    assert "941420" in reason
