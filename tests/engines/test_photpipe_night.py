"""A night of packets through the cluster's end with photpipe as its engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from photpipe_site import PhotpipeSite
from small_packets import packets
from typer.testing import CliRunner

from prepipe.cli import app
from prepipe.cli.settings import commented_toml
from prepipe.cluster import Ingest
from prepipe.compute import LocalCompute
from prepipe.config import Calibration, Cluster, Compute, Engines, Site
from prepipe.engines.choice import open_engine
from prepipe.model import Stage
from prepipe.store import CcdKey, Journal

CCDS = (1, 2, 3, 4)


@pytest.fixture
def here(tmp_path: Path) -> PhotpipeSite:
    return PhotpipeSite(tmp_path)


@pytest.fixture
def site(here, tmp_path) -> Site:
    return Site(
        cluster=Cluster(
            landing=tmp_path / "landing",
            work=tmp_path / "cluster",
            products=here.products,
            calibrations=tmp_path / "calibrations",
            poll_s=0.02,
        ),
        calibration=Calibration(engine="photpipe"),
        engines=Engines(photpipe=here.settings),
    )


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


@pytest.fixture(scope="module")
def workers():
    compute = LocalCompute(2)
    yield compute
    compute.close()


def reductions(journal: Journal) -> dict[tuple[int, int], dict]:
    return {(row.key.exposure, row.key.ccd): row.reduction for row in journal.rows()}


def test_a_ccd_whose_wcs_failed_is_rescued_by_the_ladder_word_by_word(here, site, journal, workers):
    here.control(
        shift={"default": [-10.0, 20.0], "941420_2": [-11.0, 21.0], "941420_4": [-12.0, 25.0]},
        stubborn={"941420_3": {"WCSNON_SEARCHRAD": 25, "WCSNON_CAT_MAXMAG": 14.2}},
    )
    packets(site.cluster.landing, 941420, CCDS)
    report = Ingest(site, journal, workers).run(once=True)
    assert report.failures == {}
    base = "-red ut200306 3 -id 941420"
    view = "pipeview.pl -red ut200306 3 -stage WCSNON -wcs -id 941420"
    # the mean of CCDs 1, 2 and 4 is that of those fewer than three numbers away
    assert here.commands("", ccd=3) == [
        f"pipeloop.pl {base} -redobad",
        view,
        f"pipeloop.pl {base} -k WCSNON_RADECSHIFT -11,22 -redobad",
        view,
        f"pipeloop.pl {base} -stage FLATTEN,WCSNON -k WCSNON_RADECSHIFT -11,22 "
        "-k WCSNON_SEARCHRAD 25 -k WCSNON_CAT_MAXMAG 14.2 -k WCSNON_RMSMAX 0.275 -redobad",
        view,
    ]
    found = reductions(journal)
    assert all("NO_WCS" not in reduction["flags"] for reduction in found.values())
    tries = found[941420, 3]["wcs_tries"]
    assert [(one["rung"], one["relaxed"], one["accepted"]) for one in tries] == [
        ("neighbouring CCDs", False, False),
        ("neighbouring CCDs", True, True),
    ]


def test_the_rescue_works_on_the_nodes_own_disk_and_only_products_leave_it(
    here, site, journal, workers, tmp_path
):
    photpipe = here.settings.model_copy(update={"node_local": True})
    node = Compute(scratch=str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    site = site.model_copy(update={"engines": Engines(photpipe=photpipe), "compute": node})
    here.control(stubborn={"941420_3": {"WCSNON_SEARCHRAD": 25, "WCSNON_CAT_MAXMAG": 14.2}})
    packets(site.cluster.landing, 941420, CCDS)
    report = Ingest(site, journal, workers).run(once=True)
    assert report.failures == {}
    assert len(here.commands(ccd=3)) == 3
    assert list(here.data.iterdir()) == []
    for (_, ccd), found in reductions(journal).items():
        assert found["product"] == str(
            here.products / "ut200306" / str(ccd) / f"COSMOS.g.ut200306.941420_{ccd}.fits"
        )
        assert Path(found["product"]).is_file()
    assert not [path for path in (tmp_path / "node").rglob("*.fits") if path.is_file()]


def test_the_same_ccd_of_another_exposure_helps_where_neighbours_do_not(
    here, site, journal, workers
):
    here.control(shift={"default": [5.0, 5.0], "941418_3": [30.0, 20.0], "941420_3": [45.0, 30.0]})
    packets(site.cluster.landing, 941418, CCDS)
    packets(site.cluster.landing, 941420, CCDS)
    Ingest(site, journal, workers).run(once=True)
    last = [line for line in here.commands(ccd=3) if "941420" in line][-1]
    assert last.endswith("-id 941420 -k WCSNON_RADECSHIFT 30,20 -redobad")
    found = reductions(journal)[941420, 3]
    assert "NO_WCS" not in found["flags"]
    assert found["wcs_tries"][-1]["rung"] == "same CCD, other exposures"


def test_a_ladder_that_led_to_nothing_is_not_climbed_again(here, site, journal, workers):
    here.control(stubborn={"941420_3": {"WCSNON_SEARCHRAD": 1}})
    packets(site.cluster.landing, 941420, CCDS)
    Ingest(site, journal, workers).run(once=True)
    assert len(here.commands(ccd=3)) == 3
    assert len(here.commands()) == 6
    assert "NO_WCS" in reductions(journal)[941420, 3]["flags"]


def test_zeros_and_dome_flats_of_the_night_reach_photpipe(here, site, journal, workers):
    assert open_engine(site).wants_calibrations
    packets(site.cluster.landing, 1, CCDS, OBSTYPE="zero")
    packets(site.cluster.landing, 2, CCDS, OBSTYPE="dome flat")
    report = Ingest(site, journal, workers).run(once=True)
    assert report.awaiting == []
    for ccd in CCDS:
        assert here.rawdata(ccd) == [
            f"bias.ut200306.1_{ccd}.fits",
            f"domeflat.g.ut200306.2_{ccd}.fits",
        ]


def test_a_ccd_that_fails_each_time_is_quarantined_with_the_end_of_the_log(
    here, site, journal, workers
):
    here.control(fails={"941420_2": "exit 0 without image"})
    packets(site.cluster.landing, 941420, CCDS)
    Ingest(site, journal, workers).run(once=True)
    row = journal.row(CcdKey("decam", 941420, 2))
    assert row.stage is Stage.QUARANTINED
    assert "cannot open bias, skipping" in row.reason
    assert len(here.commands(ccd=2)) == site.cluster.tries
    assert len([row for row in journal.rows() if row.stage is Stage.CALIBRATED]) == 3


def test_a_missing_parameter_holds_all_up_and_quarantines_nothing(here, site, journal, workers):
    here.control(lacking=["SW_PLATESCALE"])
    packets(site.cluster.landing, 941420, CCDS)
    report = Ingest(site, journal, workers).run(once=True)
    assert all("SW_PLATESCALE" in reason for reason in report.failures.values())
    assert all(row.stage is Stage.LANDED for row in journal.rows())
    here.control()
    assert len(Ingest(site, journal, workers).run(once=True).calibrated) == len(CCDS)


def test_a_hanging_ccd_is_stopped_and_the_others_go_on(here, site, journal, tmp_path, workers):
    photpipe = here.settings.model_copy(update={"time_limit_s": 3.0})
    site = site.model_copy(
        update={
            "engines": Engines(photpipe=photpipe),
            "cluster": site.cluster.model_copy(update={"tries": 1}),
        }
    )
    here.control(fails={"941420_4": "hang"})
    packets(site.cluster.landing, 941420, CCDS)
    Ingest(site, journal, workers).run(once=True)
    assert journal.row(CcdKey("decam", 941420, 4)).stage is Stage.QUARANTINED
    assert not list(here.products.rglob("*_4.fits"))
    assert len(list(here.products.rglob("*.fits"))) == 3


def test_files_at_hand_go_through_photpipe_too_with_its_ladder(here, site, tmp_path):
    here.control(stubborn={"941420_3": {"WCSNON_SEARCHRAD": 25, "WCSNON_CAT_MAXMAG": 14.2}})
    config = tmp_path / "prepipe.toml"
    config.write_text(commented_toml(site))
    files = packets(tmp_path / "packets", 941420, CCDS)
    words = ["calibrate", *files, "--config", config, "--out", here.products, "--json"]
    answer = CliRunner().invoke(app, [str(word) for word in words])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)["ccds"]
    assert {ccd["ccd"]: ccd["grade"] for ccd in told} == dict.fromkeys(CCDS, "yellow")
    assert [len(here.commands(ccd=ccd)) for ccd in CCDS] == [1, 1, 3, 1]
