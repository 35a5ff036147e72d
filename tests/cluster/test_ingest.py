"""Ingest: everything that lands is calibrated once, newest first, whatever fails meanwhile."""

from __future__ import annotations

import shutil
import threading
import time
from collections import namedtuple
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path

import cluster_packets as works
import numpy as np
import pytest
from cluster_packets import exposure, make_packet, times_noted, wait_until

from prepipe.cluster import Ingest, What
from prepipe.compute import LocalCompute
from prepipe.config import Cluster, Site
from prepipe.engines.base import ChosenMasters
from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.names import MasterName
from prepipe.errors import ConfigError, TransientError
from prepipe.files import sole_user
from prepipe.model import Kind, Mark, Night, Stage
from prepipe.store import CcdKey, Journal, MasterRow

PATIENCE_S = 30.0


class HereAndNow:
    """Carries each order out at once, in this process."""

    slots = 1

    def tend(self):
        return ""

    def jobs(self):
        return ()

    def release(self):
        pass

    def submit(self, work, order, urgency=0.0):
        future = Future()
        try:
            future.set_result(work(order))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self):
        pass


class WhenAsked(HereAndNow):
    """Keeps orders until they are asked for."""

    def __init__(self):
        self.kept = []

    def submit(self, work, order, urgency=0.0):
        future = Future()
        self.kept.append((work, order, future))
        return future

    def answer_first(self):
        work, order, future = self.kept.pop(0)
        future.set_result(work(order))


