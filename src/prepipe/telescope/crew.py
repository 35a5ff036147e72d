"""Threads that do one kind of work, and what keeps them from it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from prepipe.store import CcdRow
from prepipe.telescope.obstacle import Obstacle

__all__ = ["Crew"]


class Crew:
    """Works on CCDs, each in a thread; a context manager, within which it works.

    After an obstacle one CCD goes ahead to see, and everything else waits.

    Parameters
    ----------
    name : str
        Of its threads.
    places : int
        CCDs at the same time.
    obstacle : Obstacle
        What is in its way.

    Attributes
    ----------
    under_way : dict
        The CCD that each piece of work is about.
    """

    def __init__(self, name: str, places: int, obstacle: Obstacle) -> None:
        self.obstacle = obstacle
        self.under_way: dict[Future[Any], CcdRow] = {}
        self._name = name
        self._places = places

    def __enter__(self) -> Crew:
        self._threads = ThreadPoolExecutor(self._places, self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()

    @property
    def has_room(self) -> bool:
        """Whether it may take another CCD."""
        if self.obstacle.blocks:
            return False
        return len(self.under_way) < (1 if self.obstacle.text else self._places)

    def begin(self, row: CcdRow, work: Callable[..., Any], *arguments: object) -> None:
        """Let a thread do some work on a CCD."""
        self.under_way[self._threads.submit(work, *arguments)] = row

    def finished(self) -> list[tuple[Future[Any], CcdRow]]:
        """Take what is done, well or not."""
        done = [future for future in self.under_way if future.done()]
        return [(future, self.under_way.pop(future)) for future in done]
