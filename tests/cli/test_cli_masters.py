"""`prepipe make-cals` of a night."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prepipe.cli import masters
from prepipe.engines.detector.masters import FrameGroup, MadeMaster
from prepipe.model import Ccd, Colour, Exposure, Grade, Kind, Reduction, Stage
from prepipe.store import Journal


@pytest.fixture
def cluster(site_file: Path) -> Iterator[Journal]:
    journal = Journal(site_file.parent / "cluster" / "journal.sqlite")
    yield journal
    journal.close()


def landed_zero(journal: Journal, exposure: Exposure, packet: Path) -> None:
    zero = replace(exposure, number=1, kind=Kind.ZERO, band="")
    facts = {"packet": str(packet)}
    journal.add_exposure(zero, [Ccd(25, "S29")], stage=Stage.LANDED, facts=facts)


@pytest.mark.parametrize("night", ["2020-03-06", "ut200307"])
def test_a_night_without_frames_lists_those_that_have_some(
    run, site_file, cluster, exposure, tmp_path, night
):
    landed_zero(cluster, exposure, tmp_path / "zero.packet")
    answer = run("make-cals", night, "--config", site_file)
    assert answer.exit_code == 2
    assert "ut200307 (2020-03-06) have landed here" in answer.stderr
    assert "nights that have some: ut200306 (2020-03-05)" in answer.stderr


@pytest.mark.parametrize("night", ["2020-03-05", "ut200306"])
def test_a_night_may_be_written_either_way_and_lost_packets_are_named(
    run, site_file, cluster, exposure, tmp_path, night
):
    landed_zero(cluster, exposure, tmp_path / "zero.packet")
    answer = run("make-cals", night, "--config", site_file)
    assert answer.exit_code == 1
    assert "zero.packet: does not exist" in answer.stderr


def test_what_is_no_night_is_wrong_use(run, site_file):
    assert run("make-cals", "2020-13-45", "--config", site_file).exit_code == 2


def test_a_site_where_nothing_landed_says_so_and_stays_as_it_is(run, site_file):
    answer = run("make-cals", "ut200306", "--config", site_file)
    assert answer.exit_code == 2
    assert "prepipe ingest" in answer.stderr
    assert not (site_file.parent / "cluster").exists()


def test_the_command_is_told_that_redoes_what_came_before_the_masters(
    run, site_file, cluster, exposure, ccds, tmp_path, monkeypatch
):
    packet = tmp_path / "zero.packet"
    packet.touch()
    landed_zero(cluster, exposure, packet)
    for key in cluster.add_exposure(exposure, ccds, stage=Stage.LANDED):
        reduction = Reduction(key.exposure, key.ccd, flags=("NO_BIAS",))
        cluster.calibrated(key, reduction, Grade(Colour.YELLOW), 1.0)
    group = FrameGroup(Kind.ZERO, 25, "", exposure.night, ())
    made = MadeMaster(group, tmp_path / "bias.fits.fz", 3, 1.5, ())
    monkeypatch.setattr("prepipe.engines.detector.masters.gather", lambda *_: ([group], {}))
    monkeypatch.setattr(masters, "_made", lambda *_: [made])
    words = ("make-cals", "ut200306", "--config", site_file)
    command = f"prepipe retry --night ut200306 --no-masters --config {site_file}"
    told = json.loads(run(*words, "--json").stdout)
    assert told["without_masters"] == {"ccds": 1, "redo": command}
    assert told["masters"][0]["noise"] == 1.5
    assert (
        f"1 CCDs were calibrated without masters; to do them anew: {command}" in run(*words).stdout
    )
    assert run(*command.split()[1:]).exit_code == 0
    assert {row.stage for row in cluster.rows(exposure=exposure.number)} == {Stage.LANDED}
