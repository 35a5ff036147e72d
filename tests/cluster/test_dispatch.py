"""From the journal to the workers: in what order, how much at once, and whose fault a loss is."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future
from contextlib import contextmanager

import cluster_packets as works
import pytest
from cluster_packets import PATIENCE_S, make_packet, times_noted, wait_until

from prepipe.cluster import Ingest, What
from prepipe.cluster.board import Board
from prepipe.cluster.dispatch import LOSSES_A_TRY
from prepipe.compute import Job, LocalCompute
from prepipe.config import Cluster, Site
from prepipe.errors import ConfigError, PlaceLostError, TransientError
from prepipe.model import Stage
from prepipe.store import CcdKey, Journal


class Batch:
    """A compute whose orders stay with it until a test answers them."""

    slots = 100

    def __init__(self):
        self.kept = []
        self.trouble = ""
        self.released = 0

    def submit(self, work, order, urgency=0.0):
        future = Future()
        future.set_running_or_notify_cancel()
        self.kept.append((urgency, work, order, future))
        return future

    def tend(self):
        return self.trouble

    def jobs(self):
        return (Job("17", "running", 4, len(self.kept), 1.5e9),)

    def release(self):
        self.released += 1

    def close(self):
        pass

    def answer_all(self):
        while self.kept:
            _, work, order, future = self.kept.pop()
            future.set_result(work(order))


class Loses(Batch):
    """A compute that loses each order as soon as it has it."""

    slots = 1

    def __init__(self, error):
        super().__init__()
        self._error = error

    def submit(self, work, order, urgency=0.0):
        future = Future()
        future.set_exception(self._error)
        return future


def site_of(tmp_path, **told):
    usual = {
        "landing": tmp_path / "landing",
        "work": tmp_path / "cluster",
        "products": tmp_path / "products",
        "calibrations": tmp_path / "calibrations",
        "poll_s": 0.02,
    }
    return Site(cluster=Cluster(**(usual | told)))


@pytest.fixture
def site(tmp_path):
    return site_of(tmp_path)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


def land(site, *numbers, ccds=(1,)):
    for number in numbers:
        for ccd in ccds:
            make_packet(site.cluster.landing, number, ccd)


@contextmanager
def running(site, journal, compute, work=works.reduce):
    """An ingest that goes on in a thread; gives the events so far."""
    events, stop = [], threading.Event()
    ingest = Ingest(site, journal, compute, work, events.append)
    runner = threading.Thread(target=ingest.run, args=(False, stop))
    runner.start()
    try:
        yield events
    finally:
        stop.set()
        for *_, future in compute.kept:
            if not future.done():
                future.set_exception(TransientError("stopped"))
        runner.join(PATIENCE_S)


def begun(events):
    return [event.key.exposure for event in events if event.what is What.BEGUN]


def test_newer_exposures_are_more_urgent_and_ccds_of_one_equally(site, journal):
    compute = Batch()
    land(site, 3, 5, 4, ccds=(1, 2))
    with running(site, journal, compute) as events:
        wait_until(lambda: len(compute.kept) == 6)
    urgencies = {}
    for event, (urgency, *_) in zip(
        [event for event in events if event.what is What.BEGUN], compute.kept, strict=True
    ):
        urgencies.setdefault(event.key.exposure, set()).add(urgency)
    assert all(len(told) == 1 for told in urgencies.values())
    assert sorted(urgencies, key=lambda number: -min(urgencies[number])) == [5, 4, 3]


def test_the_newest_that_lands_meanwhile_overtakes_even_those_handed_over(site, journal):
    workers = LocalCompute(1)
    workers.kept = []
    try:
        land(site, *range(1, 6))
        with running(site, journal, workers, works.reduce_for_a_second) as events:
            wait_until(lambda: len(begun(events)) >= 3)
            land(site, 9)
            wait_until(lambda: journal.rows(Stage.CALIBRATED, exposure=9))
    finally:
        workers.close()
    told = [(event.what, event.key.exposure) for event in events if event.key]
    since = told[told.index((What.BEGUN, 9)) : told.index((What.CALIBRATED, 9))]
    # the one that was at the worker
    assert [what for what, _ in since].count(What.CALIBRATED) <= 1


def test_no_more_are_under_way_than_the_site_wants(tmp_path, journal):
    site = site_of(tmp_path, under_way=3)
    compute = Batch()
    land(site, *range(8))
    with running(site, journal, compute) as events:
        wait_until(lambda: len(journal.rows(Stage.LANDED)) == 8 and len(compute.kept) == 3)
        board = Board(site.cluster.work)
        wait_until(lambda: (shown := board.read()) and len(shown.under_way) == 3)
        assert len(begun(events)) == 3


def test_ccds_are_begun_at_the_rate_that_the_site_wants(tmp_path, journal):
    site = site_of(tmp_path, ccds_per_minute=1.0)
    compute = Batch()
    land(site, 1, 2, 3)
    with running(site, journal, compute) as events:
        wait_until(lambda: len(journal.rows(Stage.LANDED)) == 3 and compute.kept)
        wait_until(lambda: Board(site.cluster.work).read())
        assert begun(events) == [3]


def test_a_lost_place_costs_no_try_but_every_third_does(tmp_path, journal):
    site = site_of(tmp_path, tries=2, poll_s=0.01)
    land(site, 1)
    with running(site, journal, Loses(PlaceLostError("n3 is gone"))) as events:
        wait_until(lambda: journal.rows(Stage.QUARANTINED))
    (row,) = journal.rows()
    assert (row.tries, row.reason) == (2, "n3 is gone")
    path = journal._engine.url.database
    assert times_noted(path, "waits") == {(1, 1): 2 * (LOSSES_A_TRY - 1)}
    assert times_noted(path, "begun") == {(1, 1): 2 * LOSSES_A_TRY}
    assert [event.what for event in events].count(What.FAILED) == 1


def test_a_place_that_loses_all_at_once_does_not_spin(tmp_path, journal):
    site = site_of(tmp_path, poll_s=0.5)
    land(site, 1)
    with running(site, journal, Loses(PlaceLostError("its disk is full"))) as events:
        wait_until(lambda: len(begun(events)) >= 2)
        assert not threading.Event().wait(0.3)
        assert len(begun(events)) == 2


def test_a_setting_that_is_wrong_on_the_nodes_holds_all_up_and_is_told_once(tmp_path, journal):
    site = site_of(tmp_path, poll_s=0.01)
    land(site, 1, 2)
    with running(site, journal, Loses(ConfigError("$JOBFS is not set on n3"))) as events:
        wait_until(lambda: len(begun(events)) >= 4)
    assert [event.text for event in events if event.what is What.TROUBLE] == [
        "$JOBFS is not set on n3"
    ]
    assert all(row.tries == 0 for row in journal.rows())


def test_a_poison_ccd_is_quarantined_after_its_tries_with_its_traceback(tmp_path, journal):
    site = site_of(tmp_path, poll_s=0.01, tries=2)
    land(site, 1, ccds=(1, 2))
    workers = LocalCompute(1)
    try:
        report = Ingest(site, journal, workers, works.raise_over_ccd_2).run(once=True)
    finally:
        workers.close()
    row = journal.row(CcdKey("decam", 1, 2))
    assert (row.stage, row.tries) == (Stage.QUARANTINED, 2)
    assert "in raise_over_ccd_2" in row.traceback
    assert [key.ccd for key in report.calibrated] == [1]


def test_trouble_of_the_compute_is_told_once_and_again_when_it_returns(site, journal):
    compute = Batch()
    with running(site, journal, compute) as events:
        board = Board(site.cluster.work)
        for round_ in (1, 2):
            compute.trouble = "qsub: no such queue"
            wait_until(lambda: (shown := board.read()) and shown.trouble)
            compute.trouble = ""
            wait_until(lambda: not board.read().trouble)
            told = [event.text for event in events if event.what is What.TROUBLE]
            assert told == ["qsub: no such queue"] * round_


def test_while_it_drains_nothing_is_begun_jobs_are_given_back_and_all_goes_on_afterwards(
    site, journal
):
    compute = Batch()
    board = Board(site.cluster.work)
    land(site, 1)
    with running(site, journal, compute) as events:
        wait_until(lambda: compute.kept)
        board.drain(True)
        land(site, 2)
        wait_until(lambda: len(journal.rows(Stage.LANDED)) == 2)
        assert compute.released == 0
        compute.answer_all()
        wait_until(lambda: compute.released)
        assert begun(events) == [1]
        assert journal.rows(Stage.CALIBRATED)
        wait_until(lambda: board.read().draining and not board.read().under_way)
    with running(site, journal, compute) as events:
        wait_until(lambda: (shown := board.read()) and shown.draining and compute.released > 3)
        assert begun(events) == []
        board.drain(False)
        wait_until(lambda: compute.kept)
        compute.answer_all()
        wait_until(lambda: len(journal.rows(Stage.CALIBRATED)) == 2)


def test_an_ingest_that_drains_comes_to_its_end(site, journal):
    Board(site.cluster.work).drain(True)
    land(site, 1)
    report = Ingest(site, journal, Batch(), works.reduce).run(once=True)
    assert report.calibrated == {}
    assert journal.rows(Stage.LANDED)


def test_an_outcome_of_a_ccd_that_was_cancelled_meanwhile_does_not_count(site, journal):
    compute = Batch()
    land(site, 1)
    with running(site, journal, compute) as events:
        wait_until(lambda: compute.kept)
        (row,) = journal.rows()
        journal.fail(row.key, Stage.CALIBRATED, "cancelled by hand")
        compute.answer_all()
        wait_until(lambda: not Board(site.cluster.work).read().under_way)
    assert journal.rows()[0].stage is Stage.QUARANTINED
    assert What.CALIBRATED not in [event.what for event in events]


def test_the_board_shows_what_is_under_way_with_the_jobs(site, journal):
    compute = Batch()
    land(site, 1, ccds=(1, 2))
    board = Board(site.cluster.work)
    with running(site, journal, compute):
        wait_until(lambda: (shown := board.read()) and len(shown.under_way) == 2)
        shown = board.read()
    assert {one.key for one in shown.under_way} == {CcdKey("decam", 1, ccd) for ccd in (1, 2)}
    assert shown.jobs == (Job("17", "running", 4, 2, 1.5e9),)
    assert (shown.pid, shown.place) == (os.getpid(), "local")


def test_a_note_that_a_killed_worker_left_is_taken_away(site, journal):
    board = Board(site.cluster.work)
    land(site, 1)
    compute = Batch()
    with running(site, journal, compute):
        wait_until(lambda: compute.kept)
        *_, order, future = compute.kept[0]
        board.notes.mkdir(parents=True, exist_ok=True)
        note = board.notes / order.source.name
        note.write_text(json.dumps({"node": "n3"}))
        assert board.where([order.source.name]) == {order.source.name: {"node": "n3"}}
        future.set_exception(PlaceLostError("n3 is gone"))
        wait_until(lambda: len(compute.kept) == 2)
        assert not note.exists()


@pytest.mark.parametrize("written", [b"", b"[]", b"3", b'"text"', b"{}", b'{"jobs": 3}'])
def test_a_board_of_which_nothing_can_be_made_is_no_board(tmp_path, written):
    (tmp_path / "compute").mkdir()
    (tmp_path / "compute" / "board.json").write_bytes(written)
    assert Board(tmp_path).read() is None
