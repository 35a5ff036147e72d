"""CCDs on their way: cores pack while the line carries, and what is in the way is waited for."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from prepipe.config import Method, Site
from prepipe.errors import (
    ConfigError,
    InputError,
    LinkError,
    PrepipeError,
    StorageError,
    TransientError,
)
from prepipe.link.base import Link
from prepipe.model import Exposure, Stage
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.telescope.adaptive import Adaptation, Limits
from prepipe.telescope.carry import Carried, Carrier
from prepipe.telescope.checker import Checker
from prepipe.telescope.claims import Alone, Claims, Standing, open_claims
from prepipe.telescope.course import Course
from prepipe.telescope.crew import Crew
from prepipe.telescope.far_side import FarSide
from prepipe.telescope.obstacle import Obstacle, is_obstacle, pause_after
from prepipe.telescope.pack import LOSSLESS_KINDS, Packer
from prepipe.telescope.queue import packet_name, urgency
from prepipe.telescope.report import Event, Failure, Happening, Report, transfer_line, unexpected
from prepipe.telescope.schedule import Schedule

__all__ = ["Traffic"]

_PARTING_S = 5.0
"""How long a stop waits for packets under way on a line that seems to work."""


class Traffic:
    """Packs and sends what waits in the journal; a context manager, within which it works.

    Parameters
    ----------
    site : Site
    journal : Journal
    link : Link
    packer : Packer
    packets : Path
        Where packets wait.
    checker : Checker
        Is offered every packet.
    tell : callable
        Is told whatever happens.

    Attributes
    ----------
    report : Report
        What was done; whoever runs it may put a fresh one here.
    fatal : ConfigError or None
        A setting that turned out wrong: nothing is begun any more.
    """

    def __init__(
        self,
        site: Site,
        journal: Journal,
        link: Link,
        packer: Packer,
        packets: Path,
        checker: Checker,
        tell: Callable[[Event], None],
    ) -> None:
        self.report = Report()
        self.fatal: ConfigError | None = None
        self._settings = site.push
        self._rate = site.link.rate
        self._poll_s = site.telescope.poll_s
        self._journal = journal
        self._link = link
        self._checker = checker
        self._tell = tell
        self._clock = time.monotonic
        at_end = site.push.method is Method.END_OF_NIGHT
        limits = Limits.of(site.pack)
        self._adaptation = None if limits is None else Adaptation(limits)
        self._next_decision = 0.0
        self._packer = packer
        self._far_side = FarSide(link, site.push.exp_min if at_end else 0)
        self._carrier = Carrier(journal, packer, link, self._far_side, packets)
        workers = site.pack.workers
        self._packers = Crew("pack", workers, Obstacle(self._poll_s, self._clock))
        self._senders = Crew("send", link.concurrency, Obstacle(self._poll_s, self._clock))
        self._schedule = Schedule(site.push, link.concurrency, workers)
        self._course = Course(
            site.push, journal, self._far_side, self._schedule, self._poll_s, self._clock
        )
        self._parting = False
        self._telescope = site.telescope
        self._claims: Claims = Alone()
        self._inherited: dict[Exposure, int] = {}
        self._threads = ExitStack()

    def __enter__(self) -> Traffic:
        self._parting = False
        self._claims = open_claims(self._telescope)
        self._carrier.tidy()
        self._journal.close_accounts()
        self._threads.enter_context(self._claims)
        for threads in (self._packers, self._senders, self._far_side, self._checker):
            self._threads.enter_context(threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let what is under way come to its end, or end it."""
        self._parting = True
        packing = set(self._packers.under_way)
        patience_s = 0.0 if self._senders.obstacle.text else _PARTING_S
        late = wait(set(self._futures()) - packing, patience_s).not_done
        if late:
            self._link.close()
        wait(self._futures())
        self.settle()
        self._threads.close()

    @property
    def obstacles(self) -> list[str]:
        """What is in the way now."""
        crews = (self._packers, self._senders)
        return [crew.obstacle.text for crew in crews if crew.obstacle.text]

    @property
    def is_done(self) -> bool:
        """Whether nothing waits that the method wants to leave, and nothing is under way."""
        return self._course.is_done and self._schedule.idle

    @property
    def is_under_way(self) -> bool:
        """Whether something is being packed, sent or asked."""
        return not all(future.done() for future in self._futures())

    @property
    def is_checked(self) -> bool:
        """Whether no packet is being held against its original."""
        return not self._checker.is_busy

    def has_given_up(self, tries: int | None) -> bool:
        """Whether an obstacle was tried so often, and nothing can go on beside it."""
        if tries is None:
            return False
        stuck = self._packers.obstacle.failures >= tries and self._schedule.front is None
        return stuck or self._senders.obstacle.failures >= tries

    def is_about(self, raw: Path) -> bool:
        """Whether CCDs of a raw file are being packed or sent."""
        under_way = (*self._schedule.packing.values(), *self._schedule.sending.values())
        return any(row.raw == raw for row in under_way)

    def expect(self, fresh: list[CcdKey]) -> None:
        """Take up CCDs that wait now and did not before."""
        for key in fresh:
            self._course.rouse(key)
        self._course.change()

    def go_on(self, *, tries: int | None = None) -> None:
        """Let the cores pack and the line carry what comes next.

        Parameters
        ----------
        tries : int, optional
            Begin nothing after so many tries to get past an obstacle.
        """
        if self.fatal or self.has_given_up(tries):
            return
        try:
            self._far_side.look(may_ask=not self._senders.obstacle.blocks)
            self._course.keep()
            self._start_sending()
            self._adapt()
            self._start_packing()
        except LinkError as error:
            self._meet(self._senders, error)
        except TransientError as error:
            self._meet(self._packers, error)
            self._course.change(at_once=False)

    def _adapt(self) -> None:
        """Let exposures that are begun from now on be packed as what waits for the line demands."""
        adaptation, now = self._adaptation, self._clock()
        if adaptation is None:
            return
        # a packet that still waits, and for no answer, is one for which the line has no place
        waits = self._schedule.front is not None and not self._far_side.is_wanted
        is_full = waits and not self._senders.obstacle.text
        adaptation.speed.look(now, is_full=is_full)
        if now < self._next_decision:
            return
        self._next_decision = now + self._poll_s
        packed_bytes = sum(row.packet_bytes for row in self._schedule.to_send)
        may_lose = [row.exposure.kind not in LOSSLESS_KINDS for row in self._schedule.to_pack]
        changed = adaptation.look(packed_bytes, may_lose + [True] * self._course.beyond)
        if changed:
            self._packer.preset = adaptation.preset
            self._tell(Event(Happening.PACKING, changed))

    def _start_packing(self) -> None:
        while self._packers.has_room:
            while in_the_way := self._schedule.in_the_way():
                self._carrier.unpack(in_the_way)
            row = self._next_of_ours(self._schedule.next_to_pack)
            if row is None:
                if not self._packers.under_way and self._schedule.wants_more:
                    self._clear(self._packers)
                return
            if row.stage is Stage.SENT:
                self._journal.return_to(row.key, Stage.FOUND)
                row = replace(row, stage=Stage.FOUND)
            self._schedule.packing[row.key] = row
            self._packers.begin(row, self._carrier.pack, row.key)

    def _start_sending(self) -> None:
        """Send what is packed; unless the link does so itself, the far side is asked first."""
        if self._schedule.front and not (self._link.recognises or self._far_side.answered):
            if not self._far_side.is_wanted:
                self._far_side.want()
            return
        blocked = self._senders.obstacle.blocks or self._far_side.is_wanted
        if self._schedule.idle and not blocked:
            self._clear(self._senders)
        while self._senders.has_room and (row := self._next_of_ours(self._schedule.next_to_send)):
            self._schedule.sending[row.key] = row
            held = self._far_side.held.get(row.packet)
            rank = urgency(self._settings, row)
            inherited = row.exposure in self._inherited
            self._senders.begin(row, self._carrier.send, row.key, rank, held, inherited)

    def _next_of_ours(self, take: Callable[[], CcdRow | None]) -> CcdRow | None:
        """The next CCD that is this host's, and that the far side has not got from another."""
        while (row := take()) is not None:
            standing = self._claims.take(row.exposure, again=row.sent_at is not None)
            if not standing.ours:
                self._leave_to_others(row, standing)
                continue
            if not standing.inherited:
                return row
            if not self._knows_what_arrived(row, standing):
                self._schedule.put_back(row)
                return None
            is_missing = packet_name(row) not in self._far_side.held
            if self._link.recognises or row.sent_at is not None or is_missing:
                return row
            self._carrier.leave(row, standing.owner)
            self._note_sent(row, Carried(row.packet_bytes, already_there=True, latency_s=0.0))
        return None

    def _leave_to_others(self, row: CcdRow, standing: Standing) -> None:
        if standing.done:
            self._carrier.leave(row, standing.owner)
        else:
            self._course.leave_to_others(self._claims.look_again_s)

    def _knows_what_arrived(self, row: CcdRow, standing: Standing) -> bool:
        """Whether the far side was asked since an exposure is this host's; the link may do so."""
        if standing.owner and row.sent_at is None:
            text = f"exposure {row.exposure.number} from {standing.owner}"
            self._tell(Event(Happening.TAKEN_OVER, text, key=row.key, path=row.raw))
        if standing.owner or row.exposure not in self._inherited:
            self._inherited[row.exposure] = 0 if self._link.recognises else self._far_side.want()
        return self._far_side.answered >= self._inherited[row.exposure]

    def pause(self, seconds: float, stop: threading.Event) -> None:
        """Wait for something to finish, or until an obstacle is to be tried again."""
        waits = [crew.obstacle.wait_s for crew in (self._packers, self._senders)]
        shortest = min([seconds, *(wait_s for wait_s in waits if wait_s)])
        futures = self._futures()
        if futures:
            wait(futures, shortest, FIRST_COMPLETED)
        else:
            stop.wait(shortest)

    def _futures(self) -> list[Future[Any]]:
        question = self._far_side.question
        asked = [] if question is None else [question]
        return [*self._packers.under_way, *self._senders.under_way, *asked]

    def settle(self) -> None:
        """Take note of what has finished."""
        self._checker.settle()
        for crew, under_way in (
            (self._packers, self._schedule.packing),
            (self._senders, self._schedule.sending),
        ):
            for future, row in crew.finished():
                del under_way[row.key]
                try:
                    self._settle(crew, future, row)
                except StorageError as error:
                    # the journal still says where the CCD is
                    self._meet(crew, error)
                    self._course.change()

    def _settle(self, crew: Crew, future: Future[Any], row: CcdRow) -> None:
        error = future.exception()
        if error is None:
            self._clear(crew)
            note = self._note_packed if crew is self._packers else self._note_sent
            note(row, future.result())
        elif isinstance(error, ConfigError):
            self.fatal = error
        elif not isinstance(error, Exception):
            raise error
        elif is_obstacle(error):
            self._schedule.put_back(row)
            if crew is self._senders:
                self._schedule.note_in_vain(row)
            if self._meet(crew, error):
                self._journal.wait(row.key, _towards(row), str(error))
        else:
            self._fail(row, error)

    def _note_packed(self, _: CcdRow, packed: CcdRow | None) -> None:
        if packed is not None:
            if self._adaptation is not None:
                self._adaptation.sizes.note(packed.preset, packed.packet_bytes)
            self._schedule.put_back(packed)
            self._checker.offer(packed)

    def _note_sent(self, row: CcdRow, carried: Carried | None) -> None:
        self._course.rouse(row.key)
        if carried is None:
            self._course.change()
            return
        if self._adaptation is not None and not carried.already_there:
            self._adaptation.speed.sent(carried.packet_bytes)
        self.report.sent += 1
        self.report.already_there += carried.already_there
        self.report.sent_bytes += 0 if carried.already_there else carried.packet_bytes
        self._tell(
            Event(
                Happening.SENT,
                f"{row.key} {'was there already' if carried.already_there else 'sent'}",
                key=row.key,
                path=row.raw,
                packet_bytes=carried.packet_bytes,
                seconds=carried.latency_s,
            )
        )
        self._conclude(row)

    def _conclude(self, row: CcdRow) -> None:
        """Once nothing of an exposure waits any more, say so to others, and how it crossed."""
        number = row.key.exposure
        waits = self._schedule.is_busy_with(row) or self._journal.rows(
            Stage.FOUND, Stage.PACKED, exposure=number, limit=1
        )
        if waits:
            return
        self._claims.finish(row.exposure)
        transfer = self._journal.close_account(row.key.camera, row.key.exposure)
        if transfer is not None:
            text = transfer_line(row.exposure, transfer, self._rate)
            self._tell(Event(Happening.COMPLETE, text, key=row.key, path=row.raw))

    def _fail(self, row: CcdRow, error: Exception) -> None:
        known = isinstance(error, PrepipeError)
        reason = str(error) if known else f"{row.key}: {unexpected(error)}"
        now = self._journal.row(row.key) or row
        given_up = self._journal.fail(
            row.key,
            _towards(now),
            reason,
            traceback="".join(traceback.format_exception(error)),
            limit=1 if isinstance(error, InputError) else self._settings.tries,
        )
        self._course.let_rest(row.key, pause_after(now.tries + 1, self._poll_s))
        if given_up:
            self.report.failures.append(Failure(str(row.key), reason))
        what = Happening.QUARANTINED if given_up else Happening.FAILED
        self._tell(Event(what, reason, key=row.key, path=row.raw))
        if given_up:
            self._conclude(row)

    def _meet(self, crew: Crew, error: Exception) -> bool:
        """Something is in the way of everything that a crew does."""
        if self._parting:
            return False
        news = crew.obstacle.meet(error)
        if news:
            self._tell(Event(Happening.OBSTACLE, str(error)))
        return news

    def _clear(self, crew: Crew) -> None:
        if crew is self._senders:
            self._schedule.note_free()
        if crew.obstacle.clear():
            self._tell(Event(Happening.CLEARED, "the way is free again"))


def _towards(row: CcdRow) -> Stage:
    """The stage that a CCD was on its way to."""
    return Stage.SENT if row.stage is Stage.PACKED else Stage.PACKED
