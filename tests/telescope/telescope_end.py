"""A telescope's end with everything within reach, and links that fail or hold as they are told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tiny_raw import quick_site

from prepipe.cameras import load_camera
from prepipe.config import Site
from prepipe.errors import LinkError
from prepipe.link.local import LocalLink
from prepipe.model import Stage
from prepipe.store import Journal
from prepipe.telescope import Event, Happening, Push, Report

CAMERA = load_camera("decam")


class Telescope:
    """A telescope's end with everything within reach."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw"
        self.landing = root / "landing"
        self.packets = root / "telescope" / "packets"
        self.raw.mkdir(parents=True)
        self.events: list[Event] = []
        self.link = RecordingLink(self.landing)
        self.configure()
        self.journal = Journal(self.site.telescope.work / "journal.sqlite")

    def configure(self, **sections: dict[str, object]) -> None:
        self.site: Site = quick_site(self.root, **sections)

    def push(self, *, once: bool = True, stop: threading.Event | None = None) -> Report:
        worker = Push(self.site, self.journal, self.link, CAMERA, self.events.append)
        return worker.run(once=once, stop=stop)

    def landed(self) -> set[str]:
        return set(LocalLink(self.landing).inventory())

    def told(self, what: Happening) -> list[str]:
        return [event.text for event in self.events if event.what is what]

    def stages(self) -> Counter[Stage]:
        return Counter(row.stage for row in self.journal.rows())


class RecordingLink(LocalLink):
    """Remembers what was sent; may be told to fail."""

    def __init__(self, landing: Path) -> None:
        super().__init__(landing)
        self.begun: list[str] = []
        self.sent: list[str] = []
        self.prepared = 0
        self.fault: Callable[[], Exception | None] = lambda: None

    def send(self, packet: Path, urgency: int = 0, *, may_be_there: bool = False) -> bool:
        if error := self.fault():
            raise error
        self.begun.append(packet.name)
        super().send(packet, urgency)
        self.sent.append(packet.name)
        return False

    def prepare(self) -> None:
        self.prepared += 1


class HoldingLink(RecordingLink):
    """A line on which packets stay under way until they are let go, or the link is closed."""

    def __init__(self, landing: Path, concurrency: int) -> None:
        super().__init__(landing)
        self.concurrency = concurrency
        self.under_way: list[str] = []
        self.urgencies: list[int] = []
        self.let_go = threading.Event()
        self.closed = threading.Event()

    def send(self, packet: Path, urgency: int = 0, *, may_be_there: bool = False) -> bool:
        self.under_way.append(packet.name)
        self.urgencies.append(urgency)
        while not self.let_go.wait(0.01):
            if self.closed.is_set():
                raise LinkError("host: the link was closed")
        return super().send(packet, urgency)

    def close(self) -> None:
        self.closed.set()


def exposures_of(names: list[str]) -> list[int]:
    return [int(name.split("_")[1]) for name in names]


def in_background(telescope: Telescope) -> tuple[threading.Event, threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=telescope.push, kwargs={"once": False, "stop": stop})
    thread.start()
    return stop, thread


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