@pytest.fixture
def site(tmp_path):
    return Site(
        cluster=Cluster(
            landing=tmp_path / "landing",
            work=tmp_path / "cluster",
            products=tmp_path / "products",
            calibrations=tmp_path / "calibrations",
            poll_s=0.02,
        )
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


def ingest_once(site, journal, work=works.reduce, compute=None, on_event=None):
    return Ingest(site, journal, compute or HereAndNow(), work, on_event).run(once=True)


def land(site, *numbers, ccds=(1,), **how):
    for number in numbers:
        for ccd in ccds:
            make_packet(site.cluster.landing, number, ccd, **how)


def test_once_calibrates_all_that_is_there_and_reports_it(site, journal, workers):
    land(site, 1, 2, ccds=(1, 2, 3))
    report = ingest_once(site, journal, compute=workers)
    assert {(key.exposure, key.ccd) for key in report.calibrated} == {
        (number, ccd) for number in (1, 2) for ccd in (1, 2, 3)
    }
    assert report.failures == {}
    assert all(row.stage is Stage.CALIBRATED for row in journal.rows())


def test_the_journal_keeps_reduction_grade_and_time(site, journal):
    land(site, 1)
    ingest_once(site, journal)
    (row,) = journal.rows()
    assert (row.grade, row.reasons) == ("yellow", ("no bias: not subtracted",))
    assert row.reduction["product"] == str(site.cluster.products / "1_1")
    assert row.seconds["calibrated"] == pytest.approx(0.75)


def test_once_with_nothing_there_returns_at_once(site, journal):
    begun = time.monotonic()
    report = ingest_once(site, journal)
    assert (report.calibrated, report.failures) == ({}, {})
    assert time.monotonic() - begun < 2.0


def test_the_newest_exposure_is_calibrated_first(site, journal):
    land(site, 3, 5, 4)
    events = []
    ingest_once(site, journal, on_event=events.append)
    begun = [event.key.exposure for event in events if event.what is What.BEGUN]
    assert begun == [5, 4, 3]


def test_what_lands_later_but_is_newer_overtakes_what_waits(site, journal):
    compute = WhenAsked()
    stop = threading.Event()
    ingest = Ingest(site, journal, compute, works.reduce)
    runner = threading.Thread(target=ingest.run, args=(False, stop))
    land(site, 1, 2, 3, 4, 5, 6)
    runner.start()
    try:
        wait_until(lambda: len(compute.kept) == 3 and len(journal.rows(Stage.LANDED)) == 6)
        land(site, 9)
        wait_until(lambda: len(journal.rows(Stage.LANDED)) == 7)
        compute.answer_first()
        wait_until(lambda: len(compute.kept) == 3)
    finally:
        stop.set()
        for *_, future in compute.kept:
            future.cancel()
        runner.join(PATIENCE_S)
    names = [order.source.name for _, order, _ in compute.kept]
    assert names[-1] == "decam_00000009_01.packet"


def test_no_more_is_handed_out_than_slots_and_two_ahead(site, journal):
    compute = WhenAsked()
    stop = threading.Event()
    land(site, *range(8))
    runner = threading.Thread(
        target=Ingest(site, journal, compute, works.reduce).run, args=(False, stop)
    )
    runner.start()
    try:
        wait_until(lambda: len(journal.rows(Stage.LANDED)) == 8)
        time.sleep(0.1)
        assert len(compute.kept) == compute.slots + 2
    finally:
        stop.set()
        for *_, future in compute.kept:
            future.cancel()
        runner.join(PATIENCE_S)


@pytest.mark.parametrize("kind", [Kind.ZERO, Kind.DOME_FLAT])
def test_zeros_and_dome_flats_await_their_masters_without_a_grade(site, journal, kind):
    land(site, 1, told=exposure(1, kind))
    report = ingest_once(site, journal)
    (row,) = journal.rows()
    assert (row.stage, row.grade) == (Stage.CALIBRATED, None)
    assert Path(row.packet).is_file()
    assert report.awaiting == [row.key]
    assert not list(site.cluster.products.iterdir())


def test_a_frame_of_another_kind_is_calibrated_as_an_object(site, journal):
    land(site, 1, told=exposure(1, Kind.OTHER))
    assert len(ingest_once(site, journal).calibrated) == 1


def test_input_that_can_never_work_is_quarantined_at_once_and_the_rest_goes_on(
    site, journal, workers
):
    land(site, 1, 2, ccds=(1, 2))
    report = ingest_once(site, journal, works.refuse_ccd_2, workers)
    assert {key.ccd for key in report.calibrated} == {1}
    assert {key.ccd for key in report.quarantined} == {2}
    row = journal.row(CcdKey("decam", 1, 2))
    assert (row.stage, row.failed_stage, row.tries) == (Stage.QUARANTINED, Stage.LANDED, 1)
    assert row.reason == "all pixels are zero: is the CCD switched on?"
    assert "in refuse_ccd_2" in row.traceback
    assert report.failures["decam 1 CCD 2"] == row.reason


def test_a_full_disk_for_the_products_holds_a_ccd_up_and_is_no_fault_of_its_own(site, journal):
    land(site, 1)
    report = ingest_once(site, journal, works.find_the_disk_full)
    (row,) = journal.rows()
    assert row.stage is Stage.LANDED
    assert row.tries == 0
    assert "No space left" in row.reason
    assert "No space left" in report.failures[str(row.key)]
    assert sum(times_noted(journal_path(journal), "waits").values()) == site.cluster.tries


def journal_path(journal):
    return journal._engine.url.database


def test_an_unforeseen_error_is_tried_again(site, journal):
    land(site, 1)
    events = []
    report = ingest_once(site, journal, works.be_wrong_first, on_event=events.append)
    failed = [event for event in events if event.what is What.FAILED]
    assert [event.text for event in failed] == ["KeyError: 'EXTNAME'"]
    assert len(report.calibrated) == 1
    assert journal.rows()[0].tries == 0


def test_a_ccd_that_kills_its_workers_is_quarantined_and_hurts_no_other(site, journal, workers):
    land(site, 1, 2, ccds=(1, 2))
    report = ingest_once(site, journal, works.die_over_ccd_2, workers)
    assert {key.ccd for key in report.calibrated} == {1}
    row = journal.row(CcdKey("decam", 2, 2))
    assert (row.stage, row.tries) == (Stage.QUARANTINED, site.cluster.tries)
    assert "exit code 9" in row.reason
    assert times_noted(journal_path(journal), "failed").keys() == {(1, 2), (2, 2)}


def test_a_released_ccd_is_calibrated_by_the_next_run(site, journal):
    land(site, 1, ccds=(2,))
    ingest_once(site, journal, works.refuse_ccd_2)
    journal.release(CcdKey("decam", 1, 2))
    assert len(ingest_once(site, journal, works.reduce).calibrated) == 1


def test_a_packet_that_is_gone_is_quarantined_with_the_way_to_get_it_back(site, journal):
    land(site, 1)
    make_packet(site.cluster.landing, 2, 1)
    compute = WhenAsked()
    stop = threading.Event()
    runner = threading.Thread(
        target=Ingest(site, journal, compute, works.reduce).run, args=(False, stop)
    )
    runner.start()
    wait_until(lambda: len(compute.kept) == 2)
    stop.set()
    runner.join(PATIENCE_S)
    key = CcdKey("decam", 1, 1)
    Path(journal.row(key).packet).unlink()
    report = ingest_once(site, journal)
    assert list(report.quarantined) == [key]
    assert "is gone" in journal.row(key).reason
    assert len(report.calibrated) == 1


def test_damaged_packets_are_in_the_report(site, journal):
    path = make_packet(site.cluster.landing, 1, 1)
    path.write_bytes(path.read_bytes()[:-1])
    land(site, 2)
    report = ingest_once(site, journal)
    assert list(report.rejected) == [path.name]
    assert "truncated" in report.failures[path.name]
    assert len(report.calibrated) == 1


def test_an_outcome_of_a_packet_that_was_replaced_meanwhile_is_dropped(site, journal):
    compute = WhenAsked()
    stop = threading.Event()
    land(site, 1)
    runner = threading.Thread(
        target=Ingest(site, journal, compute, works.reduce).run, args=(False, stop)
    )
    runner.start()
    try:
        wait_until(lambda: len(compute.kept) == 1)
        first = journal.rows()[0].checksum
        land(site, 1, seed=1)
        wait_until(lambda: journal.rows()[0].checksum != first)
        compute.answer_first()
        wait_until(lambda: len(compute.kept) == 1)
        assert journal.rows()[0].stage is Stage.LANDED
        compute.answer_first()
        wait_until(lambda: journal.rows()[0].stage is Stage.CALIBRATED)
    finally:
        stop.set()
        runner.join(PATIENCE_S)
    assert (site.cluster.products / "1_1").read_text() == journal.rows()[0].checksum


def test_workers_that_a_stop_kills_too_cost_no_try(site, journal):
    compute = WhenAsked()
    stop = threading.Event()
    land(site, 1)
    runner = threading.Thread(
        target=Ingest(site, journal, compute, works.reduce).run, args=(False, stop)
    )
    runner.start()
    wait_until(lambda: compute.kept)
    ((_, _, future),) = compute.kept
    future.set_running_or_notify_cancel()
    stop.set()
    time.sleep(0.2)
    future.set_exception(TransientError("the worker died over it (signal 15)"))
    runner.join(PATIENCE_S)
    (row,) = journal.rows()
    assert (row.stage, row.tries, row.reason) == (Stage.LANDED, 0, "")


Usage = namedtuple("Usage", "total used free")


def test_with_the_products_disk_nearly_full_ccds_wait_and_none_is_failed(
    site, journal, monkeypatch
):
    land(site, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1 << 20))
    report = ingest_once(site, journal)
    assert "free some space" in next(iter(report.failures.values()))
    assert journal.rows()[0].stage is Stage.LANDED
    monkeypatch.undo()
    assert len(ingest_once(site, journal).calibrated) == 1


