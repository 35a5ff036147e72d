"""Which of several hosts that see the same raw files sends an exposure: claims in a directory.

A claim is a small file, ``NIGHT/decam_00941420.1.claim``, made so that only one can make it
(``O_EXCL``, on NFS too). Its owner changes its content again and again. Whoever has seen it
unchanged for long enough, by its own clock that is never set, makes the next generation,
``.2.claim``; again only one can. The highest generation counts, and every change of hands makes
one, so that nobody can take away what somebody else has just taken.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from prepipe import config
from prepipe.errors import StorageError
from prepipe.files import atomic_write, storage_errors
from prepipe.model import Exposure

__all__ = ["Alone", "Claims", "SharedClaims", "Standing", "host_name", "open_claims"]

_HELD, _FREE, _DONE, _LOST = "held", "free", "done", "lost"
_BEATS = 6
"""How often a claim is renewed in the time after which it may be taken over."""
_LONGEST = 200


@dataclass(frozen=True)
class Standing:
    """How a host stands to an exposure.

    Parameters
    ----------
    ours : bool
        Whether it is to send it.
    done : bool
        Not ours: whether another host has sent all of it.
    owner : str
        Who has it; of one that has just become ours, which other host had it before.
    inherited : bool
        Ours: whether somebody began it before, this host's earlier self included.
    """

    ours: bool
    done: bool = False
    owner: str = ""
    inherited: bool = False


class Claims(Protocol):
    """Who sends what; a context manager, within which claims are kept alive."""

    @property
    def look_again_s(self) -> float:
        """How long what others have may be left alone before it is looked at again, s."""
        ...

    def take(self, exposure: Exposure, *, again: bool = False) -> Standing:
        """Claim an exposure, or look whether the claim still stands.

        Parameters
        ----------
        exposure : Exposure
        again : bool
            Whether it is to be sent once more, though another host has done so.

        Raises
        ------
        StorageError
            If the directory of claims cannot be read or written.
        """
        ...

    def finish(self, exposure: Exposure) -> None:
        """Say that all of an exposure is sent, if it is ours."""
        ...

    def __enter__(self) -> Claims: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Alone:
    """The claims of a host that shares with nobody: everything is its own."""

    look_again_s = 0.0

    def take(self, exposure: Exposure, *, again: bool = False) -> Standing:
        """Every exposure is ours; see `Claims.take`."""
        return Standing(ours=True)

    def finish(self, exposure: Exposure) -> None:
        """Nobody needs to know."""

    def __enter__(self) -> Alone:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held."""


class _Record(NamedTuple):
    """What a claim's file says; `content` as it stands there."""

    state: str
    owner: str
    content: bytes


class _Sight(NamedTuple):
    """When a claim of somebody else was first seen as it is, and when it was last looked at."""

    generation: int
    content: bytes
    since: float
    last: float


