"""The far side is any host with an SSH server: the user's own OpenSSH ``sftp`` carries packets.

Nothing is installed or run there and no shell is involved. Packets share one
connection, so that only the first pays the handshake.
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from prepipe import config
from prepipe.errors import LinkError, PacketError, StorageError
from prepipe.files import PARTIAL_SUFFIX, storage_errors
from prepipe.link import openssh
from prepipe.link.advice import advice
from prepipe.link.base import ARCHIVE, REJECTED, Held, known_place
from prepipe.link.conversation import Conversation, quoted
from prepipe.link.local import is_packet
from prepipe.names import parse_name, safe_name

__all__ = ["SftpLink"]

_PERSIST_S = 120
_LISTING_S = 900.0
_SLOWEST = 10_000.0
"""bytes / s; a packet that crosses more slowly than this counts as stuck."""
_DEEPEST = 6
_LONGEST_SOCKET = 80
"""A Unix socket's path holds 104 characters, and ssh appends 17 while it makes one."""

_ENTRY = re.compile(r"([-dl])\S{9,}\s.*\s(\d+)\s+\w{3}\s+\d{1,2}\s+[\d:]{4,5}\s+(\S+)")
_DISK_FULL = re.compile(r"(write|close|fsync).*: Failure|No space|quota", re.IGNORECASE)
_MISSING = re.compile(r"No such file|not found", re.IGNORECASE)


