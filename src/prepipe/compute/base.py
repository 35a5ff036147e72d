"""`Compute`: where work runs; a few methods wide, so that places can be swapped."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

__all__ = ["NOT_GRANTED", "UNBORN", "Compute", "Job"]

NOT_GRANTED = "no job is granted"
"""How a trouble begins that is a scheduler's refusal."""

UNBORN = "ended before its workers started"
"""What a trouble says of a job whose set-up failed."""

Order = TypeVar("Order")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Job:
    """A set of workers on one node.

    Parameters
    ----------
    id : str
        The batch system's; of local workers the process id of their owner.
    state : str
        ``"pending"``, ``"running"``, ``"ending"`` (takes no more work), or what the batch
        system says else.
    workers, busy : int
        Orders it can carry out at the same time, and those it has now.
    since : float
        When it was asked for, seconds since 1970.
    """

    id: str
    state: str
    workers: int
    busy: int
    since: float


class Compute(Protocol):
    """A set of persistent workers."""

    slots: int
    """How many orders are carried out at the same time, at most."""

    def submit(
        self, work: Callable[[Order], Outcome], order: Order, urgency: float = 0.0
    ) -> Future[Outcome]:
        """Carry out `work(order)` in a worker, the most urgent first.

        The future raises what `work` raised, `TransientError` if the worker died over it, or
        `PlaceLostError` if the place where it ran was lost.
        """
        ...

    def tend(self) -> str:
        """Keep what carries the workers going; to be called often, by the main thread.

        Returns
        -------
        str
            What keeps it from starting workers; empty if nothing does.
        """
        ...

    def jobs(self) -> tuple[Job, ...]:
        """Where workers are, or are expected."""
        ...

    def release(self) -> None:
        """Give back what is kept ready without work."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...
