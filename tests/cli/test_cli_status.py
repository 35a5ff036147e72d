"""`prepipe status`, `prepipe retry` and `prepipe release`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from prepipe.cluster.board import Board
from prepipe.files import sole_user
from prepipe.model import Ccd, Colour, Exposure, Grade, Night, Reduction, Stage
from prepipe.store import CcdKey, Journal

NUMBER = 941420


@pytest.fixture
def telescope(site_file: Path) -> Iterator[Journal]:
    journal = Journal(site_file.parent / "telescope" / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture
def cluster(site_file: Path) -> Iterator[Journal]:
    journal = Journal(site_file.parent / "cluster" / "journal.sqlite")
    yield journal
    journal.close()


def sent(journal: Journal, exposure: Exposure, ccds: list[Ccd]) -> list[CcdKey]:
    keys = journal.add_exposure(exposure, ccds)
    for key in keys:
        journal.advance(key, Stage.PACKED, 0.5)
        journal.advance(key, Stage.SENT, 0.2)
    return keys


def calibrated(journal: Journal, exposure: Exposure, ccds: list[Ccd]) -> list[CcdKey]:
    keys = journal.add_exposure(exposure, ccds, stage=Stage.LANDED)
    for key in keys:
        grade = Grade(Colour.YELLOW, ("seeing 1.7 arcsec",))
        journal.calibrated(key, Reduction(key.exposure, key.ccd, product="x.fits.fz"), grade, 1.0)
    return keys


def stages(journal: Journal) -> dict[int, str]:
    return {row.key.ccd: row.stage.value for row in journal.rows()}


def test_a_site_that_did_nothing_yet_says_so(run, site_file):
    answer = run("status", "--config", site_file)
    assert answer.exit_code == 0
    assert "no journal yet" in answer.stderr
    assert not (site_file.parent / "telescope").exists()


def test_status_shows_both_ends_in_one_row(run, site_file, telescope, cluster, exposure, ccds):
    sent(telescope, exposure, ccds)
    calibrated(cluster, exposure, ccds[:1])
    answer = run("status", "--config", site_file)
    assert answer.exit_code == 0
    (line,) = [line for line in answer.stdout.splitlines() if str(NUMBER) in line]
    assert "1 sent, 1 calibrated" in line
    assert "ut200306" in line
    assert "1 yellow" in line


def test_what_keeps_an_ingest_that_runs_here_from_going_on_is_told(
    run, site_file, cluster, exposure, ccds
):
    calibrated(cluster, exposure, ccds)
    work = site_file.parent / "cluster"
    Board(work).show("local", (), (), "the disk is full")
    assert "trouble" not in run("status", "--config", site_file).stdout
    with sole_user(work / "ingest.lock"):
        for command in ("status", "jobs"):
            shown = run(command, "--config", site_file).stdout
            assert "trouble: the disk is full\n" in shown
            told = run(command, "--config", site_file, "--json").stdout
            assert json.loads(told)["trouble"] == "the disk is full"


def test_status_as_json_for_machines(run, site_file, telescope, cluster, exposure, ccds):
    sent(telescope, exposure, ccds)
    calibrated(cluster, exposure, ccds)
    told = json.loads(run("status", "--config", site_file, "--json").stdout)
    (entry,) = told["exposures"]
    assert entry["exposure"] == NUMBER
    assert entry["stages"] == {"calibrated": 2}
    assert entry["grades"] == {"yellow": 2}
    assert told["totals"] == {"calibrated": 2}
    assert told["latency_s"]["p50"] >= 0
    assert [stage["stage"] for stage in told["stages"]] == [
        "packed",
        "sent",
        "landed",
        "calibrated",
    ]
    assert told["stages"][0]["work"]["p50"] == pytest.approx(0.5)


def test_status_tells_what_crossed_in_a_night_and_how_fast(
    run, site_file, telescope, exposure, ccds
):
    for key in telescope.add_exposure(exposure, ccds):
        telescope.advance(key, Stage.PACKED, packet_bytes=5_000_000)
        telescope.advance(key, Stage.SENT, 4.0)
    telescope.close_account(exposure.camera, exposure.number)
    (night,) = json.loads(run("status", "--config", site_file, "--json").stdout)["traffic"]
    assert (night["night"], night["exposures"], night["ccds"]) == ("2020-03-05", 1, 2)
    assert night["bytes"] == 10_000_000
    assert night["mbit_s"] == pytest.approx(20.0, rel=0.1)
    shown = run("status", "--config", site_file).stdout
    assert re.search(r"ut200306: 1 exposure sent, 10\.0 MB in \d\.\d s, \d+\.\d Mbit/s", shown)


def test_status_tells_the_preset_in_use_and_those_before_it(
    run, site_file, telescope, exposure, ccds
):
    keys = telescope.add_exposure(exposure, ccds)
    telescope.advance(keys[0], Stage.PACKED, asked={"preset": "fast"})
    assert "; packed by fast\n" in run("status", "--config", site_file).stdout
    telescope.advance(keys[1], Stage.PACKED, asked={"preset": "faint-link"})
    shown = " ".join(run("status", "--config", site_file).stdout.split())
    assert "packed by faint-link now, so far 1 faint-link, 1 fast" in shown
    told = json.loads(run("status", "--config", site_file, "--exposure", NUMBER, "--json").stdout)
    assert told["presets"] == {"faint-link": 1, "fast": 1}
    assert [ccd["preset"] for ccd in told["exposures"][0]["ccds"]] == ["fast", "faint-link"]


def test_status_of_one_exposure_tells_each_ccd(run, site_file, cluster, exposure, ccds):
    calibrated(cluster, exposure, ccds)
    words = ("status", "--config", site_file, "--exposure", NUMBER)
    assert "seeing 1.7 arcsec" in run(*words).stdout
    (entry,) = json.loads(run(*words, "--json").stdout)["exposures"]
    assert [ccd["product"] for ccd in entry["ccds"]] == ["x.fits.fz", "x.fits.fz"]
    assert json.loads(run(*words[:-1], 1, "--json").stdout)["exposures"] == []


def test_status_can_be_limited_to_a_night(run, site_file, cluster, exposure, ccds):
    calibrated(cluster, exposure, ccds)
    for night, count in (("2020-03-05", 1), ("ut200306", 1), ("2020-03-06", 0)):
        told = json.loads(run("status", "--config", site_file, "--night", night, "--json").stdout)
        assert len(told["exposures"]) == count
    assert run("status", "--config", site_file, "--night", "yesterday").exit_code == 2


def test_what_failed_is_shown_with_its_reason(run, site_file, telescope, exposure, ccds):
    keys = telescope.add_exposure(exposure, ccds)
    telescope.fail(keys[0], Stage.PACKED, "CCD 25 is all zero")
    telescope.remember_file(Path("/raw/bad.fits"), 0, 0, reason="empty file")
    shown = run("status", "--config", site_file).stdout
    assert "CCD 25 is all zero" in shown
    assert "quarantined after found" in shown
    assert "/raw/bad.fits" in shown
    told = json.loads(run("status", "--config", site_file, "--json").stdout)
    assert told["failed"][0]["reason"] == "CCD 25 is all zero"
    assert told["files"][0]["reason"] == "empty file"


def test_watching_shows_it_again_until_interrupted(
    run, site_file, cluster, exposure, ccds, monkeypatch
):
    calibrated(cluster, exposure, ccds)
    looks = []

    def look_twice(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("prepipe.cli.status.time.sleep", look_twice)
    answer = run("status", "--config", site_file, "--watch")
    assert answer.exit_code == 0
    assert answer.stdout.count("2 calibrated") == 2 * 2  # the row and the summary


def test_what_is_watched_begins_with_time_ends_totals_and_failures(
    run, site_file, telescope, exposure, ccds, monkeypatch
):
    keys = telescope.add_exposure(exposure, ccds)
    telescope.fail(keys[0], Stage.PACKED, "CCD 25 is all zero")

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("prepipe.cli.status.time.sleep", interrupt)
    with sole_user(site_file.parent / "telescope" / "push.lock"):
        shown = run("status", "--config", site_file, "--watch").stdout
    heading, summary = shown.splitlines()[:2]
    assert "UTC" in heading
    assert "push runs, ingest does not run" in heading
    assert "1 exposure; CCDs: 1 found, 1 quarantined" in summary
    assert shown.index("CCD 25 is all zero") < shown.index("latency s")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--exposure", 999), "no such exposure: 999"),
        (("--night", "2020-03-06"), "no such night: ut200307; nights known: ut200306"),
    ],
)
def test_what_the_journals_do_not_know_is_told_with_exit_1(
    run, site_file, cluster, exposure, ccds, words, told
):
    calibrated(cluster, exposure, ccds)
    answer = run("status", "--config", site_file, *words)
    assert answer.exit_code == 1
    assert told in answer.stderr
    assert answer.stdout == ""


def test_status_of_one_exposure_shows_only_its_own_failures(
    run, site_file, telescope, exposure, ccds
):
    telescope.add_exposure(exposure, ccds)
    for name in ("DECam_00941420.copy.fits.fz", "DECam_00941421.fits.fz"):
        telescope.remember_file(Path("/raw") / name, 0, 0, reason="empty file")
    words = ("status", "--config", site_file, "--exposure", NUMBER, "--json")
    (file,) = json.loads(run(*words).stdout)["files"]
    assert file["path"] == "/raw/DECam_00941420.copy.fits.fz"


def test_reasons_in_the_table_name_files_without_their_directories(run, site_file, telescope):
    path = Path("/data_local/images/bad.fits")
    reason = f"{path}: truncated; its twin is /data_local/old/bad.fits, 30 of 70 HDUs"
    telescope.remember_file(path, 0, 0, reason=reason)
    shown = run("status", "--config", site_file).stdout
    assert shown.count("/data_local") == 1
    assert "truncated; its twin is bad.fits, 30 of 70 HDUs" in shown
    told = json.loads(run("status", "--config", site_file, "--json").stdout)
    assert told["files"][0]["reason"] == reason


def test_a_table_in_a_pipe_is_as_wide_as_columns_says(run, site_file, cluster, exposure, ccds):
    calibrated(cluster, exposure, ccds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "90")
        shown = run("status", "--config", site_file).stdout
    assert max(len(line) for line in shown.splitlines()) <= 90
    assert NUMBER in [int(word) for word in shown.split() if word.isdigit()]


def test_watching_as_json_is_wrong_use(run, site_file):
    assert run("status", "--config", site_file, "--json", "--watch").exit_code == 2


def test_retry_sends_a_calibrated_ccd_back_to_where_it_landed(
    run, site_file, telescope, cluster, exposure, ccds
):
    sent(telescope, exposure, ccds)
    calibrated(cluster, exposure, ccds)
    answer = run("retry", NUMBER, "--ccd", 25, "--config", site_file)
    assert answer.exit_code == 0
    assert stages(cluster) == {25: "landed", 31: "calibrated"}
    assert stages(telescope) == {25: "sent", 31: "sent"}


def test_retry_sends_what_has_not_arrived_once_more(run, site_file, telescope, exposure, ccds):
    sent(telescope, exposure, ccds)
    assert run("retry", NUMBER, "--config", site_file).exit_code == 0
    assert stages(telescope) == {25: "found", 31: "found"}


def test_retry_sends_what_has_arrived_once_more_if_asked(
    run, site_file, telescope, cluster, exposure, ccds
):
    sent(telescope, exposure, ccds)
    calibrated(cluster, exposure, ccds)
    assert run("retry", NUMBER, "--stage", "found", "--config", site_file).exit_code == 0
    assert set(stages(telescope).values()) == {"found"}
    assert set(stages(cluster).values()) == {"calibrated"}


def test_retry_takes_quarantined_ccds_to_the_beginning(run, site_file, telescope, exposure, ccds):
    (key, _) = telescope.add_exposure(exposure, ccds)
    telescope.advance(key, Stage.PACKED)
    telescope.fail(key, Stage.SENT, "refused")
    assert run("retry", NUMBER, "--config", site_file).exit_code == 0
    assert stages(telescope)[25] == "found"


def test_a_dry_run_changes_nothing(run, site_file, telescope, exposure, ccds):
    sent(telescope, exposure, ccds)
    answer = run("retry", NUMBER, "--dry-run", "--config", site_file, "--json")
    assert len(json.loads(answer.stdout)["changes"]) == 2
    assert stages(telescope) == {25: "sent", 31: "sent"}


def test_retry_of_an_unknown_exposure_fails_by_name(run, site_file, telescope):
    answer = run("retry", 1, "--config", site_file)
    assert answer.exit_code == 1
    assert "exposure 1" in answer.stderr


def test_retry_and_release_want_to_know_what(run, site_file):
    assert run("retry", "--config", site_file).exit_code == 2
    assert run("release", "--config", site_file).exit_code == 2
    assert run("retry", NUMBER, "--stage", "sent", "--config", site_file).exit_code == 2


def test_retry_takes_several_exposures_and_names_the_unknown_one(
    run, site_file, telescope, exposure, ccds
):
    sent(telescope, exposure, ccds)
    other = replace(exposure, number=NUMBER + 1, start=exposure.start + timedelta(minutes=1))
    sent(telescope, other, ccds)
    answer = run("retry", NUMBER, NUMBER + 1, 7, "--config", site_file)
    assert answer.exit_code == 1
    assert "no CCD of exposure 7" in answer.stderr
    assert [row.stage for row in telescope.rows()] == [Stage.FOUND] * 4


def test_retry_of_a_night_may_be_limited_to_what_had_no_masters(
    run, site_file, cluster, exposure, ccds
):
    for key, flags in zip(
        cluster.add_exposure(exposure, ccds, stage=Stage.LANDED), ((), ("NO_FLAT",)), strict=True
    ):
        reduction = Reduction(key.exposure, key.ccd, flags=flags)
        cluster.calibrated(key, reduction, Grade(Colour.GREEN), 1.0)
    words = ("--no-masters", "--config", site_file)
    assert run("retry", "--night", "ut200307", *words).exit_code == 1
    assert run("retry", "--night", "ut200306", *words).exit_code == 0
    assert stages(cluster) == {25: "calibrated", 31: "landed"}


def test_release_lets_a_ccd_go_on_from_where_it_failed(run, site_file, telescope, exposure, ccds):
    (key, other) = telescope.add_exposure(exposure, ccds)
    telescope.advance(key, Stage.PACKED)
    telescope.fail(key, Stage.SENT, "refused")
    telescope.fail(other, Stage.PACKED, "all zero")
    assert run("release", NUMBER, "--ccd", 25, "--config", site_file).exit_code == 0
    assert stages(telescope) == {25: "packed", 31: "quarantined"}


@pytest.mark.parametrize("name", ["bad.fits", "/raw/bad.fits"])
def test_release_forgets_a_quarantined_file(run, site_file, telescope, name):
    telescope.remember_file(Path("/raw/bad.fits"), 0, 0, reason="empty file")
    telescope.remember_file(Path("/raw/worse.fits"), 0, 0, reason="empty file")
    assert run("release", name, "--config", site_file).exit_code == 0
    assert [file.path for file in telescope.quarantined_files()] == ["/raw/worse.fits"]


@pytest.mark.parametrize("words", [("bad.fits",), ("--all",)])
def test_release_of_a_file_that_was_removed_drops_its_entry(run, site_file, telescope, words):
    telescope.remember_file(Path("/raw/bad.fits"), 0, 0, reason="empty file")
    answer = run("release", *words, "--config", site_file)
    assert answer.exit_code == 0
    assert "/raw/bad.fits: does not exist any more, is forgotten" in answer.stdout
    assert telescope.quarantined_files() == []
    assert "/raw/bad.fits" not in run("status", "--config", site_file).stdout


def test_release_all_empties_the_quarantine_of_both_ends(
    run, site_file, telescope, cluster, exposure, ccds
):
    telescope.remember_file(Path("/raw/bad.fits"), 0, 0, reason="empty file")
    (key, _) = cluster.add_exposure(exposure, ccds, stage=Stage.LANDED)
    cluster.fail(key, Stage.CALIBRATED, "three stars only")
    assert run("release", "--all", "--config", site_file).exit_code == 0
    assert telescope.quarantined_files() == []
    assert set(stages(cluster).values()) == {"landed"}


def test_release_names_what_is_not_in_quarantine(run, site_file, telescope):
    answer = run("release", "good.fits", "--config", site_file)
    assert answer.exit_code == 1
    assert "good.fits: not in quarantine" in answer.stderr


def later(exposure: Exposure, nights: int) -> Exposure:
    start = exposure.start + timedelta(days=nights)
    number = exposure.number + 1000 * nights
    return replace(exposure, number=number, start=start, night=Night.of(start))


def test_status_tells_of_the_newest_night_unless_asked_for_another(
    run, site_file, telescope, cluster, exposure, ccds
):
    calibrated(cluster, exposure, ccds)
    sent(telescope, later(exposure, 1), ccds)
    told = json.loads(run("status", "--config", site_file, "--json").stdout)
    assert told["night"] == "2020-03-06"
    assert [entry["exposure"] for entry in told["exposures"]] == [NUMBER + 1000]
    words = ("status", "--config", site_file, "--night", "ut200306", "--json")
    assert [entry["exposure"] for entry in json.loads(run(*words).stdout)["exposures"]] == [NUMBER]


def test_what_earlier_nights_left_in_quarantine_is_not_passed_over_in_silence(
    run, site_file, cluster, exposure, ccds
):
    (key, _) = cluster.add_exposure(exposure, ccds, stage=Stage.LANDED)
    cluster.fail(key, Stage.CALIBRATED, "three stars only")
    (newer, _) = cluster.add_exposure(later(exposure, 1), ccds, stage=Stage.LANDED)
    cluster.fail(newer, Stage.CALIBRATED, "two stars only")
    shown = run("status", "--config", site_file).stdout
    assert "1 CCD of other nights in quarantine (--all)" in shown
    assert "three stars only" not in shown


def test_all_nights_are_told_in_a_line_each(run, site_file, telescope, cluster, exposure, ccds):
    for nights in (0, 1):
        sent(telescope, later(exposure, nights), ccds)
    calibrated(cluster, exposure, ccds[:1])
    shown = run("status", "--config", site_file, "--all").stdout
    (newest, oldest) = [line for line in shown.splitlines() if "ut2003" in line]
    assert "ut200307" in newest
    assert "2 sent" in newest
    assert "2 sent" in oldest
    assert "1 calibrated" in oldest
    assert "1 yellow" in oldest
    nights = json.loads(run("status", "--config", site_file, "--all", "--json").stdout)["nights"]
    assert [night["ut_name"] for night in nights] == ["ut200307", "ut200306"]
    assert nights[1]["telescope"] == {"exposures": 1, "stages": {"sent": 2}, "grades": {}}
    assert nights[1]["cluster"]["grades"] == {"yellow": 1}
    assert "cluster" not in nights[0]


@pytest.mark.parametrize("words", [("--night", "ut200306"), ("--exposure", 1), ("--watch",)])
def test_all_nights_and_one_of_something_is_wrong_use(run, site_file, words):
    assert run("status", "--config", site_file, "--all", *words).exit_code == 2


def test_both_ends_may_keep_their_journals_in_postgresql(run, site_file, raw_file, postgresql):
    here, there = postgresql.new_schema(), postgresql.new_schema()
    raw_file.rename(site_file.parent / "raw" / "DECam_00941420.fits.fz")
    with site_file.open("a") as stream:
        stream.write(f'telescope.journal = "{here}"\ncluster.journal = "{there}"\n')
    words = ("status", "--config", site_file, "--json")
    assert "no journal yet" in run(*words).stderr
    assert run("push", "--once", "--dry-run", "--config", site_file).exit_code == 0
    assert run("push", "--once", "--config", site_file).exit_code == 0
    assert json.loads(run(*words).stdout)["totals"] == {"sent": 2}
    assert run("retry", NUMBER, "--stage", "found", "--config", site_file).exit_code == 0
    assert json.loads(run(*words).stdout)["totals"] == {"found": 2}
    assert list(site_file.parent.rglob("*.sqlite")) == []
