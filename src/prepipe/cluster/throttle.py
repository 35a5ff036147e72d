"""How much may be begun now."""

from __future__ import annotations

import math

__all__ = ["AHEAD", "RESERVE_BYTES", "Pace", "may_begin"]

AHEAD = 2
"""CCDs that wait inside the compute so that no worker ever does; more would spoil newest first."""

RESERVE_BYTES = 64 << 20
"""Free disk for each CCD under way: image, weight, mask and sources of the largest one known."""

_BURST_S = 5.0


def may_begin(slots: int, in_flight: int, free_bytes: int, under_way: int | None = None) -> int:
    """How many CCDs may be handed to the workers now.

    Parameters
    ----------
    slots : int
        Orders that are carried out at the same time.
    in_flight : int
        Orders handed out and not yet answered.
    free_bytes : int
        Free space where the products go, bytes. With little of it fewer are begun, so that a
        full disk makes CCDs wait instead of failing them.
    under_way : int, optional
        Most orders handed out and not yet answered; a little more than `slots` if not set.
    """
    by_disk = free_bytes // RESERVE_BYTES
    return max(0, min(under_way or slots + AHEAD, by_disk) - in_flight)


class Pace:
    """A steady rate: what was not begun in time is not caught up with beyond a few seconds.

    Parameters
    ----------
    per_minute : float or None
        None for as many as find room.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._per_second = math.inf if per_minute is None else per_minute / 60.0
        self._most = max(1.0, _BURST_S * self._per_second)
        self._saved = 1.0
        self._at: float | None = None

    def allowed(self, now: float) -> int | None:
        """How many may begin at time `now`, s; None if any number."""
        if math.isinf(self._per_second):
            return None
        if self._at is not None:
            self._saved = min(self._most, self._saved + (now - self._at) * self._per_second)
        self._at = now
        return int(self._saved + 1e-9)

    def begun(self) -> None:
        """Take note that one was begun."""
        self._saved -= 1.0
