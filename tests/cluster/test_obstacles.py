"""What stands in the way of a CCD, and of whom else."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_packets as works
import pytest
from cluster_packets import PATIENCE_S, exposure, make_packet, wait_until

from prepipe.cluster import Ingest
from prepipe.cluster.board import Board
from prepipe.cluster.dispatch import DRAINING, Dispatcher
from prepipe.cluster.events import Event, What
from prepipe.compute import Job
from prepipe.config import Cluster, Site
from prepipe.engines.base import Engine, Order, Outcome, Work
from prepipe.errors import ConfigError, StorageError
from prepipe.model import Ccd, Stage
from prepipe.store import Journal


class HereAndNow:
    """Carries each order out at once, in this process."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots

    def submit(self, work: Work, order: Order, _urgency: float = 0.0) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        try:
            future.set_result(work(order))
        except Exception as error:
            future.set_exception(error)
        return future

    def tend(self) -> str:
        return ""

    def jobs(self) -> tuple[Job, ...]:
        return ()

    def release(self) -> None:
        pass


def site_of(tmp_path: Path, poll_s: float = 0.02) -> Site:
    return Site(
        cluster=Cluster(
            landing=tmp_path / "landing",
            work=tmp_path / "cluster",
            products=tmp_path / "products",
            calibrations=tmp_path / "calibrations",
            poll_s=poll_s,
        )
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_of(tmp_path)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


@contextmanager
def running(site: Site, journal: Journal, compute: Any, work: Work) -> Iterator[list[Event]]:
    """An ingest that goes on in a thread; gives the events so far."""
    events: list[Event] = []
    stop = threading.Event()
    ingest = Ingest(site, journal, compute, work, events.append)
    runner = threading.Thread(target=ingest.run, args=(False, stop))
    runner.start()
    try:
        yield events
    finally:
        stop.set()
        runner.join(PATIENCE_S)


def find_a_directory_in_the_way_of_exposure_3(order: Order) -> Outcome:
    if "_00000003_" in order.source.name:
        raise StorageError(f"{order.products / 'x.fits'}: Is a directory; move it away")
    return works.reduce(order)


class FullAtFirst:
    """A disk on which nobody finds room the first time."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()

    def __call__(self, order: Order) -> Outcome:
        self.tried[order.source.name] += 1
        if self.tried[order.source.name] == 1:
            raise StorageError(f"{order.products}: No space left on device; free some space")
        return works.reduce(order)


class LacksItsProgram:
    """An engine that is not installed, until it is."""

    there = False

    def __call__(self, order: Order) -> Outcome:
        if not self.there:
            raise ConfigError("engines.own.program: there is no such program")
        return works.reduce(order)


class TellsNoRungs:
    """An engine that never finds the WCS of CCD 1, and does not say where it looked."""

    def __init__(self) -> None:
        self.tried = 0

    def __call__(self, order: Order) -> Outcome:
        done = works.reduce(order)
        if done.ccd.number != 1:
            shift = replace(done.reduction, offset_east_arcsec=3.0, offset_north_arcsec=4.0)
            return replace(done, reduction=shift)
        self.tried += 1
        flags = ("NO_WCS",) if self.tried < 10 else ()
        return replace(done, reduction=replace(done.reduction, flags=flags))


def test_what_is_in_the_way_of_one_ccd_alone_does_not_hold_the_others_up(
    site: Site, journal: Journal
) -> None:
    for number in (1, 2, 3):
        make_packet(site.cluster.landing, number, 1)
    with running(site, journal, HereAndNow(), find_a_directory_in_the_way_of_exposure_3):
        wait_until(lambda: len(journal.rows(Stage.CALIBRATED)) == 2)
    (left,) = journal.rows(Stage.LANDED)
    assert (left.key.exposure, left.tries) == (3, 0)
    assert "Is a directory" in left.reason


def test_an_obstacle_that_many_met_at_once_was_met_once(tmp_path: Path, journal: Journal) -> None:
    site = site_of(tmp_path, poll_s=0.2)
    for ccd in range(1, 11):
        make_packet(site.cluster.landing, 1, ccd)
    with running(site, journal, HereAndNow(slots=8), FullAtFirst()) as events:
        # a rest for each of them would add up to a minute
        wait_until(lambda: len(journal.rows(Stage.CALIBRATED)) == 10)
    assert [event.what for event in events].count(What.FAILED) == 0


def test_what_is_in_the_way_of_all_is_on_the_board_until_work_goes_on(
    site: Site, journal: Journal, tmp_path: Path
) -> None:
    board, engine = Board(site.cluster.work), LacksItsProgram()
    site.cluster.products.write_text("a file where products belong")
    make_packet(site.cluster.landing, 1, 1)
    with running(site, journal, HereAndNow(), engine):
        wait_until(lambda: (shown := board.read()) and "a file stands where" in shown.trouble)
        site.cluster.products.unlink()
        wait_until(lambda: (shown := board.read()) and "engines.own.program" in shown.trouble)
        engine.there = True
        wait_until(lambda: (shown := board.read()) and not shown.trouble)
    assert journal.rows(Stage.CALIBRATED)


def test_a_disk_that_does_not_answer_is_no_word_on_what_it_holds(
    site: Site, journal: Journal, tmp_path: Path
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    facts = {"packet": str(loop / "packet.ppk")}
    journal.add_exposure(exposure(1), [Ccd(1, "N1")], stage=Stage.LANDED, facts=facts)
    events = list(Dispatcher(site, journal, HereAndNow(), Engine("own", works.reduce)).serve())
    (row,) = journal.rows()
    assert (row.stage, row.tries, events) == (Stage.LANDED, 0, [])
    assert "cannot be looked at" in row.reason


def test_an_engine_that_does_not_tell_its_rungs_is_not_asked_for_ever(
    site: Site, journal: Journal
) -> None:
    for ccd in (1, 2):
        make_packet(site.cluster.landing, 1, ccd)
    engine = TellsNoRungs()
    report = Ingest(site, journal, HereAndNow(), engine).run(once=True)
    assert engine.tried == 2
    assert len(report.calibrated) == 2


def test_an_ingest_says_that_it_drains_lest_somebody_waits_for_it(
    site: Site, journal: Journal
) -> None:
    Board(site.cluster.work).drain(True)
    make_packet(site.cluster.landing, 1, 1)
    with running(site, journal, HereAndNow(), works.reduce) as events:
        wait_until(lambda: What.TROUBLE in [event.what for event in events])
        Board(site.cluster.work).drain(False)
        wait_until(lambda: journal.rows(Stage.CALIBRATED))
    assert [event.text for event in events if event.what is What.TROUBLE] == [DRAINING]


def test_a_run_with_an_end_that_could_not_begin_since_it_drains_has_failed(
    site: Site, journal: Journal
) -> None:
    Board(site.cluster.work).drain(True)
    make_packet(site.cluster.landing, 1, 1)
    report = Ingest(site, journal, HereAndNow(), works.reduce).run(once=True)
    assert list(report.failures.values()) == [DRAINING]
