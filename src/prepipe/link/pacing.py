"""How fast: connections for a rate, pacing by our own clock, and a rate found by trying."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

from prepipe.link.protocol import CHUNK_BYTES

__all__ = [
    "HEADERS",
    "Pace",
    "RateFinder",
    "bytes_per_s",
    "connections_for",
    "overdue_after",
    "window_for",
]

OF_RATE = 0.97
"""The part of the line's rate that is used: its queue must not fill."""

HEADERS = 1500 / 1448
"""Bytes on the line over bytes carried, in full packets of TCP with time stamps."""
_MBIT_A_CONNECTION = 25.0
"""At 240 ms a connection carries this with room to spare (ssh's own window of 2 MiB: 70)."""
_FEWEST, _MOST = 2, 16
_UNKNOWN_RATE_CONNECTIONS = 8
_NARROWEST, _WIDEST = 3, 16
_PART_BYTES = 32 * 1024


def connections_for(rate: float | None) -> int:
    """How many connections a line of `rate` Mbit/s takes: 4 at 100, 8 at 200, 16 at 500."""
    if rate is None:
        return _UNKNOWN_RATE_CONNECTIONS
    return min(max(math.ceil(rate / _MBIT_A_CONNECTION), _FEWEST), _MOST)


def bytes_per_s(rate: float, connections: int) -> float:
    """What one of so many connections may send, bytes / s, on a line of `rate` Mbit/s."""
    return OF_RATE * rate * 1e6 / 8 / connections


def window_for(pace: float, rtt_s: float) -> int:
    """How many chunks may be under way on a connection.

    Two round trips' worth, so that a packet that is lost and sent again does not halt it, and
    no more: what is under way is in the way of what is more urgent. Beyond ssh's own window
    nothing more is under way; it only waits.

    Parameters
    ----------
    pace : float
        bytes / s
    rtt_s : float
    """
    wanted = math.ceil(pace * (2 * rtt_s + 0.1) / CHUNK_BYTES) + 1
    return min(max(wanted, _NARROWEST), _WIDEST)


def overdue_after(pace: float, rtt_s: float) -> float:
    """When the answer to a chunk is late, near the end of the queue, s.

    By then it has waited for a few before it, and crossed.
    """
    return 4 * CHUNK_BYTES / pace + rtt_s + 0.1


class Pace:
    """Writes spread over time, for where the kernel cannot do it.

    Parameters
    ----------
    clock : callable
        Seconds, never set back.
    sleep : callable

    Attributes
    ----------
    rate : float or None
        bytes / s; None lets everything through.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self.rate: float | None = None
        self._due = 0.0

    def parts(self, data: memoryview) -> Iterator[memoryview]:
        """`data` in parts, each when it is time for it."""
        if self.rate is None:
            yield data
            return
        for begin in range(0, len(data), _PART_BYTES):
            part = data[begin : begin + _PART_BYTES]
            now = self._clock()
            if self._due > now:
                self._sleep(self._due - now)
            # it may have been set free meanwhile
            self._due = max(self._due, now) + len(part) / (self.rate or math.inf)
            yield part


class RateFinder:
    """The line's rate from what is acknowledged, followed through the night.

    It begins low and doubles as long as the line takes all that it is given. Then it keeps to
    what the line took, tries a little more now and then, and follows when that falls. When several
    tries in a row were taken, it doubles again: it had settled too low, or the line has more.

    Attributes
    ----------
    rate : float
        Mbit/s, of the packets with their headers.
    """

    _FULL = 0.93
    _ROOM = 1.02
    _MORE = 1.15
    _LEAST = 2.0
    _SHORT_SPELLS = 3
    _TAKEN_TRIES = 2
    _FIRST_REST, _LONGEST_REST = 2, 16
    """Spells between a try that failed and the next; twice as many after each."""

    def __init__(self, rate: float = 50.0) -> None:
        self.rate = rate
        self._starting = True
        self._before_try: float | None = None
        self._taken_tries = 0
        self._took: list[float] = []
        self._rest = 0
        self._next_rest = self._FIRST_REST

    def note(self, acknowledged_bytes: float, seconds: float) -> bool:
        """Take into account what was acknowledged in a spell with always more to send.

        Returns
        -------
        bool
            Whether the rate changed.
        """
        took = acknowledged_bytes * 8e-6 / seconds * HEADERS
        before = self.rate
        if took >= self._FULL * before:
            self._took.clear()
            self._note_full()
        else:
            self._took.append(took)
            self._note_less()
        self._rest -= 1
        self.rate = max(self.rate, self._LEAST)
        return self.rate != before

    def _note_full(self) -> None:
        """The line took all: give it more, if it is time for that."""
        if self._before_try is not None:
            self._next_rest = self._FIRST_REST
            self._taken_tries += 1
        self._before_try = None
        if self._starting or self._taken_tries >= self._TAKEN_TRIES:
            self._starting = True
            self.rate *= 2
        elif self._rest <= 0:
            self._before_try = self.rate
            self.rate *= self._MORE

    def _note_less(self) -> None:
        """The line took less: one spell may have been bad, several tell its rate."""
        self._taken_tries = 0
        if self._before_try is not None:
            self.rate, self._before_try = self._before_try, None
            self._rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, self._LONGEST_REST)
            self._took.clear()
        elif self._starting and len(self._took) == 2:
            self._starting = False
            self._settle()
        elif len(self._took) >= self._SHORT_SPELLS:
            self._settle()

    def _settle(self) -> None:
        """Keep to what the line takes."""
        self.rate = self._ROOM * statistics.median(self._took)
        self._took.clear()
