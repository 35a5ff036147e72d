"""Ingest: from packets that land to calibrated CCDs.

What a crash interrupts is still LANDED in the journal, and is done anew at the next start;
products are written whole or not at all, so that doing one anew changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from prepipe.cameras import load_camera
from prepipe.cluster.board import Board
from prepipe.cluster.dispatch import DRAINING, Dispatcher
from prepipe.cluster.events import Event, Report, What
from prepipe.cluster.receive import Receiver
from prepipe.compute import Compute
from prepipe.config import Site
from prepipe.engines.base import Engine, Work
from prepipe.engines.choice import open_engine
from prepipe.errors import ConfigError, TransientError
from prepipe.files import sole_user, sweep_partials
from prepipe.store import Journal

__all__ = ["STOP_S", "Ingest"]

STOP_S = 10.0
"""How long a stop waits for CCDs under way, s; the others are done anew at the next start."""

_LOCK_NAME = "ingest.lock"
_GLANCE_S = 0.1

_LEFTOVER_S = 600.0
"""A product half written for so long has lost its writer."""


class Ingest:
    """The cluster's end: landing directory, journal and workers together.

    Parameters
    ----------
    site : Site
    journal : Journal
        The cluster's.
    compute : Compute
        Its owner closes it.
    work : callable, optional
        A top-level function that reduces one CCD; the site's engine if none is given.
    on_event : callable, optional
        Called with each `Event`, in the thread that runs this.
    """

    def __init__(
        self,
        site: Site,
        journal: Journal,
        compute: Compute,
        work: Work | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        cluster = site.cluster
        engine = open_engine(site) if work is None else Engine("given", work)
        self._cluster = cluster
        self._camera = site.camera
        self._reference = site.calibration.reference
        self._on_event = on_event
        self._receiver = Receiver(cluster.landing, journal, settle_s=cluster.poll_s)
        self._dispatcher = Dispatcher(site, journal, compute, engine)
        self._report = Report()
        self._trouble = ""

    def run(self, once: bool = False, stop: threading.Event | None = None) -> Report:
        """Receive and calibrate until `stop` is set, or with `once` until all is done.

        Parameters
        ----------
        once : bool
            Do what is there and return. Trouble with a disk ends it after as many looks in
            vain as a CCD has tries; otherwise it is waited for.
        stop : threading.Event, optional
            Once set, nothing new is begun, and CCDs under way are given `STOP_S`.

        Returns
        -------
        Report

        Raises
        ------
        ConfigError
            If another ingest works in the same directory.
        StorageError
            If the work directory cannot be written, or the journal at the very end.
        """
        stop = stop or threading.Event()
        self._report = Report()
        load_camera(self._camera)
        reference = self._reference
        if reference is not None and not reference.exists():
            raise ConfigError(f"calibration.reference: {reference} does not exist; give its path")
        with sole_user(self._cluster.work / _LOCK_NAME):
            sweep_partials(self._cluster.products, _LEFTOVER_S)
            Board(self._cluster.work).wipe()
            self._go_round(once, stop)
            self._tell_all(self._dispatcher.stop(STOP_S))
        return self._report

    def _go_round(self, once: bool, stop: threading.Event) -> None:
        in_vain = 0
        while not stop.is_set():
            try:
                self._take_and_serve(stop)
                if once and self._receiver.settled and self._at_rest():
                    if not self._dispatcher.idle and self._dispatcher.drained:
                        self._report.troubles.append(DRAINING)
                    return
                in_vain = 0
                self._trouble = ""
            except TransientError as error:
                in_vain += 1
                self._complain(str(error))
                self._dispatcher.show(str(error))
                if once and in_vain >= self._cluster.tries:
                    self._report.troubles.append(str(error))
                    return
            self._pause(stop)

    def _at_rest(self) -> bool:
        """Whether nothing is left to do, or nothing that can be done now."""
        dispatcher = self._dispatcher
        return dispatcher.idle or dispatcher.held_up or dispatcher.drained

    def _take_and_serve(self, stop: threading.Event) -> None:
        for event in self._receiver.look():
            self._tell(event)
            # the first packets are calibrated while the others are still being checked
            self._tell_all(self._dispatcher.serve())
            if stop.is_set():
                return
        self._tell_all(self._dispatcher.serve())

    def _pause(self, stop: threading.Event) -> None:
        """Wait until it is time to look again, or a worker has answered."""
        due = time.monotonic() + (_GLANCE_S if self._receiver.more else self._cluster.poll_s)
        while not stop.is_set():
            left = due - time.monotonic()
            if left <= 0 or self._dispatcher.answered.wait(min(left, _GLANCE_S)):
                return

    def _complain(self, text: str) -> None:
        """Tell of a trouble once, however long it lasts."""
        if text != self._trouble:
            self._trouble = text
            self._tell(Event(What.TROUBLE, "ingest", text))

    def _tell_all(self, events: Iterator[Event]) -> None:
        for event in events:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self._report.note(event)
        if self._on_event is not None:
            self._on_event(event)
