"""What the two ends of a link say to each other; docs/link.md tells it byte for byte.

Both directions are a stream of frames. The far end begins with `GREETING`, so that what a login
prints before it can be told apart; the near end answers with a `Hello`, the far end with a
`Welcome`. Nothing here reads or writes: bytes go in, messages come out.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import xxhash

from prepipe.errors import LinkError
from prepipe.link.base import PLACES

__all__ = [
    "CHUNK_BYTES",
    "GREETING",
    "MAX_FILE_BYTES",
    "TRIAL",
    "VERSION",
    "Acknowledged",
    "Chunk",
    "Committed",
    "Frames",
    "Has",
    "Hello",
    "Inventory",
    "ListFiles",
    "Message",
    "Offer",
    "Ping",
    "Pong",
    "ProtocolError",
    "Refused",
    "Welcome",
    "bitmap",
    "chunk_count",
    "frame",
    "from_bitmap",
]

VERSION = 1
GREETING = b"\x89prepipe receive\r\n\x1a\n"
"""As PNG's first bytes: not text, and broken by whatever takes it for text."""

CHUNK_BYTES = 256 * 1024
MAX_FILE_BYTES = 1 << 32
TRIAL = "trial"
"""Place of what is acknowledged and thrown away."""
MAX_BODY_BYTES = CHUNK_BYTES + 64

_HEADER = struct.Struct(">2sBBII")
_MAGIC = b"\xd7\x50"
_CHUNK = struct.Struct(">IIQ")
_PAIR = struct.Struct(">II")
_NUMBER = struct.Struct(">Q")
_CHECKSUM = re.compile(r"[0-9a-f]{32}")
_MAX_ID = (1 << 32) - 1
_LATEST = 1e15


class ProtocolError(LinkError):
    """What came is no frame of this protocol, or makes no sense."""


@dataclass(frozen=True)
class _Json:
    """A message whose body is one JSON object with the fields of the class."""

    KIND: ClassVar[int]

    def body(self) -> bytes:
        """The body of the frame."""
        return json.dumps(asdict(self), ensure_ascii=True).encode()

    @classmethod
    def parse(cls, body: bytes) -> Any:
        """Read a body; unknown fields are passed over, so that later versions may add some."""
        try:
            told = json.loads(body)
            names = cls.__dataclass_fields__
            message = cls(**{name: value for name, value in told.items() if name in names})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ProtocolError(f"{cls.__name__.lower()}: {error}") from error
        message._check()
        return message

    def _check(self) -> None:
        """Refuse what a sound sender would never say."""


def _require(sound: object, what: str) -> None:
    if not sound:
        raise ProtocolError(f"{what} makes no sense")


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


@dataclass(frozen=True)
class Hello(_Json):
    """The near end introduces itself.

    Parameters
    ----------
    version : int
        Of the protocol.
    prepipe : str
        Of the program, for people.
    host : str
        For people.
    """

    KIND: ClassVar[int] = 1
    version: int
    prepipe: str = ""
    host: str = ""

    def _check(self) -> None:
        _require(_is_count(self.version, 1 << 16), "version")


@dataclass(frozen=True)
class Offer(_Json):
    """A file that will come in chunks.

    Parameters
    ----------
    id : int
        By which this connection names it from now on.
    name : str
        A packet's name.
    size : int
        bytes
    checksum : str
        xxh3-128 of the whole file, hexadecimal.
    place : str
        Empty for the landing directory itself; ``archive`` for originals; ``trial`` for what is
        acknowledged and thrown away, to measure the link or to get it up to speed.
    """

    KIND: ClassVar[int] = 2
    id: int
    name: str
    size: int
    checksum: str
    place: str = ""

    def _check(self) -> None:
        _require(_is_count(self.id, _MAX_ID), "id")
        _require(isinstance(self.name, str), "name")
        _require(_is_count(self.size, MAX_FILE_BYTES) and self.size > 0, "size")
        _require(isinstance(self.checksum, str) and _CHECKSUM.fullmatch(self.checksum), "checksum")
        _require(self.place in (*PLACES, TRIAL), "place")