class SharedClaims:
    """Claims in a directory that several hosts see.

    Parameters
    ----------
    directory : Path
        Made if missing.
    owner : str
        The name of this host's push, another one's never.
    takeover_s : float
        A claim that stays unchanged so long is taken over, s.
    clock : callable
        Seconds, never set back; need not agree with any other host's.
    """

    def __init__(
        self,
        directory: Path,
        owner: str,
        takeover_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._owner = owner
        self._takeover_s = takeover_s
        self._clock = clock
        self._ours: dict[Exposure, int] = {}
        self._seen: dict[Exposure, _Sight] = {}
        self._awaited: dict[Exposure, float] = {}
        self._beat = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> SharedClaims:
        self._closing.clear()
        self._heart = threading.Thread(target=self._keep_beating, name="claims", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let others have at once what is not done."""
        self._closing.set()
        self._heart.join()
        with self._lock:
            for exposure, generation in self._ours.items():
                with suppress(StorageError):
                    self._write_if_ours(exposure, generation, _FREE)
            self._ours.clear()

    @property
    def look_again_s(self) -> float:
        """See `Claims.look_again_s`."""
        return self._takeover_s / _BEATS

    def take(self, exposure: Exposure, *, again: bool = False) -> Standing:
        """Claim an exposure, or look whether the claim still stands; see `Claims.take`."""
        with self._lock, storage_errors(self._directory):
            generation = self._ours.get(exposure, 0)
            if generation and self._still_ours(exposure, generation):
                return Standing(ours=True, inherited=generation > 1)
            self._ours.pop(exposure, None)
            sight = self._seen.get(exposure)
            if sight and self._clock() - sight.last < self.look_again_s / 2:
                return Standing(ours=False)
            generation, record = self._newest(exposure)
            if record is None:
                return self._make(exposure, 1, "")
            if not self._may_follow(exposure, generation, record, again=again):
                if again and record.state == _HELD:
                    self._awaited[exposure] = self._clock()
                return Standing(ours=False, done=record.state == _DONE, owner=record.owner)
            before = "" if record.owner == self._owner else record.owner
            return self._make(exposure, generation + 1, before)

    def finish(self, exposure: Exposure) -> None:
        """Say that all of an exposure is sent, if it is ours; see `Claims.finish`."""
        with self._lock, storage_errors(self._directory):
            generation = self._ours.pop(exposure, None)
            if generation is not None:
                self._write_if_ours(exposure, generation, _DONE)

    def beat(self) -> None:
        """Renew every claim, and let go of those that somebody has taken over."""
        with self._lock:
            self._beat += 1
            for exposure, generation in list(self._ours.items()):
                # what cannot be renewed now may be later; others wait for long enough
                with suppress(OSError):
                    if not self._still_ours(exposure, generation):
                        del self._ours[exposure]
                        continue
                    self._write(self._path(exposure, generation), _HELD)

    def _keep_beating(self) -> None:
        while not self._closing.wait(self._takeover_s / _BEATS):
            self.beat()

    def _may_follow(
        self, exposure: Exposure, generation: int, record: _Record, *, again: bool
    ) -> bool:
        """Whether the next generation may be made after a claim that is there."""
        now = self._clock()
        if record.state == _DONE:
            self._seen.pop(exposure, None)
            # what another host was sending anew just now was sent anew for this one, too
            awaited = now - self._awaited.get(exposure, -self._takeover_s) < self._takeover_s
            return record.owner == self._owner or (again and not awaited)
        # held by this host, but not by this process: its earlier self, which is dead
        if record.state == _FREE or record.owner == self._owner:
            return True
        sight = self._seen.get(exposure)
        if sight is None or (sight.generation, sight.content) != (generation, record.content):
            self._seen[exposure] = _Sight(generation, record.content, now, now)
            return False
        self._seen[exposure] = sight._replace(last=now)
        return now - sight.since >= self._takeover_s

    def _make(self, exposure: Exposure, generation: int, before: str) -> Standing:
        path = self._path(exposure, generation)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
        except FileExistsError:
            # somebody was faster; whether it is done is seen the next time
            return Standing(ours=False)
        try:
            os.write(descriptor, self._content(_HELD))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if generation > 1:
            # its owner may be about to come back, and an NFS client is slow to see new names
            with suppress(OSError):
                self._write(self._path(exposure, generation - 1), _LOST)
        self._seen.pop(exposure, None)
        self._ours[exposure] = generation
        return Standing(ours=True, owner=before, inherited=generation > 1)

    def _newest(self, exposure: Exposure) -> tuple[int, _Record | None]:
        """The highest generation there is, and what it says; 0 if there is none."""
        generation, record = 0, None
        while (later := self._read(exposure, generation + 1)) is not None:
            generation, record = generation + 1, later
        return generation, record

    def _still_ours(self, exposure: Exposure, generation: int) -> bool:
        record = self._read(exposure, generation)
        if record is None or (record.state, record.owner) != (_HELD, self._owner):
            return False
        return not self._path(exposure, generation + 1).exists()

    def _write_if_ours(self, exposure: Exposure, generation: int, state: str) -> None:
        with storage_errors(self._directory):
            if self._still_ours(exposure, generation):
                self._write(self._path(exposure, generation), state)

    def _write(self, path: Path, state: str) -> None:
        # in place: a new file could bring a name back that its owner has lost
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, self._content(state), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _content(self, state: str) -> bytes:
        """Always as long, so that it can be written over itself."""
        return f"{state} {self._beat:012d} {self._owner}".encode().ljust(_LONGEST - 1) + b"\n"

    def _read(self, exposure: Exposure, generation: int) -> _Record | None:
        try:
            content = self._path(exposure, generation).read_bytes()
        except FileNotFoundError:
            return None
        words = content.decode("utf-8", "replace").split()
        # one that is cut, for its maker was killed, is like one that nobody renews
        state, owner = (words[0], words[2]) if len(words) == 3 else (_HELD, "")
        return _Record(state, owner, content)

    def _path(self, exposure: Exposure, generation: int) -> Path:
        name = f"{exposure.name}.{generation}.claim"
        return self._directory / exposure.night.ut_name / name


def open_claims(settings: config.Telescope) -> Claims:
    """The claims that a site has chosen.

    Raises
    ------
    StorageError
        If the name of this host's push cannot be read or written.
    """
    if settings.share is None:
        return Alone()
    return SharedClaims(settings.share, host_name(settings.work), settings.takeover_s)


def host_name(work: Path) -> str:
    """The name of the push that works in a directory, the same at every start.

    Raises
    ------
    StorageError
        If the directory cannot be read or written.
    """
    path = work / "share.name"
    with storage_errors(path):
        if path.exists() and (known := path.read_text().strip()):
            return known
    host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:60] or "host"
    name = f"{host}-{secrets.token_hex(4)}"
    with atomic_write(path) as stream:
        stream.write(f"{name}\n".encode())
    return name
