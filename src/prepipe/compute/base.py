"""`Compute`: where work runs; one method wide, so that places can be swapped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

__all__ = ["Compute"]

Order = TypeVar("Order")
Outcome = TypeVar("Outcome")


class Compute(Protocol):
    """A set of persistent workers."""

    slots: int
    """How many orders are carried out at the same time."""

    def submit(self, work: Callable[[Order], Outcome], order: Order) -> Future[Outcome]:
        """Carry out `work(order)` in a worker.

        The future raises what `work` raised, or `TransientError` if the worker died.
        """
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...
