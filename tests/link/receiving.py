"""Real processes of `prepipe receive`, spoken to over pipes as sshd would."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from prepipe.link.protocol import (
    CHUNK_BYTES,
    Chunk,
    Frames,
    Hello,
    Message,
    Offer,
    Welcome,
    chunk_count,
    frame,
)

NAME = "decam_00941420_25.packet"
PATIENCE_S = 60.0
COMMAND = [sys.executable, "-c", "from prepipe.cli import main; main()", "receive"]


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def offer(data: bytes, number: int = 1, name: str = NAME, place: str = "") -> Offer:
    return Offer(number, name, len(data), xxhash.xxh3_128_hexdigest(data), place)


def chunks(data: bytes, number: int = 1) -> list[Chunk]:
    return [
        Chunk.of(number, i, data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES])
        for i in range(chunk_count(len(data)))
    ]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def partials(directory: Path) -> list[str]:
    return [name for name in names(directory) if name.endswith(".part")]


def as_a_plain_user() -> tuple[str, ...]:
    """Words before a command that take root's privileges from it."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--")


HELLO = Hello(1)


class Receiving:
    """One process, greeted; `with` ends it."""

    def __init__(
        self,
        landing: Path,
        *options: str,
        hello: Message | None = HELLO,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, "--landing", str(landing), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._frames = Frames(greeting=True)
        self._answers: deque[Message] = deque()
        if hello is not None:
            self.send(hello)
            self.welcome = self.answer()
            if hello == Hello(1):
                assert isinstance(self.welcome, Welcome)

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def send(self, *messages: Message) -> None:
        self.write(b"".join(frame(message) for message in messages))

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def answer(self) -> Message:
        """The next answer; fails if none comes."""
        found = self.answer_or_end()
        assert found is not None, self.process.communicate()[1].decode()
        return found

    def answer_or_end(self) -> Message | None:
        """The next answer; None if the process hung up."""
        assert self.process.stdout is not None
        stream = self.process.stdout.fileno()
        until = time.monotonic() + PATIENCE_S
        while not self._answers:
            assert select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]
            data = os.read(stream, 1 << 20)
            if not data:
                return None
            self._answers.extend(self._frames.feed(data))
        return self._answers.popleft()

    def answers(self, count: int) -> list[Message]:
        return [self.answer() for _ in range(count)]

    def until(self, kind: type[Message]) -> Message:
        """The next answer of a kind; others are passed over."""
        while not isinstance(found := self.answer(), kind):
            pass
        return found

    def rest(self) -> list[Message]:
        """All answers up to the end of the process."""
        found = []
        while (message := self.answer_or_end()) is not None:
            found.append(message)
        return found

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> list[Message]:
        """End it as a power cut would; gives what it had answered."""
        self.process.kill()
        self.process.wait()
        return self.rest()

    def end(self) -> tuple[int, str]:
        """Exit code and what it said to people."""
        code = self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        return code, self.process.stderr.read().decode()

    def __enter__(self) -> Receiving:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
