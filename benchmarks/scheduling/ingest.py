"""How many CCDs a second one ingest takes from the landing directory to calibrated, work apart."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from prepipe.cluster import Ingest
from prepipe.codec.packet import read_header
from prepipe.compute import Job
from prepipe.config import Cluster, Site
from prepipe.engines.base import Order, Outcome
from prepipe.model import Colour, Grade, Reduction
from prepipe.store import Journal
from scheduling.night import small_packets


class AtOnce:
    """Compute that has done everything before it is asked."""

    slots = 62

    def submit(self, work: Any, order: Order, urgency: float = 0.0) -> Future[Outcome]:
        """Carry it out here."""
        future: Future[Outcome] = Future()
        future.set_result(work(order))
        return future

    def tend(self) -> str:
        """Nothing can go wrong."""
        return ""

    def jobs(self) -> tuple[Job, ...]:
        """None."""
        return ()

    def release(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


def carry_out(order: Order) -> Outcome:
    """No work at all."""
    packet = read_header(order.source)
    reduction = Reduction(packet.exposure.number, packet.ccd.number)
    return Outcome(packet.exposure, packet.ccd, reduction, Grade(Colour.GREEN, ()))


def ccds_a_second(directory: Path, exposures: int, ccds: int = 62) -> float:
    """Verify, register, queue, hand over, note and rescue, over and over."""
    cluster = Cluster(
        landing=directory / "landing",
        work=directory / "work",
        products=directory / "products",
        calibrations=directory / "masters",
        poll_s=0.01,
    )
    cluster.landing.mkdir(parents=True)
    for number in range(1, exposures + 1):
        for packet in small_packets(directory / "packed", number, ccds):
            packet.rename(cluster.landing / packet.name)
    cluster.work.mkdir()
    journal = Journal(cluster.work / "journal.sqlite")
    begun = time.perf_counter()
    report = Ingest(Site(cluster=cluster), journal, AtOnce(), carry_out).run(once=True)
    took = time.perf_counter() - begun
    journal.close()
    assert len(report.calibrated) == exposures * ccds
    return exposures * ccds / took
