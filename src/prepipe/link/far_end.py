"""The far end of a link: a process a connection, started by sshd, speaking on stdin and stdout.

One thread reads and writes chunks, one commits (which waits for the disk), one lists. Any of them
may answer. Nothing is kept that a kill would lose: what is acknowledged lies in the landing
directory, where the other processes of the same sender find it, too.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Queue
from types import FrameType
from typing import TypeGuard

from prepipe import __version__
from prepipe.errors import ConfigError, PacketError, StorageError
from prepipe.files import content_checksum
from prepipe.link.local import files_below, is_packet
from prepipe.link.partial import Landing, Partial
from prepipe.link.protocol import (
    CHUNK_BYTES,
    GREETING,
    TRIAL,
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
    Offer,
    Ping,
    Pong,
    ProtocolError,
    Refused,
    Welcome,
    chunk_count,
    frame,
    from_bitmap,
)
from prepipe.names import parse_name

__all__ = ["FarEnd", "serve"]

READ_BYTES = 1 << 20
OPEN_PARTIALS = 128
"""Each has two files open for writing."""
KNOWN_OFFERS = 4096
LOOKED_AT = 64
"""Of the known offers at a time, whether anything partial is left of them."""
JOBS = 64
"""That may wait for a thread; a chunk at most each."""
PAGE = 500
_LONGEST_NAME = 100
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

_Key = tuple[str, str, int, str]


class _Ended(BaseException):
    """A signal or the alarm clock ended the connection; nothing is to be waited for."""

    def __init__(self, code: int, sentence: str) -> None:
        self.code = code
        self.sentence = sentence


class FarEnd:
    """One connection of a sender.

    Parameters
    ----------
    landing : Path
    source, sink : int
        Descriptors that frames come from and go to.
    alive : callable
        Called whenever something has come.
    """

    def __init__(
        self, landing: Path, source: int, sink: int, alive: Callable[[], object] = lambda: None
    ) -> None:
        self._landing = Landing(landing)
        self._source = source
        self._sink = sink
        self._alive = alive
        self._lock = threading.Lock()
        self._hung_up = False
        self._partials: OrderedDict[_Key, Partial] = OrderedDict()
        self._offers: OrderedDict[int, Offer] = OrderedDict()
        self._over: OrderedDict[int, tuple[int, Message]] = OrderedDict()
        self._commits = _Worker("commits")
        self._lists = _Worker("lists")

    def run(self) -> int:
        """Serve until the near end is gone.

        Returns
        -------
        int
            Exit code: 0 if it hung up, 1 if it cannot be understood.
        """
        code = 0
        try:
            code = self._converse()
        except ConnectionError:
            pass
        except ProtocolError as error:
            code = 1
            complain(f"{error}; see that nothing but prepipe's link speaks here")
            with suppress(ConnectionError):
                self._say(Refused("protocol", str(error)))
        self._hung_up = True
        self._lists.finish()
        self._commits.finish()
        return code

    def _converse(self) -> int:
        self._send(GREETING)
        messages = self._messages()
        hello = next(messages, None)
        if hello is None:
            return 0
        if not isinstance(hello, Hello):
            raise ProtocolError(f"it began with {type(hello).__name__}, not with Hello")
        if hello.version != VERSION:
            return self._part(hello)
        self._say(
            Welcome(
                VERSION, __version__, os.uname().nodename, self._landing.free_bytes(), time.time()
            )
        )
        for message in messages:
            self._take(message)
        return 0

    def _messages(self) -> Iterator[Message]:
        frames = Frames()
        while data := self._read():
            self._alive()
            yield from frames.feed(data)

    def _read(self) -> bytes:
        try:
            return os.read(self._source, READ_BYTES)
        except OSError:
            return b""

    def _part(self, hello: Hello) -> int:
        """Tell an end of another version so."""
        text = (
            f"the near end (prepipe {str(hello.prepipe)[:40]!r}) speaks version {hello.version} of "
            f"the protocol, the far end (prepipe {__version__!r}) version {VERSION}: install the "
            "same prepipe at both ends"
        )
        complain(text)
        self._say(Refused("version", text))
        return 1

    def _take(self, message: Message) -> None:
        match message:
            case Chunk():
                self._take_chunk(message)
            case Offer():
                self._take_offer(message)
            case Ping():
                self._say(Pong(message.number))
                self._close_what_is_over()
            case ListFiles():
                self._lists.add(lambda: self._list(message.since))
            case _:
                raise ProtocolError(f"{type(message).__name__} is not for the far end")

    def _take_offer(self, offer: Offer) -> None:
        """Answer an offer at once, unless a file must be read for that."""
        if not self._remember(offer):
            return
        try:
            parse_name(offer.name[:_LONGEST_NAME])
        except PacketError as error:
            self._say(Refused("name", f"{error}; nothing was written", offer.id))
            return
        count = chunk_count(offer.size)
        if offer.place == TRIAL:
            return
        try:
            partial = self._partial_for(offer)
            bits = None if partial is None else partial.bits()
        except OSError as error:
            self._say(self._landing.refusal(offer, error))
            return
        if bits is not None:
            self._say(Has(offer.id, bits))
        if bits is None or len(from_bitmap(bits, count)) == count:
            self._commits.add(lambda: self._settle(offer, None))

    def _partial_for(self, offer: Offer) -> Partial | None:
        """The partial file of an offer, made if needed; None if the file may be there whole."""
        with suppress(FileNotFoundError):
            return self._opened(offer, create=False)
        if self._landing.may_have(offer):
            return None
        partial = self._opened(offer, create=True)
        # somebody may have committed it since
        return None if partial.is_new and self._landing.may_have(offer) else partial

    def _take_chunk(self, chunk: Chunk) -> None:
        """Write a chunk, or leave it to the thread that may wait."""
        offer = self._offers.get(chunk.id)
        if offer is None:
            self._say(self._answer_too_late(chunk))
            return
        _require_fit(chunk, offer)
        if offer.place == TRIAL:
            self._say(Acknowledged(chunk.id, chunk.index))
            return
        try:
            complete = self._write_at_once(offer, chunk)
        except OSError as error:
            self._say(self._landing.refusal(offer, error))
            return
        if complete is None:
            self._commits.add(lambda: self._settle(offer, chunk))
            return
        self._say(Acknowledged(chunk.id, chunk.index))
        if complete:
            self._commits.add(lambda: self._settle(offer, None))

    def _write_at_once(self, offer: Offer, chunk: Chunk) -> bool | None:
        """Whether the file is complete now; None if the chunk cannot be written without waiting."""
        try:
            partial = self._opened(offer, create=False)
        except FileNotFoundError:
            return None
        return partial.is_complete() if partial.write_at_once(chunk) else None

    def _answer_too_late(self, chunk: Chunk) -> Message:
        """What is said to a chunk of a file that is done with, or was never offered."""
        # the other thread forgets the oldest of them
        _, answer = self._over.get(chunk.id, (None, None))
        if answer is not None:
            return answer
        text = f"chunk {chunk.index} is of file {chunk.id}, which was not offered: offer it first"
        return Refused("protocol", text, chunk.id)

    def _settle(self, offer: Offer, chunk: Chunk | None) -> None:
        _, answer = self._over.get(offer.id, (None, None))
        if answer is not None:
            self._say(answer)
        else:
            self._say(*self._landing.settle(offer, chunk))

    def _opened(self, offer: Offer, *, create: bool) -> Partial:
        """An open partial file; the one that was not used for longest gives way to it."""
        key = offer.place, offer.name, offer.size, offer.checksum
        partial = self._partials.get(key)
        if partial is not None and not partial.is_linked():
            self._partials.pop(key).close()
            partial = None
        if partial is None:
            if len(self._partials) >= OPEN_PARTIALS:
                self._partials.popitem(last=False)[1].close()
            partial = self._partials[key] = self._landing.open(offer, create=create)
        self._partials.move_to_end(key)
        return partial

    def _close_what_is_over(self) -> None:
        """Hold no file that was committed, by whomever: a removed one would still fill the disk."""
        for key, partial in list(self._partials.items()):
            if not partial.is_linked():
                del self._partials[key]
                partial.close()

    def _remember(self, offer: Offer) -> bool:
        """Know an offer from now on; False if there are too many.

        A number stands for one file: a late answer would be taken for that of another.
        """
        known = self._offers.get(offer.id)
        over, _ = self._over.pop(offer.id, (None, None))
        if known not in (None, offer) or over not in (None, hash(offer)):
            raise ProtocolError(f"file {offer.id} was offered before, as another one")
        if len(self._offers) >= KNOWN_OFFERS:
            self._forget_what_others_committed()
        if len(self._offers) >= KNOWN_OFFERS and offer.id not in self._offers:
            text = f"{KNOWN_OFFERS} files are under way on this connection; finish some of them"
            self._say(Refused("protocol", text, offer.id))
            return False
        self._offers[offer.id] = offer
        return True

    def _forget_what_others_committed(self) -> None:
        """Forget old offers of which nothing partial is left, a few at a time: chunks wait."""
        before = len(self._offers)
        for looked_at, (number, offer) in enumerate(list(self._offers.items())):
            if looked_at >= LOOKED_AT and len(self._offers) < before:
                return
            try:
                self._landing.open(offer, create=False).close()
            except OSError:
                self._offers.pop(number, None)

    def _list(self, since: int) -> None:
        """Tell of all packets from an exposure on, page by page."""
        page: list[list[object]] = []
        for entry in self._packets(since):
            if self._hung_up:
                return
            page.append(entry)
            if len(page) == PAGE:
                self._say(Inventory(page, last=False))
                page = []
        self._say(Inventory(page, last=True))

    def _packets(self, since: int) -> Iterator[list[object]]:
        """Name, bytes and checksum of each packet; one that moves down meanwhile comes later."""
        for entry in files_below(self._landing.directory):
            if is_packet(entry.name) and parse_name(entry.name).number >= since:
                with suppress(OSError, StorageError):
                    path = Path(entry.path)
                    checksum = content_checksum(path)
                    # what is in an inventory is not offered again, which would remove them
                    self._landing.discard(entry.name, checksum)
                    yield [entry.name, path.stat().st_size, checksum]

    def _say(self, *messages: Message) -> None:
        for message in messages:
            if _is_final(message):
                self._forget(message)
        self._send(b"".join(frame(message) for message in messages))

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        with self._lock:
            while view:
                view = view[os.write(self._sink, view) :]

    def _forget(self, message: Committed | Refused) -> None:
        """Keep no more of a file than the answer to what may still come of it."""
        offer = None if message.id is None else self._offers.pop(message.id, None)
        if offer is not None:
            self._over[offer.id] = hash(offer), message
        while len(self._over) > KNOWN_OFFERS:
            self._over.popitem(last=False)


class _Worker:
    """One thread that does one job after the other."""

    def __init__(self, name: str) -> None:
        self._jobs: Queue[Callable[[], None] | None] = Queue(JOBS)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def add(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while too many are queued."""
        if not self._thread.is_alive():
            self._thread.start()
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait until all is done; a signal may end that."""
        if self._thread.is_alive():
            self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(0.1)

    def _work(self) -> None:
        # signals are for the main thread, which may be waiting in a system call
        signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, signal.SIGALRM})
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except ConnectionError:
                pass  # nobody listens any more; what is there is committed all the same
            except Exception as error:
                told = f"unexpected {type(error).__name__}: {error}"
                complain(f"{told}. This is a fault of prepipe itself; report it")
                os._exit(1)


def serve(landing: Path, idle_s: float) -> int:
    """Be the far end of a link on this process's stdin and stdout, until the near end is gone.

    Nothing but frames reaches the stdout that was; what is printed goes to stderr.

    Parameters
    ----------
    landing : Path
    idle_s : float
        The near end counts as gone after a silence of this time, s.

    Returns
    -------
    int
        Exit code: 0 if the near end hung up; 1 if it fell silent or cannot be understood; 128 and
        its number after a signal. Threads may still wait for the disk: end with ``os._exit``.

    Raises
    ------
    ConfigError
        If stdin is a terminal, or one of both is closed.
    """
    source, sink = _take_stdio()
    try:
        alive = _wind_clock(idle_s)
        alive()
        return FarEnd(landing, source, sink, alive).run()
    except _Ended as ended:
        complain(ended.sentence)
        return ended.code


def complain(sentence: str) -> None:
    """Say something to whoever reads stderr, if anybody does."""
    with suppress(OSError):
        os.write(2, f"prepipe receive: {sentence}\n".encode("utf-8", "backslashreplace"))


def _take_stdio() -> tuple[int, int]:
    if os.isatty(0):
        raise ConfigError(
            "prepipe receive is started by the telescope's end over ssh, and speaks no human "
            "language; to see whether the landing directory can be used, add --check"
        )
    try:
        os.fstat(0)
        sink = os.dup(1)
        os.dup2(2, 1)
    except OSError as error:
        raise ConfigError(
            "prepipe receive speaks on its stdin and stdout: leave them and stderr open"
        ) from error
    os.set_blocking(0, True)
    os.set_blocking(sink, True)
    return 0, sink


def _wind_clock(idle_s: float) -> Callable[[], object]:
    """Let signals and a silence of `idle_s` end this; gives what is called when all is well."""

    def end(number: int, _frame: FrameType | None) -> None:
        for each in (*_SIGNALS, signal.SIGALRM):
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGALRM:
            raise _Ended(1, f"nothing came for {idle_s:g} s, the near end is gone; goodbye")
        raise _Ended(128 + number, f"{signal.Signals(number).name}: goodbye; what came is kept")

    for each in (*_SIGNALS, signal.SIGALRM):
        signal.signal(each, end)
    return lambda: signal.setitimer(signal.ITIMER_REAL, idle_s)


def _is_final(message: Message) -> TypeGuard[Committed | Refused]:
    """Whether this is all that is said of a file until it is offered again."""
    return isinstance(message, Committed | Refused) and message.id is not None


def _require_fit(chunk: Chunk, offer: Offer) -> None:
    """Raise if a chunk does not lie within its file."""
    expected = min(CHUNK_BYTES, offer.size - chunk.index * CHUNK_BYTES)
    if len(chunk.data) != expected:
        raise ProtocolError(
            f"chunk {chunk.index} of {offer.name} has {len(chunk.data)} bytes, not {expected}"
        )
