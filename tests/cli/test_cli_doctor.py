"""`prepipe doctor`: each check by itself, and the report as a whole."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from prepipe.cli import batch, capacity, checks
from prepipe.cli.checks import Check, State
from prepipe.config import Calibration, Cluster, Compute, Link, Site, Telescope
from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.names import master_name
from prepipe.errors import LinkError
from prepipe.model import Kind, Mark
from prepipe.store import Journal, MasterRow


def test_a_missing_raw_directory_is_a_failure_that_says_what_to_do(tmp_path):
    check = checks.check_readable("telescope.raw", tmp_path / "raw")
    assert check.state is State.FAILURE
    assert "no such directory" in check.found
    assert "telescope.raw" in check.remedy


@pytest.fixture
def not_root():
    """Root may read everything; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_directory_is_a_failure(tmp_path, not_root):
    with suppress(PermissionError):  # where it is root's, it is closed to nobody as it is
        tmp_path.chmod(0)
    assert checks.check_readable("telescope.raw", tmp_path).state is State.FAILURE


def test_a_directory_that_can_be_made_is_fine(tmp_path):
    check = checks.check_writable("telescope.work", tmp_path / "a")
    assert check.state is State.OK
    assert not (tmp_path / "a").exists()


def test_a_path_of_which_more_than_the_last_element_is_missing_is_a_warning(tmp_path):
    check = checks.check_writable("telescope.work", tmp_path / "disk" / "night")
    assert check.state is State.WARNING
    assert f"only {tmp_path} exists" in check.found
    assert "mount" in check.remedy


def test_a_landing_directory_whose_disk_may_not_be_mounted_is_a_failure_at_both_ends(tmp_path):
    landing = tmp_path / "disk" / "landing"
    site = Site(link=Link(kind="local", landing=landing))
    for check in (checks.check_landing("cluster.landing", landing), checks.check_link(site)):
        assert (check.state, check.found) == (State.FAILURE, f"{landing.parent} does not exist")
        assert "mounted" in check.remedy
    landing.parent.mkdir()
    for check in (checks.check_landing("cluster.landing", landing), checks.check_link(site)):
        assert (check.state, check.found) == (State.OK, f"{landing}, will be made")


def test_a_reference_catalogue_that_does_not_exist_is_called_so(tmp_path):
    site = Site(calibration=Calibration(reference=tmp_path / "gaia"))
    check = checks.check_reference(site)
    assert (check.state, check.found) == (State.FAILURE, f"{tmp_path}/gaia does not exist")


def test_jobs_that_are_hardly_longer_than_a_ccd_may_take_are_warned_of():
    site = Site(cluster=Cluster(time_limit_s=600.0), compute=Compute(walltime_min=20))
    assert batch.check_walltime(site).state is State.OK
    site = Site(cluster=Cluster(time_limit_s=600.0), compute=Compute(walltime_min=19))
    assert batch.check_walltime(site).state is State.WARNING


def test_what_prepipe_makes_below_its_own_directory_is_fine(tmp_path):
    work = tmp_path / "cluster"
    products = checks.check_writable("cluster.products", work / "products", work)
    assert products.state is State.OK


@pytest.mark.parametrize(
    ("codec", "workers", "cores", "state"),
    [
        ("jpeg2000", 2, 2, State.WARNING),  # 62 CCDs x 2 s / 2 = 62 s, for an exposure a minute
        ("jpeg2000", 3, 4, State.OK),
        ("jpeg2000", 8, 2, State.WARNING),
        ("none", 1, 1, State.OK),
    ],
)
def test_packing_that_cannot_keep_the_cadence_is_a_warning(
    monkeypatch, codec, workers, cores, state
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    site = Site.model_validate({"pack": {"codec": codec, "workers": workers}})
    check = capacity.check_packing(site)
    assert check.state is state
    assert ("core" in check.remedy or "pack.workers" in check.remedy) == (state is State.WARNING)


def test_both_ends_on_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    site = Site.model_validate({"pack": {"workers": 2}, "cluster": {"workers": 2}})
    assert capacity.check_shared_cores(site).state is State.OK
    site = Site.model_validate({"pack": {"workers": 3}, "cluster": {"workers": 2}})
    assert capacity.check_shared_cores(site).state is State.WARNING
    assert len(capacity.capacity_checks(site, ("telescope",))) == 1


def test_a_file_in_the_place_of_a_directory_is_a_failure(tmp_path):
    (tmp_path / "work").write_text("")
    assert checks.check_writable("telescope.work", tmp_path / "work").state is State.FAILURE


def test_a_directory_that_cannot_be_written_is_a_failure():
    assert checks.check_writable("telescope.work", Path("/proc/prepipe")).state is State.FAILURE


def test_no_raw_file_yet_is_only_a_warning(tmp_path):
    assert checks.check_raw_files(tmp_path, "*.fits*").state is State.WARNING
    (tmp_path / "a.fits.fz").write_text("")
    assert checks.check_raw_files(tmp_path, "*.fits*").state is State.OK


@pytest.mark.parametrize(
    ("free_gb", "state"), [(0.1, State.FAILURE), (5, State.WARNING), (500, State.OK)]
)
def test_little_room_on_disk_is_told_in_time(tmp_path, monkeypatch, free_gb, state):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free_gb * 1e9))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks.check_space("telescope.work", tmp_path).state is state


