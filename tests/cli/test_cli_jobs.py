"""`prepipe jobs`, `cancel` and `drain`, beside an ingest that is at work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slow_engine
from astropy.io import fits

from prepipe.cli.options import read_site
from prepipe.cluster import Ingest
from prepipe.compute import LocalCompute
from prepipe.model import Stage
from prepipe.store import CcdKey, Journal

OLD, NEW = 941420, 941421
PATIENCE_S = 60.0


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def site(run, site_file: Path, raw_file: Path) -> Path:
    """A site where two exposures of two CCDs have landed, and two CCDs may be under way."""
    site_file.write_text(
        'telescope.pattern = "*.fits"\ntelescope.poll_s = 0.05\ntelescope.give_up_s = 0\n'
        'cluster.poll_s = 0.05\ncluster.workers = 1\ncluster.under_way = 2\npack.codec = "rice"\n'
    )
    raw = site_file.parent / "raw"
    shutil.copy(raw_file, raw / "DECam_00941421.fits")
    shutil.move(raw_file, raw / raw_file.name)
    fits.setval(raw / "DECam_00941421.fits", "EXPNUM", value=NEW)
    fits.setval(raw / "DECam_00941421.fits", "DATE-OBS", value="2020-03-06T03:31:00")
    assert run("push", "--config", site_file, "--once").exit_code == 0
    return site_file


@pytest.fixture
def journal(site: Path) -> Iterator[Journal]:
    journal = Journal(read_site(site).cluster.work / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def ingest(site: Path, journal: Journal) -> Iterator[threading.Thread]:
    """An ingest with one worker, until there is a file ``go`` among the products."""
    stop, compute = threading.Event(), LocalCompute(1)
    told = Ingest(read_site(site), journal, compute, slow_engine.until_told)
    runner = threading.Thread(target=told.run, args=(False, stop))
    runner.start()
    yield runner
    stop.set()
    go(site)
    runner.join(PATIENCE_S)
    compute.close()


def go(site: Path) -> None:
    (read_site(site).cluster.products / "go").touch()


def told(run, site: Path, *words: object) -> dict:
    answer = run("jobs", *words, "--config", site, "--json")
    assert answer.exit_code == 0, answer.stderr
    return json.loads(answer.stdout)


def at_work(run, site: Path) -> dict:
    """What is told once a worker has begun and the others wait."""
    wait_until(lambda: told(run, site)["counts"] == {"running": 1, "handed over": 1, "waiting": 2})
    return told(run, site)


def test_jobs_tell_what_runs_where_since_when_and_what_is_next(run, site, ingest):
    shown = at_work(run, site)
    assert (shown["ingest"], shown["place"], shown["engine"]) == (True, "local", "builtin")
    (job,) = shown["jobs"]
    assert (job["id"], job["state"], job["workers"]) == (str(os.getpid()), "running", 1)
    first, second = shown["running"]
    assert {first["exposure"], second["exposure"]} == {NEW}
    assert (first["node"], second["node"]) == (os.uname().nodename, "")
    assert 0 <= first["seconds"] < PATIENCE_S
    assert shown["queue"] == [{"place": 1, "exposure": OLD, "kind": "object", "ccds": 2}]


def test_jobs_of_one_exposure_keep_their_place_in_the_queue(run, site, ingest):
    at_work(run, site)
    shown = told(run, site, OLD)
    assert shown["running"] == []
    assert [(one["place"], one["exposure"]) for one in shown["queue"]] == [(1, OLD)]
    assert told(run, site, NEW)["queue"] == []


def test_jobs_are_shown_as_tables_for_people(run, site, ingest):
    at_work(run, site)
    text = run("jobs", "--config", site).stdout
    for words in ("local, engine builtin", os.uname().nodename, "(queued)", "waiting, next first"):
        assert words in text
    assert "2 CCDs with the workers, 2 wait" in text


def test_a_site_where_nothing_runs_says_how_to_begin(run, site_file):
    answer = run("jobs", "--config", site_file)
    assert answer.exit_code == 0
    assert "no ingest runs here: start one with `prepipe ingest`" in answer.stdout


def test_an_exposure_that_the_cluster_does_not_know_is_told(run, site):
    answer = run("jobs", 7, "--config", site)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "no such exposure: 7" in answer.stderr


def stages(journal: Journal) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for row in journal.rows():
        found.setdefault(row.key.exposure, set()).add(row.stage.value)
    return found


def test_cancel_takes_what_waits_out_of_the_queue_and_release_brings_it_back(
    run, site, journal, ingest
):
    at_work(run, site)
    answer = run("cancel", OLD, "--config", site)
    assert answer.exit_code == 0, answer.stderr
    assert f"decam {OLD} CCD 25: is cancelled" in answer.stdout
    assert told(run, site)["queue"] == []
    go(site)
    wait_until(lambda: stages(journal)[NEW] == {"calibrated"})
    assert stages(journal)[OLD] == {"quarantined"}
    row = journal.row(CcdKey("decam", OLD, 25))
    assert "prepipe release" in row.reason
    assert row.tries == 0
    assert run("release", OLD, "--config", site).exit_code == 0
    wait_until(lambda: stages(journal)[OLD] == {"calibrated"})


def test_what_a_worker_is_at_when_it_is_cancelled_does_not_count(run, site, journal, ingest):
    at_work(run, site)
    assert run("cancel", NEW, "--ccd", 25, "--config", site).exit_code == 0
    go(site)
    wait_until(lambda: stages(journal)[OLD] == {"calibrated"})
    assert journal.row(CcdKey("decam", NEW, 25)).stage is Stage.QUARANTINED
    assert journal.row(CcdKey("decam", NEW, 31)).stage is Stage.CALIBRATED


def test_cancel_can_only_say_what_it_would_do(run, site, journal, ingest):
    at_work(run, site)
    answer = run("cancel", "--all", "--dry-run", "--config", site)
    assert f"decam {OLD} CCD 31: would be cancelled" in answer.stdout
    assert stages(journal) == {OLD: {"landed"}, NEW: {"landed"}}


def test_cancel_wants_to_know_what_and_names_what_does_not_wait(run, site):
    assert run("cancel", "--config", site).exit_code == 2
    answer = run("cancel", 1, "--config", site)
    assert answer.exit_code == 1
    assert "1: nothing of it waits here" in answer.stderr


def test_a_drain_that_is_waited_for_ends_with_the_last_ccd_under_way_and_begins_no_other(
    run, site, journal, ingest
):
    at_work(run, site)
    # a process of its own: two that run in one would write to the same captured screen
    words = [sys.executable, "-m", "prepipe", "drain", "--wait", "--config", str(site), "--json"]
    waiter = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: told(run, site)["draining"])
    time.sleep(1.5)
    assert waiter.poll() is None
    go(site)
    answer, _ = waiter.communicate(timeout=PATIENCE_S)
    assert json.loads(answer) == {"draining": True, "under_way": 0}
    assert stages(journal) == {OLD: {"landed"}, NEW: {"calibrated"}}
    assert "until `prepipe drain --resume`" in run("jobs", "--config", site).stdout
    assert "begun again" in run("drain", "--resume", "--config", site).stdout
    wait_until(lambda: stages(journal)[OLD] == {"calibrated"})


def test_a_drain_without_an_ingest_has_nothing_to_wait_for_and_holds(run, site, journal):
    answer = run("drain", "--wait", "--config", site)
    assert answer.stdout == "draining: 0 CCDs with the workers, no other is begun\n"
    shown = told(run, site)
    assert (shown["draining"], shown["ingest"]) == (True, False)
