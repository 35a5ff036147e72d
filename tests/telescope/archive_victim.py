"""An archive in a process of its own, to be killed: ``python archive_victim.py ROOT [CODEC]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from archive_end import DAY, LOSSY
from tiny_raw import quick_site

from prepipe.cameras import load_camera
from prepipe.link.local import LocalLink
from prepipe.store import Journal
from prepipe.telescope import Archive


class CountingLink(LocalLink):
    """Writes down each original that arrives anew.

    It takes longest between the arrival and the journal hearing of it.
    """

    concurrency = 3

    def __init__(self, landing: Path, log: Path) -> None:
        super().__init__(landing)
        self.log = log

    def send(self, packet: Path, urgency: int = 0, place: str = "") -> None:
        final = self.landing / place / packet.name
        was_there = final.exists()
        super().send(packet, urgency, place)
        if not was_there or final.samefile(packet):
            with self.log.open("a") as stream:
                stream.write(f"{packet.name}\n")
        time.sleep(0.05)


def main(root: Path, *codec: str) -> int:
    site = quick_site(root, pack={"codec": codec[0]} if codec else LOSSY)
    journal = Journal(site.telescope.work / "journal.sqlite")
    link = CountingLink(site.link.landing, root / "sent.log")
    work = Archive(site, journal, link, load_camera("decam"), clock=lambda: DAY)
    report = work.run(once=True)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
