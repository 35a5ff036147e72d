"""The TCP sockets of an ssh process: paced, watched, without root.

Linux lets the parent of a process take a copy of its descriptors (pidfd_getfd, since 5.6).
What cannot be had is no error: the caller goes on without, and says so.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "SocketState",
    "begin_anew",
    "default_congestion_control",
    "pace",
    "retry_often",
    "sockets_of",
    "state_of",
    "use_congestion_control",
]

_PIDFD_GETFD = 438
"""The same number on every architecture; linux/include/uapi/asm-generic/unistd.h."""
_SO_MAX_PACING_RATE = 47
_TCP_NOTSENT_LOWAT = 25
_TCP_USER_TIMEOUT = 18
_TCP_RTO_MAX_MS = 44
_RETRY_MS = 1000
_NOT_SENT_BYTES = 128 * 1024
"""More than this need not wait in the kernel: it would be in the way of what is more urgent."""

_INFO_BYTES = 160
_CALM = 0
"""TCP_CA_Open"""
_U32_AT = struct.Struct("=I")
_U64_AT = struct.Struct("=Q")


@dataclass(frozen=True)
class SocketState:
    """What the kernel knows of a connection.

    Parameters
    ----------
    rtt_s, least_rtt_s : float
        Smoothed and least round trip, s.
    segments, retransmitted : int
        Sent so far, and sent again.
    acknowledged_bytes : int
        By the other end's kernel, of all that was sent.
    is_calm : bool
        Whether nothing is known or feared to be lost of what is under way.
    swift_bytes : int
        Up to so many under way it doubles them every round trip; beyond it gropes its way.
    """

    rtt_s: float
    least_rtt_s: float
    segments: int
    retransmitted: int
    acknowledged_bytes: int = 0
    is_calm: bool = True
    swift_bytes: int = 1 << 31


def sockets_of(process_id: int) -> list[socket.socket]:
    """Copies of the TCP sockets of a process and its children; empty where none can be had.

    A connection through a jump host belongs to a child.
    """
    found: list[socket.socket] = []
    with suppress(psutil.Error):
        process = psutil.Process(process_id)
        for each in (process, *process.children(recursive=True)):
            found += _sockets(each.pid)
    return found


def _sockets(process_id: int) -> list[socket.socket]:
    taken: list[socket.socket] = []
    with suppress(OSError):
        handle = os.pidfd_open(process_id)
        try:
            for entry in Path(f"/proc/{process_id}/fd").iterdir():
                with suppress(OSError):
                    if str(entry.readlink()).startswith("socket:"):
                        taken += _tcp(_copy(handle, int(entry.name)))
        finally:
            os.close(handle)
    return taken


def _copy(handle: int, descriptor: int) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    copy = libc.syscall(_PIDFD_GETFD, handle, descriptor, 0)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=copy)


def _tcp(copy: socket.socket) -> list[socket.socket]:
    """The socket, if it is a connection over TCP to another host; else it is closed."""
    try:
        is_tcp = copy.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp and copy.type == socket.SOCK_STREAM:
            copy.getpeername()
            return [copy]
    except OSError:
        pass
    copy.close()
    return []


def pace(connection: socket.socket, bytes_per_s: float) -> bool:
    """Let the kernel send no faster than this, bytes / s; False if it cannot."""
    rate = min(max(round(bytes_per_s), 10_000), (1 << 31) - 1)
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOT_SENT_BYTES)
        return bool(connection.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE) == rate)
    except OSError:
        return False


def retry_often(connection: socket.socket, give_up_s: float) -> bool:
    """Let the kernel send again every second, however long nothing was answered.

    Else it waits twice as long after each try, and finds out late that a line is back. Kernels
    before 6.15 cannot.

    Parameters
    ----------
    connection : socket
    give_up_s : float
        It is not the kernel that gives up before this time, s.
    """
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, round(give_up_s * 1000))
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, _RETRY_MS)
    except OSError:
        return False
    return True


def use_congestion_control(connection: socket.socket, name: str) -> bool:
    """Ask for a congestion control by its kernel name; False if it is refused."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError:
        return False
    return True


def default_congestion_control() -> str:
    """What the kernel gives a connection unasked; empty if it does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return ""


def begin_anew(connection: socket.socket, name: str) -> None:
    """Let a congestion control forget what it measured; nothing happens where it may not be set.

    BBR empties the line for a round trip once every 10 s to see how long that is. On a paced
    connection, which fills no queue, there is nothing to see, and at 240 ms it costs a tenth of an
    exposure's time: begun anew before those 10 s are over, it goes on at full speed. Not while
    something is lost, though: what it forgets then is how much it may send.
    """
    state = state_of(connection)
    if state is not None and state.is_calm and use_congestion_control(connection, "reno"):
        use_congestion_control(connection, name)


def state_of(connection: socket.socket) -> SocketState | None:
    """What the kernel knows; offsets are those of struct tcp_info in linux/tcp.h."""
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    if len(told) < _INFO_BYTES:
        return None

    def number(offset: int) -> int:
        return int(_U32_AT.unpack_from(told, offset)[0])

    return SocketState(
        rtt_s=number(68) / 1e6,
        least_rtt_s=number(148) / 1e6,
        segments=number(136),
        retransmitted=number(100),
        acknowledged_bytes=int(_U64_AT.unpack_from(told, 120)[0]),
        is_calm=told[1] == _CALM,
        swift_bytes=number(76) * number(16),
    )
