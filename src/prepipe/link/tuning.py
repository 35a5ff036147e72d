"""How fast each connection may send, so that together they fill the line and not its queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prepipe import config
from prepipe.link.connection import Connection
from prepipe.link.dealer import Dealer
from prepipe.link.pacing import (
    RateFinder,
    bytes_per_s,
    connections_for,
    overdue_after,
    window_for,
)
from prepipe.link.protocol import CHUNK_BYTES
from prepipe.link.sockets import (
    default_congestion_control,
    pace,
    retry_often,
    state_of,
    use_congestion_control,
)

__all__ = ["Tuning"]

_UNKNOWN_RTT_S = 0.25
_MEASURED_OVER_S = 1.5
_MEASURED_BY_CHUNKS_OVER_S = 3.0
_MEASURED_OVER_CHUNKS = 12
"""Of each connection: paced alike they run in step, and their chunks arrive all at once."""
_SETTLES_S = 0.2
_GIVE_UP_S = 45.0
"""Later than ssh itself, which tells why."""
_SHARED = 4
"""Sessions over one connection of the user's; its server allows ten, the user's own included."""


class Tuning:
    """Gives each connection its share of the line, and as many connections as that takes.

    Parameters
    ----------
    settings : config.Link
    dealer : Dealer
    notice : callable
        Told what cannot be had and what is done instead: a keyword, and a sentence.

    Attributes
    ----------
    wanted : int
        Connections.
    """

    def __init__(
        self, settings: config.Link, dealer: Dealer, notice: Callable[[str, str], object]
    ) -> None:
        self._congestion = settings.congestion
        self._dealer = dealer
        self._notice = notice
        self._given = None if settings.rate == "auto" else float(settings.rate)
        self._finder = RateFinder()
        self._may_double = settings.connections is None
        self._shared = False
        self._open: tuple[Connection, ...] = ()
        self._busy_since: float | None = None
        self._busy_bytes = self._seen_bytes = 0
        self._settles_at = 0.0
        self._rtt_s = _UNKNOWN_RTT_S
        self.wanted = settings.connections or connections_for(self._given)

    @property
    def rate(self) -> float:
        """Of the line, as configured or found so far, Mbit/s."""
        return self._finder.rate if self._given is None else self._given

    @property
    def starts_slowly(self) -> bool:
        """Whether a connection takes longer to get up to speed than to send a chunk."""
        return CHUNK_BYTES / bytes_per_s(self.rate, self.wanted) < 2 * self._rtt_s

    def share_one(self) -> None:
        """All go through one connection of the user's own, which is not ours to tune."""
        self._shared = True
        self._may_double = False
        self.wanted = min(self.wanted, _SHARED)

    def begin(self, connection: Connection) -> None:
        """Ask for the congestion control on a connection that was opened."""
        copies = connection.take_sockets()
        for each in copies:
            retry_often(each, _GIVE_UP_S)
        name = self._congestion
        if not name or self._shared:
            return
        if copies:
            granted = all(use_congestion_control(each, name) for each in copies)
        else:
            granted = default_congestion_control() == name
        if granted:
            connection.congestion = name
        else:
            self._do_without(name)

    def _do_without(self, name: str) -> None:
        """Twice the connections, where each suffers more from a packet that is lost."""
        if self._may_double:
            self._may_double = False
            self.wanted *= 2
        self._notice(
            "congestion",
            f"this kernel does not allow congestion control {name}: a lossy line is slower "
            f"without, even over {self.wanted} connections (root: modprobe tcp_{name}, list it "
            "in net.ipv4.tcp_allowed_congestion_control)",
        )

    def share_out(self, connections: Sequence[Connection]) -> None:
        """Divide the line among those that are open."""
        if self._open != tuple(connections):
            self._open = tuple(connections)
            self._busy_since = None
        if not connections:
            return
        share = bytes_per_s(self.rate, len(connections))
        for each in connections:
            if each.share != share:
                self._set_pace(each, share)

    def _set_pace(self, connection: Connection, share: float) -> None:
        rtt_s = connection.least_rtt_s
        paced = [pace(each, share) for each in connection.sockets]
        if paced and all(paced):
            connection.pace.rate = None
            state = state_of(connection.sockets[0])
            rtt_s = max(rtt_s, state.least_rtt_s) if state else rtt_s
        else:
            connection.pace.rate = share
            if not self._shared:
                self._notice(
                    "pace",
                    "this kernel does not let a connection be paced from here; prepipe spreads "
                    "its writes by its own clock, which is coarser",
                )
        rtt_s = self._rtt_s = rtt_s or _UNKNOWN_RTT_S
        connection.share = share
        connection.window = window_for(share, rtt_s)
        self._dealer.overdue_s = overdue_after(share, rtt_s)

    def follow(self, now: float, acknowledged_bytes: int, *, complete: bool) -> None:
        """Find the line's rate from what it takes while there is always more to send.

        Parameters
        ----------
        now : float
            s
        acknowledged_bytes : int
            In chunks, so far; counted where the kernel does not tell what it carried.
        complete : bool
            Whether all connections are open: fewer tell nothing of the line.
        """
        if self._given is not None:
            return
        carried = self._carried_bytes()
        over_s = _MEASURED_OVER_S
        if carried is None:
            carried, over_s = acknowledged_bytes, self._chunks_spell_s()
        is_broken = carried < self._seen_bytes or not complete
        if is_broken or not self._dealer.has_chunks or now < self._settles_at:
            self._busy_since = None
        elif carried == self._seen_bytes:
            # a spell goes from one arrival to another: what comes in clumps is not cut
            return
        elif self._busy_since is None:
            # the first round trip tells nothing
            self._busy_since, self._busy_bytes = now, carried
        elif now - self._busy_since >= over_s:
            self._note_spell(now, carried)
        self._seen_bytes = carried

    def _carried_bytes(self) -> int | None:
        """Bytes that the far kernel acknowledged on what is open; None if ours does not tell.

        Smoother than whole chunks, which arrive in clumps.
        """
        if not all(each.sockets for each in self._open):
            return None
        states = [state_of(each) for connection in self._open for each in connection.sockets]
        return sum(each.acknowledged_bytes for each in states if each is not None)

    def _chunks_spell_s(self) -> float:
        """How long must be measured so that a clump of chunks more or less does not count, s."""
        share = bytes_per_s(self.rate, max(1, len(self._open)))
        return max(_MEASURED_BY_CHUNKS_OVER_S, _MEASURED_OVER_CHUNKS * CHUNK_BYTES / share)

    def _note_spell(self, now: float, carried: int) -> None:
        since = self._busy_since
        if since is not None and self._finder.note(carried - self._busy_bytes, now - since):
            # what is acknowledged next was sent at the old rate
            self._settles_at = now + 2 * self._rtt_s + _SETTLES_S
        self._busy_since, self._busy_bytes = now, carried
