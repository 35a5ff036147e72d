"""The telescope's end: a process that opens one link, sends what it is told to, and says when.

It reads lines of JSON: the link's settings, then the paths of the packets of each round. It
answers each with a line. Before the first packet it prepares the link as a push does that sees
the raw file grow, and waits for 1.5 s, as it does for the first packet to be packed.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prepipe import config
from prepipe.errors import TransientError
from prepipe.link import Link, open_link

AGAIN_S = 0.5
PACKING_S = 1.5


def main() -> None:
    """Serve until standard input ends."""
    settings = config.Link.model_validate_json(sys.stdin.readline())
    link = open_link(settings, lambda text: print(text, file=sys.stderr))
    tell({"concurrency": link.concurrency})
    for line in sys.stdin:
        tell(send_all(link, [Path(path) for path in json.loads(line)]))
    link.close()


def send_all(link: Link, packets: list[Path]) -> dict[str, Any]:
    """Send all of them, as often as it takes."""
    link.prepare()
    time.sleep(PACKING_S)
    began = time.time()
    with ThreadPoolExecutor(link.concurrency) as threads:
        said = list(threads.map(lambda packet: send(link, packet), packets))
    return {
        "began": began,
        "seconds": time.time() - began,
        "complaints": [complaint for each in said for complaint in each],
        "peak_mib": peak_mib(),
    }


def send(link: Link, packet: Path) -> list[str]:
    """Send one packet; what went wrong before it was through."""
    complaints = []
    while True:
        try:
            link.send(packet)
        except TransientError as error:
            complaints.append(str(error))
            time.sleep(AGAIN_S)
        else:
            return complaints


def peak_mib() -> float:
    """Most memory that this process ever held; getrusage counts its parent's too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def tell(answer: dict[str, Any]) -> None:
    """One line to whoever listens."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
