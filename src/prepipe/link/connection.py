"""One ssh process with ``prepipe receive`` at its far end."""

from __future__ import annotations

import errno
import math
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import StrEnum
from socket import socket
from typing import Any

from prepipe import __version__
from prepipe.errors import LinkError, PacketError, PrepipeError, StorageError
from prepipe.link.advice import Ending, sentence
from prepipe.link.dealer import Dealer, Task
from prepipe.link.pacing import Pace
from prepipe.link.process import Process
from prepipe.link.protocol import (
    VERSION,
    Acknowledged,
    Chunk,
    Committed,
    Frames,
    Has,
    Hello,
    Inventory,
    ListFiles,
    Message,
    Ping,
    Pong,
    ProtocolError,
    Refused,
    Welcome,
    frame,
)
from prepipe.link.sockets import begin_anew, sockets_of, state_of

__all__ = ["Connection", "State", "our_fault"]

_PING_S = 1.0
_LOOK_S = 0.25
_MOST_FILES = 2_000_000
"""In an inventory: half a gigabyte of names."""
_BBR_LOOKS_S = 8.0
_BBR_AFTER_IDLE_S = 4.0


class State(StrEnum):
    """Of a connection, in the order of its life; a silent one may be heard again."""

    OPENING = "opening"
    OPEN = "open"
    SILENT = "silent"
    LEAVING = "leaving"
    OVER = "over"


