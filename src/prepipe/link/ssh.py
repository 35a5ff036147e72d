"""The far side is any host with an SSH server and prepipe: a pool of paced connections.

Opened once and kept all night, so that no packet waits for a handshake. A thread looks after
them: opens what is missing, gives a silent one's chunks to the others, and closes it when another
has taken its place.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from pathlib import Path

from prepipe import config
from prepipe.errors import LinkError
from prepipe.files import content_checksum, storage_errors
from prepipe.link import openssh
from prepipe.link.advice import advice, is_passing
from prepipe.link.base import Held, known_place
from prepipe.link.connection import Connection
from prepipe.link.dealer import Dealer, Transfer
from prepipe.link.pacing import RateFinder, bytes_per_s, connections_for, overdue_after, window_for
from prepipe.link.protocol import Offer
from prepipe.link.sockets import pace, state_of, use_congestion_control
from prepipe.names import parse_name

__all__ = ["ConnectionState", "LinkState", "SshLink"]

_TICK_S = 0.1
_AT_A_TIME = 8
"""Handshakes under way together; sshd drops connections at random beyond ten."""
_BETWEEN_OPENINGS_S = 0.25
_QUICKEST_CONNECT_S = 5.0
_LONGEST_PAUSE_S = 30.0
_SILENT_S = 3.0
_INVENTORY_S = 900.0
_SKEW_S = 5.0
_ALIVE = 5, 6
"""ssh gives a connection up after 30 s without an answer."""


@dataclass(frozen=True)
class ConnectionState:
    """One connection, for people.

    Parameters
    ----------
    state : str
        ``opening``, ``open``, ``silent``.
    rtt_s : float
    in_flight : int
        Chunks.
    sent_bytes : int
        Acknowledged.
    """

    state: str
    rtt_s: float
    in_flight: int
    sent_bytes: int


@dataclass(frozen=True)
class LinkState:
    """The link at work, for people.

    Parameters
    ----------
    connections : tuple of ConnectionState
    rate : float or None
        Mbit/s; of the line, as configured or found; None if nothing is known yet.
    mbit_s : float
        Acknowledged over the last seconds.
    queued_bytes : int
    eta_s : float or None
        Until the queue is empty, s; None while nothing moves.
    trouble : str
        Why no connection is open; empty if one is.
    """

    connections: tuple[ConnectionState, ...]
    rate: float | None
    mbit_s: float
    queued_bytes: int
    eta_s: float | None
    trouble: str


class SshLink:
    """Packets over connections that stay open.

    Parameters
    ----------
    settings : config.Link
    on_notice : callable, optional
        Told once, in a sentence, what cannot be had and what is done instead.

    Raises
    ------
    ConfigError
        If ``ssh`` is not installed.
    """

    concurrency = 128
    """Packets that may be under way at a time; each is read from disk chunk by chunk."""

    def __init__(
        self, settings: config.Link, on_notice: Callable[[str], object] = lambda _: None
    ) -> None:
        openssh.need_programs("ssh")
        self._settings = settings
        self._tell = on_notice
        self._told: set[str] = set()
        self._rate = None if settings.rate == "auto" else float(settings.rate)
        self._finder = RateFinder() if self._rate is None else None
        self._wanted = settings.connections or connections_for(self._rate)
        self._lock = threading.RLock()
        self._connections: list[Connection] = []
        self._dealer = Dealer(self._wake)
        self._unfinished: set[str] = set()
        self._opened_at = time.time()
        self._closed = threading.Event()
        self._supervisor: threading.Thread | None = None
        self._next_opening = 0.0
        self._failures = 0
        self._verdicts = 0
        self._trouble = ""
        self._down_since = time.monotonic()
        self._was_open = False
        self._doubled = False
        self._connect_s = openssh.CONNECT_S
        self._shared = False
        self._history: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=50)
        self._past_bytes = 0
        self._busy_since = 0.0
        self._busy_bytes = 0

    def open(self) -> None:
        """Begin to connect, if that has not begun; nothing is waited for."""
        with self._lock:
            if self._supervisor is None and not self._closed.is_set():
                self._down_since = time.monotonic()
                self._supervisor = threading.Thread(
                    target=self._supervise, name="link", daemon=True
                )
                self._supervisor.start()

    def send(self, packet: Path, urgency: int = 0, place: str = "") -> None:
        """Put a packet into the landing directory; see `Link.send`.

        Parameters
        ----------
        packet : Path
        urgency : int
            Of several under way the highest goes first, chunk by chunk.
        place : str
            Empty, or ``archive`` for an original; the far side is asked first what it has of it.

        Raises
        ------
        PacketError
            If the file has no packet's name, or there is no such place.
        StorageError
            If the far side's disk is full, or the packet vanished here.
        LinkError
            If the far side cannot be reached, or does not take the packet.
        """
        parse_name(packet.name)
        known_place(place)
        self.open()
        with storage_errors(packet):
            descriptor = os.open(packet, os.O_RDONLY | os.O_CLOEXEC)
        transfer: Transfer | None = None
        try:
            with storage_errors(packet):
                status = os.fstat(descriptor)
                checksum = content_checksum(packet)
            offer = Offer(0, packet.name, status.st_size, checksum, place)
            ask_first = bool(place) or self._may_be_known(status.st_mtime, checksum)
            self._unfinished.add(checksum)
            transfer = self._dealer.add(packet, descriptor, offer, urgency, ask_first)
            self._wait_for(transfer)
            if transfer.error is not None:
                raise transfer.error
            self._unfinished.discard(checksum)
        finally:
            if transfer is None:
                os.close(descriptor)
            else:
                self._dealer.remove(transfer)
                transfer.close()

    def _may_be_known(self, mtime: float, checksum: str) -> bool:
        """Whether another run or another try may have begun to send a file."""
        return mtime < self._opened_at or checksum in self._unfinished

    def inventory(self) -> dict[str, Held]:
        """Names, bytes and checksums of the packets there; see `Link.inventory`.

        Raises
        ------
        LinkError
            If the far side cannot be asked.
        """
        self.open()
        try:
            files = self._first_open().list_files().result(_INVENTORY_S)
        except NotInTime:
            raise LinkError(f"{self._where}: no inventory within {_INVENTORY_S:.0f} s") from None
        return {name: Held(size, checksum) for name, size, checksum in files}

    def _first_open(self) -> Connection:
        verdicts = self._verdicts
        while True:
            with self._lock:
                ready = [each for each in self._connections if each.is_open]
            if ready:
                return ready[0]
            self._raise_if_hopeless(verdicts)
            time.sleep(_TICK_S)

    def state(self) -> LinkState:
        """What the link does at this moment."""
        with self._lock:
            connections = tuple(_state(each) for each in self._connections)
            trouble = "" if any(each.is_open for each in self._connections) else self._trouble
        began, before = self._history[0]
        now, total = self._history[-1]
        speed = (total - before) / (now - began) if now > began else 0.0
        queued = self._dealer.bytes_left
        rate = self._finder.rate if self._finder else self._rate
        return LinkState(
            connections, rate, speed * 8e-6, queued, queued / speed if speed else None, trouble
        )

    def close(self) -> None:
        """Close all connections; sends under way raise a `LinkError`."""
        self._closed.set()
        self._dealer.give_up(LinkError(f"{self._where}: the link was closed"))
        if self._supervisor is not None:
            self._supervisor.join()
        with self._lock:
            leaving = list(self._connections)
        closers = [threading.Thread(target=each.close) for each in leaving]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()

    @property
    def _where(self) -> str:
        return openssh.where(self._settings)

    def _wait_for(self, transfer: Transfer) -> None:
        verdicts = self._verdicts
        while not transfer.over.wait(0.5):
            self._raise_if_hopeless(verdicts)

    def _raise_if_hopeless(self, verdicts: int) -> None:
        """Raise if no connection is open, and waiting for one is vain.

        Parameters
        ----------
        verdicts : int
            How many tries had failed, for a reason that does not pass, when the wait began.
        """
        with self._lock:
            if self._closed.is_set():
                raise LinkError(f"{self._where}: the link was closed")
            if any(each.welcome is not None for each in self._connections):
                return
            down_s = time.monotonic() - self._down_since
            if self._verdicts > verdicts or down_s > self._settings.timeout_s:
                trouble = self._trouble or f"no answer within {down_s:.0f} s"
                raise LinkError(f"{self._where}: {trouble}")

    def _supervise(self) -> None:
        while not self._closed.wait(_TICK_S):
            self._look_after()
            self._take_stock()

    def _look_after(self) -> None:
        now = time.monotonic()
        with self._lock:
            for each in self._connections:
                if not each.stuck and each.welcome and each.silent_s(now) > self._patience(each):
                    each.stuck = True
                    self._dealer.returned(each, gone=False)
            healthy = [each for each in self._connections if each.is_open]
            opening = [each for each in self._connections if each.welcome is None]
            if len(healthy) >= self._wanted:
                self._close_surplus(healthy)
            elif self._may_open(now, len(healthy), len(opening)):
                self._open_one(now)

    def _patience(self, connection: Connection) -> float:
        return max(_SILENT_S, 8 * connection.rtt_s)

    def _close_surplus(self, healthy: list[Connection]) -> None:
        """Enough are healthy: those that are stuck, or came too late, are not needed."""
        for each in self._connections:
            if each not in healthy[: self._wanted]:
                each.kill()

    def _may_open(self, now: float, healthy: int, opening: int) -> bool:
        room = healthy + opening < self._wanted and opening < _AT_A_TIME
        return room and now >= self._next_opening

    def _open_one(self, now: float) -> None:
        self._next_opening = now + _BETWEEN_OPENINGS_S
        self._connections.append(Connection(self._command(), self._dealer, self._note_change))

    def _command(self) -> list[str]:
        connect_s = min(self._settings.timeout_s, self._connect_s)
        options = openssh.base_options(self._settings, connect_s, *_ALIVE)
        if not self._shared:
            # of its own: what shares one connection shares its one window
            options += ["-oControlMaster=no", "-oControlPath=none"]
        options += ["-oClearAllForwardings=yes", "-oRequestTTY=no", "-oCompression=no"]
        return ["ssh", *options, "--", self._settings.host, openssh.far_command(self._settings)]

    def _note_change(self, connection: Connection) -> None:
        """A connection opened, revived or ended; called in its own thread."""
        with self._lock:
            if connection.over:
                self._note_end(connection)
            elif connection.welcome is not None and connection.opened_at:
                self._note_open(connection)

    def _note_open(self, connection: Connection) -> None:
        took_s = connection.opened_at - connection.began
        if not connection.stuck and not connection.sockets:
            self._was_open = True
            # once it is known how long this takes, a try on a dead line ends soon, for the next
            self._connect_s = max(_QUICKEST_CONNECT_S, 2 * took_s)
            self._tune(connection)
            self._compare_clocks(connection)
        self._failures = 0
        self._trouble = ""
        self._down_since = 0.0

    def _note_end(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._past_bytes += connection.acknowledged_bytes
        if self._closed.is_set():
            return
        if connection.welcome is None:
            self._note_failure(connection)
        elif not self._down_since and not any(each.welcome for each in self._connections):
            self._down_since = time.monotonic()
            self._trouble = self._complaint(connection)

    def _complaint(self, connection: Connection) -> str:
        """What ended a connection, and what to do."""
        if connection.fault and (connection.reason or not connection.complaint.strip()):
            return connection.fault
        return advice(connection.complaint, self._where)

    def _note_failure(self, connection: Connection) -> None:
        """A connection could not be opened: wait before the next, the longer the less it helps."""
        self._trouble = self._complaint(connection)
        passing = not connection.reason and is_passing(connection.complaint)
        if not passing and self._try_shared(connection.complaint):
            return
        if passing and self._was_open:
            pause = _BETWEEN_OPENINGS_S
        else:
            self._verdicts += 1
            self._failures += 1
            pause = min(_LONGEST_PAUSE_S, 2.0 ** min(self._failures - 1, 10))
            pause = min(pause, 2.0) if passing else pause
        self._next_opening = time.monotonic() + pause

    def _try_shared(self, complaint: str) -> bool:
        """Where only the user's own open connection gets in, go through that one."""
        if self._shared or "Permission denied" not in complaint:
            return False
        if not openssh.has_shared_connection(self._settings):
            return False
        self._shared = True
        self._notice(
            f"{self._where}: only your own shared connection (ControlMaster) gets in; all packets "
            "go through that one, which is slower"
        )
        return True

    def _tune(self, connection: Connection) -> None:
        """Pace a connection and ask for its congestion control, as far as the kernel allows."""
        copies = connection.take_sockets()
        name = self._settings.congestion
        allowed = [use_congestion_control(each, name) for each in copies if name]
        if allowed and all(allowed):
            connection.congestion = name
        elif allowed:
            self._want_more()
            self._notice(
                f"this kernel does not allow congestion control {name}: a lossy line is slower "
                f"without, even over {self._wanted} connections (root: modprobe tcp_{name}, list "
                "it in net.ipv4.tcp_allowed_congestion_control)"
            )
        self._set_pace(connection)

    def _want_more(self) -> None:
        """Twice the connections, where each suffers more from a packet that is lost."""
        with self._lock:
            if self._settings.connections is None and not self._doubled:
                self._doubled = True
                self._wanted *= 2

    def _set_pace(self, connection: Connection) -> None:
        rate = self._finder.rate if self._finder else self._rate
        assert rate is not None
        share = bytes_per_s(rate, self._wanted)
        paced = [pace(each, share) for each in connection.sockets]
        rtt_s = connection.rtt_s
        if paced and all(paced):
            connection.pace.rate = None
            state = state_of(connection.sockets[0])
            rtt_s = max(rtt_s, state.least_rtt_s) if state else rtt_s
        else:
            connection.pace.rate = share
            self._notice(
                "this kernel does not let a connection be paced from here; prepipe spreads its "
                "writes by its own clock, which is coarser"
            )
        connection.window = window_for(share, rtt_s or 0.25)
        self._dealer.overdue_s = overdue_after(share, rtt_s or 0.25)

    def _compare_clocks(self, connection: Connection) -> None:
        assert connection.welcome is not None
        if not connection.welcome.time:
            return
        skew_s = connection.welcome.time - time.time()
        if abs(skew_s) > _SKEW_S + (connection.opened_at - connection.began):
            self._notice(
                f"the clock of {self._where} is {abs(skew_s):.0f} s "
                f"{'ahead' if skew_s > 0 else 'behind'}: latencies will be wrong; see that both "
                "ends keep time (chrony, ntpd)"
            )

    def _notice(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

    def _take_stock(self) -> None:
        """Remember what was acknowledged when; follow the line's rate if it is to be found."""
        with self._lock:
            total = self._past_bytes + sum(each.acknowledged_bytes for each in self._connections)
        now = time.monotonic()
        self._history.append((now, total))
        if self._finder is None:
            return
        if not self._dealer.busy:
            self._busy_since = 0.0
        elif not self._busy_since:
            self._busy_since, self._busy_bytes = now, total
        elif now - self._busy_since >= 1.0:
            if self._finder.note(total - self._busy_bytes, now - self._busy_since):
                with self._lock:
                    for each in self._connections:
                        if each.is_open:
                            self._set_pace(each)
            self._busy_since, self._busy_bytes = now, total

    def _wake(self) -> None:
        for each in list(self._connections):
            each.wake()


def _state(connection: Connection) -> ConnectionState:
    if connection.stuck:
        state = "silent"
    else:
        state = "open" if connection.welcome is not None else "opening"
    return ConnectionState(
        state, connection.rtt_s, connection.in_flight, connection.acknowledged_bytes
    )


def _passing(connection: Connection) -> bool:
    """Whether a connection failed because of the network, which comes back by itself."""
    return not connection.reason and is_passing(connection.complaint)
