"""The far side is any host with an SSH server and prepipe: a pool of paced connections.

Opened once and kept all night, so that no packet waits for a handshake::

    SshLink     send, inventory, state
     ├─ Dealer       the queue of chunks
     └─ Pool         opens connections, ends silent ones, says when waiting is vain
         ├─ Openings    when to open the next
         ├─ Tuning      the line's rate, shared out
         └─ Connection  one ssh and two threads; asks the dealer for work
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from pathlib import Path

from prepipe import config
from prepipe.errors import LinkError
from prepipe.link import openssh
from prepipe.link.base import ARCHIVE, Held, known_place
from prepipe.link.connection import Connection
from prepipe.link.dealer import Dealer
from prepipe.link.outgoing import Outgoing
from prepipe.link.pool import Pool
from prepipe.link.protocol import TRIAL, Welcome
from prepipe.link.sockets import SocketState, state_of
from prepipe.link.tuning import Tuning

__all__ = ["ConnectionState", "LinkState", "SshLink"]

_LOOK_S = 0.1
_INVENTORY_S = 900.0
_INVENTORY_TRIES = 3
_END_S = 5.0


@dataclass(frozen=True)
class ConnectionState:
    """One connection, for people.

    Parameters
    ----------
    state : str
        ``opening``, ``open``, ``silent`` or ``leaving``.
    rtt_s : float
    in_flight : int
        Chunks.
    sent_bytes : int
        Acknowledged.
    socket : SocketState or None
        What the kernel knows, if it tells.
    """

    state: str
    rtt_s: float
    in_flight: int
    sent_bytes: int
    socket: SocketState | None = None


@dataclass(frozen=True)
class LinkState:
    """The link at work, for people.

    Parameters
    ----------
    connections : tuple of ConnectionState
    rate : float
        Mbit/s; of the line, as configured or found so far.
    mbit_s : float
        Acknowledged over the last 5 s.
    queued_bytes : int
    eta_s : float or None
        Until the queue is empty, s; None while nothing moves.
    trouble : str
        Why no connection is open; empty if one is.
    far_end : Welcome or None
        How the far end introduced itself; None until it has.
    """

    connections: tuple[ConnectionState, ...]
    rate: float
    mbit_s: float
    queued_bytes: int
    eta_s: float | None
    trouble: str
    far_end: Welcome | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether something is under way, or nothing can be."""
        return bool(self.queued_bytes or self.trouble)


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
    recognises = True

    def __init__(
        self, settings: config.Link, on_notice: Callable[[str], object] = lambda _: None
    ) -> None:
        openssh.need_programs("ssh")
        self._where = openssh.where(settings)
        self._on_notice = on_notice
        self._noticed: set[str] = set()
        self._dealer = Dealer(self._wake)
        self._tuning = Tuning(settings, self._dealer, self._notice)
        self._pool = Pool(settings, self._dealer, self._tuning, self._notice)
        self._began = time.time()
        self._unfinished: set[str] = set()
        self._listing = threading.Lock()

    def open(self) -> None:
        """Begin to connect, if that has not begun; nothing is waited for."""
        self._pool.open()

    def wait_open(self) -> None:
        """Connect, and wait until the far end has answered.

        Raises
        ------
        LinkError
            If that is vain.
        """
        self.open()
        self._any_healthy()

    def send(
        self, packet: Path, urgency: int = 0, place: str = "", *, may_be_there: bool = False
    ) -> bool:
        """Put a packet into the landing directory; see `Link.send`.

        Parameters
        ----------
        packet : Path
        urgency : int
            Of several under way the highest goes first, chunk by chunk.
        place : str
            Empty, or ``archive`` for an original; the far side is asked first what it has of it.
        may_be_there : bool
            Whether it is asked so of another packet, too. It always is of one that was written
            before the link was made, or that another try has begun.

        Returns
        -------
        bool
            Whether it was there already, and nothing had to be sent.

        Raises
        ------
        PacketError
            If the file has no packet's name, or there is no such place.
        StorageError
            If the far side's disk is full, or the packet vanished here.
        LinkError
            If the far side cannot be reached, or does not take the packet.
        """
        known_place(place)
        return self._send(packet, urgency, place, may_be_there or place == ARCHIVE)

    def prepare(self) -> None:
        """Packets will come within seconds: open connections, and get them up to speed."""
        self._pool.prepare()

    def send_in_vain(self, noise: Path) -> None:
        """Send a file that the far end acknowledges and throws away, to measure the link.

        Raises
        ------
        LinkError
            If the far side cannot be reached.
        """
        self._send(noise, 0, TRIAL, may_be_there=False)

    def _send(self, packet: Path, urgency: int, place: str, may_be_there: bool) -> bool:
        outgoing = Outgoing(packet)
        try:
            self.open()
            return self._bring_over(outgoing, urgency, place, may_be_there)
        finally:
            outgoing.close()

    def _bring_over(self, packet: Outgoing, urgency: int, place: str, may_be_there: bool) -> bool:
        # what another run or another try began may be there in parts
        known = packet.changed_at < self._began or packet.checksum in self._unfinished
        ask_first = (known or may_be_there) and place != TRIAL
        self._unfinished.add(packet.checksum)
        transfer = self._dealer.add(packet, place=place, urgency=urgency, ask_first=ask_first)
        try:
            if self._pool.is_closed:
                # it may have been closed before it could let go of this one
                self._dealer.give_up(self._pool.why_give_up)
            transfer.over.wait()
            if transfer.error is not None:
                raise transfer.error
            self._unfinished.discard(packet.checksum)
            # asked again because the answer was lost, the far side says so of what was just sent
            return transfer.already and not transfer.there
        finally:
            self._dealer.remove(transfer)

    def inventory(self, since: int = 0) -> dict[str, Held]:
        """Names, bytes and checksums of the packets there; see `Link.inventory`.

        Parameters
        ----------
        since : int
            The far end reads every packet that it tells of; not those of earlier exposures.

        Raises
        ------
        LinkError
            If the far side cannot be asked.
        """
        self.open()
        with self._listing:
            for _ in range(_INVENTORY_TRIES - 1):
                try:
                    return self._ask(since)
                except ConnectionError:
                    pass
            try:
                return self._ask(since)
            except ConnectionError:
                raise LinkError(f"{self._where}: the connection broke time and again") from None

    def _ask(self, since: int) -> dict[str, Held]:
        connection = self._any_healthy()
        try:
            files = connection.list_files(since).result(_INVENTORY_S)
        except NotInTime:
            # what still comes of this list is not to be taken for a part of the next
            connection.give_up(f"it did not list what is there within {_INVENTORY_S:.0f} s")
            connection.wait(time.monotonic() + _END_S)
            raise LinkError(f"{self._where}: no inventory within {_INVENTORY_S:.0f} s") from None
        return {name: Held(size, checksum) for name, size, checksum in files}

    def _any_healthy(self) -> Connection:
        since = time.monotonic()
        while not (ready := self._pool.healthy()):
            if why := self._pool.why_vain(since):
                raise LinkError(why)
            time.sleep(_LOOK_S)
        return ready[0]

    def state(self) -> LinkState:
        """What the link does at this moment; cheap enough to ask several times a second."""
        speed = self._pool.speed.per_s
        queued = self._dealer.bytes_left
        return LinkState(
            tuple(_state_of(each) for each in self._pool.connections),
            self._tuning.rate,
            speed * 8e-6,
            queued,
            _seconds_for(queued, speed),
            "" if self._pool.healthy() else self._pool.trouble,
            next((each.welcome for each in self._pool.healthy()), None),
        )

    def close(self) -> None:
        """Close all connections; sends under way raise a `LinkError`."""
        self._pool.close()

    def _wake(self) -> None:
        self._pool.wake()

    def _notice(self, what: str, text: str) -> None:
        if what not in self._noticed:
            self._noticed.add(what)
            self._on_notice(text)


def _state_of(connection: Connection) -> ConnectionState:
    copies = connection.sockets
    return ConnectionState(
        connection.state,
        connection.rtt_s,
        connection.in_flight,
        connection.acknowledged_bytes,
        state_of(copies[0]) if copies else None,
    )


def _seconds_for(queued_bytes: int, bytes_per_s: float) -> float | None:
    if not queued_bytes:
        return 0.0
    return queued_bytes / bytes_per_s if bytes_per_s else None