@dataclass(frozen=True)
class Chunk:
    """A part of an offered file.

    Parameters
    ----------
    id : int
    index : int
        It begins at `index` x `CHUNK_BYTES`.
    data : bytes
        `CHUNK_BYTES` of it; the last chunk may be shorter.
    checksum : int
        xxh3-64 of `data`.
    """

    KIND: ClassVar[int] = 3
    id: int
    index: int
    data: bytes = field(repr=False)
    checksum: int

    @classmethod
    def of(cls, file_id: int, index: int, data: bytes) -> Chunk:
        """A chunk with its checksum."""
        return cls(file_id, index, data, xxhash.xxh3_64_intdigest(data))

    def body(self) -> bytes:
        """The body of the frame."""
        return _CHUNK.pack(self.id, self.index, self.checksum) + self.data

    @classmethod
    def parse(cls, body: bytes) -> Chunk:
        """Read a body."""
        _require(len(body) > _CHUNK.size, "chunk")
        file_id, index, checksum = _CHUNK.unpack_from(body)
        data = body[_CHUNK.size :]
        _require(len(data) <= CHUNK_BYTES, "chunk")
        _require(xxhash.xxh3_64_intdigest(data) == checksum, "checksum of a chunk")
        return cls(file_id, index, data, checksum)


@dataclass(frozen=True)
class _Number:
    """A message whose body is one number."""

    KIND: ClassVar[int]
    number: int

    def body(self) -> bytes:
        """The body of the frame."""
        return _NUMBER.pack(self.number)

    @classmethod
    def parse(cls, body: bytes) -> Any:
        """Read a body."""
        _require(len(body) == _NUMBER.size, cls.__name__.lower())
        return cls(*_NUMBER.unpack(body))


class Ping(_Number):
    """Are you there? `number` comes back in the `Pong`."""

    KIND: ClassVar[int] = 4


@dataclass(frozen=True)
class ListFiles(_Json):
    """Asks for an `Inventory`.

    Parameters
    ----------
    since : int
        Exposures with lower numbers are left out: their packets need not be read.
    """

    KIND: ClassVar[int] = 5
    since: int = 0

    def _check(self) -> None:
        _require(_is_count(self.since, 1 << 62), "list")


@dataclass(frozen=True)
class Welcome(_Json):
    """The far end introduces itself.

    Parameters
    ----------
    version : int
        Of the protocol.
    prepipe : str
        Of the program.
    host : str
    free_bytes : int
        Of the landing directory's disk.
    time : float
        Its clock, s since 1970.
    """

    KIND: ClassVar[int] = 65
    version: int
    prepipe: str = ""
    host: str = ""
    free_bytes: int = 0
    time: float = 0.0

    def _check(self) -> None:
        _require(_is_count(self.version, 1 << 16), "version")
        _require(isinstance(self.prepipe, str) and isinstance(self.host, str), "welcome")
        _require(_is_count(self.free_bytes, 1 << 80), "free_bytes")
        _require(isinstance(self.time, int | float) and abs(self.time) < _LATEST, "time")


