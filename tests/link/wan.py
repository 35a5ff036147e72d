"""A long line in this machine: two network namespaces, and an SSH server at the far end.

The line is wanlink's (``../shared/tools/wanlink``, beside the checkout), which needs root. A
thread enters an end itself (`Wan.at_telescope`) rather than through ``ip netns exec``: the
threads and programs it starts there stay there, so that one way serves a link inside the test,
which can be looked into, and a sender of its own, which can be killed.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest
from private_sshd import PROGRAM, PrivateSshd

from prepipe import config

SOURCE = Path(__file__).resolve().parents[3] / "shared" / "tools" / "wanlink" / "wanlink.c"
NAMESPACES = Path("/run/netns")
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
ALLOWED_CONGESTION = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
HOST = "cluster"
"""Alias of the far end in the ssh configuration."""

_NETWORK_NAMESPACE = 0x40000000
_numbers = itertools.count(1)
_compiling = threading.Lock()


def what_is_missing() -> str | None:
    """What a long line needs and this machine lacks, in one sentence."""
    needed = (
        (os.geteuid() == 0, "root"),
        (Path("/dev/net/tun").exists(), "/dev/net/tun"),
        (shutil.which("gcc"), "gcc"),
        (shutil.which("ip"), "ip of iproute2"),
        (shutil.which("setpriv"), "setpriv of util-linux"),
        (Path(PROGRAM).exists() and shutil.which("ssh-keygen"), "sshd of openssh-server"),
        (SOURCE.exists(), str(SOURCE)),
    )
    missing = [name for there, name in needed if not there]
    return f"no long line without {', '.join(missing)}" if missing else None


def need_wan() -> None:
    """Skip where no long line can be laid; fail in CI, where one can."""
    if message := what_is_missing():
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


class Wan:
    """One line and the SSH server at its far end; a context manager.

    Parameters
    ----------
    directory : Path
        Made for keys, ssh configuration and logs.
    congestion : str, optional
        Congestion control that the near end's sockets begin with; else that of this machine.
    **line : float
        What wanlink knows, with ``_`` for ``-``: `rtt` and `queue_ms` in ms, `rate` in Mbit/s
        of IP bytes, `loss` as the fraction of packets that vanish, each way.
    """

    def __init__(self, directory: Path, *, congestion: str | None = None, **line: float) -> None:
        directory.mkdir(parents=True)
        number = f"{os.getpid()}-{next(_numbers)}"
        self.telescope = f"telescope-{number}"
        self.cluster = f"cluster-{number}"
        self.directory = directory
        self.sshd = PrivateSshd(directory, "10.77.0.2")
        self.ssh_config = directory / "ssh_config"
        self.ssh_config.write_text(
            f"Host {HOST}\nHostName {self.sshd.address}\nPort {self.sshd.port}\nUser root\n"
            f"IdentityFile {self.sshd.key}\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {self.sshd.known_hosts}\nGlobalKnownHostsFile /dev/null\n"
            "StrictHostKeyChecking yes\nBatchMode yes\n"
        )
        self._congestion = congestion
        self._line = {"rtt": 240.0, "rate": 200.0} | line
        self._wanlink: subprocess.Popen[str] | None = None

    def __enter__(self) -> Wan:
        try:
            self._lay()
            with self.at_cluster():
                self.sshd.start()
            if self._congestion is not None:
                with self.at_telescope():
                    CONGESTION.write_text(self._congestion)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def at_telescope(self) -> AbstractContextManager[None]:
        """Be at the near end: this thread, and what it starts meanwhile, for good."""
        return _standing_in(self.telescope)

    def at_cluster(self) -> AbstractContextManager[None]:
        """Be at the far end: this thread, and what it starts meanwhile, for good."""
        return _standing_in(self.cluster)

    def settings(self, landing: Path, **changes: object) -> config.Link:
        """What a sender at the near end has to know."""
        chosen: dict[str, object] = {
            "kind": "ssh",
            "host": HOST,
            "landing": landing,
            "options": (f"-F{self.ssh_config}",),
        }
        return config.Link.model_validate(chosen | changes)

    def set(self, **line: float) -> None:
        """Change the line while it carries packets."""
        self._tell("set", *(f"{_key(name)}={value}" for name, value in line.items()))

    def outage(self, seconds: float, later: float = 0.0) -> None:
        """Carry nothing for so long, from now or `later` s on."""
        self._tell("outage", str(seconds), str(later))

    def statistics(self) -> dict[str, Any]:
        """Packets, bytes and drops: ``a_to_b`` is towards the cluster."""
        answer: dict[str, Any] = json.loads(self._tell("stats"))
        return answer

    def reset(self) -> None:
        """Count from zero again."""
        self._tell("reset")

    def processes(self, end: str) -> list[psutil.Process]:
        """What runs at an end, this process excepted."""
        found = []
        try:
            namespace = (NAMESPACES / end).stat()
        except FileNotFoundError:
            return []
        for process in psutil.process_iter():
            with suppress(OSError):
                own = Path(f"/proc/{process.pid}/ns/net").stat()
                if process.pid != os.getpid() and os.path.samestat(own, namespace):
                    found.append(process)
        return found

    def stop(self) -> None:
        """Kill what runs at both ends and take the line away."""
        self.sshd.kill()
        for end in (self.telescope, self.cluster):
            while left := self.processes(end):
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                time.sleep(0.01)
        if self._wanlink is not None:
            self._wanlink.terminate()
            self._wanlink.communicate()
            self._wanlink = None
        for end in (self.telescope, self.cluster):
            if (NAMESPACES / end).exists():
                subprocess.run(["ip", "netns", "del", end], check=True)

    def _lay(self) -> None:
        """Start wanlink, which ends with the thread that did, even if that is killed."""
        words = itertools.chain.from_iterable(
            (f"--{_key(name)}", str(value)) for name, value in self._line.items()
        )
        self._wanlink = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *self._program(), *words, "up"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._wanlink.stdout is not None
        said = self._wanlink.stdout.readline()
        if not said.startswith("wanlink pid"):
            raise RuntimeError(said + self._wanlink.stdout.read())

    def _program(self) -> tuple[str, ...]:
        with _compiling:
            program = Path(_compiled().name) / "wanlink"
        return (str(program), "-a", self.telescope, "-b", self.cluster)

    def _tell(self, *words: str) -> str:
        return subprocess.run(
            [*self._program(), *words], check=True, capture_output=True, text=True
        ).stdout


@functools.cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """Where wanlink lies, until this process ends."""
    directory = tempfile.TemporaryDirectory(prefix="prepipe-wanlink-")
    program = Path(directory.name) / "wanlink"
    subprocess.run(["gcc", "-O2", "-o", program, SOURCE, "-lm"], check=True)
    return directory


@contextmanager
def _standing_in(namespace: str) -> Iterator[None]:
    with (
        Path("/proc/thread-self/ns/net").open("rb") as home,
        (NAMESPACES / namespace).open("rb") as there,
    ):
        _set_namespace(there.fileno())
        try:
            yield
        finally:
            _set_namespace(home.fileno())


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _NETWORK_NAMESPACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _key(name: str) -> str:
    return name.replace("_", "-")
