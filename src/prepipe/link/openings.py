"""When the next connection is opened, and how long that may take; a policy, without any ssh."""

from __future__ import annotations

__all__ = ["Openings"]

AT_A_TIME = 8
"""Handshakes under way together; sshd drops connections at random beyond ten."""
_BETWEEN_S = 0.25
_SWIFT_TRIES = 4
_QUICKEST_CONNECT_S = 5.0
_LONGEST_CONNECT_S = 30.0
_LEAST_LIMIT_S = 10.0
_LONGEST_LIMIT_S = 60.0
_LONGEST_PAUSE_S = 30.0
_WIDEST_BETWEEN_S = 0.8
_LONGEST_PAUSE_AFTER_LOSS_S = 5.0
_SHORT_LIFE_S = 10.0


class Openings:
    """Tells when to open one more connection.

    The first one goes alone: where it does not get in, eight would not, and a server may lock
    out whoever knocks so often in vain. On a line that is down tries begin at even intervals
    and end soon, for one that waits for its first packet to be sent again notices late that
    the line is back.

    Parameters
    ----------
    timeout_s : float
        No try takes longer to be answered, s.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._took_s: float | None = None
        self._last_begun = float("-inf")
        self._not_before = float("-inf")
        self._last_news = float("-inf")
        self._last_loss = float("-inf")
        self._spacing = _BETWEEN_S
        self._in_vain = 0
        self._failures = 0
        self._short_lives = 0

    @property
    def failures(self) -> int:
        """Tries that failed one after the other since the last one that did not."""
        return self._failures

    @property
    def ever(self) -> bool:
        """Whether any was ever opened."""
        return self._took_s is not None

    @property
    def connect_s(self) -> float:
        """How long the server may take to answer, s."""
        known = _LONGEST_CONNECT_S if self._took_s is None else 2 * self._took_s
        return min(max(known, _QUICKEST_CONNECT_S), self._timeout_s, _LONGEST_CONNECT_S)

    @property
    def limit_s(self) -> float:
        """How long all of it may take, from the first packet to prepipe's greeting, s."""
        if self._took_s is None:
            return min(_LONGEST_LIMIT_S, self._timeout_s)
        # a login node that has just been booted is slower than it was
        patience = 2.0 ** min(self._in_vain // (2 * AT_A_TIME), 10)
        return min(max(3 * self._took_s, _LEAST_LIMIT_S) * patience, _LONGEST_LIMIT_S)

    def is_time(self, now: float, missing: int, opening: int, healthy: int) -> bool:
        """Whether to begin now.

        Parameters
        ----------
        now : float
            s
        missing : int
            How many are neither healthy nor being opened.
        opening, healthy : int
        """
        at_a_time = AT_A_TIME if self.ever else 1
        if missing <= 0 or opening >= at_a_time or now < self._not_before:
            return False
        return now >= self._last_begun + self._between_s(healthy)

    def _between_s(self, healthy: int) -> float:
        between_s = self._spacing
        if not healthy and self._in_vain >= _SWIFT_TRIES:
            between_s = max(between_s, self.connect_s / AT_A_TIME)
        return min(between_s, _WIDEST_BETWEEN_S)

    def note_begun(self, now: float) -> None:
        """One is being opened."""
        self._last_begun = now
        self._in_vain += 1

    def note_opened(self, now: float, took_s: float) -> None:
        """One is open."""
        self._last_news = now
        self._took_s = took_s
        self._in_vain = 0
        self._failures = 0
        self._spacing = _BETWEEN_S
        self._not_before = float("-inf")

    def note_failed(self, now: float, began: float, passing: bool) -> bool:
        """One could not be opened; the less it helps, the longer it takes until the next.

        Parameters
        ----------
        now, began : float
            s
        passing : bool
            Whether the cause is one that goes away by itself.

        Returns
        -------
        bool
            Whether that was news: of those that were under way together the first tells.
        """
        if began < self._last_news:
            return False
        self._last_news = now
        self._failures += 1
        if passing:
            self._spacing = min(2 * self._spacing, _WIDEST_BETWEEN_S)
        else:
            pause = min(2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)
            self._not_before = now + pause
        return True

    def note_lost(self, now: float, opened_at: float) -> None:
        """One that had been open is lost; if they never last, there is a pause between them."""
        if now - opened_at > _SHORT_LIFE_S:
            self._short_lives = 0
            return
        if opened_at < self._last_loss:
            return
        self._last_loss = now
        self._short_lives += 1
        if self._short_lives > 1:
            pause = _BETWEEN_S * 2.0 ** min(self._short_lives, 10)
            self._not_before = now + min(pause, _LONGEST_PAUSE_AFTER_LOSS_S)
