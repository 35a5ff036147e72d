"""A push in a process of its own, to be killed: ``python push_victim.py ROOT``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tiny_raw import quick_site

from prepipe.cameras import load_camera
from prepipe.link.local import LocalLink
from prepipe.store import Journal
from prepipe.telescope import Push


class CountingLink(LocalLink):
    """Writes down each packet that is sent.

    It takes longest between the packet's arrival and the journal hearing of it, where being
    killed would hurt most.
    """

    concurrency = 6

    def __init__(self, landing: Path, log: Path) -> None:
        super().__init__(landing)
        self.log = log

    def send(self, packet: Path, urgency: int = 0) -> None:
        super().send(packet, urgency)
        with self.log.open("a") as stream:
            stream.write(f"{packet.name}\n")
        time.sleep(0.05)


def main(root: Path) -> int:
    site = quick_site(root)
    journal = Journal(site.telescope.work / "journal.sqlite")
    link = CountingLink(site.link.landing, root / "sent.log")
    print("begun", flush=True)
    report = Push(site, journal, link, load_camera("decam")).run(once=True)
    print(report, flush=True)
    return 0 if report.succeeded else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