class SftpLink:
    """Packets by ``sftp``; which keys and known hosts count is the user's ``~/.ssh``.

    Parameters
    ----------
    settings : config.Link

    Raises
    ------
    ConfigError
        If ``ssh`` and ``sftp`` are not installed.
    """

    concurrency = 4
    recognises = False

    def __init__(self, settings: config.Link) -> None:
        openssh.need_programs("sftp", "ssh")
        self._settings = settings
        self._where = openssh.where(settings)
        self._landing = _remote_path(settings.landing)
        self._control = Path(tempfile.mkdtemp(prefix="prepipe-"))
        self._lock = threading.Lock()
        self._made: set[str] = set()
        self._talking: set[Conversation] = set()
        self._talking_lock = threading.Lock()
        self._closed = False

    def send(
        self, packet: Path, urgency: int = 0, place: str = "", *, may_be_there: bool = False
    ) -> bool:
        """Put a packet into the landing directory; see `Link.send`.

        It arrives as ``.NAME.TOKEN.part`` and is renamed once it is whole and on disk. The
        token keeps apart what a killed sender left running. What lies there already is
        written anew, for its checksum cannot be asked.

        Raises
        ------
        PacketError
            If the file has no packet's name, or there is no such place.
        StorageError
            If the far side's disk is full, or the packet vanished here.
        LinkError
            If the far side cannot be reached or does not take the packet.
        """
        parse_name(packet.name)
        directory = str(PurePosixPath(self._landing) / known_place(place))
        with storage_errors(packet):
            size = packet.stat().st_size
        self._make(directory)
        partial = f".{packet.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
        enter = f"cd {quoted(directory)}"
        steps = [enter, f"put -f {packet.name} {partial}", f"ls -lna {partial}"]
        limit = self._settings.timeout_s + size / _SLOWEST
        with self._conversation(limit, packet.parent) as sftp:
            if _size_in(sftp.ask(steps)) == size:
                sftp.ask([f"rename {partial} {packet.name}"])
                if sftp.finish():
                    return False
            sftp.finish()
        self._made.discard(directory)
        if not sftp.disconnected:
            self._remove(enter, partial)
        raise self._error(sftp, f"{packet.name} was not sent")

    def prepare(self) -> None:
        """Nothing has to be got ready."""

    def inventory(self, since: int = 0) -> dict[str, Held]:
        """The packets there, without checksums; see `Link.inventory`.

        Raises
        ------
        LinkError
            If the far side cannot be asked.
        """
        found: dict[str, Held] = {}
        # upper directories first: a packet only ever moves downwards, and is not missed
        directories = ["."]
        for _ in range(_DEEPEST):
            if not directories:
                break
            below: list[str] = []
            for kind, size, path in self._list(directories):
                if kind == "d":
                    below += _directory(path)
                elif kind == "-" and is_packet(path.name):
                    found.setdefault(path.name, Held(size, ""))
            directories = below
        return found

    def close(self) -> None:
        """End what is under way, hang up, and remove the socket of the shared connection."""
        with self._talking_lock:
            self._closed = True
            for conversation in self._talking:
                conversation.abandon()
        self._hang_up()
        shutil.rmtree(self._control, ignore_errors=True)

    def _list(self, directories: Sequence[str]) -> list[tuple[str, int, PurePosixPath]]:
        """Kind, bytes and path of what is in `directories`; nothing if there is no landing."""
        steps = [
            f"cd {quoted(self._landing)}",
            *(f"ls -lna {quoted(name)}" for name in directories),
        ]
        with self._conversation(_LISTING_S) as sftp:
            lines = sftp.ask(steps)
            complete = sftp.finish()
        if not complete:
            if directories == ["."] and not sftp.disconnected and _MISSING.search(sftp.complaint):
                return []
            raise self._error(sftp, "the packets there cannot be listed")
        entries = (_ENTRY.fullmatch(line) for line in lines)
        return [(found[1], int(found[2]), PurePosixPath(found[3])) for found in entries if found]

    def _make(self, directory: str) -> None:
        """See that a directory is there; only a place below the landing directory is made.

        Made where its disk is not mounted, the landing directory would fill another disk.
        """
        with self._lock:
            if directory in self._made:
                return
            below = directory != str(PurePosixPath(self._landing))
            steps = [f"cd {quoted(self._landing)}"]
            if below:
                steps += [f"-mkdir {PurePosixPath(directory).name}"]
                steps += [f"cd {PurePosixPath(directory).name}"]
            with self._conversation(self._settings.timeout_s) as sftp:
                sftp.ask(steps)
                if not sftp.finish():
                    raise self._error(sftp, f"{directory} is not there, or cannot be entered")
            self._made.add(directory)

    def _remove(self, enter: str, partial: str) -> None:
        """Take back what was not sent whole: on a full disk it would be in the way."""
        with suppress(LinkError), self._conversation(self._settings.timeout_s) as sftp:
            sftp.ask([enter, f"-rm {partial}"])
            sftp.finish()

    @contextmanager
    def _conversation(
        self, limit_s: float, directory: Path | None = None
    ) -> Iterator[Conversation]:
        command = ["sftp", "-b", "-", *self._options(), "--", self._settings.host]
        with self._talking_lock:
            if self._closed:
                raise LinkError(f"{self._where}: the link was closed; start anew")
            conversation = Conversation(command, limit_s, directory)
            self._talking.add(conversation)
        try:
            with conversation:
                yield conversation
        finally:
            with self._talking_lock:
                self._talking.discard(conversation)

    def _options(self) -> list[str]:
        """Options of ssh."""
        patience_s = self._settings.timeout_s
        connect_s = min(patience_s, openssh.CONNECT_S)
        alive_s = max(1, round(patience_s / 3))
        options = openssh.base_options(self._settings, connect_s, alive_s, 3)
        socket = self._control / "s"
        if len(str(socket)) <= _LONGEST_SOCKET:
            options += [
                "-oControlMaster=auto",
                f"-oControlPath={socket}",
                f"-oControlPersist={_PERSIST_S}",
            ]
        return options

    def _hang_up(self) -> None:
        command = ["ssh", *self._options(), "-O", "exit", "--", self._settings.host]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=5, check=False)

    def _error(self, sftp: Conversation, what: str) -> LinkError | StorageError:
        if self._closed:
            return LinkError(f"{self._where}: {what}: the link was closed; start anew")
        if sftp.timed_out:
            # a dead connection must not keep the next packet waiting
            self._hang_up()
            return LinkError(
                f"{self._where}: {what}: no answer within {sftp.limit_s:.0f} s; "
                "see whether the network is up"
            )
        if not sftp.disconnected and _DISK_FULL.search(sftp.complaint):
            full = StorageError(
                f"{self._where}: {what}: the disk of {self._landing} is full or its quota used "
                "up; free some space there, then it goes on by itself"
            )
            full.__cause__ = OSError(errno.ENOSPC, sftp.complaint)
            return full
        return LinkError(f"{self._where}: {what}: {advice(sftp.complaint, self._where)}")


def _remote_path(landing: Path) -> str:
    """sftp begins in the home directory and knows no ``~``."""
    text = str(landing)
    return "." if text == "~" else text.removeprefix("~/")


def _size_in(lines: Sequence[str]) -> int | None:
    entries = [found for line in lines if (found := _ENTRY.fullmatch(line))]
    return int(entries[-1][2]) if entries else None


def _directory(path: PurePosixPath) -> list[str]:
    """The directory if it is to be looked into: none that is hidden, rejected or archived."""
    try:
        safe_name(path.name)
    except PacketError:
        return []
    return [] if str(path) in (REJECTED, ARCHIVE) else [str(path)]
