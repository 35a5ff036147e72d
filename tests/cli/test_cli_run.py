"""`prepipe push` and `prepipe ingest`: options, reports, signals; the work is tested elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from prepipe.cli.live import Display, exposure_line
from prepipe.cli.signals import stop_on_signals
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Reduction, Stage
from prepipe.store import Journal

PATIENCE_S = 30.0


@pytest.fixture
def site(site_file: Path, raw_file: Path) -> Path:
    """A site with one small raw exposure, which is looked for often."""
    site_file.write_text(
        'telescope.pattern = "*.fits"\ntelescope.poll_s = 0.05\ntelescope.give_up_s = 0\n'
        'cluster.poll_s = 0.05\ncluster.workers = 1\npack.codec = "rice"\n'
    )
    shutil.move(raw_file, site_file.parent / "raw" / raw_file.name)
    return site_file


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def program(*words: object) -> Iterator[subprocess.Popen[str]]:
    code = "from prepipe.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def test_push_once_sends_all_and_exits_with_0(run, site):
    answer = run("push", "--config", site, "--once", "--json")
    assert answer.exit_code == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert (told["found"], told["sent"], told["waiting"], told["failed"]) == (2, 2, 0, {})
    assert len(list((site.parent / "landing").glob("*.packet"))) == 2
    (line,) = [line for line in answer.stderr.splitlines() if "2 sent" in line]
    told = r"exposure 941420 field 1 g: 2 sent, 0\.0 MB in \d+\.\d s, \d+\.\d Mbit/s"
    assert re.search(f"{told}$", line)


def test_push_tells_which_part_of_a_known_rate_an_exposure_reached(run, site):
    with site.open("a") as settings:
        settings.write("link.rate = 100.0\n")
    answer = run("push", "--config", site, "--once")
    assert re.search(r"Mbit/s, \d\.\d\d of the rate$", answer.stderr, re.MULTILINE)


def test_both_ends_begin_with_a_line_that_says_what_they_watch(run, site):
    first = run("push", "--config", site, "--once").stderr.splitlines()[0]
    assert f"watching {site.parent / 'raw'} for *.fits, sending to {site.parent}" in first
    first = run("ingest", "--config", site, "--once").stderr.splitlines()[0]
    assert f"watching {site.parent / 'landing'}" in first
    assert "about a minute" in first


def test_push_once_names_a_bad_file_and_exits_with_1(run, site):
    (site.parent / "raw" / "empty.fits").touch()
    answer = run("push", "--config", site, "--once", "--json")
    assert answer.exit_code == 1
    assert [Path(name).name for name in json.loads(answer.stdout)["failed"]] == ["empty.fits"]
    assert sum("empty.fits" in line for line in answer.stderr.splitlines()) == 1
    assert len(list((site.parent / "landing").glob("*.packet"))) == 2


def test_a_dry_run_tells_the_order_and_writes_nothing(run, site):
    before = sorted(site.parent.rglob("*"))
    answer = run("push", "--config", site, "--dry-run", "--json")
    assert answer.exit_code == 0
    assert [ccd["ccd"] for ccd in json.loads(answer.stdout)["ccds"]] == [31, 25]
    assert sorted(site.parent.rglob("*")) == before


def test_a_listed_exposure_that_is_not_there_is_named(run, site):
    words = ("push", "--config", site, "--once", "--method", "list", "--exposures", "941420,7")
    answer = run(*words)
    assert answer.exit_code == 1
    assert "exposure 7" in answer.stderr
    assert len(list((site.parent / "landing").glob("*.packet"))) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "fastest"),
        ("--method", "list"),
        ("--method", "batch", "--exposures", "1"),
        ("--method", "serial", "--exp-min", "1"),
        ("--method", "end-of-night", "--exp-min", "-1"),
        ("--method", "list", "--exposures", "x"),
    ],
)
def test_a_wrong_method_is_wrong_use(run, site, words):
    answer = run("push", "--config", site, "--once", *words)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("prepipe: ")
    assert not (site.parent / "telescope").exists()


def test_end_of_night_leaves_out_what_is_numbered_below(run, site):
    (site.parent / "landing").mkdir()
    words = ("--method", "end-of-night", "--exp-min", 941421)
    told = json.loads(run("push", "--config", site, "--once", "--json", *words).stdout)
    assert (told["sent"], told["waiting"]) == (0, 2)


def test_ingest_once_names_what_failed_and_exits_with_1(run, site):
    run("push", "--config", site, "--once")
    (site.parent / "landing" / "decam_00000001_01.packet").write_text("no packet")
    answer = run("ingest", "--config", site, "--once", "--json")
    assert answer.exit_code == 1
    failed = json.loads(answer.stdout)["failed"]
    # frames of 80 x 96 pixels without overscan are no raw CCDs of this camera
    assert set(failed) == {
        "decam_00000001_01.packet",
        "decam 941420 CCD 25",
        "decam 941420 CCD 31",
    }
    assert all(reason for reason in failed.values())


def test_ingest_once_with_nothing_there_exits_with_0(run, site):
    answer = run("ingest", "--config", site, "--once")
    assert answer.exit_code == 0
    assert "0 calibrated" in answer.stdout


@pytest.mark.parametrize("command", ["push", "ingest"])
def test_sigterm_stops_cleanly_and_a_second_one_beside_it_is_refused(site, command):
    work = site.parent / {"push": "telescope", "ingest": "cluster"}[command]
    lock = work / f"{command}.lock"
    with program(command, "--config", site) as first:
        wait_until(lambda: lock.exists() and lock.read_text().strip() == str(first.pid))
        with program(command, "--config", site, "--once") as second:
            _, refusal = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 2
        assert str(first.pid) in refusal
        assert len(refusal.splitlines()) == 1
        first.send_signal(signal.SIGTERM)
        _, told = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, told
    assert "SIGTERM: stopping" in told


STUBBORN = """
import time
from concurrent.futures import ThreadPoolExecutor
from prepipe.cli.signals import stop_on_signals
with stop_on_signals(lambda said: print(said, flush=True)), ThreadPoolExecutor(1) as pool:
    print("ready", flush=True)
    pool.submit(time.sleep, 100).result()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_and_a_second_one_ends_even_what_hangs(number):
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"ready\n"
        stubborn.send_signal(number)
        assert b"stopping" in stubborn.stdout.readline()
        stubborn.send_signal(number)
        assert stubborn.wait(PATIENCE_S) == 130