class Connection:
    """A connection and its two threads: one writes, one reads.

    Parameters
    ----------
    command : sequence of str
        ssh with its options, the host, and what to run there.
    where : str
        The far side, as people write it.
    dealer : Dealer
    on_change : callable
        Called when `state` has changed.

    Attributes
    ----------
    state : State
    began, opened_at, last_heard, revived_at : float
        By the clock that is never set back, s; `opened_at` is 0 before.
    is_unwanted : bool
        Whether we ended it ourselves, for it was not needed.
    skew_s : float
        How far the far end's clock is ahead; 0 if it did not tell.
    ending : Ending
        Once it is over.
    window : int
        So many chunks may be under way.
    pace : Pace
    sockets : list of socket
        Copies of its TCP sockets, once taken.
    share : float
        What it was paced to, bytes / s; 0 before.
    congestion : str
        The congestion control that it was given.
    rtt_s, least_rtt_s : float
        Of pings; 0 before the first.
    acknowledged_bytes : int

    Raises
    ------
    LinkError
        If ssh, or a thread, cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        where: str,
        dealer: Dealer,
        on_change: Callable[[], object],
    ) -> None:
        self._where = where
        self._dealer = dealer
        self._on_change = on_change
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._greeted = threading.Event()
        self._inventory: Future[list[list[Any]]] | None = None
        self._files: list[list[Any]] = []
        self._asked: ListFiles | None = None
        self._out: set[tuple[int, int]] = set()
        self._ping: tuple[int, float] | None = None
        self._last_ping = 0.0
        self._begun_anew = 0.0
        self._fault = self._reason = ""
        self.state = State.OPENING
        self.began = self.last_heard = time.monotonic()
        self.opened_at = 0.0
        self.revived_at = float("-inf")
        self.welcome: Welcome | None = None
        self.is_unwanted = False
        self.skew_s = 0.0
        self.ending = Ending()
        self.window = 4
        self.pace = Pace()
        self.sockets: list[socket] = []
        self.share = 0.0
        self.congestion = ""
        self.rtt_s = self.least_rtt_s = 0.0
        self.acknowledged_bytes = 0
        self._process = Process(command)
        try:
            for work in (self._listen, self._talk):
                threading.Thread(target=work, name=work.__name__, daemon=True).start()
        except BaseException as error:
            self._process.kill()
            if isinstance(error, RuntimeError | MemoryError):
                raise LinkError(f"no thread can be started for a connection: {error}") from error
            raise

    @property
    def in_flight(self) -> int:
        """Chunks sent and not acknowledged."""
        return len(self._out)

    @property
    def is_forgetful(self) -> bool:
        """Whether idling and losses let it forget how much it may have under way."""
        # before it has a share, its kernel has not been asked
        return self.share > 0 and self.congestion != "bbr"

    @property
    def is_worn(self) -> bool:
        """Whether it has lost so many packets that it comes too slowly to its share."""
        if not self.is_forgetful or not self.sockets:
            return False
        state = state_of(self.sockets[0])
        if state is None or not state.retransmitted:
            return False
        return state.swift_bytes < self.share * state.least_rtt_s

    def silent_s(self) -> float:
        """Seconds that an answer is overdue; 0 if none is awaited."""
        waits = bool(self._out) or self._ping is not None
        return time.monotonic() - self.last_heard if waits else 0.0

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def give_up(self, fault: str) -> None:
        """End it for a reason that is ours, told in a sentence."""
        self._fault = self._fault or fault
        self._process.kill()

    def abandon(self) -> None:
        """End it now: it is not needed any more."""
        self.is_unwanted = True
        self._process.kill()

    def pause(self) -> None:
        """It is silent: what it has is for the others until it is heard again."""
        with self._lock:
            if self.state is not State.OPEN:
                return
            self.state = State.SILENT
            self._dealer.pause(self)
        self._on_change()

    def leave(self) -> None:
        """Take nothing new, finish what is under way, say goodbye."""
        self.is_unwanted = True
        with self._lock:
            if self.state is not State.OPEN:
                self._process.kill()
                return
            self.state = State.LEAVING
            self._dealer.retire(self)
        self.wake()
        self._on_change()

    def wait(self, until: float) -> bool:
        """Wait for its end, no longer than to a time; whether it has come."""
        return self._ended.wait(max(0.0, until - time.monotonic()))

    def take_sockets(self) -> list[socket]:
        """Copies of its TCP sockets, for as long as it lasts."""
        with self._lock:
            if not self.sockets and self.state is not State.OVER:
                self.sockets = sockets_of(self._process.id)
        return self.sockets

    def list_files(self, since: int = 0) -> Future[list[list[Any]]]:
        """Ask for the inventory from an exposure on; one at a time.

        Name, bytes and checksum of each file are told.
        A `ConnectionError` in place of an answer says that it broke meanwhile.
        """
        answer: Future[list[list[Any]]] = Future()
        with self._lock:
            if self.state is State.OVER:
                answer.set_exception(ConnectionError())
            else:
                self._files, self._inventory, self._asked = [], answer, ListFiles(since)
        self.wake()
        return answer

    def _listen(self) -> None:
        frames = Frames(greeting=True)
        try:
            while data := self._process.read():
                for message in frames.feed(data):
                    self._hear()
                    self._take(message)
        except LinkError as error:
            self.give_up(str(error))
        except Exception as error:
            self.give_up(our_fault(error))
        finally:
            self._end(frames.noise)

    def _hear(self) -> None:
        with self._lock:
            self.last_heard = time.monotonic()
            if self.state is not State.SILENT:
                return
            self.state = State.OPEN
            # the kernel has enough to do with what was lost: begun anew now, it would stand still
            self._begun_anew = self.revived_at = self.last_heard
            self._dealer.take_part(self)
        self._on_change()

    def _take(self, message: Message) -> None:
        match message:
            case Acknowledged(id=file_id, index=index):
                self._out.discard((file_id, index))
                self.acknowledged_bytes += self._dealer.acknowledged(file_id, index)
                self.wake()
            case Has(id=file_id, bits=bits):
                self._dealer.has(self, file_id, bits)
            case Committed(id=file_id, already=already):
                self._forget(file_id)
                self._dealer.committed(file_id, already)
            case Refused(id=None):
                self._reason = message.reason
                self.give_up(sentence(message.text))
            case Refused(id=int(file_id)):
                self._forget(file_id)
                self._dealer.refused(file_id, _error(message, self._where))
            case Pong(number=number):
                self._note_pong(number)
            case Inventory():
                self._note_page(message)
            case Welcome():
                self._note_welcome(message)
            case _:
                raise ProtocolError(f"the far end says {type(message).__name__}, which is ours")

    def _forget(self, file_id: int) -> None:
        """No more is under way of a file that is done with."""
        self._out -= {each for each in self._out.copy() if each[0] == file_id}
        self.wake()

    def _note_welcome(self, welcome: Welcome) -> None:
        if welcome.version != VERSION:
            self._reason = "version"
            raise ProtocolError(
                f"prepipe {sentence(str(welcome.prepipe))} there speaks version {welcome.version} "
                f"of the protocol, prepipe {__version__} here version {VERSION}: install the same "
                "at both ends"
            )
        with self._lock:
            if self.state is not State.OPENING:
                raise ProtocolError("the far end says Welcome twice")
            self.state = State.OPEN
            self.opened_at = self.last_heard
            self.welcome = welcome
            self.skew_s = welcome.time - time.time() if welcome.time else 0.0
            self._dealer.take_part(self)
        self._greeted.set()
        self.wake()
        self._on_change()

    def _note_pong(self, number: int) -> None:
        if self._ping is not None and self._ping[0] == number:
            self.rtt_s = self.last_heard - self._ping[1]
            self.least_rtt_s = min(self.least_rtt_s or math.inf, self.rtt_s)
            self._ping = None

    def _note_page(self, page: Inventory) -> None:
        answer = self._inventory
        if answer is None:
            return
        self._files += page.files
        if len(self._files) > _MOST_FILES:
            error = LinkError(f"the far end lists more than {_MOST_FILES:,} packets")
            self._answer(lambda: answer.set_exception(error))
            raise error
        if page.last:
            self._answer(lambda: answer.set_result(self._files))

    def _answer(self, give: Callable[[], object]) -> None:
        with self._lock:
            self._inventory = None
        give()

    def _end(self, noise: bytes) -> None:
        code = self._process.reap()
        with self._lock:
            self.ending = Ending(
                self._fault,
                self._reason,
                self._process.complaint,
                "" if self.opened_at else noise.decode("utf-8", "replace"),
                code,
            )
            self.state = State.OVER
            for copy in self.sockets:
                copy.close()
            self._dealer.leave(self)
            answer, self._inventory = self._inventory, None
        if answer is not None:
            answer.set_exception(ConnectionError())
        self._ended.set()
        self._greeted.set()
        self.wake()
        self._on_change()

    def _talk(self) -> None:
        """Write what there is to do, until the end."""
        try:
            self._write(frame(Hello(VERSION, __version__, platform.node())))
            self._greeted.wait()
            while self.state is not State.OVER and not self._may_go():
                self._wake.clear()
                if not self._work():
                    self._wake.wait(_PING_S if self._dealer.is_empty else _LOOK_S)
        except OSError:
            # the reader notices the end, too, and tells of it
            self._process.kill()
        except Exception as error:
            self.give_up(our_fault(error))
        finally:
            self._process.hang_up()

    def _may_go(self) -> bool:
        return self.state is State.LEAVING and not self._out

    def _work(self) -> bool:
        """Do one thing; False if there was nothing to do."""
        now = time.monotonic()
        if now - self._last_ping >= _PING_S and self._ping is None:
            number = time.monotonic_ns()
            self._last_ping, self._ping = now, (number, now)
            self._write(frame(Ping(number)))
        if self._asked is not None:
            question, self._asked = self._asked, None
            self._write(frame(question))
            return True
        if len(self._out) >= self.window:
            return False
        task = self._dealer.deal(self, len(self._out))
        if task is None:
            return False
        self._keep_going(now)
        self._send(task)
        return True

    def _keep_going(self, now: float) -> None:
        """Spare the connection BBR's pauses; see `begin_anew`."""
        age_s = now - self._begun_anew
        is_time = age_s > _BBR_LOOKS_S or (age_s > _BBR_AFTER_IDLE_S and not self._out)
        if self.congestion == "bbr" and is_time:
            self._begun_anew = now
            for each in self.sockets:
                begin_anew(each, self.congestion)

    def _send(self, task: Task) -> None:
        transfer = task.transfer
        file_id = transfer.offer.id
        if task.offer:
            self._write(frame(transfer.offer))
        if task.index is None:
            return
        try:
            data = transfer.packet.chunk(task.index)
        except StorageError as error:
            # closed, too, once it is over
            self._dealer.refused(file_id, error)
            return
        self._out.add((file_id, task.index))
        self._write(frame(Chunk.of(file_id, task.index, data)))

    def _write(self, data: bytes) -> None:
        for part in self.pace.parts(memoryview(data)):
            self._process.write(part)


def our_fault(error: Exception) -> str:
    """What is said of an error that should not be, in a sentence."""
    return f"unexpected {type(error).__name__}: {error}; this is a fault of prepipe, report it"


def _error(refusal: Refused, where: str) -> PrepipeError:
    """What a refusal means for the packet."""
    text = f"{where}: {sentence(refusal.text)}"
    if refusal.reason == "full":
        full = StorageError(text)
        full.__cause__ = OSError(errno.ENOSPC, text)
        return full
    if refusal.reason == "name":
        return PacketError(text)
    if refusal.reason in ("checksum", "file"):
        # without a cause: it befalls no other packet
        return StorageError(text)
    return LinkError(text)
