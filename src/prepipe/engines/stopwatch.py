"""How long each step of a reduction takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Time of each step, s.

    Parameters
    ----------
    clock : callable
        Wall time unless told otherwise.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Add what passes inside to `step`."""
        begin = self._clock()
        try:
            yield
        finally:
            took = self._clock() - begin
            self.seconds[step] = self.seconds.get(step, 0.0) + took
