"""The same 60 packets by the programs that everybody has, over the same sshd."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from wan import HOST, Wan

from crossing.exposures import bytes_landed

QUICK = ("scp", "rsync")
ALL = (*QUICK, "sftp", "scp_one_file")


@dataclass(frozen=True)
class Crossed:
    """What a program did in its time."""

    seconds: float
    bytes: int
    whole: bool


def command(peer: str, ssh_config: Path, packets: list[Path], landing: Path) -> list[str]:
    """Program and arguments; sftp reads its commands from standard input."""
    target = f"{HOST}:{landing}/"
    if peer == "sftp":
        return ["sftp", "-q", "-F", str(ssh_config), "-b", "-", HOST]
    if peer == "rsync":
        return ["rsync", "-t", "-e", f"ssh -F {ssh_config}", *map(str, packets), target]
    files = [together(packets)] if peer == "scp_one_file" else packets
    return ["scp", "-q", "-F", str(ssh_config), *map(str, files), target]


def together(packets: list[Path]) -> Path:
    """All of them as one file."""
    path = packets[0].with_name("exposure")
    path.write_bytes(b"".join(packet.read_bytes() for packet in packets))
    return path


def cross(peer: str, wan: Wan, packets: list[Path], landing: Path, limit_s: float) -> Crossed:
    """Let a program send them from the near end; it is stopped after `limit_s`."""
    landing.mkdir(parents=True)
    steps = f"put {packets[0].parent}/* {landing}/\n" if peer == "sftp" else ""
    words = command(peer, wan.ssh_config, packets, landing)
    begin = time.monotonic()
    with wan.at_telescope():
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
    try:
        process.communicate(steps, timeout=limit_s)
    except subprocess.TimeoutExpired:
        seconds, landed = time.monotonic() - begin, bytes_landed(landing)
        process.kill()
        process.wait()
        return Crossed(seconds, landed, False)
    if process.returncode != 0:
        raise RuntimeError(f"{peer} ended with {process.returncode}")
    return Crossed(time.monotonic() - begin, bytes_landed(landing), True)


def installed(peer: str) -> bool:
    """Whether it can be compared with."""
    return shutil.which(peer.removesuffix("_one_file")) is not None
