"""Which chunk goes next, over which connection; pure bookkeeping, shared by all connections.

Chunks are dealt from one queue, the most urgent file first, so that a new exposure overtakes a
backlog between two chunks. A chunk stays dealt until it is acknowledged, or its connection is
lost or falls silent. Then it is in doubt: it may have arrived, and the far side is asked before
it is dealt again.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from prepipe.errors import PrepipeError, StorageError
from prepipe.link.outgoing import Noise, Outgoing
from prepipe.link.protocol import CHUNK_BYTES, TRIAL, Offer, chunk_count, from_bitmap

__all__ = ["Dealer", "Task", "Transfer"]

_ENOUGH_AT_THE_END = 4
_THE_END = 24
_NUDGE_S = 3.0
"""Whole by its acknowledgements, and not committed: asked after this, then ever more seldom."""
_DAMAGES = 5
"""A file that is damaged on its way to the disk there more often is given up."""


@dataclass(frozen=True)
class _Dealt:
    """Who has a chunk, and since when."""

    who: Hashable
    since: float
    again: bool = False


@dataclass(eq=False)
class Transfer:
    """A file on its way.

    Parameters
    ----------
    packet : Outgoing or Noise
    offer : Offer
    urgency : int
        The higher goes first; among equals the one that came first.
    added : float
        When, by the dealer's clock, s.

    Attributes
    ----------
    todo, dealt, in_doubt, there
        Each chunk is in one of them.
    over : Event
        Set when it is there for good, or never will be: `error` tells.
    already : bool
        Whether it had been there before.
    """

    packet: Outgoing | Noise
    offer: Offer
    urgency: int
    added: float
    over: threading.Event = field(default_factory=threading.Event)
    error: PrepipeError | None = None
    already: bool = False
    todo: deque[int] = field(default_factory=deque)
    dealt: dict[int, _Dealt] = field(default_factory=dict)
    there: dict[int, float] = field(default_factory=dict)
    """When each chunk was acknowledged."""
    in_doubt: deque[int] = field(default_factory=deque)
    """Those that may be there; a connection is to ask."""
    asker: Hashable | None = None
    """The connection that asks for those."""
    asked: dict[Hashable, float] = field(default_factory=dict)
    """When it was offered on each connection; the end of time once that was answered."""
    whole_since: float = math.inf
    nudge_at: float = math.inf
    nudge_pause: float = _NUDGE_S
    damages: int = 0

    @property
    def count(self) -> int:
        """Number of its chunks."""
        return chunk_count(self.offer.size)

    def bytes_of(self, index: int) -> int:
        """Bytes of a chunk; the last one may be shorter."""
        return min(CHUNK_BYTES, self.offer.size - index * CHUNK_BYTES)

    @property
    def bytes_left(self) -> int:
        """Bytes that are not acknowledged yet."""
        last = self.count - 1
        full = last - len(self.there) + (last in self.there)
        return full * CHUNK_BYTES + (0 if last in self.there else self.bytes_of(last))

    @property
    def rank(self) -> tuple[int, int]:
        """Place in the queue, the lowest first."""
        return -self.urgency, self.offer.id


@dataclass(frozen=True)
class Task:
    """What a connection does next.

    Parameters
    ----------
    transfer : Transfer
    index : int or None
        The chunk to send; None to only offer the file.
    offer : bool
        Whether the file has to be offered on this connection first.
    """

    transfer: Transfer
    index: int | None
    offer: bool


class Dealer:
    """The queue of chunks.

    Parameters
    ----------
    on_change : callable, optional
        Called when there may be something new to deal.
    clock : callable
        Seconds, never set back.

    Attributes
    ----------
    overdue_s : float
        A chunk kept for longer is dealt once more, to another connection, s.
    committed_at : float
        When a file was committed last, by the dealer's clock, s.
    """

    def __init__(
        self,
        on_change: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._queue: list[Transfer] = []
        self._transfers: dict[int, Transfer] = {}
        self._takers: set[Hashable] = set()
        self._numbers = 0
        self._noise = _noise()
        self._noise_until = -math.inf
        self.overdue_s = 2.0
        self.committed_at = -math.inf

    def add(
        self, packet: Outgoing, *, place: str = "", urgency: int = 0, ask_first: bool = False
    ) -> Transfer:
        """Put a file into the queue.

        Parameters
        ----------
        packet : Outgoing
        place : str
            As in `Offer`.
        urgency : int
            As in `Transfer`.
        ask_first : bool
            Whether the far side may have parts of it already.
        """
        with self._lock:
            self._numbers += 1
            offer = Offer(self._numbers, packet.path.name, packet.size, packet.checksum, place)
            transfer = Transfer(packet, offer, urgency, self._clock())
            (transfer.in_doubt if ask_first else transfer.todo).extend(range(transfer.count))
            self._transfers[offer.id] = transfer
            insort(self._queue, transfer, key=lambda each: each.rank)
            self._noise_until = -math.inf
        self._on_change()
        return transfer

    def make_noise(self, seconds: float) -> None:
        """Deal noise for so long, or until a file comes; it counts nowhere."""
        with self._lock:
            self._noise_until = max(self._noise_until, self._clock() + seconds)
        self._on_change()

    @property
    def makes_noise(self) -> bool:
        """Whether noise is dealt when nothing else is there."""
        return self._clock() < self._noise_until

    def remove(self, transfer: Transfer) -> None:
        """Forget a file."""
        with self._lock:
            self._drop(transfer.offer.id)

    def _drop(self, file_id: int) -> Transfer | None:
        transfer = self._transfers.pop(file_id, None)
        if transfer is not None:
            self._queue.remove(transfer)
        return transfer

    @property
    def bytes_left(self) -> int:
        """Bytes of all files that are not acknowledged yet."""
        with self._lock:
            return sum(transfer.bytes_left for transfer in self._queue)

    @property
    def is_empty(self) -> bool:
        """Whether no file is under way."""
        return not self._queue

    @property
    def has_chunks(self) -> bool:
        """Whether any chunk waits to be dealt."""
        with self._lock:
            return any(each.todo for each in self._queue)

    def take_part(self, who: Hashable) -> None:
        """A connection may be dealt to from now on, for the first time or again."""
        with self._lock:
            self._takers.add(who)
        self._on_change()

    def pause(self, who: Hashable) -> None:
        """A connection is silent: what it has not got acknowledged is for the others."""
        with self._lock:
            self._take_back(who)
        self._on_change()

    def retire(self, who: Hashable) -> None:
        """A connection gets no more, but what it has it will bring to an end."""
        with self._lock:
            self._takers.discard(who)

    def leave(self, who: Hashable) -> None:
        """A connection is lost for good, with all that it was told."""
        with self._lock:
            self._take_back(who)
            for transfer in self._queue:
                transfer.asked.pop(who, None)
        self._on_change()

    def _take_back(self, who: Hashable) -> None:
        self._takers.discard(who)
        for transfer in self._queue:
            mine = [index for index, dealt in transfer.dealt.items() if dealt.who == who]
            for index in mine:
                del transfer.dealt[index]
            # of what is thrown away there the far side knows nothing
            again = transfer.todo if transfer.offer.place == TRIAL else transfer.in_doubt
            again.extendleft(reversed(mine))
            if transfer.asker == who:
                transfer.asker = None
            if transfer.whole_since < math.inf:
                # it may be the one that was committing
                transfer.nudge_at = self._clock()

    def deal(self, who: Hashable, in_flight: int = 0) -> Task | None:
        """The next task of a connection; None if there is nothing for it to do.

        Parameters
        ----------
        who : hashable
            The connection.
        in_flight : int
            Chunks that it has under way. Near the end of the queue one that has several gets
            no more: another will have it there sooner.
        """
        with self._lock:
            if who not in self._takers:
                return None
            if in_flight >= _ENOUGH_AT_THE_END and self._is_nearly_done():
                return None
            if not self._queue:
                return self._next_noise(in_flight)
            # a backlog always has something fresh: what keeps a file from its end goes before
            return self._next_nudge(who) or self._next_chunk(who)

    def _is_nearly_done(self) -> bool:
        return sum(len(each.todo) + len(each.in_doubt) for each in self._queue) < _THE_END

    def _next_chunk(self, who: Hashable) -> Task | None:
        """A fresh one, but for overdue ones of files that are more urgent."""
        for transfer in self._queue:
            if transfer.in_doubt and self._may_ask(who, transfer):
                urgent = self._next_overdue(who, transfer.urgency)
                if urgent is None:
                    transfer.asker = who
                return urgent or self._asked(who, transfer)
            if transfer.todo:
                urgent = self._next_overdue(who, transfer.urgency)
                return urgent or self._dealt(who, transfer, transfer.todo.popleft())
        return self._next_overdue(who, -math.inf)

    def _may_ask(self, who: Hashable, transfer: Transfer) -> bool:
        """Nobody else asks, and no answer is on its way that is older than the question."""
        return transfer.asker is None and transfer.asked.get(who, math.inf) == math.inf

    def _asked(self, who: Hashable, transfer: Transfer) -> Task:
        transfer.asked[who] = self._clock()
        return Task(transfer, None, offer=True)

    def _next_nudge(self, who: Hashable) -> Task | None:
        now = self._clock()
        for transfer in self._queue:
            if transfer.nudge_at <= now:
                transfer.nudge_at = now + transfer.nudge_pause
                transfer.nudge_pause *= 2
                return self._asked(who, transfer)
        return None

    def _next_overdue(self, who: Hashable, urgency: float) -> Task | None:
        """One of a file that is more urgent than that."""
        before = self._clock() - self.overdue_s
        for transfer in self._queue:
            if transfer.urgency <= urgency:
                break
            for index, dealt in transfer.dealt.items():
                if dealt.since < before and dealt.who != who and not dealt.again:
                    return self._dealt(who, transfer, index, again=True)
        return None

    def _next_noise(self, in_flight: int) -> Task | None:
        """A chunk at a time, so that what is real waits for no more than that."""
        if in_flight or not self.makes_noise:
            return None
        return Task(self._noise, 0, offer=True)

    def _dealt(self, who: Hashable, transfer: Transfer, index: int, again: bool = False) -> Task:
        transfer.dealt[index] = _Dealt(who, self._clock(), again)
        is_news = who not in transfer.asked
        transfer.asked.setdefault(who, self._clock())
        return Task(transfer, index, is_news)

    def acknowledged(self, file_id: int, index: int) -> int:
        """Note that a chunk was written; returns the bytes that this brought forward."""
        with self._lock:
            transfer = self._transfers.get(file_id)
            if transfer is None or index in transfer.there or index >= transfer.count:
                return 0
            if index not in transfer.dealt:
                # late, of a connection that was silent
                (transfer.todo if index in transfer.todo else transfer.in_doubt).remove(index)
            self._note_there(transfer, index)
            return transfer.bytes_of(index)

    def _note_there(self, transfer: Transfer, index: int) -> None:
        now = self._clock()
        transfer.dealt.pop(index, None)
        transfer.there[index] = now
        if len(transfer.there) == transfer.count:
            transfer.whole_since = now
            transfer.nudge_at = now + transfer.nudge_pause
            if transfer.offer.place == TRIAL:
                # nobody commits what is thrown away
                self._drop(transfer.offer.id)
                transfer.over.set()

    def has(self, who: Hashable, file_id: int, bits: bytes) -> None:
        """Note what the far side has of a file.

        It must have what was acknowledged before it was asked; what is missing of that was
        damaged. What it says unasked is the truth as it is now.
        """
        with self._lock:
            transfer = self._transfers.get(file_id)
            if transfer is None:
                return
            told = from_bitmap(bits, transfer.count)
            asked = transfer.asked.get(who, math.inf)
            transfer.asked[who] = math.inf
            transfer.asker = None
            damaged = {i for i, at in transfer.there.items() if at < asked} - told
            for index in told - transfer.there.keys():
                self._note_there(transfer, index)
            self._renew_todo(transfer, damaged)
        if transfer.damages > _DAMAGES:
            text = "what arrives there is damaged on its disk, time and again; have it looked at"
            self._end(file_id, StorageError(f"{transfer.offer.name}: {text}"))
        self._on_change()

    def _renew_todo(self, transfer: Transfer, damaged: set[int]) -> None:
        for index in damaged:
            del transfer.there[index]
        if damaged:
            transfer.damages += 1
            transfer.whole_since = transfer.nudge_at = math.inf
        again = [*sorted(damaged), *transfer.in_doubt, *transfer.todo]
        transfer.todo = deque(index for index in again if index not in transfer.there)
        transfer.in_doubt.clear()

    def committed(self, file_id: int, already: bool = False) -> None:
        """Note that a file is there for good."""
        self.committed_at = self._clock()
        self._end(file_id, None, already)

    def refused(self, file_id: int, error: PrepipeError) -> None:
        """Note that a file is not taken, or cannot be sent."""
        self._end(file_id, error)

    def give_up(self, why: Callable[[Transfer], PrepipeError | None]) -> None:
        """Let files fail; what was acknowledged of them stays at the far side.

        Parameters
        ----------
        why : callable
            Tells of a transfer why it is vain to go on, by an error of its own; None if it is not.
        """
        with self._lock:
            transfers = list(self._queue)
        for transfer in transfers:
            if error := why(transfer):
                self._end(transfer.offer.id, error)

    def _end(self, file_id: int, error: PrepipeError | None, already: bool = False) -> None:
        with self._lock:
            transfer = self._drop(file_id)
            if transfer is not None:
                transfer.error = error
                transfer.already = already
                transfer.over.set()


def _noise() -> Transfer:
    """One chunk, sent again and again; its number is that of no file, so that nobody counts it."""
    offer = Offer(0, "noise_00000000_01.packet", CHUNK_BYTES, "0" * 32, TRIAL)
    return Transfer(Noise(), offer, urgency=0, added=0.0)
