"""The long line that tests and benchmarks send over: it is as long and as bad as it says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from private_sshd import make_key
from ssh_links import FAR, are_there, packets, send_all, wait_for
from wan import HOST, NAMESPACES, Wan, need_wan

from prepipe.errors import LinkError
from prepipe.link.sftp import SftpLink
from prepipe.link.ssh import SshLink

NAME = "decam_00941420_25.packet"


@pytest.fixture
def wan(tmp_path: Path) -> Iterator[Wan]:
    need_wan()
    with Wan(tmp_path / "wan", rtt=20, rate=100) as line:
        yield line


def connect(wan: Wan) -> float:
    """Seconds that a handshake takes."""
    with wan.at_telescope():
        begin = time.monotonic()
        socket.create_connection((wan.sshd.address, wan.sshd.port), timeout=30).close()
        return time.monotonic() - begin


def packet(directory: Path) -> Path:
    path = directory / NAME
    path.write_bytes(bytes(range(256)) * 4000)
    return path


def test_a_link_in_this_process_sends_from_the_near_end_to_the_far_end(
    wan: Wan, tmp_path: Path
) -> None:
    sent = packet(tmp_path)
    landing = tmp_path / "landing"
    landing.mkdir()
    with wan.at_telescope():
        link = SftpLink(wan.settings(landing))
        link.send(sent)
        link.close()
    assert (landing / NAME).read_bytes() == sent.read_bytes()
    assert wan.statistics()["a_to_b"]["tx_bytes"] > sent.stat().st_size


@contextmanager
def pool(wan: Wan, landing: Path, **changes: object) -> Iterator[SshLink]:
    """A link that opens its connections at the near end of the line."""
    landing.mkdir()
    link = SshLink(wan.settings(landing, command=FAR, **changes))
    with wan.at_telescope():
        link.open()
    try:
        yield link
    finally:
        link.close()


def test_a_pool_brings_all_over_a_long_line_that_loses_packets(wan: Wan, tmp_path: Path) -> None:
    wan.set(rtt=240, loss=1e-3)
    sent = packets(tmp_path / "out", 20, 1_000_000)
    landing = tmp_path / "landing"
    with pool(wan, landing, rate=100.0, connections=4) as link:
        send_all(link, sent)
        assert are_there(landing, sent)
    assert wan.statistics()["a_to_b"]["drop_loss"] > 0


def test_a_line_of_unknown_rate_is_filled_for_the_most_part(wan: Wan, tmp_path: Path) -> None:
    wan.set(rtt=240)
    noise = tmp_path / "trial_00000000_01.packet"
    noise.write_bytes(os.urandom(8 << 20))
    enough = threading.Event()

    def keep_sending() -> None:
        while not enough.is_set():
            link.send_in_vain(noise)

    with pool(wan, tmp_path / "landing") as link, ThreadPoolExecutor(6) as threads:
        sending = [threads.submit(keep_sending) for _ in range(6)]
        try:
            wait_for(lambda: link.state().mbit_s > 75, 60)
        finally:
            enough.set()
        assert all(each.exception() is None for each in sending)


def test_a_program_started_at_the_near_end_stays_there(wan: Wan) -> None:
    with wan.at_telescope():
        sender = subprocess.Popen(["sleep", "60"])
    assert [process.pid for process in wan.processes(wan.telescope)] == [sender.pid]
    sender.kill()
    sender.wait()


def test_this_process_is_where_it_was_afterwards(wan: Wan) -> None:
    home = Path("/proc/thread-self/ns/net").stat().st_ino
    with pytest.raises(ZeroDivisionError), wan.at_telescope():
        assert Path("/proc/thread-self/ns/net").stat().st_ino != home
        _ = 1 / 0
    assert Path("/proc/thread-self/ns/net").stat().st_ino == home


def test_the_line_is_as_long_as_it_was_made_and_can_be_made_longer(wan: Wan) -> None:
    assert connect(wan) >= 0.020
    wan.set(rtt=300)
    assert connect(wan) >= 0.300


def test_nothing_crosses_during_an_outage(wan: Wan) -> None:
    begin = time.monotonic()
    wan.outage(1.5)
    connect(wan)
    assert time.monotonic() - begin >= 1.5
    assert wan.statistics()["a_to_b"]["drop_outage"] > 0


def test_a_host_that_is_not_known_is_never_accepted(wan: Wan, tmp_path: Path) -> None:
    wan.sshd.known_hosts.write_text("")
    with wan.at_telescope():
        command = ["ssh", "-F", wan.ssh_config, HOST, "true"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        link = SftpLink(wan.settings(tmp_path / "landing"))
        with pytest.raises(LinkError, match="host key is not known"):
            link.send(packet(tmp_path))
        link.close()
    assert "Host key verification failed" in said.stderr
    assert wan.sshd.known_hosts.read_text() == ""


def test_a_host_with_another_key_than_the_known_one_is_never_accepted(
    wan: Wan, tmp_path: Path
) -> None:
    kind, key = make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    wan.sshd.known_hosts.write_text(f"[{wan.sshd.address}]:{wan.sshd.port} {kind} {key}\n")
    with wan.at_telescope():
        link = SftpLink(wan.settings(tmp_path / "landing"))
        with pytest.raises(LinkError, match="not the one this user knows"):
            link.send(packet(tmp_path))
        link.close()


def test_two_lines_at_a_time_do_not_meet(wan: Wan, tmp_path: Path) -> None:
    with Wan(tmp_path / "other", rtt=20) as other:
        other.outage(60)
        connect(wan)
    connect(wan)


def test_a_failure_leaves_no_namespace_and_no_process(tmp_path: Path) -> None:
    need_wan()
    with pytest.raises(ZeroDivisionError), Wan(tmp_path / "wan", rtt=20) as wan:
        with wan.at_telescope():
            sender = subprocess.Popen(["ssh", "-F", wan.ssh_config, HOST, "sleep", "60"])
        _ = 1 / 0
    # killed, or its server was before it
    assert sender.wait() in (-signal.SIGKILL, 255)
    assert not (NAMESPACES / wan.telescope).exists()
    assert not (NAMESPACES / wan.cluster).exists()


def test_a_test_that_is_killed_leaves_no_namespace(tmp_path: Path) -> None:
    need_wan()
    script = (
        "import sys, time, pathlib, wan\n"
        "with wan.Wan(pathlib.Path(sys.argv[1]), rtt=20) as line:\n"
        "    print(line.telescope, flush=True)\n"
        "    time.sleep(60)\n"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "wan"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    assert victim.stdout is not None
    telescope = victim.stdout.readline().strip()
    assert (NAMESPACES / telescope).exists()
    (sshd,) = (each for each in psutil.Process(victim.pid).children() if each.name() == "sshd")
    victim.kill()
    sshd.kill()
    victim.communicate()
    end = time.monotonic() + 20
    while (NAMESPACES / telescope).exists():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
