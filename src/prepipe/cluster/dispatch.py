"""From the journal to the workers and back; the journal is the queue, newest exposure first."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prepipe.cluster.board import Board, UnderWay
from prepipe.cluster.events import Event, What
from prepipe.cluster.rescue import second_tries
from prepipe.cluster.seeing import recent_seeing
from prepipe.cluster.throttle import Pace, may_begin
from prepipe.compute import Compute, worker_traceback
from prepipe.config import Site
from prepipe.engines.base import Engine, Order, Outcome
from prepipe.engines.detector.library import MasterLibrary
from prepipe.engines.node import Node, on_node
from prepipe.errors import (
    ConfigError,
    InputError,
    PlaceLostError,
    PrepipeError,
    StorageError,
    TransientError,
)
from prepipe.files import storage_errors
from prepipe.model import Kind, PointingHint, Stage
from prepipe.quality.rescue import with_every_rung
from prepipe.store import CcdKey, CcdRow, Journal

__all__ = ["Dispatcher"]

_AWAIT_MASTERS = (Kind.ZERO, Kind.DOME_FLAT)
_LONGEST_REST_S = 60.0

LOSSES_A_TRY = 3
"""So often a CCD may lose the place where it ran before that counts as a try of its own."""

LOOK_AHEAD = 64
"""Waiting CCDs read from the journal beyond those that can begin: zeros and flats take no room."""

DRAINING = "it drains: nothing is begun until `prepipe drain --resume`"


@dataclass(frozen=True)
class _Flight:
    """A CCD that is with the workers, as its row was then."""

    row: CcdRow
    future: Future[Outcome]
    since: float
    hints: tuple[PointingHint, ...]


class Dispatcher:
    """Hands CCDs that have landed to the workers, and notes what became of them.

    Parameters
    ----------
    site : Site
    journal : Journal
    compute : Compute
    engine : Engine
    """

    def __init__(self, site: Site, journal: Journal, compute: Compute, engine: Engine) -> None:
        self._site = site
        self._journal = journal
        self._compute = compute
        self._engine = engine
        self._board = Board(site.cluster.work)
        settings = site.compute
        node = Node(settings.scratch, settings.shared_slots, self._board.notes)
        self._work = partial(on_node, engine.work, node)
        self._library = MasterLibrary(site.cluster.calibrations)
        self._flying: dict[CcdKey, _Flight] = {}
        self._rest_until: dict[CcdKey, float] = {}
        self._obstacles = 0
        self._next_probe = 0.0
        self._met: Counter[CcdKey] = Counter()
        self._hints: dict[CcdKey, tuple[PointingHint, ...]] = {}
        self._losses: Counter[CcdKey] = Counter()
        self._pace = Pace(site.cluster.ccds_per_minute)
        self._trouble = ""
        self._obstacle = ""
        self._draining = False
        self.answered = threading.Event()
        """Set when a worker has answered."""

    @property
    def idle(self) -> bool:
        """Whether no CCD is under way, and none waits."""
        return not self._flying and not self._journal.rows(Stage.LANDED, limit=1)

    @property
    def held_up(self) -> bool:
        """Whether nothing is under way, and what holds all up was met too often."""
        return not self._flying and self._obstacles >= self._site.cluster.tries

    @property
    def drained(self) -> bool:
        """Whether nothing is under way, and nothing shall be begun."""
        return not self._flying and self._board.draining

    def serve(self) -> Iterator[Event]:
        """Note the answers that have come, then keep the workers busy.

        Raises
        ------
        StorageError
            If the journal cannot be used, or the products' disk is full.
        TransientError
            If the workers were stopped.
        """
        self.answered.clear()
        yield from self._collect()
        yield from self._tend()
        yield from self._begin()
        self.show()

    def _tend(self) -> Iterator[Event]:
        """Let the compute mend itself; what it cannot mend is told once."""
        draining, known = self._board.draining, self._draining
        self._draining = draining
        if draining and not known:
            yield Event(What.TROUBLE, "ingest", DRAINING)
        if self.drained:
            self._compute.release()
        trouble = self._compute.tend()
        if trouble and trouble != self._trouble:
            yield Event(What.TROUBLE, "compute", trouble)
        self._trouble = trouble

    def show(self, obstacle: str = "") -> None:
        """Put on the board what is under way, and what keeps all from going on.

        Parameters
        ----------
        obstacle : str
            Met by the ingest; empty for what the CCDs or the compute have met, if anything.
        """
        under_way = [UnderWay(key, flight.since) for key, flight in self._flying.items()]
        settings = self._site.compute
        trouble = obstacle or self._obstacle or self._trouble
        self._board.show(settings.place, self._compute.jobs(), under_way, trouble)

    def stop(self, patience_s: float) -> Iterator[Event]:
        """Give the CCDs under way some time; what is not done then stays LANDED."""
        flights = list(self._flying.values())
        running = [flight.future for flight in flights if not flight.future.cancel()]
        wait(running, timeout=patience_s)
        for key, flight in list(self._flying.items()):
            # a stop may have killed the workers too, which is no fault of the CCDs
            if flight.future.cancelled() or _is_transient(flight.future):
                del self._flying[key]
        yield from self._collect()
        self._flying.clear()

    def _collect(self) -> Iterator[Event]:
        for key, flight in list(self._flying.items()):
            if flight.future.done():
                event = self._record(key, flight)
                del self._flying[key]
                if event is not None:
                    yield event

    def _record(self, key: CcdKey, flight: _Flight) -> Event | None:
        row = self._journal.row(key)
        if row is None or row.stage is not Stage.LANDED or row.checksum != flight.row.checksum:
            return None  # another packet took its place meanwhile
        if flight.future.cancelled():
            return None
        error = flight.future.exception()
        if error is not None:
            # one that was killed could not take its note away
            self._board.forget(Path(row.packet).name)
            return self._fail(row, error)
        outcome = flight.future.result()
        seconds = sum(outcome.reduction.seconds.values())
        reduction = with_every_rung(outcome.reduction, flight.hints)
        self._journal.calibrated(key, reduction, outcome.grade, seconds)
        for known in (self._rest_until, self._losses, self._met):
            known.pop(key, None)
        self._obstacles, self._next_probe, self._obstacle = 0, 0.0, ""
        self._rescue(key)
        text = "; ".join(outcome.grade.reasons)
        return Event(What.CALIBRATED, str(key), text, key, outcome.grade)

    def _rescue(self, key: CcdKey) -> None:
        """Send CCDs whose WCS failed back for another try, where others can tell the pointing."""
        for row, hints in second_tries(self._journal, key):
            self._hints[row.key] = hints
            rungs = ", ".join(dict.fromkeys(hint.rung for hint in hints))
            self._journal.return_to(row.key, Stage.LANDED, f"another try at its WCS: {rungs}")

    def _fail(self, row: CcdRow, error: BaseException) -> Event | None:
        if isinstance(error, ConfigError | StorageError) and row.packet not in str(error):
            return self._hold_up(row, str(error))
        if isinstance(error, PlaceLostError) and self._is_no_fault(row, error):
            return None
        ours = isinstance(error, PrepipeError)
        reason = str(error) if ours else f"{type(error).__name__}: {error}"
        quarantined = self._journal.fail(
            row.key,
            Stage.CALIBRATED,
            reason,
            traceback=worker_traceback(error) or "".join(traceback.format_exception(error)),
            limit=1 if isinstance(error, InputError) else self._site.cluster.tries,
        )
        self._rest(row.key, row.tries)
        if quarantined:
            self._losses.pop(row.key, None)
        what = What.QUARANTINED if quarantined else What.FAILED
        return Event(what, str(row.key), reason, row.key)

    def _rest(self, key: CcdKey, times: int) -> None:
        """Leave a CCD alone, twice as long each time."""
        self._rest_until[key] = time.monotonic() + self._rest_s(times)

    def _is_no_fault(self, row: CcdRow, error: PlaceLostError) -> bool:
        """Let a CCD that lost its node go on elsewhere; one that costs node after node may not."""
        self._losses[row.key] += 1
        losses = self._losses[row.key]
        if losses % LOSSES_A_TRY == 0:
            return False
        if losses > 1:
            # a node that loses all at once, its disk full, is the first to be free again
            self._rest(row.key, losses - 1)
        self._journal.wait(row.key, Stage.CALIBRATED, str(error))
        return True

    def _rest_s(self, times: int) -> float:
        """How long to leave something alone, twice as long each time, s."""
        return min(_LONGEST_REST_S, self._site.cluster.poll_s * 2.0 ** min(times, 10))

    def _hold_up(self, row: CcdRow, obstacle: str) -> Event | None:
        """Let all wait for what is no fault of a CCD: a disk, a file that all need. Told once."""
        self._journal.wait(row.key, Stage.CALIBRATED, obstacle)
        self._obstacle = obstacle
        now = time.monotonic()
        first = not self._obstacles
        if now >= self._next_probe:
            # the others that were under way have met the same
            self._obstacles += 1
            self._next_probe = now + self._rest_s(self._obstacles)
        # should it be in the way of this one alone, another finds that out, and goes on
        self._met[row.key] += 1
        self._rest_until[row.key] = self._next_probe + self._rest_s(self._met[row.key])
        return Event(What.TROUBLE, str(row.key), obstacle, row.key) if first else None

    def _begin(self) -> Iterator[Event]:
        if self._board.draining:
            return
        free_bytes = self._free_bytes()
        most = self._site.cluster.under_way
        room = may_begin(self._compute.slots, len(self._flying), free_bytes, most)
        if not room and self._flying:
            return
        if self._obstacles:
            # One CCD at a time finds out whether the way is free again.
            if self._flying or time.monotonic() < self._next_probe:
                return
            room = min(room, 1)
        allowed = self._pace.allowed(time.monotonic())
        waiting = yield from self._hand_over(room if allowed is None else min(room, allowed))
        if waiting and not room and not self._flying and not self._obstacles:
            raise StorageError(
                f"{self._site.cluster.products}: only {free_bytes >> 20} MiB are free, so that no "
                f"CCD is begun and {waiting} wait; free some space, then it goes on by itself"
            )

    def _hand_over(self, room: int) -> Generator[Event, None, int]:
        """Send the newest CCDs to the workers, as many as there is room; how many others wait."""
        waiting = 0
        now = time.monotonic()
        self._rest_until = {key: end for key, end in self._rest_until.items() if end > now}
        looked_at = room + len(self._flying) + len(self._rest_until) + LOOK_AHEAD
        for row in self._journal.rows(Stage.LANDED, limit=looked_at):
            if row.key in self._flying or row.key in self._rest_until:
                continue
            if row.exposure.kind in _AWAIT_MASTERS and not self._engine.wants_calibrations:
                self._journal.advance(row.key, Stage.CALIBRATED)
                yield Event(What.AWAITING, str(row.key), "kept for the masters", row.key)
            elif (fault := _fault_of_packet(row)) is not None:
                failed = self._fail(row, fault)
                if failed is not None:
                    yield failed
            elif room:
                room -= 1
                yield self._send(row)
            else:
                waiting += 1
        return waiting

    def _send(self, row: CcdRow) -> Event:
        cluster, hints = self._site.cluster, self._hints.get(row.key, ())
        order = Order(
            source=Path(row.packet),
            camera=self._site.camera,
            calibration=self._site.calibration,
            products=cluster.products,
            calibrations=self._library.choose(row.exposure, row.key.ccd, self._site.calibration),
            limits=self._site.limits,
            hints=hints,
            settings=self._site.engines,
            seeing_arcsec=self._recent_seeing(row),
        )
        self._journal.begin(row.key, Stage.CALIBRATED)
        self._pace.begun()
        urgency = row.exposure.start.timestamp()
        future = self._compute.submit(self._work, order, urgency)
        self._hints.pop(row.key, None)
        self._flying[row.key] = _Flight(row, future, time.time(), hints)
        future.add_done_callback(lambda _: self.answered.set())
        return Event(What.BEGUN, str(row.key), "", row.key)

    def _recent_seeing(self, row: CcdRow) -> float | None:
        wanted = self._engine.wants_seeing
        return recent_seeing(self._journal, row.exposure) if wanted else None

    def _free_bytes(self) -> int:
        products = self._site.cluster.products
        with storage_errors(products):
            products.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(products).free


def _fault_of_packet(row: CcdRow) -> PrepipeError | None:
    """Why a packet cannot be worked on; a disk that does not answer is no word on what it holds."""
    try:
        os.lstat(row.packet)
    except FileNotFoundError:
        return InputError(_missing(row))
    except OSError as error:
        return PlaceLostError(f"{row.packet} cannot be looked at: {error.strerror}")
    return None


def _missing(row: CcdRow) -> str:
    return (
        f"the packet {row.packet} is gone: send it again from the telescope "
        f"(prepipe retry {row.key.exposure} --ccd {row.key.ccd} --stage found)"
    )


def _is_transient(future: Future[Outcome]) -> bool:
    return future.done() and isinstance(future.exception(), TransientError)
