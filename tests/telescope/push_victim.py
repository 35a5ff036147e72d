"""A push in a process of its own, to be killed: ``python push_victim.py ROOT [NAME]``.

With a name it is one of several that share the raw directory and divide the exposures.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tiny_raw import quick_site

from prepipe.cameras import load_camera
from prepipe.link.local import LocalLink
from prepipe.store import Journal
from prepipe.telescope import Push

TAKEOVER_S = 3.0
"""Longer than a loaded machine lets a push wait for its turn."""


class CountingLink(LocalLink):
    """Writes down each packet that is sent.

    It takes longest between the packet's arrival and the journal hearing of it, where being
    killed would hurt most.
    """

    concurrency = 6

    def __init__(self, landing: Path, log: Path, pause_s: float) -> None:
        super().__init__(landing)
        self.log = log
        self.pause_s = pause_s

    def send(self, packet: Path, urgency: int = 0, *, may_be_there: bool = False) -> bool:
        super().send(packet, urgency)
        with self.log.open("a") as stream:
            stream.write(f"{packet.name}\n")
        time.sleep(self.pause_s)
        return False


def main(root: Path, name: str = "") -> int:
    shared = {"work": name, "share": "share", "takeover_s": TAKEOVER_S} if name else {}
    site = quick_site(root, telescope=shared)
    journal = Journal(site.telescope.work / "journal.sqlite")
    link = CountingLink(site.link.landing, root / "sent.log", 0.3 if name else 0.05)
    print("begun", flush=True)
    if name:
        _wait_for_the_others(root, name)
    report = Push(site, journal, link, load_camera("decam")).run(once=True)
    print(report, flush=True)
    return 0 if report.succeeded else 1


def _wait_for_the_others(root: Path, name: str) -> None:
    (root / f"{name}.ready").touch()
    while not (root / "go").exists():
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
