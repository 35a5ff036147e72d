"""What a push would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prepipe.cameras import Camera
from prepipe.config import Method, Site
from prepipe.errors import PrepipeError
from prepipe.link.base import Link
from prepipe.model import Exposure, Stage
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.telescope.intake import read_exposure
from prepipe.telescope.queue import in_order
from prepipe.telescope.report import Failure
from prepipe.telescope.watch import Arrival, Watcher

__all__ = ["Plan", "PlannedCcd", "plan_push"]


@dataclass(frozen=True)
class PlannedCcd:
    """A CCD that would be sent.

    Parameters
    ----------
    key : CcdKey
    exposure : Exposure
    stage : Stage
        Where it is now; found also for those of files not registered yet.
    """

    key: CcdKey
    exposure: Exposure
    stage: Stage


@dataclass(frozen=True)
class Plan:
    """What would be done.

    Parameters
    ----------
    ccds : tuple of PlannedCcd
        In the order in which they would be sent.
    left_waiting : int
        CCDs that the method passes over.
    failures : tuple of Failure
        Files that would not be taken, and why.
    """

    ccds: tuple[PlannedCcd, ...]
    left_waiting: int
    failures: tuple[Failure, ...]


def plan_push(site: Site, journal: Journal, link: Link, camera: Camera) -> Plan:
    """Look as a push would, and tell what it would send; nothing is written.

    Raises
    ------
    LinkError
        If the method has to ask the far side, and it cannot be asked.
    StorageError
        If the journal cannot be read.
    """
    telescope = site.telescope
    watcher = Watcher(telescope.raw, telescope.pattern, telescope.give_up_s, journal)
    watcher.unfinished_s = 0.0
    watcher.poll()
    time.sleep(telescope.poll_s)
    arrivals = watcher.poll()
    failures = [Failure(str(path), why) for path, why in watcher.waiting().items()]
    if watcher.trouble:
        failures.append(Failure(str(telescope.raw), watcher.trouble))
    rows = {row.key: row for row in journal.rows(whole=False)}
    for arrival in arrivals:
        try:
            rows |= {row.key: row for row in _rows(arrival, camera) if row.key not in rows}
        except PrepipeError as error:
            failures.append(Failure(str(arrival.path), str(error)))
        if arrival.fault:
            failures.append(Failure(str(arrival.path), arrival.fault))
    ccds, left = _order(site, list(rows.values()), link)
    return Plan(ccds, left, tuple(failures))


def _rows(arrival: Arrival, camera: Camera) -> Iterator[CcdRow]:
    """Rows as the journal would have them if the file were registered."""
    if arrival.fault:
        return
    raw = read_exposure(arrival.path, camera)
    if raw.exposure is None:
        return
    for ccd in raw.ccds:
        yield CcdRow(
            key=CcdKey(raw.exposure.camera, raw.exposure.number, ccd.number),
            exposure=raw.exposure,
            ccd=ccd,
            raw=arrival.path,
            stage=Stage.FOUND,
            failed_stage=None,
            tries=0,
            reason="",
            traceback="",
            packet="",
            packet_bytes=0,
            codec="",
            checksum="",
            found_at=None,
            packed_at=None,
            sent_at=None,
            landed_at=None,
            calibrated_at=None,
            grade=None,
            reasons=(),
            reduction={},
            seconds={},
        )


def _order(site: Site, rows: list[CcdRow], link: Link) -> tuple[tuple[PlannedCcd, ...], int]:
    """What the method wants to leave, and how many CCDs it passes over."""
    waiting = [row for row in rows if row.stage in (Stage.FOUND, Stage.PACKED)]
    sent = [row for row in rows if row.stage is Stage.SENT]
    asks = site.push.method is Method.END_OF_NIGHT
    inventory = link.inventory(site.push.exp_min) if asks else {}
    order = in_order(site.push, waiting, sent, inventory)
    left = {row.key for row in waiting} - {row.key for row in order}
    return tuple(PlannedCcd(row.key, row.exposure, row.stage) for row in order), len(left)
