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
        self._busy_since: float | None = None
        self._busy_bytes = 0
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
            So far.
        complete : bool
            Whether all connections are open: fewer tell nothing of the line.
        """
        if self._given is not None:
            return
        if not self._dealer.has_chunks or not complete or now < self._settles_at:
            self._busy_since, self._busy_bytes = None, acknowledged_bytes
        elif self._busy_since is None:
            # the first round trip tells nothing
            if acknowledged_bytes > self._busy_bytes:
                self._busy_since = now
            self._busy_bytes = acknowledged_bytes
        elif now - self._busy_since >= _MEASURED_OVER_S:
            took = acknowledged_bytes - self._busy_bytes
            if self._finder.note(took, now - self._busy_since):
                # what is acknowledged next was sent at the old rate
                self._settles_at = now + 2 * self._rtt_s + _SETTLES_S
            self._busy_since, self._busy_bytes = now, acknowledged_bytes
