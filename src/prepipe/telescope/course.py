"""When the method is asked what leaves in what order, and about what."""

from __future__ import annotations

from collections.abc import Callable

from prepipe import config
from prepipe.config import Method
from prepipe.model import Stage
from prepipe.store import CcdKey, CcdRow, Journal
from prepipe.telescope.far_side import FarSide
from prepipe.telescope.obstacle import LONGEST_WAIT_S
from prepipe.telescope.queue import in_order
from prepipe.telescope.schedule import Schedule

__all__ = ["Course"]

_HORIZON = 2048
"""CCDs of a long backlog that are put in order at a time."""


class Course:
    """Keeps a schedule supplied with what waits in the journal, in the method's order.

    Parameters
    ----------
    settings : config.Push
    journal : Journal
    far_side : FarSide
        Is asked by end-of-night, each time anew.
    schedule : Schedule
    pause_s : float
        Between two questions when nothing has changed, s.
    clock : callable
        Seconds, never set back.

    Attributes
    ----------
    beyond : int
        CCDs of a long backlog that were not put in order yet.
    """

    def __init__(
        self,
        settings: config.Push,
        journal: Journal,
        far_side: FarSide,
        schedule: Schedule,
        pause_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._far_side = far_side
        self._schedule = schedule
        self._pause_s = pause_s
        self._clock = clock
        self._asks_far_side = settings.method is Method.END_OF_NIGHT
        self._is_old = True
        self._answer: int | None = None
        self._nothing_left = False
        self._next_question = 0.0
        self._look_again = float("inf")
        self._not_before: dict[CcdKey, float] = {}
        self.beyond = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing waits that the method wants to leave."""
        return self._nothing_left and not self._is_old and self._answer is None

    def change(self, *, at_once: bool = True) -> None:
        """Ask anew, for something has changed that the order does not know of."""
        self._is_old = True
        if at_once:
            self._next_question = 0.0

    def leave_to_others(self, seconds: float) -> None:
        """Ask anew after some time, for others have what comes next; then of the whole backlog."""
        self._look_again = self._clock() + seconds
        if self._asks_far_side:
            self._next_question = self._look_again

    def let_rest(self, key: CcdKey, seconds: float) -> None:
        """Leave a CCD out for some time."""
        self._not_before[key] = self._clock() + seconds
        self._next_question = 0.0

    def rouse(self, key: CcdKey) -> None:
        """Leave a CCD out no longer."""
        self._not_before.pop(key, None)

    def keep(self) -> None:
        """Ask the method, if it is time.

        Raises
        ------
        StorageError
            If the journal cannot be read.
        """
        if self._answer is None and not self._is_due():
            return
        if self._asks_far_side:
            if self._answer is None:
                self._answer = self._far_side.want()
                self._is_old = False
            if self._far_side.answered < self._answer:
                return
        self._next_question = self._clock() + self._pause_s
        self._ask()
        self._answer = None

    def _is_due(self) -> bool:
        if self._clock() < self._next_question:
            return False
        wants_more = self._schedule.idle if self._asks_far_side else self._schedule.wants_more
        return self._is_old or wants_more or self._clock() >= self._look_again

    def _ask(self) -> None:
        waiting = self._waiting()
        ready = [row for row in waiting if not self._rests(row)]
        sent = self._journal.rows(Stage.SENT, whole=False) if self._asks_far_side else []
        self._look_again = float("inf")
        order = in_order(self._settings, ready, sent, self._far_side.held)
        self._schedule.renew(order, self._journal.newest_start())
        if self._answer is None:
            self._is_old = False
        self._nothing_left = self._schedule.idle and len(ready) == len(waiting)
        if self._asks_far_side and self._nothing_left and not self._is_old:
            # it is not asked again and again when it lacks nothing
            self._next_question = self._clock() + LONGEST_WAIT_S

    def _waiting(self) -> list[CcdRow]:
        """What waits; of a long backlog, only as much as is soon to be packed."""
        self.beyond = 0
        if self._settings.method not in (Method.BATCH, Method.SERIAL):
            return self._journal.rows(Stage.FOUND, Stage.PACKED)
        found = self._journal.rows(Stage.FOUND, limit=_HORIZON)
        others_have_some = self._look_again < float("inf")
        in_vain = others_have_some or all(self._is_occupied(row) for row in found)
        if len(found) == _HORIZON and in_vain:
            found = self._journal.rows(Stage.FOUND)
        elif len(found) == _HORIZON:
            self.beyond = self._journal.number_at(Stage.FOUND) - _HORIZON
        return found + self._journal.rows(Stage.PACKED)

    def _is_occupied(self, row: CcdRow) -> bool:
        return self._rests(row) or self._schedule.is_under_way(row.key)

    def _rests(self, row: CcdRow) -> bool:
        return self._not_before.get(row.key, 0.0) > self._clock()
