"""`prepipe archive`: options, reports, exit codes; the work is tested elsewhere."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from prepipe.store import Journal

PATIENCE_S = 30.0


@pytest.fixture
def site(run, site_file: Path, raw_file: Path) -> Path:
    """A site that has sent one small raw exposure of two CCDs with a loss."""
    site_file.write_text(
        'telescope.pattern = "*.fits"\ntelescope.poll_s = 0.05\ntelescope.give_up_s = 0\n'
        "pack.ratio = 5.0\n"
    )
    shutil.move(raw_file, site_file.parent / "raw" / raw_file.name)
    assert run("push", "--config", site_file, "--once").exit_code == 0
    return site_file


def originals(site: Path) -> list[Path]:
    return sorted((site.parent / "landing" / "archive").glob("*.packet"))


def test_once_it_sends_all_originals_and_exits_with_0(run, site):
    answer = run("archive", "--config", site, "--once", "--now", "--json")
    assert answer.exit_code == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert (told["archived"], told["waiting"], told["failed"]) == (2, 0, {})
    assert told["archived_bytes"] == sum(path.stat().st_size for path in originals(site))
    assert "exposure 941420 field 1 g: 2 sent, 2 of 2 originals archived" in answer.stderr


def test_unpacked_originals_are_the_pixels_of_the_raw_file(run, site, tmp_path):
    run("archive", "--config", site, "--once", "--now")
    out = tmp_path / "unpacked"
    assert run("unpack", *originals(site), "--out", out).exit_code == 0
    unpacked = {}
    for path in out.iterdir():
        with fits.open(path) as hdus:
            unpacked[hdus[-1].header["CCDNUM"]] = hdus[-1].data.copy()
    with fits.open(site.parent / "raw" / "DECam_00941420.fits") as hdus:
        for hdu in hdus[1:]:
            np.testing.assert_array_equal(unpacked.pop(hdu.header["CCDNUM"]), hdu.data)
    assert unpacked == {}


def test_it_begins_with_a_line_that_says_where_originals_go_and_when(run, site):
    answer = run("archive", "--config", site, "--once", "--now")
    first = answer.stderr.splitlines()[0]
    assert f"sending originals to {site.parent / 'landing'}/archive" in first
    assert first.endswith("at any hour")
    assert "originals: 2 archived (0.0 MB, 2 as residuals), 0 waiting" in answer.stdout


def test_a_camera_that_does_not_tell_its_place_is_told_of_and_any_hour_will_do(run, site):
    camera = site.parent / "camera.toml"
    camera.write_text('name = "decam"\npixel_scale = 0.26\n[cards]\nccd = "CCDNUM"\n')
    site.write_text(site.read_text() + 'camera = "camera.toml"\n')
    answer = run("archive", "--config", site, "--once")
    assert answer.exit_code == 0
    assert "does not say where it stands: [site]" in answer.stderr.splitlines()[0]
    assert len(originals(site)) == 2


def test_a_raw_file_that_is_gone_is_named_once_with_exit_code_1(run, site):
    (site.parent / "raw" / "DECam_00941420.fits").unlink()
    answer = run("archive", "--config", site, "--once", "--now")
    assert answer.exit_code == 1
    assert sum("does not exist" in line for line in answer.stderr.splitlines()) == 1
    assert "0 archived (0.0 MB), 2 waiting" in answer.stdout
    assert "Traceback" not in answer.stderr


def test_a_dry_run_tells_the_order_and_writes_nothing(run, site):
    before = sorted(site.parent.rglob("*"))
    answer = run("archive", "--config", site, "--dry-run", "--json")
    assert answer.exit_code == 0
    assert [told["ccd"] for told in json.loads(answer.stdout)["originals"]] == [31, 25]
    assert "2 originals would be sent" in run("archive", "--config", site, "--dry-run").stdout
    assert sorted(site.parent.rglob("*")) == before


def test_a_dry_run_before_the_first_push_makes_no_journal(run, site_file):
    answer = run("archive", "--config", site_file, "--dry-run")
    assert "0 originals would be sent" in answer.stdout
    assert not (site_file.parent / "telescope").exists()


def test_only_one_night_is_sent_if_that_is_asked_for(run, site):
    words = ("archive", "--config", site, "--once", "--now", "--json", "--night")
    assert json.loads(run(*words, "ut200307").stdout)["archived"] == 0
    assert json.loads(run(*words, "2020-03-05").stdout)["archived"] == 2
    assert run(*words, "yesterday").exit_code == 2


def test_without_once_it_stays_until_it_is_asked_to_stop(site):
    code = "from prepipe.cli import main; main()"
    command = [sys.executable, "-c", code, "archive", "--config", str(site), "--now"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        end = time.monotonic() + PATIENCE_S
        while len(originals(site)) < 2:
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        told, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0
    assert "2 archived" in told


def test_status_tells_how_many_originals_are_archived(run, site):
    words = ("status", "--config", site)
    before = run(*words).stdout
    assert "originals archived: 0 of 2" in before
    journal = Journal(site.parent / "telescope" / "journal.sqlite")
    journal.archived(journal.rows()[0], 1000)
    journal.close()
    after = run(*words)
    assert "originals archived: 1 of 2" in after.stdout
    line = next(line for line in after.stdout.splitlines() if "ut200306" in line)
    assert line.rstrip().endswith("1 of 2")
    told = json.loads(run(*words, "--json").stdout)
    assert told["originals"] == {"archived": 1, "expected": 2}
    assert told["exposures"][0]["originals"] == {"archived": 1, "expected": 2}


def test_status_says_nothing_of_originals_where_none_are_expected(run, site_file):
    site_file.write_text('pack.codec = "none"\n')
    assert "originals" not in run("status", "--config", site_file).stdout
