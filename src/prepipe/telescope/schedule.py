"""Which CCD is packed next and which packet is sent next, so that the line always has work.

Plain state without threads or files; only the thread that schedules uses it.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from prepipe import config
from prepipe.model import Stage
from prepipe.store import CcdKey, CcdRow
from prepipe.telescope.queue import together

__all__ = ["Schedule"]


class Schedule:
    """What waits, in the method's order, and how much of it may be under way.

    The newest exposure may take every place of the link; what is older begins only while less
    than half of them are taken, so that the next new exposure finds the others free. The same
    holds for packets made ahead: whatever the backlog, a bounded number of them lies on disk.

    Parameters
    ----------
    settings : config.Push
    places : int
        Packets that the link bears at the same time.
    packers : int
        CCDs packed at the same time.

    Attributes
    ----------
    packing, sending : dict
        CCDs under way; kept by whoever sets them going.
    """

    def __init__(self, settings: config.Push, places: int, packers: int) -> None:
        self.packing: dict[CcdKey, CcdRow] = {}
        self.sending: dict[CcdKey, CcdRow] = {}
        self._together = together(settings)
        self._places = places
        self._ahead = max(places, 2 * packers)
        self._newest_start = 0.0
        self._rank: dict[CcdKey, int] = {}
        self._unpacked: deque[CcdRow] = deque()
        self._packed: list[CcdRow] = []
        self._in_vain: set[CcdKey] = set()

    @property
    def front(self) -> CcdRow | None:
        """The packet that is sent next, though perhaps not yet."""
        return self._packed[0] if self._packed else None

    @property
    def wants_more(self) -> bool:
        """Whether the order is to be renewed before more can be packed: nothing is left of it."""
        return not self._unpacked

    @property
    def idle(self) -> bool:
        """Whether nothing waits here and nothing is under way."""
        return not (self._unpacked or self._packed or self.packing or self.sending)

    @property
    def to_pack(self) -> Iterable[CcdRow]:
        """What waits to be packed, or is being packed."""
        return *self._unpacked, *self.packing.values()

    @property
    def to_send(self) -> Iterable[CcdRow]:
        """What is packed and waits to be sent, or is being sent."""
        return *self._packed, *self.sending.values()

    def renew(self, order: Sequence[CcdRow], newest_start: float) -> None:
        """Take a new order of all that waits.

        Parameters
        ----------
        order : sequence of CcdRow
            What is under way may be among it.
        newest_start : float
            When the newest exposure of all began, seconds since 1970.
        """
        self._newest_start = newest_start
        self._rank = {row.key: place for place, row in enumerate(order)}
        free = [row for row in order if not self.is_under_way(row.key)]
        self._unpacked = deque(row for row in free if row.stage is not Stage.PACKED)
        self._packed = [row for row in free if row.stage is Stage.PACKED]

    def is_under_way(self, key: CcdKey) -> bool:
        """Whether a CCD is being packed or sent."""
        return key in self.packing or key in self.sending

    def is_busy_with(self, row: CcdRow) -> bool:
        """Whether something of a CCD's exposure is packed or under way."""
        number = row.key.camera, row.key.exposure
        return any((other.key.camera, other.key.exposure) == number for other in self._in_work())

    def put_back(self, row: CcdRow) -> None:
        """Let a CCD wait for its next step, at its place in the order."""
        waiting = self._packed if row.stage is Stage.PACKED else self._unpacked
        insort(waiting, row, key=self._place)

    def next_to_pack(self) -> CcdRow | None:
        """Take the next CCD to be packed, if there is room for its packet."""
        if not self._unpacked:
            return None
        limit = self._ahead if self._is_newest(self._unpacked[0]) else self._ahead // 2
        return self._unpacked.popleft() if self._made_ahead < limit else None

    def next_to_send(self) -> CcdRow | None:
        """Take the next packet, if it may begin now."""
        if not self._packed:
            return None
        place = self._place_to_send()
        row = self._packed[place]
        half = max(1, self._places // 2)
        limit = self._places if self._is_newest(row) else half
        if len(self.sending) >= limit or not self._is_its_turn(row):
            return None
        return self._packed.pop(place)

    def _place_to_send(self) -> int:
        """The first packet; after an obstacle the first that has not tried to get past it."""
        if self._in_vain:
            for place, row in enumerate(self._packed):
                if row.key not in self._in_vain and self._is_its_turn(row):
                    return place
            self._in_vain.clear()
        return 0

    def note_in_vain(self, row: CcdRow) -> None:
        """A packet met an obstacle, and may be that itself: another one goes ahead to see."""
        self._in_vain.add(row.key)

    def note_free(self) -> None:
        """Nothing is in the way of packets any more."""
        self._in_vain.clear()

    def in_the_way(self) -> CcdRow | None:
        """Take the last packet of all, if it keeps the newest exposure from being packed.

        Its CCD waits here to be packed again.
        """
        wanted = bool(self._unpacked) and self._is_newest(self._unpacked[0])
        if not (wanted and self._packed and self._made_ahead >= self._ahead):
            return None
        if self._is_newest(self._packed[-1]):
            return None
        row = self._packed.pop()
        self.put_back(replace(row, stage=Stage.FOUND))
        return row

    @property
    def _made_ahead(self) -> int:
        return len(self.packing) + len(self._packed)

    def _is_newest(self, row: CcdRow) -> bool:
        return row.exposure.start.timestamp() >= self._newest_start

    def _is_its_turn(self, row: CcdRow) -> bool:
        """Whether so few newer exposures are in work that this one may be, too."""
        if self._together is None:
            return True
        own = row.exposure.start, row.exposure.number
        others = ((other.exposure.start, other.exposure.number) for other in self._in_work())
        return len({other for other in others if other > own}) < self._together

    def _in_work(self) -> Iterable[CcdRow]:
        return *self.packing.values(), *self.sending.values(), *self._packed

    def _place(self, row: CcdRow) -> int:
        return self._rank.get(row.key, len(self._rank))