@dataclass(frozen=True)
class Has:
    """What the far end has of an offered file; the answer to each `Offer`.

    It comes unasked, too, when chunks that had been acknowledged turn out damaged.

    Parameters
    ----------
    id : int
    bits : bytes
        Bit `i` (of byte ``i // 8``, the lowest first) says that chunk `i` is there.
    """

    KIND: ClassVar[int] = 66
    id: int
    bits: bytes

    def body(self) -> bytes:
        """The body of the frame."""
        return self.id.to_bytes(4, "big") + self.bits

    @classmethod
    def parse(cls, body: bytes) -> Has:
        """Read a body."""
        _require(4 <= len(body) <= 4 + MAX_FILE_BYTES // CHUNK_BYTES // 8, "has")
        return cls(int.from_bytes(body[:4], "big"), body[4:])


@dataclass(frozen=True)
class Acknowledged:
    """A chunk was written."""

    KIND: ClassVar[int] = 67
    id: int
    index: int

    def body(self) -> bytes:
        """The body of the frame."""
        return _PAIR.pack(self.id, self.index)

    @classmethod
    def parse(cls, body: bytes) -> Acknowledged:
        """Read a body."""
        _require(len(body) == _PAIR.size, "acknowledgement")
        return cls(*_PAIR.unpack(body))


@dataclass(frozen=True)
class Committed:
    """A file is there, verified, on disk, under its own name.

    Parameters
    ----------
    id : int
    already : bool
        Whether it had been there before.
    """

    KIND: ClassVar[int] = 68
    id: int
    already: bool = False

    def body(self) -> bytes:
        """The body of the frame."""
        return _PAIR.pack(self.id, int(self.already))

    @classmethod
    def parse(cls, body: bytes) -> Committed:
        """Read a body."""
        _require(len(body) == _PAIR.size, "commitment")
        file_id, already = _PAIR.unpack(body)
        return cls(file_id, bool(already))


@dataclass(frozen=True)
class Refused(_Json):
    """The far end cannot take a file, or goes away.

    Parameters
    ----------
    reason : str
        ``name``, ``checksum`` (of the whole file: the sender's is wrong), ``full``, ``storage``,
        ``version`` or ``protocol``.
    text : str
        One sentence.
    id : int or None
        The file; None if the connection is given up.
    """

    KIND: ClassVar[int] = 69
    reason: str
    text: str
    id: int | None = None

    def _check(self) -> None:
        _require(self.id is None or _is_count(self.id, _MAX_ID), "id")
        _require(isinstance(self.reason, str) and isinstance(self.text, str), "refusal")


class Pong(_Number):
    """I am here."""

    KIND: ClassVar[int] = 70


@dataclass(frozen=True)
class Inventory(_Json):
    """A page of what the far end has.

    Parameters
    ----------
    files : list of [name, size, checksum]
        bytes; xxh3-128 of the file.
    last : bool
        Whether no page follows.
    """

    KIND: ClassVar[int] = 71
    files: list[list[Any]]
    last: bool

    def _check(self) -> None:
        _require(isinstance(self.files, list), "inventory")
        for entry in self.files:
            _require(isinstance(entry, list) and len(entry) == 3, "inventory")
            name, size, checksum = entry
            _require(isinstance(name, str) and isinstance(checksum, str), "inventory")
            _require(_is_count(size, 1 << 62), "inventory")


Message = (
    Hello
    | Offer
    | Chunk
    | Ping
    | ListFiles
    | Welcome
    | Has
    | Acknowledged
    | Committed
    | Refused
    | Pong
    | Inventory
)

_KINDS: dict[int, type[Message]] = {
    kind.KIND: kind
    for kind in (
        Hello,
        Offer,
        Chunk,
        Ping,
        ListFiles,
        Welcome,
        Has,
        Acknowledged,
        Committed,
        Refused,
        Pong,
        Inventory,
    )
}


def frame(message: Message) -> bytes:
    """A message as it crosses."""
    body = message.body()
    start = _HEADER.pack(_MAGIC, message.KIND, 0, len(body), 0)[:8]
    return start + xxhash.xxh32(start).intdigest().to_bytes(4, "big") + body


class Frames:
    """Bytes in, messages out; never holds more than one frame and what was fed last.

    Parameters
    ----------
    greeting : bool
        Whether everything up to and with `GREETING` is to be passed over.
    """

    NOISE_BYTES = 1 << 20
    """So much may be said before the greeting."""

    def __init__(self, greeting: bool = False) -> None:
        self._pending = bytearray()
        self._greeted = not greeting
        self._noise_bytes = 0
        self._noise = b""

    @property
    def noise(self) -> bytes:
        """The end of what was said before the greeting."""
        said = self._noise if self._greeted else self._noise + bytes(self._pending)
        return said[-2000:]

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take some bytes and give the messages that are complete.

        Raises
        ------
        ProtocolError
            If what comes is no frame. Nothing can be read after that.
        """
        self._pending += data
        if not self._greeted and not self._pass_over():
            return
        while len(self._pending) >= _HEADER.size:
            magic, kind, _, length, check = _HEADER.unpack_from(self._pending)
            if magic != _MAGIC or xxhash.xxh32(bytes(self._pending[:8])).intdigest() != check:
                raise ProtocolError("what comes is no frame; something else writes in between")
            if kind not in _KINDS or length > MAX_BODY_BYTES:
                raise ProtocolError(f"a frame of kind {kind} and {length} bytes is unknown here")
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            body = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield _KINDS[kind].parse(body)

    def _pass_over(self) -> bool:
        """Drop what comes before the greeting; True once that has come."""
        at = self._pending.find(GREETING)
        if at >= 0:
            self._noise = (self._noise + bytes(self._pending[:at]))[-2000:]
            del self._pending[: at + len(GREETING)]
            self._greeted = True
            return True
        drop = max(0, len(self._pending) - len(GREETING))
        self._noise = (self._noise + bytes(self._pending[:drop]))[-2000:]
        self._noise_bytes += drop
        del self._pending[:drop]
        if self._noise_bytes > self.NOISE_BYTES:
            raise ProtocolError("it talks without end, but prepipe does not answer")
        return False


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has."""
    return -(-size // CHUNK_BYTES)


def bitmap(present: set[int] | frozenset[int], count: int) -> bytes:
    """Indices of chunks as bits; see `Has`."""
    bits = bytearray(-(-count // 8))
    for index in present:
        bits[index // 8] |= 1 << (index % 8)
    return bytes(bits)


def from_bitmap(bits: bytes, count: int) -> set[int]:
    """Bits as indices of chunks; those beyond `count` are passed over."""
    return {i for i in range(min(count, 8 * len(bits))) if bits[i // 8] >> (i % 8) & 1}
