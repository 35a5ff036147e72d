"""Ssh links to a private server on this machine, and what can be seen of them from outside."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from private_sshd import PrivateSshd
from receiving import NAME, content

import prepipe
from prepipe.link.ssh import LinkState, SshLink

SOURCE = Path(prepipe.__file__).parents[1]
FAR = shlex.join(["env", f"PYTHONPATH={SOURCE}", sys.executable, "-m", "prepipe"])
PATIENCE_S = 30.0


def far_script(directory: Path, code: str, name: str = "far.py") -> str:
    """A far side of our own: Python code that is started in place of prepipe."""
    script = directory / name
    script.write_text(code)
    return shlex.join(["env", f"PYTHONPATH={SOURCE}", sys.executable, str(script)])


@contextmanager
def linked(sshd: PrivateSshd, landing: Path, **changes: object) -> Iterator[SshLink]:
    """A link over two connections, closed at the end; its notices are in `notices`."""
    chosen: dict[str, object] = {"command": FAR, "connections": 2, "rate": 400.0}
    link = NoticedLink(sshd.settings(landing, **(chosen | changes)))
    try:
        yield link
    finally:
        link.close()


class NoticedLink(SshLink):
    """A link that remembers what it had to do without."""

    def __init__(self, settings: object) -> None:
        self.notices: list[str] = []
        super().__init__(settings, self.notices.append)


def packet(directory: Path, name: str = NAME, size: int = 600_000, seed: int = 0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_bytes(content(size, seed))
    return path


def packets(directory: Path, count: int, size: int = 100_000) -> list[Path]:
    return [
        packet(directory, f"decam_00000001_{number:02d}.packet", size, number)
        for number in range(count)
    ]


def wait_for(what: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Until it is so; fails if it takes too long."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def count(state: LinkState, of: str) -> int:
    return sum(each.state == of for each in state.connections)


def wait_until_open(link: SshLink, connections: int) -> None:
    link.open()
    wait_for(lambda: count(link.state(), "open") == connections)


def logins(sshd: PrivateSshd) -> int:
    return (sshd.directory / "sshd.log").read_text().count("Accepted publickey")


def receivers(landing: Path) -> list[psutil.Process]:
    """The far ends that write into a landing directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "receive" in words and str(landing) in words and "python" in words[0]:
                found.append(process)
    return found


def clients() -> list[psutil.Process]:
    """The ssh processes of this one."""
    return [
        process
        for process in psutil.Process().children()
        if process.name() == "ssh" and process.status() != psutil.STATUS_ZOMBIE
    ]


def in_background(link: SshLink, path: Path, urgency: int = 0) -> Future[None]:
    """A packet that is sent by a thread of its own."""
    done: Future[None] = Future()

    def send() -> None:
        try:
            done.set_result(link.send(path, urgency))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=send, daemon=True).start()
    return done


def send_all(link: SshLink, paths: list[Path]) -> None:
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(link.send, paths))


def acknowledged(link: SshLink) -> int:
    """Bytes that were sent and acknowledged so far, over all connections."""
    return link._pool.acknowledged_bytes


def are_there(landing: Path, paths: list[Path]) -> bool:
    """Whether these and nothing else are there, bit for bit."""
    assert sorted(each.name for each in landing.iterdir()) == sorted(each.name for each in paths)
    return all((landing / each.name).read_bytes() == each.read_bytes() for each in paths)