def test_a_clock_that_differs_from_the_file_systems_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_kept_by_ntp", lambda: None)
    assert checks.check_clock("telescope.work", tmp_path).state is State.OK
    truth = checks.time.time
    monkeypatch.setattr(checks.time, "time", lambda: truth() - 60)
    check = checks.check_clock("telescope.work", tmp_path)
    assert check.state is State.WARNING
    assert "+60.0" in check.found


def test_a_clock_that_ntp_does_not_keep_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_kept_by_ntp", lambda: False)
    assert checks.check_clock("telescope.work", tmp_path).state is State.WARNING


def test_a_journal_that_is_none_is_a_failure(tmp_path):
    (tmp_path / "journal.sqlite").write_text("this is no database, and long enough to tell" * 50)
    own = Telescope(work=tmp_path)
    assert checks.check_journal("telescope", own).state is State.FAILURE


def test_the_doctor_leaves_no_journal_behind(tmp_path):
    own = Telescope(work=tmp_path / "work")
    assert checks.check_journal("telescope", own).state is State.OK
    assert list(tmp_path.iterdir()) == []


def test_an_existing_journal_is_opened(tmp_path):
    Journal(tmp_path / "journal.sqlite").close()
    assert checks.check_journal("telescope", Telescope(work=tmp_path)).state is State.OK


def test_a_journal_in_postgresql_is_opened(postgresql_url):
    check = checks.check_journal("cluster", Cluster(journal=postgresql_url))
    assert (check.state, check.found) == (State.OK, postgresql_url)


def test_a_server_that_is_not_there_is_a_failure_that_names_the_setting(tmp_path):
    own = Cluster(journal=f"postgresql+psycopg://me@/cluster?host={tmp_path}")
    check = checks.check_journal("cluster", own)
    assert check.state is State.FAILURE
    assert "cluster.journal" in check.remedy


@pytest.mark.parametrize("codec", ["none", "rice", "wavelet", "jpeg2000", "htj2k"])
def test_a_codec_that_is_known_works(codec):
    site = Site.model_validate({"pack": {"codec": codec}})
    assert checks.check_codec(site).state is State.OK


def test_an_unknown_codec_is_a_failure_that_names_the_known_ones():
    check = checks.check_codec(Site.model_validate({"pack": {"codec": "zip"}}))
    assert check.state is State.FAILURE
    assert "rice" in check.found


def test_an_unknown_camera_is_a_failure():
    assert checks.check_camera("decam").state is State.OK
    assert checks.check_camera("hubble").state is State.FAILURE


def test_more_workers_than_cores_is_a_warning():
    cores = len(os.sched_getaffinity(0))
    assert checks.check_workers("cluster.workers", cores + 1).state is State.WARNING


def test_no_ssh_program_is_a_failure(monkeypatch):
    monkeypatch.setattr(checks.shutil, "which", lambda _: None)
    check = checks.check_ssh_tools()
    assert check.state is State.FAILURE
    assert "no ssh and no sftp" in check.found


