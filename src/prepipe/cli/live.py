"""What `push`, `archive` and `ingest` show while they run: a table on a terminal, lines elsewhere.

It reads the journal from a thread of its own, so that it can neither slow nor stop the work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prepipe.cli.journals import FINISHED
from prepipe.cli.output import console, printable
from prepipe.errors import PrepipeError
from prepipe.model import Stage

if TYPE_CHECKING:
    from prepipe.link.ssh import LinkState
    from prepipe.store import CcdRow, Journal
    from prepipe.store.status import NightStatus

__all__ = ["Display", "exposure_line", "link_line"]

LOOK_S = 1.0
QUIET_S = 3.0
"""An exposure that is through gets its line when no CCD of it moved for so long."""
NEWEST = 12
LINK_S = 30.0
"""A link at work gets a line so often."""
PROGRESS_S = 10.0
"""An exposure that is under way gets a line so often."""


class Display:
    """Shows the exposures that are worked on.

    Parameters
    ----------
    journal : Path or str
        Of the end that works: a file or a database URL.
    end : str
        ``"telescope"``, ``"cluster"``, or ``"archive"``: originals leave the telescope.

    Attributes
    ----------
    link_state : callable
        Gives what the link does; None if it has nothing to tell.
    """

    def __init__(self, journal: Path | str, end: str) -> None:
        self._journal = journal
        self._end = end
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._moved: dict[int, float] = {}
        self._pending: set[int] = set()
        self._told: dict[int, float] = {}
        self._done = threading.Event()
        self._live: Any = None
        self._link_told = 0.0
        self._link_was_down = False
        self.link_state: Callable[[], LinkState | None] = lambda: None

    def touch(self, exposure: int) -> None:
        """Note that a CCD of an exposure moved."""
        with self._lock:
            self._moved.pop(exposure, None)
            self._moved[exposure] = time.monotonic()
            self._pending.add(exposure)
            self._told.setdefault(exposure, time.monotonic())

    def conclude(self, exposure: int, sentence: str) -> None:
        """Say how an exposure ended, in the place of its line."""
        with self._lock:
            self._pending.discard(exposure)
            self._told.pop(exposure, None)
        self.say(sentence)

    def say(self, sentence: str) -> None:
        """Say something that should not wait: a failure, trouble."""
        if self._live is not None:
            # fields of exposures are free text
            self._live.console.print(printable(sentence), markup=False)
        else:
            _log(sentence)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it all as long as this lasts."""
        with self._on_screen():
            thread = threading.Thread(target=self._look_again_and_again, daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._done.set()
                thread.join(timeout=10 * LOOK_S)

    def _on_screen(self) -> AbstractContextManager[object]:
        if not self._terminal:
            return nullcontext()
        from rich.live import Live

        self._live = Live(console=console(stderr=True), auto_refresh=False)
        live: AbstractContextManager[object] = self._live
        return live

    def _look_again_and_again(self) -> None:
        from prepipe.store import Journal

        journal = None
        while True:
            last = self._done.wait(LOOK_S)
            try:
                journal = journal or Journal(self._journal)
                self._look(journal, last=last)
            except PrepipeError as error:
                self.say(f"cannot show the state: {error}")
            if last:
                break
        if journal is not None:
            journal.close()

    def _look(self, journal: Journal, *, last: bool) -> None:
        if self._live is not None:
            self._live.update(self._table(journal), refresh=True)
            return
        for number in self._quiet(last=last):
            rows = journal.rows(exposure=number)
            if rows and (last or all(self._is_through(row) for row in rows)):
                _log(exposure_line(rows))
        self._tell_of_link()
        for number in self._long_under_way():
            if rows := journal.rows(exposure=number):
                _log(exposure_line(rows))

    def _is_through(self, row: CcdRow) -> bool:
        if self._end == "archive":
            return row.archived_at is not None or not row.is_lossy
        return row.stage in FINISHED[self._end]

    def _tell_of_link(self) -> None:
        """A line now and then while something is under way, and at once when the link is down."""
        state = self.link_state()
        if state is None:
            return
        now = time.monotonic()
        is_news = bool(state.trouble) != self._link_was_down
        if is_news or (state.is_at_work and now - self._link_told >= LINK_S):
            self._link_told = now
            self._link_was_down = bool(state.trouble)
            _log(link_line(state))

    def _table(self, journal: Journal) -> Any:
        from rich.console import Group

        from prepipe.cli.status import exposure_table

        with self._lock:
            newest = list(self._moved)[-NEWEST:]
        rows = [row for number in newest for row in journal.rows(exposure=number)]
        table = exposure_table(self._status(rows))
        state = self.link_state()
        return table if state is None else Group(table, printable(link_line(state)))

    def _status(self, rows: list[CcdRow]) -> NightStatus:
        from prepipe.store.status import night_status

        return night_status((), rows) if self._end == "cluster" else night_status(rows)

    def _quiet(self, *, last: bool) -> list[int]:
        """Exposures that have not had their line since they moved, and now are at rest."""
        before = time.monotonic() - (0 if last else QUIET_S)
        with self._lock:
            quiet = [number for number in self._pending if self._moved[number] <= before]
            self._pending.difference_update(quiet)
            for number in quiet:
                self._told.pop(number, None)
        return sorted(quiet)

    def _long_under_way(self) -> list[int]:
        """Exposures that still move, and of which nothing was told for some time."""
        now = time.monotonic()
        with self._lock:
            due = [number for number in self._pending if now - self._told[number] >= PROGRESS_S]
            self._told.update(dict.fromkeys(due, now))
        return sorted(due)


def exposure_line(rows: list[CcdRow]) -> str:
    """One line about an exposure for the log.

    Parameters
    ----------
    rows : list of CcdRow
        Its CCDs.
    """
    exposure = rows[0].exposure
    stages = Counter(row.stage.value for row in rows)
    grades = Counter(row.grade for row in rows if row.grade and row.stage is Stage.CALIBRATED)
    name = f"{exposure.number} {exposure.field or exposure.kind.value} {exposure.band}".rstrip()
    line = f"exposure {name}: "
    line += ", ".join(f"{count} {stage}" for stage, count in stages.items())
    if grades:
        line += f" ({', '.join(f'{count} {grade}' for grade, count in grades.items())})"
    if archived := sum(row.archived_at is not None for row in rows):
        line += f", {archived} of {sum(row.is_lossy for row in rows)} originals archived"
    return line


_MARKS = {"open": "o", "silent": "?", "opening": ".", "leaving": "-"}


def link_line(state: LinkState) -> str:
    """What a link does at this moment, in a line: ``[oooooo.?]`` is one mark a connection.

    ``o`` is open, ``.`` being opened, ``?`` silent, ``-`` taking its leave.
    """
    marks = "".join(_MARKS.get(each.state, " ") for each in state.connections)
    line = f"link [{marks}] {state.mbit_s:.1f} of {state.rate:.0f} Mbit/s"
    rtts = [each.rtt_s for each in state.connections if each.rtt_s]
    if rtts:
        line += f", round trip {1e3 * min(rtts):.0f} ms"
    if state.queued_bytes:
        left = "" if state.eta_s is None else f", {state.eta_s:.0f} s left"
        line += f", {state.queued_bytes / 1e6:.1f} MB under way{left}"
    if state.trouble:
        line += f"; down: {state.trouble}"
    return line


def _log(sentence: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    typer.echo(f"{stamp} {printable(sentence)}", err=True)