def test_an_unusable_landing_directory_is_told_once_and_once_gives_up(site, journal):
    site.cluster.landing.write_text("not a directory")
    events = []
    report = ingest_once(site, journal, on_event=events.append)
    assert [event.what for event in events] == [What.TROUBLE]
    assert "landing" in next(iter(report.failures.values()))


def test_a_landing_directory_that_comes_back_is_worked_on(site, journal):
    site.cluster.landing.write_text("not a directory")
    stop = threading.Event()
    runner = threading.Thread(
        target=Ingest(site, journal, HereAndNow(), works.reduce).run, args=(False, stop)
    )
    runner.start()
    try:
        time.sleep(0.1)
        site.cluster.landing.unlink()
        land(site, 1)
        wait_until(lambda: journal.rows(Stage.CALIBRATED))
    finally:
        stop.set()
        runner.join(PATIENCE_S)


def test_only_one_ingest_works_in_a_directory(site, journal):
    with sole_user(site.cluster.work / "ingest.lock"), pytest.raises(ConfigError, match="process"):
        ingest_once(site, journal)


def test_a_worker_gets_the_sites_settings(site, journal):
    compute = WhenAsked()
    land(site, 1)
    stop = threading.Event()
    runner = threading.Thread(
        target=Ingest(site, journal, compute, works.reduce).run, args=(False, stop)
    )
    runner.start()
    wait_until(lambda: compute.kept)
    stop.set()
    runner.join(PATIENCE_S)
    ((_, order, _),) = compute.kept
    assert order.source == Path(journal.rows()[0].packet)
    assert order.limits == site.limits
    assert order.calibration == site.calibration
    assert order.calibrations == ChosenMasters()
    assert order.products == site.cluster.products


def add_bias(site, days, mark=Mark.GOOD):
    """A master bias of CCD 1, taken some days after the exposures."""
    night = Night(exposure(1).night.date + timedelta(days=days))
    file = f"bias.{night.ut_name}.1_1.fits.fz"
    path = site.cluster.calibrations / night.ut_name / "1" / file
    name = MasterName(path, Kind.ZERO, "", night, 1, 1)
    image = np.full((8, 12), days, np.float32)
    row = MasterRow("", "", Kind.ZERO, 1, "", night, mark=mark)
    MasterLibrary(site.cluster.calibrations).add(name, image, 1.0, [("NOISE", 1.0, "")], row)
    return path


def test_an_order_names_the_good_masters_nearest_first(site, journal):
    orders = []
    add_bias(site, 1, Mark.HELD)
    far, near = add_bias(site, 4), add_bias(site, 2)
    land(site, 1)
    ingest_once(site, journal, lambda order: orders.append(order) or works.reduce(order))
    assert [order.calibrations for order in orders] == [ChosenMasters((near, far))]


def test_a_damaged_table_of_masters_is_told_and_waited_out(site, journal):
    add_bias(site, 0)
    table = site.cluster.calibrations / "masters.db"
    whole = table.read_bytes()
    table.write_bytes(b"nothing of the kind" * 100)
    land(site, 1)

    def mend(event):
        if event.what is What.TROUBLE:
            assert "table of masters" in event.text
            table.write_bytes(whole)

    report = ingest_once(site, journal, on_event=mend)
    assert [key.exposure for key in report.calibrated] == [1]
    assert report.failures == {}


def test_a_missing_star_catalogue_is_wrong_configuration(site, journal, tmp_path):
    lost = site.calibration.model_copy(update={"reference": tmp_path / "lost.fits"})
    compute = LocalCompute(1)
    try:
        with pytest.raises(ConfigError, match=r"lost\.fits"):
            Ingest(site.model_copy(update={"calibration": lost}), journal, compute).run(once=True)
    finally:
        compute.close()
