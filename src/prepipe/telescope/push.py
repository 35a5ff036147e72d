"""`Push`: the telescope's end at work, until it is told to stop."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from prepipe.cameras import Camera
from prepipe.codec import get_codec
from prepipe.config import Method, Site
from prepipe.errors import InputError, StorageError
from prepipe.files import sole_user
from prepipe.link.base import Link
from prepipe.model import Stage
from prepipe.store import CcdKey, Journal
from prepipe.telescope.checker import Checker
from prepipe.telescope.intake import RawExposure, register
from prepipe.telescope.obstacle import is_obstacle
from prepipe.telescope.pack import Packer
from prepipe.telescope.report import Event, Failure, Happening, Report, unexpected
from prepipe.telescope.traffic import Traffic
from prepipe.telescope.watch import UNFINISHED_S, Arrival, Watcher

__all__ = ["Push"]

_LOOKS_TO_SETTLE = 2


class Push:
    """Watches for raw exposures and sends their CCDs, by the site's method.

    CCDs are packed on ``pack.workers`` threads and sent on as many as the link bears, so that
    the line has work while cores pack. All that has to survive is in the journal; a push that
    was killed goes on where it was.

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
        checker = Checker(site, camera, journal, packets, on_event)
        self._traffic = Traffic(site, journal, link, packer, packets, checker, on_event)
        self._next_look = 0.0
        self._looks = 0
        self._once = False
        self._untaken: dict[str, str] = {}
        self._trouble = ""
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
            CCDs under way are finished, if that is soon, then the run returns. A link that
            takes longer is closed; what was under way stays packed.

        Raises
        ------
        ConfigError
            If a setting turns out wrong, or another push works in the same directory.
        StorageError
            If the directory for the journal and packets cannot be used at the start.
        """
        stop = stop or threading.Event()
        self._report = self._traffic.report = Report()
        self._looks = 0
        self._once = once
        self._watcher.unfinished_s = 0.0 if once else UNFINISHED_S
        with sole_user(self._site.telescope.work / "push.lock"), self._traffic:
            while not (stop.is_set() or self._traffic.fatal or (once and self._all_done())):
                if self._clock() >= self._next_look and not (once and self._settled()):
                    self._look(stop)
                self._traffic.go_on(tries=self._tries)
                self._pause(stop)
        if self._traffic.fatal:
            raise self._traffic.fatal
        return self._close_report(once)

    @property
    def _tries(self) -> int | None:
        """How often a run of what is there tries to get past an obstacle."""
        return self._site.push.tries if self._once else None

    def _pause(self, stop: threading.Event) -> None:
        """Wait for something to finish, but no longer than until the next look."""
        poll_s = self._site.telescope.poll_s
        until_look = self._next_look - self._clock()
        self._traffic.pause(min(max(until_look, poll_s / 20), poll_s), stop)
        self._traffic.settle()

    def _look(self, stop: threading.Event) -> None:
        self._next_look = self._clock() + self._site.telescope.poll_s
        self._looks += 1
        self._untaken.clear()
        try:
            arrivals = self._watcher.poll()
            trouble = self._watcher.trouble
            if self._watcher.expects_a_file:
                self._link.prepare()
            for arrival in arrivals:
                # Newer ones may have come meanwhile; those left over come again.
                if stop.is_set() or (not self._once and self._clock() >= self._next_look):
                    break
                self._take(arrival)
                self._traffic.settle()
                self._traffic.go_on(tries=self._tries)
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
        if self._traffic.is_about(arrival.path):
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
            self._quarantine_file(arrival, f"{name}: {unexpected(error)}", error)

    def _note_found(self, arrival: Arrival, raw: RawExposure, fresh: list[CcdKey]) -> None:
        path = arrival.path
        if raw.exposure is None:
            text = f"{path}: holds nothing to calibrate, passed over"
            self._tell(Event(Happening.IGNORED, text, path=path))
            return
        if not fresh:
            return
        self._report.exposures += 1
        self._report.ccds += len(fresh)
        text = f"exposure {raw.exposure.number} found, {len(fresh)} CCDs wait"
        self._tell(Event(Happening.FOUND, text, path=path, ccds=len(fresh)))
        self._traffic.expect(fresh)

    def _quarantine_file(
        self, arrival: Arrival, reason: str, error: Exception | None = None
    ) -> None:
        trace = "".join(traceback.format_exception(error)) if error else ""
        self._journal.remember_file(
            arrival.path, arrival.size, arrival.mtime_ns, reason=reason, traceback=trace
        )
        self._report.failures.append(Failure(str(arrival.path), reason))
        self._tell(Event(Happening.QUARANTINED, reason, path=arrival.path))

    def _settled(self) -> bool:
        """Whether a run of what is there has seen all files that are at rest."""
        disturbed = self._untaken or self._trouble
        tries = self._site.push.tries if disturbed else 0
        return self._looks >= max(_LOOKS_TO_SETTLE, tries)

    def _all_done(self) -> bool:
        if not self._settled() or self._traffic.is_under_way:
            return False
        if self._traffic.has_given_up(self._tries):
            return True
        return self._traffic.is_done and self._traffic.is_checked

    def _close_report(self, once: bool) -> Report:
        report = self._report
        report.waiting = len(self._journal.rows(Stage.FOUND, Stage.PACKED))
        if once:
            report.failures += [Failure(name, why) for name, why in self._untaken.items()]
            report.failures += [
                Failure(str(path), why) for path, why in self._watcher.waiting().items()
            ]
            if self._trouble:
                report.failures.append(Failure(str(self._watcher.directory), self._trouble))
            queued = f"{report.waiting} CCDs still queued"
            report.failures += [Failure(queued, text) for text in self._traffic.obstacles]
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
