"""One ssh process with ``prepipe receive`` at its far end."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from socket import socket
from typing import IO, Any

from prepipe import __version__
from prepipe.errors import LinkError, PacketError, PrepipeError, StorageError
from prepipe.link.dealer import Dealer, Task
from prepipe.link.pacing import Pace
from prepipe.link.protocol import (
    CHUNK_BYTES,
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
from prepipe.link.sockets import begin_anew, sockets_of

__all__ = ["Connection"]

PING_S = 1.0
_READ_BYTES = 1 << 17
_GOODBYE_S = 2.0


class Connection:
    """A connection and its two threads: one writes, one reads.

    Parameters
    ----------
    command : sequence of str
        ssh with its options, the host, and what to run there.
    dealer : Dealer
    on_change : callable
        Called when it opens, revives or ends.

    Attributes
    ----------
    welcome : Welcome or None
        Once it is open.
    over : bool
        Whether it has ended, with `fault` telling why.
    stuck : bool
        Whether it has been silent for too long; it gets nothing to do until it is heard again.
    window : int
        So many chunks may be under way.
    """

    def __init__(
        self, command: Sequence[str], dealer: Dealer, on_change: Callable[[Connection], object]
    ) -> None:
        self._dealer = dealer
        self._on_change = on_change
        self._wake = threading.Event()
        self._inventory: Future[list[list[Any]]] = Future()
        self._pages: list[list[Any]] = []
        self._asked = False
        self._out: set[tuple[int, int]] = set()
        self._pinged: dict[int, float] = {}
        self._complaint = ""
        self.began = time.monotonic()
        self.opened_at = 0.0
        self.last_heard = self.began
        self.last_ping = 0.0
        self.welcome: Welcome | None = None
        self.fault = ""
        self.reason = ""
        self.over = False
        self.stuck = False
        self.window = 4
        self.rtt_s = 0.0
        self.acknowledged_bytes = 0
        self.pace = Pace()
        self.sockets: list[socket] = []
        self.congestion = ""
        self._begun_anew = 0.0
        # not a pipe: a connection kept open in the background would hold its other end
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env={**os.environ, "LC_ALL": "C"},
                # Ctrl-C stops the one who waits, not a packet under way
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise LinkError(f"ssh cannot be started: {error.strerror}") from error
        for work in (self._listen, self._talk):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    @property
    def is_open(self) -> bool:
        """Whether it can be given work."""
        return self.welcome is not None and not self.over and not self.stuck

    @property
    def in_flight(self) -> int:
        """Chunks sent and not acknowledged."""
        return len(self._out)

    @property
    def complaint(self) -> str:
        """What ssh wrote to its standard error."""
        return self._complaint

    def silent_s(self, now: float) -> float:
        """Seconds that an answer is overdue; 0 if none is awaited."""
        waits = bool(self._out) or bool(self._pinged) or self.welcome is None
        return now - self.last_heard if waits else 0.0

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def kill(self) -> None:
        """End it now, without waiting for it."""
        with suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Say goodbye: what is under way is finished by the far end as far as it has come."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed and not self._out:
            with suppress(OSError):
                stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GOODBYE_S)
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GOODBYE_S)

    def take_sockets(self) -> list[socket]:
        """Copies of its TCP sockets, taken when first asked for."""
        if not self.sockets:
            self.sockets = sockets_of(self._process.pid)
        return self.sockets

    def list_files(self) -> Future[list[list[Any]]]:
        """Ask for the inventory: name, bytes and checksum of each file."""
        self._inventory = Future()
        self._asked = True
        self.wake()
        return self._inventory

    def _listen(self) -> None:
        assert self._process.stdout is not None
        frames = Frames(greeting=True)
        descriptor = self._process.stdout.fileno()
        try:
            while data := os.read(descriptor, _READ_BYTES):
                for message in frames.feed(data):
                    self._hear()
                    self._take(message)
        except ProtocolError as error:
            self.fault = self.fault or str(error)
        except OSError as error:
            self.fault = self.fault or str(error.strerror)
        finally:
            self._end(frames.noise)

    def _hear(self) -> None:
        self.last_heard = time.monotonic()
        if self.stuck:
            self.stuck = False
            self._on_change(self)
            self.wake()

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
                self.fault, self.reason = message.text, message.reason
                self.kill()
            case Refused(id=int(file_id)):
                self._forget(file_id)
                self._dealer.refused(file_id, _error(message))
            case Pong(number=number):
                sent = self._pinged.pop(number, None)
                if sent is not None:
                    self.rtt_s = self.last_heard - sent
            case Inventory():
                self._note_page(message)
            case Welcome():
                self._note_welcome(message)
            case _:
                raise ProtocolError(f"the far side says {type(message).__name__}, which is ours")

    def _forget(self, file_id: int) -> None:
        for each in list(self._out):
            if each[0] == file_id:
                self._out.discard(each)
        self.wake()

    def _note_welcome(self, welcome: Welcome) -> None:
        if welcome.version != VERSION:
            self.reason = "version"
            raise ProtocolError(
                f"prepipe {welcome.prepipe} there speaks version {welcome.version} of the "
                f"protocol, {__version__} here speaks {VERSION}: install the same at both ends"
            )
        self.opened_at = self.last_heard
        self.welcome = welcome
        self._on_change(self)
        self.wake()

    def _note_page(self, page: Inventory) -> None:
        self._pages += page.files
        if page.last:
            pages, self._pages = self._pages, []
            if not self._inventory.done():
                self._inventory.set_result(pages)

    def _end(self, noise: bytes) -> None:
        self.kill()
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read(1 << 16).decode("utf-8", "replace")
        self._errors.close()
        self._complaint = said
        if self.welcome is None and not said.strip():
            # some shells complain to standard output
            self._complaint = noise.decode("utf-8", "replace")
        for copy in self.sockets:
            copy.close()
        self.over = True
        self._dealer.returned(self, gone=True)
        if not self._inventory.done():
            self._inventory.set_exception(LinkError("the connection broke; it is tried again"))
        self.wake()
        self._on_change(self)

    def _talk(self) -> None:
        """Write what there is to do, until the end."""
        try:
            self._write(frame(Hello(VERSION, __version__, platform.node())))
            while not self.over:
                self._wake.clear()
                if self.welcome is None or not self._work():
                    self._wake.wait(PING_S / 4)
        except (OSError, ValueError):
            # the reader notices the end, too, and tells of it
            self.kill()
        except PrepipeError as error:
            self.fault = str(error)
            self.kill()

    def _work(self) -> bool:
        """Do one thing; False if there was nothing to do."""
        now = time.monotonic()
        if now - self.last_ping >= PING_S and not self._pinged:
            self.last_ping = now
            number = time.monotonic_ns()
            self._pinged[number] = now
            self._write(frame(Ping(number)))
        if self._asked:
            self._asked = False
            self._write(frame(ListFiles()))
            return True
        if self.stuck or len(self._out) >= self.window:
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
        if self.congestion == "bbr" and (age_s > 8.0 or (age_s > 4.0 and not self._out)):
            self._begun_anew = now
            for each in self.sockets:
                begin_anew(each, self.congestion)

    def _send(self, task: Task) -> None:
        transfer = task.transfer
        if task.offer:
            self._write(frame(transfer.offer))
        if task.index is None:
            return
        expected = min(transfer.offer.size - task.index * CHUNK_BYTES, CHUNK_BYTES)
        try:
            data = transfer.chunk(task.index)
        except OSError:
            data = b""
        if len(data) != expected:
            if not transfer.over.is_set():
                shrank = StorageError(f"{transfer.path} was changed while it was sent")
                self._dealer.refused(transfer.offer.id, shrank)
            return
        self._out.add((transfer.offer.id, task.index))
        self._write(frame(Chunk.of(transfer.offer.id, task.index, data)))

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        for part in self.pace.parts(memoryview(data)):
            while part:
                part = part[os.write(descriptor, part) :]  # noqa: PLW2901


def _error(refusal: Refused) -> PrepipeError:
    """What a refusal means for the packet."""
    if refusal.reason == "full":
        full = StorageError(refusal.text)
        full.__cause__ = OSError(errno.ENOSPC, refusal.text)
        return full
    if refusal.reason == "name":
        return PacketError(refusal.text)
    if refusal.reason == "checksum":
        return StorageError(refusal.text)
    return LinkError(refusal.text)
