"""How fast a count has grown over the last seconds."""

from __future__ import annotations

from collections import deque

__all__ = ["Speed"]

_OVER_S = 5.0
_APART_S = 0.25


class Speed:
    """Remembers a count over the last 5 s."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        """The count at a time, s; noted a few times a second, however often it is told."""
        if self._noted and now - self._noted[-1][0] < _APART_S:
            return
        while self._noted and now - self._noted[0][0] > _OVER_S:
            self._noted.popleft()
        self._noted.append((now, count))

    @property
    def per_s(self) -> float:
        """So much a second; 0 before there is anything to tell."""
        # another thread may be noting
        noted = list(self._noted)
        if len(noted) < 2:
            return 0.0
        (began, before), (now, count) = noted[0], noted[-1]
        return (count - before) / (now - began)
