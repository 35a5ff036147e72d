"""An SSH server of our own, with its own keys, for tests of the ssh link."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import prepipe
from prepipe import config

PROGRAM = shutil.which("sshd") or "/usr/sbin/sshd"


def need_sshd() -> None:
    """Skip where there is no sshd; fail in CI, where there must be one."""
    if not Path(PROGRAM).exists() or shutil.which("ssh-keygen") is None:
        message = "no sshd here: install openssh-server"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PrivateSshd:
    """A server that can be started, killed and started again."""

    def __init__(self, directory: Path, address: str = "127.0.0.1") -> None:
        self.directory = directory
        self.address = address
        self.port = free_port()
        self.key = make_key(directory / "user_key")
        self.host_key = make_key(directory / "host_key")
        self.known_hosts = directory / "known_hosts"
        self._process: subprocess.Popen[bytes] | None = None
        self.trust_host()
        (directory / "authorized_keys").write_bytes((directory / "user_key.pub").read_bytes())
        (directory / "home").mkdir()
        (directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {address}\nHostKey {self.host_key}\n"
            f"PidFile none\nAuthorizedKeysFile {directory}/authorized_keys\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            "StrictModes no\nSubsystem sftp internal-sftp\n"
            # the prepipe under test, for a far end that is asked to run one
            f'SetEnv "PATH={Path(sys.executable).parent}:{os.environ["PATH"]}" '
            f'"PYTHONPATH={Path(prepipe.__file__).parents[1]}" '
            # what this user's shell does when it starts, and how long that takes, is not tested
            f'"HOME={directory / "home"}"\n'
        )

    def trust_host(self) -> None:
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [PROGRAM, "-D", "-e", "-f", self.directory / "sshd_config"],
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "sshd.log").open("ab"),
            start_new_session=True,
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex((self.address, self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError((self.directory / "sshd.log").read_text())

    def stop(self) -> None:
        """Take no new connections; those there are go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill the server and the processes of its connections, as a power cut would."""
        import psutil

        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None

    def settings(self, landing: Path, **changes: object) -> config.Link:
        options = (
            "-F/dev/null",
            f"-oIdentityFile={self.key}",
            "-oIdentitiesOnly=yes",
            "-oIdentityAgent=none",
            f"-oUserKnownHostsFile={self.known_hosts}",
            "-oGlobalKnownHostsFile=/dev/null",
        )
        chosen: dict[str, object] = {
            "kind": "ssh",
            "host": self.address,
            "port": self.port,
            "user": getpass.getuser(),
            "landing": landing,
            "options": options,
            "timeout_s": 10.0,
        }
        return config.Link.model_validate(chosen | changes)
