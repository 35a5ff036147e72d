"""What keeps everything from going on, and is waited for: link down, disk full."""

from __future__ import annotations

import errno
from collections.abc import Callable

from prepipe.errors import LinkError, StorageError

__all__ = ["LONGEST_WAIT_S", "Obstacle", "is_obstacle", "pause_after"]

LONGEST_WAIT_S = 60.0
_LONGEST_WAIT_FOR_LINK_S = 3.0
"""A line that is back is worth a question every few seconds: exposures wait for it."""

_NOT_THE_FILES_FAULT = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ENOTCONN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)


def is_obstacle(error: Exception) -> bool:
    """Whether an error is no fault of the CCD at hand, and would befall any other."""
    if isinstance(error, LinkError):
        return True
    if not isinstance(error, StorageError) or error.__cause__ is None:
        return False
    cause = error.__cause__
    # the other cause of a StorageError is the journal's database
    return not isinstance(cause, OSError) or cause.errno in _NOT_THE_FILES_FAULT


def pause_after(failures: int, first_s: float, longest_s: float = LONGEST_WAIT_S) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, up to the longest."""
    return float(min(first_s * 2.0 ** min(failures - 1, 30), longest_s))


class Obstacle:
    """Whether something is in the way, and when to try again.

    Parameters
    ----------
    first_s : float
        Wait after the first failure, s.
    clock : callable
        Seconds, never set back.

    Attributes
    ----------
    text : str
        What is in the way; empty if the way is free.
    failures : int
        Tries in vain.
    """

    def __init__(self, first_s: float, clock: Callable[[], float]) -> None:
        self.text = ""
        self.failures = 0
        self._first_s = first_s
        self._clock = clock
        self._retry_at = 0.0

    @property
    def wait_s(self) -> float:
        """How long it blocks yet, s."""
        return max(0.0, self._retry_at - self._clock()) if self.text else 0.0

    @property
    def blocks(self) -> bool:
        """Whether it is not yet time to try again."""
        return self.wait_s > 0.0

    def meet(self, error: Exception) -> bool:
        """Note that the way is blocked; True if that is news."""
        text = str(error)
        news = _remedy(text) != _remedy(self.text)
        if not self.blocks:
            # several that fail at the same moment count once
            self.failures += 1
            down = isinstance(error, LinkError)
            longest_s = _LONGEST_WAIT_FOR_LINK_S if down else LONGEST_WAIT_S
            self._retry_at = self._clock() + pause_after(self.failures, self._first_s, longest_s)
        self.text = text
        return news

    def clear(self) -> bool:
        """Note that the way is free; True if that is news."""
        news = bool(self.text)
        self.text = ""
        self.failures = 0
        return news


def _remedy(text: str) -> str:
    """The end of the sentence, which does not name the packet at hand."""
    return text.rpartition(": ")[2]