def test_a_far_side_that_does_not_answer_is_a_failure_in_bounded_time(monkeypatch):
    monkeypatch.setattr(checks, "ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(checks, "_ask_far_side", lambda site, answers: None)
    check = checks.check_link(Site(link=Link(kind="ssh", host="far")))
    assert check.state is State.FAILURE
    assert "no answer" in check.found


def test_what_the_link_says_of_the_far_side_is_passed_on(monkeypatch):
    def refuse(site, answers):
        answers.put(LinkError("far: connection refused"))

    monkeypatch.setattr(checks, "_ask_far_side", refuse)
    check = checks.check_link(Site(link=Link(kind="ssh", host="far")))
    assert check.state is State.FAILURE
    assert check.found == "far: connection refused"


def test_a_local_landing_directory_answers(tmp_path):
    site = Site(link=Link(landing=tmp_path / "landing"))
    assert checks.check_link(site).state is State.OK


def test_a_catalogue_whose_columns_are_not_recognised_is_a_failure(tmp_path):
    (tmp_path / "stars.csv").write_text("alpha,delta\n1,2\n")
    site = Site.model_validate({"calibration": {"reference": tmp_path / "stars.csv"}})
    assert checks.check_reference(site).state is State.FAILURE


def test_no_masters_is_a_warning(tmp_path):
    assert checks.check_masters(Cluster(calibrations=tmp_path).calibrations).state is State.WARNING


def test_masters_that_are_held_are_a_warning(tmp_path):
    for kind, stem in ((Kind.ZERO, "bias"), (Kind.DOME_FLAT, "domeflat.g")):
        name = master_name(tmp_path / "ut200306" / "25" / f"{stem}.ut200306.1_25.fits.fz")
        mark = Mark.HELD if kind is Kind.DOME_FLAT else Mark.GOOD
        row = MasterRow("", "", kind, 25, name.band, name.night, mark=mark, why="differs")
        image = np.zeros((8, 8), np.float32)
        MasterLibrary(tmp_path).add(name, image, 1.0, [("NOISE", 1.0, "")], row)
    told = checks.check_masters(tmp_path)
    assert told.state is State.WARNING
    assert "1 biases, 1 dome flats" in told.found and "1 are held" in told.found
    (tmp_path / "masters.db").write_bytes(b"nothing of the kind" * 100)
    assert checks.check_masters(tmp_path).state is State.FAILURE


@pytest.mark.parametrize("name", ["crosstalk", "linearity", "bad_pixels"])
def test_a_table_of_the_detector_that_is_missing_or_wrong_is_a_failure(tmp_path, name):
    for path in (tmp_path / "nowhere.csv", tmp_path / "empty.csv"):
        (tmp_path / "empty.csv").write_text("")
        site = Site.model_validate({"calibration": {name: path}})
        check = checks.check_detector(site)
        assert check.state is State.FAILURE
        assert str(path) in check.found


def test_tables_of_the_detector_are_named(tmp_path):
    (tmp_path / "xtalk.csv").write_text("victim,source,coefficient\n1A,1B,1e-4\n")
    settings = {"calibration": {"crosstalk": tmp_path / "xtalk.csv"}}
    check = checks.check_detector(Site.model_validate(settings))
    assert (check.state, check.found) == (State.OK, "xtalk.csv")
    assert checks.check_detector(Site()).state is State.OK


def test_a_site_that_can_work_gets_exit_0(run, site_file):
    answer = run("doctor", "--config", site_file)
    assert answer.exit_code == 0, answer.stdout
    assert "ready: 0 failures" in answer.stdout
    assert "100 stars" in answer.stdout


def test_a_failure_gets_exit_1_and_an_arrow_to_what_to_do(run, site_file):
    (site_file.parent / "raw").rmdir()
    answer = run("doctor", "--config", site_file)
    assert answer.exit_code == 1
    lines = answer.stdout.splitlines()
    failing = next(i for i, line in enumerate(lines) if line.startswith("failure"))
    assert "telescope.raw" in lines[failing]
    assert lines[failing + 1].strip().startswith("-> make it")


def test_only_the_end_that_is_asked_for_is_looked_at(run, site_file):
    (site_file.parent / "raw").rmdir()
    assert run("doctor", "--config", site_file, "--only", "cluster").exit_code == 0
    assert run("doctor", "--config", site_file, "--only", "telescope").exit_code == 1
    assert run("doctor", "--config", site_file, "--only", "moon").exit_code == 2


def test_the_report_as_json(run, site_file):
    told = json.loads(run("doctor", "--config", site_file, "--json").stdout)
    assert told["ok"] is True
    assert {check["state"] for check in told["checks"]} <= {"ok", "warning"}


def test_a_check_that_breaks_does_not_hide_the_others(run, site_file, monkeypatch):
    def broken() -> Check:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(checks, "check_libraries", broken)
    answer = run("doctor", "--config", site_file)
    assert answer.exit_code == 1
    assert "ZeroDivisionError: oops" in answer.stdout
    assert "reference stars" in answer.stdout


def photpipe_site(tmp_path, **changes) -> Site:
    for name in ("pipeloop.pl", "pipeview.pl"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "sourceme").write_text(f"export PATH={tmp_path}:$PATH PIPE_DATA={tmp_path}/data\n")
    settings = {"sourceme": tmp_path / "sourceme"} | changes
    return Site.model_validate(
        {"calibration": {"engine": "photpipe"}, "engines": {"photpipe": settings}}
    )


def test_a_pipeline_that_is_set_up_is_fine_and_its_places_are_told(tmp_path):
    check = checks.check_engine(photpipe_site(tmp_path))
    assert (check.name, check.state) == ("engine photpipe", State.OK)
    assert str(tmp_path / "pipeloop.pl") in check.found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"pipeview": "pipeview2.pl"}, "no program pipeview2.pl"),
        ({"sourceme": "/no/where"}, "/no/where cannot be sourced"),
        ({"data": "/no/where"}, "PIPE_DATA, /no/where, is no directory"),
        ({"time_limit_s": 600}, "time limit 600 s, a worker's 600 s"),
    ],
)
def test_what_a_pipeline_lacks_is_a_failure_with_a_remedy(tmp_path, changes, found):
    check = checks.check_engine(photpipe_site(tmp_path, **changes))
    assert check.state is State.FAILURE
    assert found in check.found
    assert "engines.photpipe" in check.remedy


def test_an_engine_that_cannot_be_loaded_is_a_failure(tmp_path):
    site = Site.model_validate({"calibration": {"engine": "no_such_module:engine"}})
    check = checks.check_engine(site)
    assert check.state is State.FAILURE
    assert "cannot be loaded" in check.found


def test_a_pipeline_needs_no_catalogue_and_no_masters_of_ours(tmp_path):
    names = [check().name for check in checks.all_checks(photpipe_site(tmp_path), ["cluster"])]
    assert "engine photpipe" in names
    assert not {"reference stars", "masters", "detector tables"} & set(names)
