"""The sockets of another process: found, paced and watched without root."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from prepipe.link import sockets
from prepipe.link.sockets import (
    begin_anew,
    default_congestion_control,
    pace,
    retry_often,
    sockets_of,
    state_of,
    use_congestion_control,
)

PACING = 47
GIVE_UP_MS = 18
RETRY_MS = 44

SENDER = """
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("connected", flush=True)
while sys.stdin.readline():
    s.sendall(bytes(100_000))
"""
WITH_A_SENDER = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""


class Child:
    """A process with a TCP connection to this one."""

    def __init__(self, *code: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self.process = subprocess.Popen(
                [sys.executable, "-c", *code, str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == "connected\n"
            self.peer, self.address = server.accept()

    def send(self) -> None:
        """Let it send 100,000 bytes, and take them."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        left = 100_000
        while left:
            left -= len(self.peer.recv(left))

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.peer.close()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child(SENDER)
    yield made
    made.end()


@pytest.fixture
def copy(child: Child) -> Iterator[socket.socket]:
    found = sockets_of(child.process.pid)
    if not found:
        pytest.skip("this kernel gives no copy of a child's sockets")
    yield found[0]
    for each in found:
        each.close()


def test_the_connection_of_a_child_is_found(child: Child, copy: socket.socket) -> None:
    assert copy.getsockname() == child.address
    assert copy.getpeername() == child.peer.getsockname()


def test_the_connection_of_a_childs_child_is_found() -> None:
    child = Child(WITH_A_SENDER, SENDER)
    found = sockets_of(child.process.pid)
    child.end()
    names = []
    for each in found:
        names.append(each.getsockname())
        each.close()
    if not found:
        pytest.skip("this kernel gives no copy of a child's sockets")
    assert names == [child.address]


def test_a_process_without_a_connection_has_none() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert sockets_of(process.pid) == []
    process.kill()
    process.wait()
    assert sockets_of(process.pid) == []


def test_sockets_that_are_no_connections_are_left_out(child: Child) -> None:
    code = (
        "import socket, sys\n"
        "made = [*socket.socketpair(), socket.socket(), socket.create_server(('127.0.0.1', 0))]\n"
        "made.append(socket.socket(type=socket.SOCK_DGRAM))\n"
        "print('made', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        assert sockets_of(process.pid) == []
        process.communicate("")


def test_a_rate_is_set_in_the_kernel(copy: socket.socket) -> None:
    assert pace(copy, 3_000_000.0)
    assert copy.getsockopt(socket.SOL_SOCKET, PACING) == 3_000_000


def test_a_rate_no_kernel_knows_is_brought_into_bounds(copy: socket.socket) -> None:
    assert pace(copy, 1e12)
    assert pace(copy, 0.0)
    assert copy.getsockopt(socket.SOL_SOCKET, PACING) == 10_000


def test_a_paced_connection_really_is_slow(child: Child, copy: socket.socket) -> None:
    child.send()
    assert pace(copy, 400_000.0)
    began = time.monotonic()
    for _ in range(5):
        child.send()
    assert time.monotonic() - began > 0.25


def test_a_congestion_control_is_set_and_one_that_is_none_is_refused(copy: socket.socket) -> None:
    assert use_congestion_control(copy, "reno")
    told = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert told.rstrip(b"\0") == b"reno"
    assert not use_congestion_control(copy, "none_such")


def test_a_connection_that_begins_anew_keeps_its_congestion_control(copy: socket.socket) -> None:
    name = default_congestion_control()
    begin_anew(copy, name)
    told = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert told.rstrip(b"\0") == name.encode()


def test_a_connection_on_which_something_was_lost_does_not_begin_anew(
    copy: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its congestion control would forget how much it may send, and stand still."""
    asked: list[str] = []
    monkeypatch.setattr(sockets, "use_congestion_control", lambda _, name: asked.append(name))
    state = sockets.state_of(copy)
    assert state is not None and state.is_calm
    monkeypatch.setattr(sockets, "state_of", lambda _: replace(state, is_calm=False))
    begin_anew(copy, "bbr")
    assert asked == []


def test_a_kernel_that_can_sends_again_every_second(copy: socket.socket) -> None:
    if not retry_often(copy, 45.0):
        pytest.skip("kernels before 6.15 cannot")
    assert copy.getsockopt(socket.IPPROTO_TCP, RETRY_MS) == 1000
    assert copy.getsockopt(socket.IPPROTO_TCP, GIVE_UP_MS) == 45_000


def test_the_kernel_tells_round_trip_and_segments(child: Child, copy: socket.socket) -> None:
    child.send()
    state = state_of(copy)
    assert state is not None
    assert 0 < state.least_rtt_s <= state.rtt_s < 1.0
    assert state.segments > 0
    assert state.retransmitted >= 0
    assert state.swift_bytes > 100_000


def test_the_kernel_tells_how_many_bytes_have_arrived(child: Child, copy: socket.socket) -> None:
    before = state_of(copy)
    child.send()
    until = time.monotonic() + 20
    while (now := state_of(copy)) is not None and now.acknowledged_bytes < 100_000:
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
    assert before is not None and now is not None
    assert now.acknowledged_bytes - before.acknowledged_bytes == 100_000


def test_what_is_no_connection_any_more_is_no_error(child: Child, copy: socket.socket) -> None:
    copy.close()
    assert not pace(copy, 1e6)
    assert not use_congestion_control(copy, "reno")
    assert state_of(copy) is None


def test_a_copy_outlives_its_process_and_ends_with_its_last_holder(
    child: Child, copy: socket.socket
) -> None:
    child.process.kill()
    child.process.wait()
    child.peer.settimeout(0.2)
    with pytest.raises(TimeoutError):
        child.peer.recv(1)
    copy.close()
    assert child.peer.recv(1) == b""
