"""`Archive`: by day, when the line is free, the originals of what was sent with a loss follow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from prepipe.cameras import Camera
from prepipe.codec.base import RESIDUAL
from prepipe.config import Pack, Site
from prepipe.errors import ConfigError, PrepipeError, StorageError
from prepipe.files import PARTIAL_SUFFIX, sole_user, storage_errors
from prepipe.link.base import ARCHIVE, Link
from prepipe.model import Night, Stage
from prepipe.store import CcdRow, Journal
from prepipe.telescope.crew import Crew
from prepipe.telescope.daylight import is_day, next_sunrise
from prepipe.telescope.intake import ccd_spans
from prepipe.telescope.obstacle import Obstacle, is_obstacle
from prepipe.telescope.originals import OriginalPacker, may_be_residual
from prepipe.telescope.pack import Written, registered_state
from prepipe.telescope.queue import archive_urgency
from prepipe.telescope.report import Event, Failure, Happening, unexpected

__all__ = ["Archive", "ArchivePlan", "ArchiveReport", "PlannedOriginal", "plan_archive"]

LOOK_S = 60.0
AT_A_TIME = 4
"""Originals on disk and under way: enough for a fast line, soon over when an exposure comes."""
RESIDUAL_SHARE = 0.9
"""Bytes of packet and residual together, of those of the original, as measured."""
_PARTING_S = 5.0
_NIGHT = "it is night at the telescope: originals wait until "
_PUSH_FIRST = "packets of the night wait to be sent, which go first; originals wait for them"


@dataclass
class ArchiveReport:
    """What a run did.

    Parameters
    ----------
    archived : int
        Originals that are in the archive since.
    archived_bytes : int
    residuals : int
        How many of them are residuals.
    waiting : int
        Originals that are not there yet, those that failed included.
    failures : list of Failure
        Raw files and CCDs that could not be read; after a run of what is there, also what kept
        the rest from being sent.
    """

    archived: int = 0
    archived_bytes: int = 0
    residuals: int = 0
    waiting: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class PlannedOriginal:
    """An original that would be sent.

    Parameters
    ----------
    row : CcdRow
    residual : bool
        Whether only what its packet lost would go.
    bytes : int
        About how many would go.
    """

    row: CcdRow
    residual: bool
    bytes: int


@dataclass(frozen=True)
class ArchivePlan:
    """What would be done.

    Parameters
    ----------
    originals : tuple of PlannedOriginal
        In the order in which they would be sent.
    failures : tuple of Failure
        Raw files that are gone, were rewritten, or cannot be read.
    """

    originals: tuple[PlannedOriginal, ...]
    failures: tuple[Failure, ...]

    @property
    def bytes(self) -> int:
        """About how many would go."""
        return sum(original.bytes for original in self.originals)


def plan_archive(
    journal: Journal, camera: Camera, pack: Pack, night: Night | None = None
) -> ArchivePlan:
    """Tell what an archive would send; nothing is written, and nothing packed.

    Parameters
    ----------
    journal : Journal
    camera : Camera
    pack : Pack
        Says whether residuals go.
    night : Night, optional
        Only this night.

    Raises
    ------
    StorageError
        If the journal cannot be read.
    """
    planned: list[PlannedOriginal] = []
    failures: list[Failure] = []
    # newest exposure first, and the CCDs of one exposure lie in one file
    for raw, rows in groupby(journal.originals(night), key=lambda row: row.raw):
        try:
            registered_state(raw, journal)
            spans = ccd_spans(raw, camera)
        except PrepipeError as error:
            failures.append(Failure(str(raw), str(error)))
            continue
        for row in rows:
            span = spans.get(row.ccd.number)
            whole = span.end - span.header_offset if span else 0
            residual = pack.archive == "residual" and may_be_residual(row)
            size = max(0, round(RESIDUAL_SHARE * whole) - row.packet_bytes) if residual else whole
            planned.append(PlannedOriginal(row, residual, size))
    return ArchivePlan(tuple(planned), tuple(failures))


class Archive:
    """Sends the bit-exact original of every CCD that was sent with a loss, the newest first.

    It works beside a push and yields to it. All that has to survive is in the journal; what a
    killed run had under way is packed again to the same bytes, so that the far side knows it.

    Parameters
    ----------
    site : Site
    journal : Journal
        Of the telescope's end; a push may use it at the same time.
    link : Link
        Its own, not that of a push.
    camera : Camera
        Tells where the Sun has to be above the horizon; if it does not, any hour will do.
    on_event : callable, optional
        Is told whatever happens, in the thread that runs.
    night : Night, optional
        Only originals of this night.
    any_hour : bool
        Do not wait for daylight.
    clock : callable
        The time, with its zone.

    Attributes
    ----------
    look_s : float
        Between two looks for what has come, s.
    """

    def __init__(
        self,
        site: Site,
        journal: Journal,
        link: Link,
        camera: Camera,
        on_event: Callable[[Event], None] = lambda _: None,
        *,
        night: Night | None = None,
        any_hour: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.look_s = LOOK_S
        self._work = site.telescope.work
        self._directory = self._work / "archive"
        self._poll_s = site.telescope.poll_s
        self._tries = site.push.tries
        self._journal = journal
        self._link = link
        self._tell = on_event
        self._night = night
        self._location = None if any_hour else camera.location
        self._clock = clock
        self._packer = OriginalPacker(site.pack, camera, journal, self._directory)
        obstacle = Obstacle(self._poll_s, time.monotonic)
        self._crew = Crew("archive", min(link.concurrency, AT_A_TIME), obstacle)
        self._begin()

    def _begin(self) -> None:
        self._report = ArchiveReport()
        self._queue: deque[CcdRow] = deque()
        self._looked = False
        self._next_look = 0.0
        self._lost: set[Path] = set()
        self._failed: dict[str, str] = {}
        self._told_why: set[str] = set()
        self._hindrance = ""
        self._fatal: ConfigError | None = None
        self._parting = False

    def run(self, *, once: bool = False, stop: threading.Event | None = None) -> ArchiveReport:
        """Work until `stop` is set, or until nothing is left that can be done now.

        Parameters
        ----------
        once : bool
            Look once, send what may be sent now, and return: neither daylight nor a push is
            waited for, and a link that stays down is given up after ``push.tries`` tries.
        stop : threading.Event, optional
            Originals under way are finished, if that is soon; a link that takes longer is
            closed.

        Raises
        ------
        ConfigError
            If another archive works in the same directory, or a setting turns out wrong.
        StorageError
            If the directory for originals cannot be used at the start.
        """
        stop = stop or threading.Event()
        self._begin()
        with sole_user(self._work / "archive.lock"), self._crew:
            self._tidy()
            try:
                while not (stop.is_set() or self._fatal or (once and self._is_over())):
                    self._go_on(once=once)
                    self._pause(stop)
                    self._settle()
            finally:
                self._part()
        if self._fatal:
            raise self._fatal
        return self._close_report(once)

    def _tidy(self) -> None:
        """Remove what a killed run left."""
        with storage_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if path.name.endswith((PARTIAL_SUFFIX, ".packet")):
                    path.unlink(missing_ok=True)

    def _is_over(self) -> bool:
        """Whether a run of what is there can do no more."""
        if self._crew.under_way:
            return False
        given_up = self._crew.obstacle.failures >= self._tries
        return bool(self._hindrance) or given_up or (self._looked and not self._queue)

    def _go_on(self, *, once: bool) -> None:
        if once and self._crew.obstacle.failures >= self._tries:
            return
        try:
            while self._crew.has_room and not self._is_hindered():
                row = self._next(once=once)
                if row is None:
                    return
                self._crew.begin(row, self._archive, row)
        except StorageError as error:
            self._meet(error)

    def _is_hindered(self) -> bool:
        """Whether it is night, or a push has something to send; told when that changes."""
        before, self._hindrance = self._hindrance, self._look_for_hindrance()
        if self._hindrance and self._hindrance != before:
            self._tell(Event(Happening.WAITS, self._hindrance))
        elif before and not self._hindrance:
            self._tell(Event(Happening.CLEARED, "originals are sent again"))
        return bool(self._hindrance)

    def _look_for_hindrance(self) -> str:
        now = self._clock()
        if self._location is not None and not is_day(now, self._location):
            if self._hindrance.startswith(_NIGHT):
                return self._hindrance
            sunrise = next_sunrise(now, self._location)
            return _NIGHT + (f"{sunrise:%Y-%m-%d %H:%M} UTC" if sunrise else "the Sun rises")
        return _PUSH_FIRST if self._journal.rows(Stage.FOUND, Stage.PACKED, limit=1) else ""

    def _next(self, *, once: bool) -> CcdRow | None:
        """The original that goes next; what could not be read waits for the next look."""
        if time.monotonic() >= self._next_look and not (once and self._looked):
            under_way = {row.key for row in self._crew.under_way.values()}
            rows = self._journal.originals(self._night)
            self._queue = deque(row for row in rows if row.key not in under_way)
            self._lost.clear()
            self._looked = True
            self._next_look = time.monotonic() + self.look_s
        while self._queue:
            row = self._queue.popleft()
            if row.raw not in self._lost:
                return row
        return None

    def _archive(self, row: CcdRow) -> Written | None:
        """Pack, send and note an original; None if its CCD has begun anew since."""
        packet = self._packer.pack(row)
        base = row.file_checksum if packet.packet.codec == RESIDUAL else ""
        try:
            self._link.send(packet.path, archive_urgency(row), ARCHIVE)
            return packet if self._journal.archived(row, packet.size, base) else None
        finally:
            with storage_errors(packet.path):
                packet.path.unlink(missing_ok=True)

    def _pause(self, stop: threading.Event) -> None:
        shortest = min(self._poll_s, self._crew.obstacle.wait_s or self._poll_s)
        if self._crew.under_way:
            wait(self._crew.under_way, shortest, FIRST_COMPLETED)
        else:
            stop.wait(shortest)

    def _settle(self) -> None:
        """Take note of what has finished."""
        for future, row in self._crew.finished():
            error = future.exception()
            if error is None:
                self._note_archived(row, future)
            elif isinstance(error, ConfigError):
                self._fatal = error
            elif not isinstance(error, Exception):
                raise error
            elif is_obstacle(error):
                self._queue.appendleft(row)
                self._meet(error)
            else:
                self._fail(row, error)

    def _note_archived(self, row: CcdRow, future: Future[Any]) -> None:
        if self._crew.obstacle.clear():
            self._tell(Event(Happening.CLEARED, "the way is free again"))
        packet: Written | None = future.result()
        if packet is None:
            return
        self._failed.pop(str(row.raw), None)
        self._failed.pop(str(row.key), None)
        self._report.archived += 1
        self._report.archived_bytes += packet.size
        self._report.residuals += packet.packet.codec == RESIDUAL
        text = f"original of {row.key} archived"
        event = Event(Happening.ARCHIVED, text, key=row.key, path=row.raw, packet_bytes=packet.size)
        self._tell(event)
        if packet.why and packet.why not in self._told_why:
            self._told_why.add(packet.why)
            text = f"original of {row.key} went whole, as others like it will: {packet.why}"
            self._tell(replace(event, what=Happening.WHOLE, text=text))

    def _fail(self, row: CcdRow, error: Exception) -> None:
        """Pass over a raw file that is gone or rewritten, or one CCD; named once."""
        if isinstance(error, StorageError):
            self._lost.add(row.raw)
        what = str(row.raw if isinstance(error, StorageError) else row.key)
        known = isinstance(error, PrepipeError)
        reason = str(error) if known else f"{row.key}: {unexpected(error)}"
        if what not in self._failed:
            self._tell(Event(Happening.FAILED, reason, key=row.key, path=row.raw))
        self._failed[what] = reason

    def _meet(self, error: Exception) -> None:
        """Something is in the way of all originals."""
        if not self._parting and self._crew.obstacle.meet(error):
            self._tell(Event(Happening.OBSTACLE, str(error)))

    def _part(self) -> None:
        """Let what is under way come to its end, or end it."""
        self._parting = True
        patience_s = 0.0 if self._crew.obstacle.text else _PARTING_S
        if wait(self._crew.under_way, patience_s).not_done:
            self._link.close()
        wait(self._crew.under_way)
        self._settle()

    def _close_report(self, once: bool) -> ArchiveReport:
        report = self._report
        report.waiting = len(self._journal.originals(self._night))
        report.failures = [Failure(what, reason) for what, reason in self._failed.items()]
        if once and report.waiting:
            reasons = [why for why in (self._hindrance, self._crew.obstacle.text) if why]
            queued = f"{report.waiting} originals still wait"
            report.failures += [Failure(queued, why) for why in reasons]
        return report
