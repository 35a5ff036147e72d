"""Which chunk goes next, over which connection; pure bookkeeping, shared by all connections.

Chunks are dealt from one queue, the most urgent file first, so that a new exposure overtakes a
backlog between two chunks. A chunk stays dealt until it is acknowledged; when its connection
is lost, or keeps it for too long, it is dealt again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from prepipe.errors import LinkError, PrepipeError
from prepipe.link.protocol import CHUNK_BYTES, TRIAL, Offer, chunk_count, from_bitmap

__all__ = ["Dealer", "Task", "Transfer"]

_ENOUGH_AT_THE_END = 4
_THE_END = 24
_NUDGE_S = 3.0
"""Complete at the far side by its acknowledgements, and not committed: asked again after this."""


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
    offer : Offer
    path : Path
    descriptor : int
        Open for reading.
    urgency : int
        The higher goes first.
    order : int
        Among equals the lower goes first.
    ask_first : bool
        Whether the far side may have parts of it already, and is asked before any is sent.
    """

    offer: Offer
    path: Path
    descriptor: int
    urgency: int
    order: int
    ask_first: bool = False
    todo: deque[int] = field(default_factory=deque)
    dealt: dict[int, _Dealt] = field(default_factory=dict)
    there: set[int] = field(default_factory=set)
    offered: set[Hashable] = field(default_factory=set)
    answered: set[Hashable] = field(default_factory=set)
    complete_since: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)
    error: PrepipeError | None = None
    already: bool = False
    reading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.todo.extend(range(self.count))

    @property
    def count(self) -> int:
        """Number of its chunks."""
        return chunk_count(self.offer.size)

    @property
    def bytes_left(self) -> int:
        """Bytes that are not acknowledged yet, to a chunk."""
        return min(self.offer.size, (self.count - len(self.there)) * CHUNK_BYTES)

    def chunk(self, index: int) -> bytes:
        """The bytes of a chunk; short if the file shrank, none if it is closed."""
        with self.reading:
            if self.descriptor < 0:
                return b""
            return os.pread(self.descriptor, CHUNK_BYTES, index * CHUNK_BYTES)

    def close(self) -> None:
        """Close the file; nothing of it is read any more."""
        with self.reading:
            if self.descriptor >= 0:
                os.close(self.descriptor)
            self.descriptor = -1


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
    """

    def __init__(
        self,
        on_change: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._transfers: dict[int, Transfer] = {}
        self._numbers = 0
        self.overdue_s = 2.0
        """A chunk kept for longer is dealt once more, to another connection, s."""

    def add(
        self, path: Path, descriptor: int, offer: Offer, urgency: int, ask_first: bool
    ) -> Transfer:
        """Put a file into the queue; its offer gets an id here."""
        with self._lock:
            self._numbers += 1
            numbered = Offer(self._numbers, offer.name, offer.size, offer.checksum, offer.place)
            transfer = Transfer(numbered, path, descriptor, urgency, self._numbers, ask_first)
            self._transfers[self._numbers] = transfer
        self._on_change()
        return transfer

    def remove(self, transfer: Transfer) -> None:
        """Forget a file."""
        with self._lock:
            self._transfers.pop(transfer.offer.id, None)

    @property
    def bytes_left(self) -> int:
        """Bytes of all files that are not acknowledged yet."""
        with self._lock:
            return sum(transfer.bytes_left for transfer in self._transfers.values())

    @property
    def busy(self) -> bool:
        """Whether any chunk waits to be dealt."""
        with self._lock:
            return any(each.todo and not each.ask_first for each in self._transfers.values())

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
            if in_flight >= _ENOUGH_AT_THE_END and self._nearly_done():
                return None
            ordered = sorted(self._transfers.values(), key=lambda each: (-each.urgency, each.order))
            return (
                self._next_fresh(who, ordered)
                or self._next_nudge(who, ordered)
                or self._next_overdue(who, ordered)
            )

    def _nearly_done(self) -> bool:
        return sum(len(each.todo) for each in self._transfers.values()) < _THE_END

    def _next_fresh(self, who: Hashable, ordered: list[Transfer]) -> Task | None:
        for transfer in ordered:
            if transfer.ask_first:
                if not transfer.offered:
                    return self._offered(who, transfer, None)
            elif transfer.todo:
                return self._dealt(who, transfer, transfer.todo.popleft())
        return None

    def _next_nudge(self, who: Hashable, ordered: list[Transfer]) -> Task | None:
        for transfer in ordered:
            since = transfer.complete_since
            if since and self._clock() - since > _NUDGE_S and not transfer.over.is_set():
                transfer.complete_since = self._clock()
                transfer.offered.discard(who)
                transfer.answered.discard(who)
                return self._offered(who, transfer, None)
        return None

    def _next_overdue(self, who: Hashable, ordered: list[Transfer]) -> Task | None:
        before = self._clock() - self.overdue_s
        for transfer in ordered:
            for index, dealt in transfer.dealt.items():
                if dealt.since < before and dealt.who != who and not dealt.again:
                    return self._dealt(who, transfer, index, again=True)
        return None

    def _dealt(self, who: Hashable, transfer: Transfer, index: int, again: bool = False) -> Task:
        transfer.dealt[index] = _Dealt(who, self._clock(), again)
        return self._offered(who, transfer, index)

    def _offered(self, who: Hashable, transfer: Transfer, index: int | None) -> Task:
        news = who not in transfer.offered
        transfer.offered.add(who)
        return Task(transfer, index, news)

    def acknowledged(self, file_id: int, index: int) -> int:
        """Note that a chunk was written; returns the bytes that this brought forward."""
        with self._lock:
            transfer = self._transfers.get(file_id)
            if transfer is None or index in transfer.there or index >= transfer.count:
                return 0
            self._note_there(transfer, index)
            if index == transfer.count - 1:
                return transfer.offer.size - index * CHUNK_BYTES
            return CHUNK_BYTES

    def _note_there(self, transfer: Transfer, index: int) -> None:
        transfer.dealt.pop(index, None)
        transfer.there.add(index)
        if len(transfer.there) == transfer.count:
            transfer.complete_since = self._clock()
            if transfer.offer.place == TRIAL:
                # nobody commits what is thrown away
                self._transfers.pop(transfer.offer.id)
                transfer.over.set()

    def has(self, who: Hashable, file_id: int, bits: bytes) -> None:
        """Note what the far side has of a file."""
        with self._lock:
            transfer = self._transfers.get(file_id)
            if transfer is None:
                return
            there = from_bitmap(bits, transfer.count)
            damaged = transfer.there - there if who in transfer.answered else set()
            transfer.answered.add(who)
            transfer.ask_first = False
            for index in there - transfer.there:
                self._note_there(transfer, index)
            if damaged:
                transfer.there -= damaged
                transfer.complete_since = 0.0
            missing = transfer.todo if not damaged else sorted({*transfer.todo, *damaged})
            transfer.todo = deque(index for index in missing if index not in transfer.there)
        self._on_change()

    def committed(self, file_id: int, already: bool = False) -> None:
        """Note that a file is there for good."""
        self._end(file_id, None, already)

    def refused(self, file_id: int, error: PrepipeError) -> None:
        """Note that the far side does not take a file."""
        self._end(file_id, error)

    def give_up(self, error: LinkError) -> None:
        """Let every file fail; what was acknowledged stays at the far side."""
        with self._lock:
            numbers = list(self._transfers)
        for number in numbers:
            self._end(number, error)

    def _end(self, file_id: int, error: PrepipeError | None, already: bool = False) -> None:
        with self._lock:
            transfer = self._transfers.pop(file_id, None)
            if transfer is not None:
                transfer.error = error
                transfer.already = already
                transfer.over.set()

    def returned(self, who: Hashable, *, gone: bool) -> None:
        """Take back what a connection has and has not got acknowledged.

        Parameters
        ----------
        who : hashable
        gone : bool
            Whether it is lost for good, with all that it was told; else it only seems stuck.
        """
        with self._lock:
            for transfer in self._transfers.values():
                mine = [index for index, dealt in transfer.dealt.items() if dealt.who == who]
                for index in mine:
                    del transfer.dealt[index]
                transfer.todo.extendleft(reversed(mine))
                if gone or transfer.ask_first:
                    # another one is asked
                    transfer.offered.discard(who)
                    transfer.answered.discard(who)
        self._on_change()
