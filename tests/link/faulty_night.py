"""A night over the ssh link whose every part can be killed: camera, push, connections, server."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
from astropy.io import fits
from private_sshd import PrivateSshd
from ssh_links import FAR, SOURCE, receivers, wait_for

from prepipe.codec.packet import verify
from prepipe.config import Link
from prepipe.model import Stage
from prepipe.store import Journal

FIRST = 941420
EVENING = datetime(2020, 3, 6, 0, 4, 15, tzinfo=UTC)
CCDS = (25, 1, 44, 60)
SHAPE = 600, 700
"""700 KB a CCD once compressed: three chunks."""
RATE, CONNECTIONS = 8.0, 4
PATIENCE_S = 60.0


def expose(raw: Path, number: int) -> None:
    """Write a raw exposure of random pixels, as an instrument that renames does."""
    rng = np.random.default_rng(number)
    primary = fits.PrimaryHDU()
    start = EVENING + timedelta(minutes=number - FIRST)
    primary.header.update(
        {
            "EXPNUM": number,
            "OBSTYPE": "object",
            "OBJECT": "Prime, field 1",
            "FILTER": "g DECam SDSS c0001 4720.0 1520.0",
            "DATE-OBS": start.isoformat().removesuffix("+00:00"),
            "EXPTIME": 20.0,
        }
    )
    hdus = [primary]
    for ccd in CCDS:
        pixels = rng.integers(0, 8192, SHAPE, dtype=np.uint16)
        hdus.append(fits.CompImageHDU(pixels, name=f"X{ccd}"))
        hdus[-1].header["CCDNUM"] = ccd
    path = raw / f"DECam_{number:08d}.fits.fz"
    fits.HDUList(hdus).writeto(raw / f".{path.name}")
    (raw / f".{path.name}").rename(path)


class Night:
    """The telescope's end in a process of its own, a private server, and who kills them.

    Parameters
    ----------
    root : Path
    seed : int
        Of what is chosen to be killed.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.raw, self.landing = root / "raw", root / "far" / "landing"
        for directory in (self.raw, self.landing, root / "sshd"):
            directory.mkdir(parents=True)
        self.sshd = PrivateSshd(root / "sshd")
        self.log = root / "push.log"
        self.random = random.Random(seed)
        self.exposures = 0
        self.landed: dict[str, int] = {}
        self._halted: list[threading.Timer] = []
        link = self.sshd.settings(
            self.landing, command=FAR, rate=RATE, connections=CONNECTIONS, timeout_s=60.0
        )
        (root / "prepipe.toml").write_text(_settings(link))

    @contextmanager
    def begun(self) -> Iterator[Night]:
        """Within it server and push are at work."""
        self.sshd.start()
        self.start_push()
        try:
            wait_for(self._journal_path.exists)
            self.journal = Journal(self._journal_path)
            yield self
            self.journal.close()
        finally:
            self.let_go_on()
            self.push.kill()
            self.push.wait()
            self.sshd.kill()

    @property
    def _journal_path(self) -> Path:
        return self.root / "telescope" / "journal.sqlite"

    def start_push(self) -> None:
        self.push = subprocess.Popen(
            [sys.executable, "-m", "prepipe", "push", "--config", self.root / "prepipe.toml"],
            env={"PYTHONPATH": str(SOURCE), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("ab"),
        )

    def expose(self) -> None:
        """The camera writes one more exposure."""
        expose(self.raw, FIRST + self.exposures)
        self.exposures += 1

    def is_all_sent(self) -> bool:
        return len(self.journal.rows(Stage.SENT)) == self.exposures * len(CCDS)

    def look_at_landing(self) -> None:
        """What bears a final name is whole from the first moment, and is never put there anew."""
        for path in self.landing.glob("[!.]*"):
            inode = path.stat().st_ino
            if path.name not in self.landed:
                verify(path)
            assert self.landed.setdefault(path.name, inode) == inode, f"{path.name} came twice"

    def arrived_bytes(self) -> int:
        """All that lies in the landing directory, partial files with holes too."""
        total = 0
        for path in self.landing.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_blocks
        return 512 * total

    def wait_until_it_goes_on(self) -> None:
        """Wait until more has arrived, of one more exposure if there is nothing to send."""
        if self.is_all_sent():
            self.expose()
        before = self.arrived_bytes()
        wait_for(lambda: self.arrived_bytes() > before or self.is_all_sent(), PATIENCE_S)

    def kill_push(self) -> None:
        self.push.kill()
        self.push.wait()
        self.start_push()

    def kill_client(self) -> None:
        self._strike(self.clients)

    def kill_receiver(self) -> None:
        self._strike(lambda: receivers(self.landing))

    def kill_all_receivers(self) -> None:
        self._strike(lambda: receivers(self.landing), all_of_them=True)

    def kill_server_side(self) -> None:
        """The server's process of a connection."""
        self._strike(self.server_sides)

    def kill_server(self) -> None:
        """No new connections for a moment; those there are go on."""
        self.sshd.stop()
        time.sleep(self.random.uniform(0.0, 0.5))
        self.sshd.start()

    def reboot(self) -> None:
        """The server with all that runs there."""
        victims = [*self.server_sides(), *receivers(self.landing)]
        self.sshd.kill()
        for victim in victims:
            _send(victim, signal.SIGKILL)
        time.sleep(self.random.uniform(0.0, 0.5))
        self.sshd.start()

    def halt(self) -> None:
        """Stop one end of a connection for some seconds; the others live."""
        ends = (self.clients, self.server_sides, lambda: receivers(self.landing))
        victim = self._victim(self.random.choice(ends))
        _send(victim, signal.SIGSTOP)
        seconds = self.random.uniform(0.5, 6.0)
        resume = threading.Timer(seconds, _send, (victim, signal.SIGCONT))
        resume.start()
        self._halted.append(resume)

    def let_go_on(self) -> None:
        """Wait until nothing is halted any more."""
        for resume in self._halted:
            resume.join()

    def clients(self) -> list[psutil.Process]:
        """The ssh processes of push."""
        with suppress(psutil.NoSuchProcess):
            return [each for each in psutil.Process(self.push.pid).children() if _is_a(each, "ssh")]
        return []

    def server_sides(self) -> list[psutil.Process]:
        """The server's process of each connection, those of a killed server too."""
        return [
            each for each in psutil.process_iter() if _is_a(each, "sshd") and self._serves(each)
        ]

    def _serves(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            connections = process.net_connections("tcp")
            return any(each.raddr and each.laddr.port == self.sshd.port for each in connections)
        return False

    def processes(self) -> list[psutil.Process]:
        """All that serves a connection, or served one, at either end."""
        key = f"-oIdentityFile={self.sshd.key}"
        clients = []
        for each in psutil.process_iter():
            with suppress(psutil.Error):
                if _is_a(each, "ssh") and key in each.cmdline():
                    clients.append(each)
        return [*clients, *self.server_sides(), *receivers(self.landing)]

    def _strike(
        self, victims: Callable[[], list[psutil.Process]], *, all_of_them: bool = False
    ) -> None:
        chosen = self._victim(victims)
        for victim in victims() if all_of_them else [chosen]:
            _send(victim, signal.SIGKILL)

    def _victim(self, victims: Callable[[], list[psutil.Process]]) -> psutil.Process:
        """One of them, as soon as there is one."""
        until = time.monotonic() + PATIENCE_S
        while not (found := victims()):
            assert time.monotonic() < until, "waited in vain"
            # a look at all processes of a machine is not cheap
            time.sleep(0.1)
        return self.random.choice(found)


def _is_a(process: psutil.Process, program: str) -> bool:
    """Whether it runs a program, and runs yet."""
    with suppress(psutil.Error):
        return process.name() == program and process.status() != psutil.STATUS_ZOMBIE
    return False


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _settings(link: Link) -> str:
    chosen = link.model_dump(mode="json", exclude_none=True)
    lines = [f"{name} = {json.dumps(value)}" for name, value in chosen.items()]
    return "\n".join(
        (
            "[telescope]\npoll_s = 0.1",
            '[pack]\ncodec = "none"\nworkers = 1',
            '[push]\nmethod = "batch"',
            "[link]",
            *lines,
            "",
        )
    )
