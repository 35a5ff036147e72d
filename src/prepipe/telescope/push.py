"""`Push`: the telescope's end at work, until it is told to stop."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from prepipe.cameras import Camera
from prepipe.codec import get_codec
from prepipe.config import Method, Site
from prepipe.errors import (
    ConfigError,
    InputError,
    PrepipeError,
    StorageError,
    TransientError,
)
from prepipe.files import sole_user
from prepipe.link.base import Held, Link
from prepipe.model import Stage
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.telescope.carry import Carried, Carrier
from prepipe.telescope.intake import RawExposure, register
from prepipe.telescope.obstacle import LONGEST_WAIT_S, Obstacle, is_obstacle, pause_after
from prepipe.telescope.pack import Packer
from prepipe.telescope.queue import JOINED_BY_ARRIVALS, next_round
from prepipe.telescope.report import Event, Failure, Happening, Report
from prepipe.telescope.watch import UNFINISHED_S, Arrival, Watcher

__all__ = ["Push"]

_LOOKS_TO_SETTLE = 2


class Push:
    """Watches for raw exposures and sends their CCDs, by the site's method.

    All that has to survive is in the journal; a push that was killed goes on where it was.

    Parameters
    ----------
    site : Site
    journal : Journal
        Of the telescope's end.
    link : Link
    camera : Camera
    on_event : callable, optional
        Is told whatever happens, in the thread that runs.

    Raises
    ------
    ConfigError
        If there is no such codec.
    """

    def __init__(
        self,
        site: Site,
        journal: Journal,
        link: Link,
        camera: Camera,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        get_codec(site.pack.codec)
        packets = site.telescope.work / "packets"
        self._site = site
        self._journal = journal
        self._link = link
        self._camera = camera
        self._tell = on_event
        self._clock = time.monotonic
        self._watcher = Watcher(
            site.telescope.raw, site.telescope.pattern, site.telescope.give_up_s, journal
        )
        packer = Packer(site.pack, camera, journal, packets)
        self._carrier = Carrier(journal, packer, link, packets)
        self._obstacle = Obstacle(site.telescope.poll_s, self._clock)
        self._round: deque[CcdRow] = deque()
        self._nothing_left = False
        self._next_question = 0.0
        self._next_look = 0.0
        self._looks = 0
        self._once = False
        self._untaken: dict[str, str] = {}
        self._trouble = ""
        self._under_way: dict[Future[Carried | None], CcdRow] = {}
        self._not_before: dict[CcdKey, float] = {}
        self._fatal: ConfigError | None = None
        self._report = Report()

    def run(self, *, once: bool = False, stop: threading.Event | None = None) -> Report:
        """Work until `stop` is set, or until what is there is done.

        Parameters
        ----------
        once : bool
            Look twice, so that a file at rest can be told from one that grows; send what
            is complete, and return. A link that stays down, or a disk that stays full, is
            given up after ``push.tries`` tries; what waits stays queued.
        stop : threading.Event, optional
            CCDs under way are finished, then the run returns.

        Raises
        ------
        ConfigError
            If a setting turns out wrong, or another push works in the same directory.
        StorageError
            If the directory for the journal and packets cannot be used at the start.
        """
        stop = stop or threading.Event()
        self._report = Report()
        self._looks = 0
        self._once = once
        self._watcher.unfinished_s = 0.0 if once else UNFINISHED_S
        with (
            sole_user(self._site.telescope.work / "push.lock"),
            ThreadPoolExecutor(self._site.pack.workers, "push") as pool,
        ):
            self._carrier.tidy()
            try:
                while not (stop.is_set() or self._fatal or (once and self._all_done())):
                    self._work(pool, stop, once)
                    self._pause(stop)
            finally:
                self._finish()
        if self._fatal:
            raise self._fatal
        return self._close_report(once)

    def _work(self, pool: ThreadPoolExecutor, stop: threading.Event, once: bool) -> None:
        """Look for files if it is time, and keep every worker busy."""
        if self._clock() >= self._next_look and not (once and self._settled()):
            self._look(pool, stop)
        self._top_up(pool)

    def _look(self, pool: ThreadPoolExecutor, stop: threading.Event) -> None:
        self._next_look = self._clock() + self._site.telescope.poll_s
        self._looks += 1
        self._untaken.clear()
        try:
            arrivals = self._watcher.poll()
            trouble = self._watcher.trouble
            for arrival in arrivals:
                # Newer ones may have come meanwhile; those left over come again.
                if stop.is_set() or (not self._once and self._clock() >= self._next_look):
                    break
                self._take(arrival)
                self._settle_finished()
                self._top_up(pool)
        except StorageError as error:
            trouble = str(error)
        if trouble and not self._trouble:
            self._tell(Event(Happening.OBSTACLE, trouble))
        elif self._trouble and not trouble:
            self._tell(Event(Happening.CLEARED, f"{self._watcher.directory} can be read again"))
        self._trouble = trouble

    def _take(self, arrival: Arrival) -> None:
        """Register a file, or put it into quarantine; what can be neither comes again."""
        name = str(arrival.path)
        if any(row.raw == arrival.path for row in self._under_way.values()):
            self._untaken[name] = f"{name}: was rewritten while its CCDs were under way"
            return
        try:
            if arrival.fault:
                self._quarantine_file(arrival, arrival.fault)
            else:
                self._note_found(arrival, *register(arrival, self._camera, self._journal))
        except InputError as error:
            self._quarantine_file(arrival, str(error), error)
        except StorageError as error:
            if is_obstacle(error):
                raise
            if not isinstance(error.__cause__, FileNotFoundError):
                self._untaken[name] = str(error)
        except Exception as error:  # one odd file must not stop the night
            self._quarantine_file(arrival, f"{name}: {_unexpected(error)}", error)

    def _note_found(self, arrival: Arrival, raw: RawExposure, fresh: list[CcdKey]) -> None:
        path = arrival.path
        if raw.exposure is None:
            text = f"{path}: holds nothing to calibrate, passed over"
            self._tell(Event(Happening.IGNORED, text, path=path))
            return
        if not fresh:
            return
        for key in fresh:
            self._not_before.pop(key, None)
        self._report.exposures += 1
        self._report.ccds += len(fresh)
        text = f"exposure {raw.exposure.number} found, {len(fresh)} CCDs wait"
        self._tell(Event(Happening.FOUND, text, path=path, ccds=len(fresh)))
        self._next_question = 0.0
        if self._site.push.method in JOINED_BY_ARRIVALS:
            self._round.clear()

    def _quarantine_file(
        self, arrival: Arrival, reason: str, error: Exception | None = None
    ) -> None:
        trace = "".join(traceback.format_exception(error)) if error else ""
        self._journal.remember_file(
            arrival.path, arrival.size, arrival.mtime_ns, reason=reason, traceback=trace
        )
        self._report.failures.append(Failure(str(arrival.path), reason))
        self._tell(Event(Happening.QUARANTINED, reason, path=arrival.path))

    def _top_up(self, pool: ThreadPoolExecutor) -> None:
        """Give every idle worker a CCD; after an obstacle, one goes ahead to see."""
        try:
            while not (self._obstacle.blocks or self._fatal):
                room = 1 if self._obstacle.text else self._site.pack.workers
                if len(self._under_way) >= room:
                    return
                row = self._next_row()
                if row is None:
                    if not self._under_way:
                        self._clear()
                    return
                self._under_way[pool.submit(self._carrier.carry, row.key)] = row
        except TransientError as error:
            self._meet(error)

    def _next_row(self) -> CcdRow | None:
        if not self._round and self._clock() >= self._next_question:
            self._ask_method()
        if not self._round:
            return None
        row = self._round.popleft()
        if row.stage is Stage.SENT:
            self._journal.return_to(row.key, Stage.FOUND)
        return row

    def _ask_method(self) -> None:
        """Let the method pick a round among all that waits and is not under way."""
        busy = {row.key for row in self._under_way.values()}
        now, poll_s = self._clock(), self._site.telescope.poll_s
        free = [row for row in self._waiting() if row.key not in busy]
        ready = [row for row in free if self._not_before.get(row.key, 0.0) <= now]
        sent: list[CcdRow] = []
        inventory: dict[str, Held] = {}
        if self._site.push.method is Method.END_OF_NIGHT:
            sent = [row for row in self._journal.rows(Stage.SENT) if row.key not in busy]
            inventory = self._link.inventory()
        self._round.extend(next_round(self._site.push, ready, sent, inventory))
        resting = len(ready) < len(free)
        self._nothing_left = not self._round and not resting
        # the far side is not asked again and again when it lacks nothing
        asks_far_side = self._site.push.method is Method.END_OF_NIGHT
        pause = LONGEST_WAIT_S if asks_far_side and self._nothing_left else poll_s
        self._next_question = now if self._round else now + pause

    def _waiting(self) -> list[CcdRow]:
        return self._journal.rows(Stage.FOUND, Stage.PACKED)

    def _pause(self, stop: threading.Event) -> None:
        """Wait for a worker to finish, but no longer than until the next look."""
        poll_s = self._site.telescope.poll_s
        seconds = min(max(self._next_look - self._clock(), poll_s / 20), poll_s)
        if self._under_way:
            wait(self._under_way, seconds, FIRST_COMPLETED)
        else:
            stop.wait(seconds)
        self._settle_finished()

    def _finish(self) -> None:
        wait(self._under_way)
        self._settle_finished()

    def _settle_finished(self) -> None:
        for future in [future for future in self._under_way if future.done()]:
            row = self._under_way.pop(future)
            try:
                self._settle(future, row)
            except StorageError as error:
                # the journal still says where the CCD is
                self._meet(error)

    def _settle(self, future: Future[Carried | None], row: CcdRow) -> None:
        error = future.exception()
        if error is None:
            self._note_sent(row, future.result())
        elif isinstance(error, ConfigError):
            self._fatal = error
        elif not isinstance(error, Exception):
            raise error
        elif is_obstacle(error):
            if self._meet(error):
                self._journal.wait(row.key, _towards(self._now(row)), str(error))
        else:
            self._fail(row, error)

    def _note_sent(self, row: CcdRow, carried: Carried | None) -> None:
        self._not_before.pop(row.key, None)
        self._clear()
        if carried is None:
            return
        self._report.sent += 1
        self._report.already_there += carried.already_there
        self._report.sent_bytes += 0 if carried.already_there else carried.packet_bytes
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

    def _fail(self, row: CcdRow, error: Exception) -> None:
        known = isinstance(error, PrepipeError)
        reason = str(error) if known else f"{row.key}: {_unexpected(error)}"
        now = self._now(row)
        given_up = self._journal.fail(
            row.key,
            _towards(now),
            reason,
            traceback="".join(traceback.format_exception(error)),
            limit=1 if isinstance(error, InputError) else self._site.push.tries,
        )
        rest = pause_after(now.tries + 1, self._site.telescope.poll_s)
        self._not_before[row.key] = self._clock() + rest
        self._next_question = 0.0
        if given_up:
            self._report.failures.append(Failure(str(row.key), reason))
        what = Happening.QUARANTINED if given_up else Happening.FAILED
        self._tell(Event(what, reason, key=row.key, path=row.raw))

    def _meet(self, error: Exception) -> bool:
        """Something is in the way of everything; the next round begins with the newest."""
        self._round.clear()
        self._next_question = 0.0
        news = self._obstacle.meet(str(error))
        if news:
            self._tell(Event(Happening.OBSTACLE, str(error)))
        return news

    def _clear(self) -> None:
        if self._obstacle.clear():
            self._tell(Event(Happening.CLEARED, "the way is free again"))

    def _now(self, row: CcdRow) -> CcdRow:
        return self._journal.row(row.key) or row

    def _settled(self) -> bool:
        """Whether a run of what is there has seen all files that are at rest."""
        disturbed = self._untaken or self._trouble
        tries = self._site.push.tries if disturbed else 0
        return self._looks >= max(_LOOKS_TO_SETTLE, tries)

    def _all_done(self) -> bool:
        if not self._settled() or self._under_way:
            return False
        if self._obstacle.text:
            return self._obstacle.failures >= self._site.push.tries
        return self._nothing_left and not self._round and self._next_question > 0.0

    def _close_report(self, once: bool) -> Report:
        report = self._report
        waiting = self._waiting()
        report.waiting = len(waiting)
        if once:
            report.failures += [Failure(name, why) for name, why in self._untaken.items()]
            report.failures += [
                Failure(str(path), why) for path, why in self._watcher.waiting().items()
            ]
            if self._trouble:
                report.failures.append(Failure(str(self._watcher.directory), self._trouble))
            if self._obstacle.text:
                report.failures.append(
                    Failure(f"{len(waiting)} CCDs still queued", self._obstacle.text)
                )
            report.failures += self._unknown_numbers()
        return report

    def _unknown_numbers(self) -> list[Failure]:
        """Exposures that method list was to send and that never appeared."""
        if self._site.push.method is not Method.LIST:
            return []
        return [
            Failure(f"exposure {number}", f"no raw file of it in {self._watcher.directory}")
            for number in self._site.push.exposures
            if not self._journal.rows(exposure=number)
        ]


def _towards(row: CcdRow) -> Stage:
    """The stage that a CCD was on its way to."""
    return Stage.SENT if row.stage is Stage.PACKED else Stage.PACKED


def _unexpected(error: Exception) -> str:
    return f"unexpected {type(error).__name__}: {error}; please report it with its traceback"