def test_the_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(lambda _: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_exposures_line_counts_stages_and_grades(
    tmp_path: Path, exposure: Exposure, ccds: list[Ccd]
):
    journal = Journal(tmp_path / "journal.sqlite")
    keys = journal.add_exposure(exposure, ccds, stage=Stage.LANDED)
    for key in keys:
        journal.calibrated(key, Reduction(key.exposure, key.ccd), Grade(Colour.RED), 1.0)
    journal.return_to(keys[0], Stage.LANDED)
    line = exposure_line(journal.rows())
    assert line == "exposure 941420 field 1 g: 1 landed, 1 calibrated (1 red)"


def test_an_exposure_without_a_band_has_no_gap_in_its_line(
    tmp_path: Path, exposure: Exposure, ccds: list[Ccd]
):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_exposure(replace(exposure, kind=Kind.ZERO, field="", band=""), ccds)
    assert exposure_line(journal.rows()) == "exposure 941420 zero: 2 found"


def test_a_long_exposure_tells_how_far_it_is(
    tmp_path: Path,
    exposure: Exposure,
    ccds: list[Ccd],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("prepipe.cli.live.LOOK_S", 0.02)
    monkeypatch.setattr("prepipe.cli.live.PROGRESS_S", 0.1)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_exposure(exposure, ccds)
    display = Display(tmp_path / "journal.sqlite", "telescope")
    told = ""
    with display.shown():

        def has_told() -> bool:
            nonlocal told
            told += capsys.readouterr().err
            return "2 found" in told

        display.touch(exposure.number)
        wait_until(has_told)


def test_every_exposure_that_moved_gets_its_line_at_the_end(
    tmp_path: Path, exposure: Exposure, ccds: list[Ccd], capsys: pytest.CaptureFixture[str]
):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add_exposure(exposure, ccds)
    display = Display(tmp_path / "journal.sqlite", "telescope")
    with display.shown():
        display.touch(exposure.number)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["exposure 941420 field 1 g: 2 found"]


def test_a_journal_that_breaks_does_not_stop_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "journal.sqlite").write_text("no database " * 500)
    display = Display(tmp_path / "journal.sqlite", "telescope")
    with display.shown():
        display.touch(1)
    assert "cannot show the state" in capsys.readouterr().err
